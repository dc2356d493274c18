"""Real tracking servers for tests: `mlflow server`, on SQLite or on a PostgreSQL of its own."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from fake_training import STEPS
from sweep_process import Sweeps

from sweeps.tracking import Store

START_SECONDS = 120


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


class MlflowServer:
    """Proxies artifacts, so that workers need no access to its folder."""

    def __init__(self, folder: Path, database: str) -> None:
        self.folder, self.database = folder, database
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_TRACKING")}
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"),
                *("--port", str(self.port), "--workers", "1"),
                *("--backend-store-uri", self.database, "--serve-artifacts"),
                *("--artifacts-destination", str(self.folder / "served")),
            ],
            cwd=self.folder,
            env=environment | {"MLFLOW_DISABLE_TELEMETRY": "true"},
            stdout=(self.folder / "server.log").open("ab"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        deadline = time.monotonic() + START_SECONDS
        while not self.answers():
            log = (self.folder / "server.log").read_text()
            assert self.process.poll() is None, log
            assert time.monotonic() < deadline, log
            time.sleep(0.2)

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def kill(self) -> None:
        """SIGKILL, as when its machine goes down."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):  # it has ended by itself
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(timeout=30)
            self.process = None


class Postgres:
    """Debian's PostgreSQL in a folder of its own; started as the user postgres where we are root."""

    def __init__(self, folder: Path) -> None:
        binaries = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
        if not binaries:
            pytest.skip("no PostgreSQL server here: apt-get install postgresql")
        self.bin = binaries[-1].parent
        self.folder, self.port = folder, free_port()
        # The driver by name: without it, SQLAlchemy 2.1 asks for psycopg 3, and 2.0 for psycopg2.
        self.uri = f"postgresql+psycopg2://mlflow:secret@127.0.0.1:{self.port}/postgres"
        self.user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        if self.user:
            subprocess.run(["chown", "postgres", str(self.folder)], check=True)
        password = self.folder / "password"
        password.write_text("secret")
        password.chmod(0o644)
        data = self.folder / "data"
        self._run(
            "initdb", "-D", data, "-U", "mlflow", "--auth=scram-sha-256", "--pwfile", password
        )
        command = [*self.user, str(self.bin / "postgres"), "-D", str(data), "-p", str(self.port)]
        command += ["-c", "listen_addresses=127.0.0.1", "-k", str(self.folder)]
        self.process = subprocess.Popen(
            command,
            cwd=self.folder,
            stdout=(self.folder / "postgres.log").open("wb"),
            stderr=subprocess.STDOUT,
        )
        deadline = time.monotonic() + START_SECONDS
        ready = [str(self.bin / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        while subprocess.run(ready).returncode:
            log = (self.folder / "postgres.log").read_text()
            assert self.process.poll() is None, log
            assert time.monotonic() < deadline, log
            time.sleep(0.1)

    def _run(self, name: str, *arguments: object) -> None:
        command = [*self.user, str(self.bin / name), *map(str, arguments)]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    def stop(self) -> None:
        if self.process is not None:
            # `runuser` passes no signals on: the server itself is named in its pid file.
            pid = int((self.folder / "data" / "postmaster.pid").read_text().splitlines()[0])
            os.kill(pid, signal.SIGINT)
            self.process.wait(timeout=60)


class ServedSweeps(Sweeps):
    """Sweeps on a server, with the folders that a checkout would have in the test's own."""

    def __init__(self, folder: Path, server: MlflowServer) -> None:
        super().__init__(Store(folder, server.uri))

    def start(
        self, *arguments: str, step_seconds: float = 0.01, command: str = "run"
    ) -> subprocess.Popen[str]:
        code = (
            f"import sys, pathlib, sweeps.{command} as command; "
            f"command.ROOT = pathlib.Path({str(self.folder)!r}); "
            "sys.exit(command.main(sys.argv[1:]))"
        )
        checkout = Path(__file__).parents[2]
        path = os.pathsep.join([str(checkout), self.environment["PYTHONPATH"]])
        return subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            cwd=self.folder,
            env=self.environment | {"FAKE_STEP_SECONDS": str(step_seconds), "PYTHONPATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def deliver(self) -> tuple[int, str]:
        process = self.start(command="deliver")
        output, _ = process.communicate(timeout=180)
        return process.returncode, output


def assert_undisturbed(store: Store, cells: int) -> None:
    """One finished run a cell, every metric once, and the numbers that training must give."""
    runs = store.runs()
    assert [run.status for run in runs] == ["FINISHED"] * cells
    assert len({run.key for run in runs}) == cells
    draws = np.random.default_rng(0).random(STEPS)
    for run in runs:
        history = store.client.get_metric_history(run.run_id, "train/loss")
        assert [point.step for point in history] == list(range(1, STEPS + 1)), run.name
        assert [point.value for point in history] == draws.tolist()
        (final,) = store.client.get_metric_history(run.run_id, "final/miou")
        expected = 30 + 10 * draws.mean() + int(run.params["data.budget"]) / 1000
        assert final.value == pytest.approx(expected, abs=1e-12)
        files = {item.path for item in store.client.list_artifacts(run.run_id)}
        assert files == {"config.json", "segmenter.safetensors", "train.log"}
