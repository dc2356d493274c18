"""What several machines must have in common to run a sweep, and the check that they do.

The code travels with Ray, see `sweeps.run.connection`. All else is reached by path or by network: the
tracking server, the folder of checkpoints and logs (`--storage`), data sets, generated data and captions. A
node that lacks one of them would fail, or quietly train without its checkpoint: it is named before any cell
starts.

A run belongs to the process of the sweep, wherever it trains. Ray ends its workers on every node when the
sweep's process is gone.
"""

import json
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from semidavil.config import Config
from sweeps.keep.storage import Storage
from sweeps.run.connection import ClusterError, Node, first_line, living_nodes
from sweeps.track.provenance import package_versions
from sweeps.track.retry import TrackingError, check_server

T = TypeVar("T")


@dataclass(frozen=True)
class Common:
    """What every node must reach as the sweep's own machine does."""

    tracking_uri: str
    database: Path | None  # the tracking store's SQLite file, if it is one
    storage: Storage  # where checkpoints and logs are kept
    data_roots: frozenset[str]  # of the cells, and the folders of data sets that users describe
    caches: frozenset[str]  # `runtime.cache_dir` of the cells

    @classmethod
    def of(
        cls, uri: str, database: Path | None, storage: Storage, configs: Sequence[Config]
    ) -> "Common":
        setups = [config.runtime for config in configs]
        roots = frozenset(setup.data_root for setup in setups if setup.data_root)
        for folders in {setup.folders for setup in setups if setup.folders}:
            roots |= frozenset(json.loads(folders).values())
        return cls(uri, database, storage, roots, frozenset(setup.cache_dir for setup in setups))


def require_common(common: Common, cpus: float, gpus: float) -> None:
    """Has every node that may get a trial of so many CPUs and GPUs look for what it needs. Ray must be up.

    Raises:
        ClusterError: a node lacks something, or holds other versions.
        StorageError: the sweep's own machine cannot write there.
    """
    nodes = [node for node in living_nodes() if node.slots(cpus, gpus)]
    require_server(common, {node.host for node in nodes})
    # New on a fresh checkout; nodes that share its file system see it as soon as it is there.
    for folder in map(Path, common.caches):
        folder.mkdir(parents=True, exist_ok=True)
    with common.storage.marked() as mark:
        look = ray.remote(num_cpus=0, max_retries=0)(lacks)
        answers: dict[Node, Any] = {}
        for node in nodes:  # all of them at the same time
            there = look.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)
            )
            answers[node] = there.remote(common, mark, package_versions())
        found = {f"{node.host}: {text}" for node, a in answers.items() for text in _result(a)}
    if found:
        raise ClusterError("\n  ".join(["the cluster is not ready:", *sorted(found)]))


def require_server(common: Common, hosts: set[str]) -> None:
    """Refuses an SQLite store that other machines are to log into, unless it is in the storage."""
    others = sorted(hosts - {socket.gethostname()})
    database = common.database
    if database is None or not others or database.is_relative_to(common.storage.uri):
        return
    raise ClusterError(
        f"{', '.join(others)} cannot log into {database}, an SQLite file of {socket.gethostname()}: "
        "run `mlflow server --host 0.0.0.0` and set MLFLOW_TRACKING_URI=http://HOST:5000. (Where all "
        "machines share a file system that SQLite may lock, put the file into --storage instead.)"
    )


def lacks(common: Common, mark: str, versions: Mapping[str, str]) -> list[str]:
    """What this machine lacks, in words; empty if it is ready. Runs on every node."""
    problems = [text] if (text := common.storage.lacks(mark)) else []
    for root in sorted(common.data_roots):
        if not Path(root).is_dir():
            problems.append(f"no data sets in {root} (--data-root)")
    for cache in sorted(common.caches):
        if not Path(cache).is_dir():
            problems.append(
                f"no folder {cache} for captions and generated data: name one that all machines "
                "share with --set runtime.cache_dir=DIR"
            )
    try:
        check_server(common.tracking_uri)
    except TrackingError as error:
        problems.append(
            f"{error}. Its name must be the one that other machines know it by, and it must listen "
            "to them (mlflow server --host 0.0.0.0)"
        )
    for package, version in package_versions().items():
        if _public(version) != _public(versions[package]):
            problems.append(f"{package} {version} instead of {versions[package]}")
    return problems


def _public(version: str) -> str:
    """Without the build: a node without GPUs has another build of the same PyTorch."""
    return version.partition("+")[0]


def run_on_cluster(work: Callable[[], T], cpus: float, gpus: float) -> T:
    """Does `work` once on whichever node has room; the sweep's own machine may have no GPU.

    Raises what `work` raises, or ClusterError if its node was lost.
    """
    answer = ray.remote(num_cpus=cpus, num_gpus=gpus)(lambda: work()).remote()
    try:
        return _result(answer)
    except KeyboardInterrupt:  # it gives back its GPU
        ray.cancel(answer, force=True)
        raise


def _result(answer: Any) -> Any:
    try:
        return ray.get(answer)
    except RayTaskError as error:
        raise error.cause from None
    except RayError as error:
        raise ClusterError(f"a node of the cluster was lost: {first_line(error)}") from error
