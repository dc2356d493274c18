"""Sweeps on a Ray cluster: two nodes, which here are two groups of processes on one machine."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from buckets import BucketServer
from fake_training import CROWDED
from servers import assert_undisturbed, free_port
from sweep_process import FOUR, Sweeps

from semidavil.config import preset
from sweeps.keep.bucket import Bucket
from sweeps.keep.storage import open_storage
from sweeps.keep.workspace import Storage
from sweeps.run.cluster import Common, lacks, require_server
from sweeps.run.connection import ClusterError
from sweeps.track.provenance import package_versions
from sweeps.track.store import Store

STEP_SECONDS = 0.5  # a node is lost in the middle of its ten
# A lost node is noticed within two seconds instead of half a minute.
QUICK = '{"health_check_period_ms": 500, "health_check_timeout_ms": 1000,' + (
    '"health_check_failure_threshold": 2, "health_check_initial_delay_ms": 1000}'
)


class RayCluster:
    """`ray start` for each node, in folders and with a token that no other Ray here shares."""

    def __init__(self, environment: dict[str, str], folder: Path) -> None:
        self.folder = folder
        self.address = f"127.0.0.1:{free_port()}"
        self.environment = environment | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        self.nodes: list[subprocess.Popen[bytes]] = []

    def add(self, cpus: int = 1, gpus: int = 0) -> subprocess.Popen[bytes]:
        place = ["--address", self.address]
        if not self.nodes:
            port = self.address.rpartition(":")[2]
            place = ["--head", "--port", port, "--temp-dir", str(self.folder)]
            place += ["--include-dashboard", "false", "--system-config", QUICK]
        size = ["--num-cpus", str(cpus), "--num-gpus", str(gpus)]
        # A folder of its own: what a node writes there, no other node sees.
        own = self.folder / f"tmp{len(self.nodes)}"
        own.mkdir()
        with (self.folder / f"node{len(self.nodes)}.log").open("wb") as log:
            node = subprocess.Popen(
                [
                    ray_command(),
                    "start",
                    "--block",
                    *place,
                    *size,
                    "--object-store-memory=80000000",
                ],
                env=self.environment | {"TMPDIR": str(own)},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.nodes.append(node)
        self._wait_until_ready(len(self.nodes))
        return node

    def _wait_until_ready(self, count: int) -> None:
        deadline = time.monotonic() + 300
        logs = [self.folder / f"node{number}.log" for number in range(count)]
        while not all("Ray runtime started" in log.read_text() for log in logs):
            assert time.monotonic() < deadline, [log.read_text() for log in logs]
            time.sleep(0.2)

    @staticmethod
    def kill(node: subprocess.Popen[bytes]) -> None:
        """The whole node at once, as when a machine loses its power."""
        os.killpg(node.pid, signal.SIGKILL)
        node.wait()

    def close(self) -> None:
        for node in self.nodes:
            if node.poll() is None:
                self.kill(node)


def ray_command() -> str:
    return str(Path(sys.executable).parent / "ray")


def processes_of(folder: Path) -> list[str]:
    """Command lines of this machine's processes that name the folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(folder) in text:
            found.append(text)
    return found


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """Sockets live in it, whose paths must be shorter than pytest's folders."""
    folder = Path(tempfile.mkdtemp(prefix="ray-"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def place(request: pytest.FixtureRequest, store: Store) -> str:
    """Where runs are kept: a folder that both nodes share, or a bucket of which each has copies."""
    if getattr(request, "param", "folder") == "folder":
        return str(store.folder / "shared")
    server: BucketServer = request.getfixturevalue("bucket_server")
    return server.uri(f"bucket/{secrets.token_hex(8)}")


@pytest.fixture
def cluster(place: str, store: Store, ray_folder: Path) -> Iterator[tuple[Sweeps, RayCluster]]:
    sweeps = Sweeps(store)
    with ExitStack() as stack:
        # Nodes get nothing of the checkout: its code must come with the sweep.
        bare = {k: v for k, v in sweeps.environment.items() if k != "PYTHONPATH"}
        bare["FAKE_STEP_SECONDS"] = str(STEP_SECONDS)
        nodes = RayCluster(bare, ray_folder)
        stack.callback(nodes.close)
        sweeps.environment = nodes.environment | {
            "PYTHONPATH": sweeps.environment["PYTHONPATH"],
            "SEMIDAVIL_STORAGE": place,
        }
        yield sweeps, nodes
    deadline = time.monotonic() + 120  # workers end when they miss their node
    while left := processes_of(ray_folder):
        assert time.monotonic() < deadline, left
        time.sleep(0.2)


def names_in(storage: Storage) -> list[str]:
    if isinstance(storage, Bucket):
        return storage.objects.names()
    return [str(p.relative_to(storage.folder)) for p in storage.folder.rglob("*") if p.is_file()]


def checkpoints_in(storage: Storage) -> int:
    return sum(name.endswith("/last.pt") for name in names_in(storage))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
@pytest.mark.parametrize("place", ["folder", "bucket"], indirect=True)
def test_the_cells_of_a_lost_node_go_on_elsewhere_and_end_with_the_same_numbers(
    place: str, cluster: tuple[Sweeps, RayCluster], tmp_path: Path
) -> None:
    sweeps, nodes = cluster
    nodes.add()
    second = nodes.add()
    process = sweeps.start(*FOUR, "--address", nodes.address)
    storage = open_storage(place)
    try:
        sweeps.wait_until(lambda: checkpoints_in(storage) == 2)
        nodes.kill(second)
        output, _ = process.communicate(timeout=600)
    finally:
        process.kill()
    assert process.returncode == 0, output
    assert "its worker process died with its machine; it is tried again" in output

    assert max(sweeps.keys().values()) == 1
    assert_undisturbed(sweeps.store, 4)
    starts = Counter(event.split()[0] for event in sweeps.trainings())
    assert starts.pop("train-from-0") == 4
    ((again, count),) = starts.items()
    assert count == 1
    assert int(again.rpartition("-")[2]) >= 2
    assert not names_in(storage)  # neither checkpoints nor the mark of the check
    for run in sweeps.store.runs():
        assert run.tags["worker_host"] == socket.gethostname()
        log = sweeps.store.client.download_artifacts(run.run_id, "train.log", str(tmp_path))
        (code,) = {line for line in Path(log).read_text().splitlines() if "code from" in line}
        assert code.count(str(nodes.folder)) == 2, code  # shipped, not found on the node


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_two_trials_share_a_gpu_and_a_whole_one_is_not_shared(
    cluster: tuple[Sweeps, RayCluster],
) -> None:
    sweeps, nodes = cluster
    nodes.add(cpus=2, gpus=1)
    where = (*FOUR[:-2], "--address", nodes.address)
    crowded = ("--gpus-per-trial", "0.5", "--retries", "0", "--set", f"training.lr={CROWDED}")
    code, output = sweeps.run(*where, *crowded)
    assert code == 0, output
    assert "out of memory" in output
    assert "it is tried by itself, after the others" in output
    gpus = [event.split()[0] for event in sweeps.events() if event.startswith("gpu-")]
    assert gpus == ["gpu-0"] * len(sweeps.trainings())
    assert most_at_once(sweeps) == 2

    (sweeps.folder / "events.txt").unlink()
    code, output = sweeps.run(*where, "--seeds", "1", "--gpus-per-trial", "1")
    assert code == 0, output
    assert most_at_once(sweeps) == 1

    code, output = sweeps.run(*where, "--seeds", "2", "--set", "runtime.data_root=/no/such/data")
    assert code == 1
    assert f"{socket.gethostname()}: no data sets in /no/such/data" in output
    assert len(sweeps.store.runs()) == 8  # it has opened none


def most_at_once(sweeps: Sweeps) -> int:
    running = most = 0
    for event in sweeps.events():
        running += event.startswith("train-from") - event.startswith("left")
        most = max(most, running)
    return most


@pytest.fixture
def common(tmp_path: Path) -> Common:
    setup = {"runtime.cache_dir": str(tmp_path), "runtime.data_root": str(tmp_path)}
    return Common.of("sqlite:///x.db", None, open_storage(str(tmp_path)), [preset("toy", setup)])


def test_a_database_of_this_machine_is_refused_where_others_must_log(common: Common) -> None:
    here, database = socket.gethostname(), common.storage.folder / "db" / "mlflow.db"
    local = replace(common, database=Path("/elsewhere/mlflow.db"))
    require_server(local, {here})
    with pytest.raises(
        ClusterError, match=r"gpu7 cannot log into /elsewhere/mlflow\.db.*mlflow server"
    ):
        require_server(local, {here, "gpu7"})
    require_server(replace(common, database=database), {here, "gpu7"})  # in the shared folder
    require_server(common, {here, "gpu7"})  # a server


def test_a_node_says_all_that_it_lacks(common: Common, tmp_path: Path) -> None:
    versions = package_versions()
    with common.storage.marked() as mark:
        assert lacks(common, mark, versions) == []
        assert lacks(common, mark, versions | {"torch": versions["torch"] + "+rocm"}) == []
    bad = replace(
        common,
        tracking_uri=f"http://127.0.0.1:{free_port()}",
        data_roots=frozenset({"/no/data"}),
        caches=frozenset({"/no/cache"}),
    )
    expected = [
        "--storage",
        "--data-root",
        "runtime.cache_dir",
        "Connection refused",
        "instead of 0.1",
    ]
    found = lacks(bad, mark, versions | {"torch": "0.1"})
    assert len(found) == len(expected)
    for text, part in zip(found, expected, strict=True):
        assert part in text
