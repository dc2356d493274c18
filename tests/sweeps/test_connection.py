"""How Ray is started and joined, where it cannot be: no Ray runs in this process."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from servers import free_port

from sweeps.run.connection import ClusterError, Node, find_nodes, local_ray
from sweeps.stopping import Stopped


def test_a_temporary_folder_with_too_long_a_name_is_told_with_its_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / ("deep" * 25)
    folder.mkdir()
    monkeypatch.setenv("RAY_TMPDIR", str(folder))
    with pytest.raises(ClusterError, match="such as RAY_TMPDIR=/tmp"), local_ray(num_cpus=1):
        pass


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_signal_that_comes_while_ray_starts_is_honoured_then(
    interrupted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened: list[str] = []

    def init(folder: Path, **options: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.2)  # another thread may not have it blocked, and takes it
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # Ray has a handler of its own
        if interrupted:
            sys.exit(signal.SIGTERM)  # which does this
        happened.append("started")

    monkeypatch.setattr("sweeps.run.connection._init", init)
    monkeypatch.setattr("ray.shutdown", lambda: happened.append("ended"))
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped), local_ray():
        happened.append("used")
    assert happened == (["ended"] if interrupted else ["started", "ended"])
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("127.0.0.1:{port}", "refused"),
        ("no-such-host.invalid:6379", "no Ray cluster lets this command in at no-such-host"),
        ("127.0.0.1:99999", "no Ray cluster"),
        ("ray://head:10001", "on a machine of the cluster"),
    ],
)
def test_an_address_of_nothing_is_told_at_once(address: str, reason: str) -> None:
    with pytest.raises(ClusterError, match=reason):
        find_nodes(address.format(port=free_port()))


@pytest.mark.slow
def test_a_server_that_is_no_ray_cluster_is_given_up(tmp_path: Path) -> None:
    """In a process of its own: Ray tries on in the background until that ends."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        script = (
            "import sweeps.run.connection as c; c.JOIN_SECONDS = 1.0\n"
            f"try: c.find_nodes('127.0.0.1:{port}')\n"
            "except c.ClusterError as error: print(error)"
        )
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, timeout=300
        )
    assert done.returncode == 0, done.stderr
    assert f"joining the Ray cluster at 127.0.0.1:{port}" in done.stderr
    assert (
        f"no Ray cluster lets this command in at 127.0.0.1:{port} (no answer for 1 s)"
        in done.stdout
    )
    assert "ray start --head" in done.stdout


@pytest.mark.parametrize(
    ("cpus", "gpus", "slots"),
    [(1, 0, 8), (3, 0, 2), (1, 1, 2), (0, 0.5, 4), (0, 0.4, 4), (1, 0.1, 8), (0, 2, 1), (0, 3, 0)],
)
def test_trials_that_share_gpus_have_none_of_two_halves(
    cpus: float, gpus: float, slots: int
) -> None:
    assert Node("host", 8, 2).slots(cpus, gpus) == slots
