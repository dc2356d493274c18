"""Several machines: what they must have in common, and the check that they do.

Ray carries the code of the checkout that the command runs in to every node, so nodes need the same
packages but no checkout. All else is reached by path or by network: the tracking server, the folder
of checkpoints and logs (`--storage`), data sets, generated data and captions. A node that lacks one
of them would fail, or quietly train without its checkpoint: it is named before any cell starts.

A run belongs to the process of the sweep, wherever it trains: Ray restarts what a lost node was at,
and ends its workers on every node when the sweep's process is gone.
"""

import logging
import os
import socket
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from semidavil.config import Config
from sweeps import QUIET_ENVIRONMENT
from sweeps.provenance import package_versions
from sweeps.server import PATIENCE, TrackingError, check_server
from sweeps.storage import Storage

PACKAGES = ("semidavil", "sweeps")  # whose code travels


class ClusterError(RuntimeError):
    """The cluster cannot run the sweep; the message says which machine lacks what."""


@dataclass(frozen=True)
class Node:
    """One machine's share of a cluster."""

    host: str
    cpus: float
    gpus: float
    id: str = ""  # Ray's

    def slots(self, cpus: float, gpus: float) -> int:
        """How many trials with so much each it has room for."""
        rooms = [int(self.cpus / cpus + 1e-9)] if cpus else []
        rooms += [int(self.gpus / gpus + 1e-9)] if gpus else []
        return min(rooms)


@dataclass(frozen=True)
class Common:
    """What every node must reach as the sweep's own machine does.

    Attributes:
        database: the SQLite file of the tracking store, if it is one.
        storage: where checkpoints and logs are kept.
        data_roots, caches: `runtime.data_root` and `runtime.cache_dir` of the cells.
    """

    tracking_uri: str
    database: Path | None
    storage: Storage
    data_roots: frozenset[str]
    caches: frozenset[str]

    @classmethod
    def of(
        cls, uri: str, database: Path | None, storage: Storage, configs: Sequence[Config]
    ) -> "Common":
        setups = [config.runtime for config in configs]
        roots = frozenset(setup.data_root for setup in setups if setup.data_root)
        return cls(uri, database, storage, roots, frozenset(setup.cache_dir for setup in setups))


@contextmanager
def connected(address: str | None, **options: Any) -> Iterator[None]:
    """Ray at `address`, or started on this machine with `options`, and quiet.

    Raises:
        ClusterError: no cluster answers there.
    """
    if address and address.startswith("ray://"):
        raise ClusterError(
            f"--address {address}: the sweep must run on a machine of the cluster; log in to one "
            "and use --address auto"
        )
    try:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                ray.init(
                    address or "local", log_to_driver=False, logging_level=logging.ERROR, **options
                )
        except ConnectionError as error:
            raise ClusterError(
                f"no Ray cluster lets this command in at {address}: start one with `ray start`, and "
                "give this command the RAY_AUTH_TOKEN of its nodes"
            ) from error
        yield
    finally:
        ray.shutdown()


def find_nodes(address: str) -> list[Node]:
    """The nodes of a running cluster that are alive."""
    with connected(address):
        return _nodes()


def _nodes() -> list[Node]:
    return [
        Node(
            host=node["NodeManagerHostname"],
            cpus=node["Resources"].get("CPU", 0.0),
            gpus=node["Resources"].get("GPU", 0.0),
            id=node["NodeID"],
        )
        for node in ray.nodes()
        if node["Alive"]
    ]


def runtime_env(train: str) -> dict[str, Any]:
    """Carries this checkout's packages, and the training function's own, to the workers.

    Packages rather than the checkout as a working directory: data, runs, checkpoints and figures lie
    beside them and stay behind. The name of a package is its content's: workers of another commit on
    the same cluster are not disturbed.
    """
    own = train.partition(":")[0].partition(".")[0]
    return {
        "py_modules": [_source(name) for name in dict.fromkeys([*PACKAGES, own])],
        "excludes": ["**/__pycache__"],
        "env_vars": _environment(),
    }


def _environment() -> dict[str, str]:
    """For workers on other machines; no passwords, which Ray would show in its dashboard."""
    names = [*QUIET_ENVIRONMENT, PATIENCE]
    return {name: os.environ[name] for name in names if name in os.environ}


def _source(package: str) -> str:
    found = find_spec(package)
    if found is None or found.origin is None:
        raise ClusterError(f"the training function's module {package} cannot be imported")
    return str(Path(found.origin).parent if found.submodule_search_locations else found.origin)


def require_common(common: Common, cpus: float, gpus: float) -> None:
    """Has every node that may get a trial of so many CPUs and GPUs look for what it needs.

    Ray must be connected.

    Raises:
        ClusterError: a node lacks something, or holds other versions.
    """
    nodes = [node for node in _nodes() if node.slots(cpus, gpus)]
    require_server(common, {node.host for node in nodes})
    # New on a fresh checkout; nodes that share its file system see it as soon as it is there.
    for folder in map(Path, common.caches):
        folder.mkdir(parents=True, exist_ok=True)
    with common.storage.marked() as mark:
        look = ray.remote(num_cpus=0, max_retries=0)(lacks)
        answers = [
            look.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)
            ).remote(common, mark, package_versions())
            for node in nodes
        ]
        found = [
            f"{node.host}: {text}"
            for node, answer in zip(nodes, answers, strict=True)
            for text in _result(answer)
        ]
    if found:
        raise ClusterError("the cluster is not ready:\n  " + "\n  ".join(sorted(set(found))))


def require_server(common: Common, hosts: set[str]) -> None:
    """Refuses an SQLite store that other machines are to log into, unless it is in the storage."""
    others = sorted(hosts - {socket.gethostname()})
    database = common.database
    if database is None or not others or database.is_relative_to(common.storage.place):
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
    for package, here in package_versions().items():
        if _public(here) != _public(versions[package]):
            problems.append(f"{package} {here} instead of {versions[package]}")
    return problems


def _public(version: str) -> str:
    """Without the build: a node without GPUs has another build of the same PyTorch."""
    return version.partition("+")[0]


def run_on_cluster(work: Callable[[], None], cpus: float, gpus: float) -> None:
    """Does `work` once on whichever node has room; the sweep's own machine may have no GPU.

    Raises:
        whatever `work` raises; ClusterError: its node was lost.
    """
    _result(ray.remote(num_cpus=cpus, num_gpus=gpus)(work).remote())


def _result(answer: Any) -> Any:
    try:
        return ray.get(answer)
    except RayTaskError as error:
        raise error.cause from None
    except RayError as error:
        raise ClusterError(f"a node of the cluster was lost: {error}") from error
