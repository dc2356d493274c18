"""Ray, started on this machine or joined as a cluster; it runs the code that this process has imported.

Ray carries the code of these packages to every node of a cluster, so nodes need the same dependencies but no
checkout.
"""

import logging
import os
import signal
import socket
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import ray

from sweeps import QUIET_ENVIRONMENT
from sweeps.run.signals import deaf_processes, killed_when_asked, stopping_signals
from sweeps.stopping import Stopped
from sweeps.track.credentials import redact
from sweeps.track.retry import PATIENCE

PACKAGES = ("semidavil", "sweeps")  # whose code travels
JOIN_SECONDS = 20.0  # for a cluster to let this process in; Ray itself would try for two minutes
PYTHONPATH = "PYTHONPATH"

logger = logging.getLogger(__name__)


class ClusterError(RuntimeError):
    """Ray cannot run the sweep; the message says which machine lacks what."""


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
        if 0 < gpus < 1:
            rooms.append(int(self.gpus) * trials_per_gpu(gpus))
        elif gpus:
            rooms.append(int(self.gpus / gpus + 1e-9))
        return min(rooms)


def trials_per_gpu(share: float) -> int:
    """How many trials with less than a GPU fit on one; none gets parts of two."""
    return int(1 / share + 1e-9)


@contextmanager
def local_ray(**options: Any) -> Iterator[None]:
    """Ray, started on this machine with `ray.init`'s options and ended with all its processes.

    Raises:
        ClusterError: it does not start.
        Stopped, KeyboardInterrupt: a signal came while it started.
    """
    put_code_first()
    with _ray(_source("sweeps").parent, _why_not_started, address="local", **options):
        yield


@contextmanager
def joined_cluster(address: str, train: str) -> Iterator[None]:
    """The running cluster at `address`, with the code of this process's packages and of `train`'s module.

    Raises as `local_ray`.
    """
    code = runtime_env(train)

    def why_not(error: Exception) -> str:
        return _why_not_joined(address, first_line(error))

    # Nodes have no checkout: what they run is what they were sent.
    with (
        tempfile.TemporaryDirectory() as nowhere,
        _ray(nowhere, why_not, address=address, runtime_env=code),
    ):
        yield


@contextmanager
def _ray(folder: Path | str, why_not: Callable[[Exception], str], **options: Any) -> Iterator[None]:
    """Ray; a signal that comes meanwhile waits until it has started or ended."""
    with stopping_signals() as signals, deaf_processes() as processes:
        try:
            _init(folder, **options)
        except SystemExit:  # Ray's handler of SIGTERM, in a thread that does not have it blocked
            ray.shutdown()
            raise Stopped(signal.SIGTERM) from None
        except Exception as error:
            ray.shutdown()
            raise ClusterError(why_not(error)) from error
        signals.install()  # Ray has set a handler of its own
    try:
        signals.raise_first()
        yield
    finally:
        with stopping_signals(), killed_when_asked(processes):
            ray.shutdown()


def find_nodes(address: str) -> list[Node]:
    """The living nodes of a cluster; raises ClusterError if none answers within `JOIN_SECONDS`."""
    if address.startswith("ray://"):
        raise ClusterError(
            f"--address {address}: the sweep must run on a machine of the cluster; log in to one "
            "and use --address auto"
        )
    logger.warning("joining the Ray cluster at %s", address)
    _require_listener(address)
    failed: list[BaseException] = []

    def join() -> None:
        try:
            _init(_source("sweeps").parent, address=address)
        except BaseException as error:
            failed.append(error)

    # Ray cannot be told how long to try. A thread that still tries does not keep the process from ending.
    attempt = threading.Thread(target=join, daemon=True)
    attempt.start()
    attempt.join(JOIN_SECONDS)
    if attempt.is_alive():
        raise ClusterError(_why_not_joined(address, f"no answer for {JOIN_SECONDS:.0f} s"))
    if failed:
        raise ClusterError(_why_not_joined(address, first_line(failed[0]))) from failed[0]
    try:
        return living_nodes()
    finally:
        ray.shutdown()


def _init(folder: Path | str, **options: Any) -> None:
    # Workers look for code first in the folder in which Ray was started, which may be another checkout.
    with chdir(folder), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)


def _require_listener(address: str) -> None:
    """Asks the network before Ray, which prints and tries on for minutes; `auto` is Ray's to find."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=JOIN_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ClusterError(_why_not_joined(address, str(error))) from error


def _why_not_joined(address: str, reason: str) -> str:
    return (
        f"no Ray cluster lets this command in at {address} ({reason}): start one with `ray start --head`, "
        "give the address that it prints, and give this command the RAY_AUTH_TOKEN of its nodes; without "
        "--address, the sweep runs on this machine"
    )


def _why_not_started(error: Exception) -> str:
    if "AF_UNIX" in str(error):
        return (
            "the folder for temporary files has too long a name for Ray's sockets: set RAY_TMPDIR, or "
            f"TMPDIR, to a shorter one, such as RAY_TMPDIR=/tmp ({first_line(error)})"
        )
    return (
        f"Ray does not start on this machine ({first_line(error)}): look for room on the disk and in "
        "memory; its logs are in session_latest/logs of RAY_TMPDIR, /tmp/ray by default"
    )


def first_line(error: BaseException) -> str:
    text = redact(str(error)).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__


def living_nodes() -> list[Node]:
    nodes = []
    for node in ray.nodes():
        if node["Alive"]:
            cpus, gpus = (node["Resources"].get(kind, 0.0) for kind in ("CPU", "GPU"))
            nodes.append(Node(node["NodeManagerHostname"], cpus, gpus, node["NodeID"]))
    return nodes


def put_code_first() -> None:
    """Processes that this one starts import the packages that it has imported itself."""
    root = _source("sweeps").parent
    others = [p for p in os.environ.get(PYTHONPATH, "").split(os.pathsep) if p and p != str(root)]
    os.environ[PYTHONPATH] = os.pathsep.join([str(root), *others])


def runtime_env(train: str) -> dict[str, Any]:
    """Carries this process's packages, and the training function's own, to the workers of a cluster.

    Packages rather than the checkout as a working directory: data, runs, checkpoints and figures lie
    beside them and stay behind. The name of a package is its content's: workers of another commit on
    the same cluster are not disturbed.
    """
    own = train.partition(":")[0].partition(".")[0]
    variables = [*QUIET_ENVIRONMENT, PATIENCE]  # no passwords: Ray shows all in its dashboard
    return {
        "py_modules": [str(_source(name)) for name in dict.fromkeys([*PACKAGES, own])],
        "excludes": ["**/__pycache__"],
        "env_vars": {name: os.environ[name] for name in variables if name in os.environ},
    }


def _source(package: str) -> Path:
    found = find_spec(package)
    if found is None or found.origin is None:
        raise ClusterError(f"the training function's module {package} cannot be imported")
    return Path(found.origin).parent if found.submodule_search_locations else Path(found.origin)
