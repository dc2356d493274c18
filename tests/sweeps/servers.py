"""Real tracking servers for tests: `mlflow server`, on SQLite or on a PostgreSQL of its own."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from fake_training import STEPS
from mlflow.entities import LoggedModelStatus
from mlflow.exceptions import MlflowException
from sweep_process import Command, Sweeps, source

from semidavil.names import WEIGHTS
from sweeps.track.store import Store

CHECKOUT = Path(__file__).parents[2]
START_SECONDS = 120
# Without the eight processes for evaluation by language models, of which each imports all of MLflow.
BARE_SERVER = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def away() -> MlflowException:
    """What MLflow raises when nobody listens."""
    try:
        try:
            raise requests.exceptions.ConnectionError("[Errno 111] Connection refused")
        except requests.exceptions.ConnectionError as error:
            raise MlflowException(f"API request to http://ann:pw@host/ failed: {error}") from error
    except MlflowException as error:
        return error


def raising(make: Callable[[], Exception]) -> Callable[..., Any]:
    def instead(*_: Any, **__: Any) -> None:
        raise make()  # a new one: an error that is raised again gets another context

    return instead


class MlflowServer:
    """Proxies artifacts, so that workers need no access to its folder.

    Args:
        command: starts it.
        environment: of the command, besides the tests'.
    """

    def __init__(
        self,
        folder: Path,
        command: Sequence[str | Path],
        port: int,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.folder, self.command = folder, command
        self.uri = f"http://127.0.0.1:{port}"
        common = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_TRACKING")}
        self.environment = common | BARE_SERVER | (environment or {})
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(
            self.command,
            cwd=self.folder,
            env=self.environment,
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

    def stop(self) -> None:
        """SIGTERM, as when its machine is shut down in order."""
        if self.process is not None:
            self.process.terminate()
            self.process.wait(timeout=60)
            self.process = None

    def kill(self) -> None:
        """SIGKILL, as when its machine goes down."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):  # it has ended by itself
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(timeout=30)
            self.process = None


def on_sqlite(folder: Path, database: Path) -> MlflowServer:
    port = free_port()
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"),
        *("--port", str(port), "--workers", "1", "--backend-store-uri", f"sqlite:///{database}"),
        *("--serve-artifacts", "--artifacts-destination", str(folder / "artifacts")),
    ]
    return MlflowServer(folder, command, port)


def on_postgresql(folder: Path) -> MlflowServer:
    """As deploy/start.sh starts it."""
    if not list(Path("/usr/lib/postgresql").glob("*/bin/postgres")):
        pytest.skip("no PostgreSQL server here: apt-get install postgresql")
    port = free_port()
    environment = {
        "SEMIDAVIL_SERVER_DIR": str(folder),
        "MLFLOW_PORT": str(port),
        "POSTGRES_PORT": str(free_port()),
        "MLFLOW_WORKERS": "1",
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    }
    return MlflowServer(folder, ["bash", CHECKOUT / "deploy" / "start.sh"], port, environment)


class Postgresql:
    """The database of a server that `on_postgresql` has started."""

    def __init__(self, server: MlflowServer) -> None:
        self.data = server.folder / "postgres" / "data"
        pid = int((self.data / "postmaster.pid").read_text().split()[0])
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:-1]
        self.command = [os.fsdecode(word) for word in command]
        if os.getuid() == 0:
            self.command = ["runuser", "-u", "postgres", "--", *self.command]

    def kill(self) -> None:
        """SIGKILL to all of it; the tracking server stays."""
        pid = (self.data / "postmaster.pid").read_text().split()[0]
        subprocess.run(["pkill", "-KILL", "-P", pid], check=True)
        os.kill(int(pid), signal.SIGKILL)

    def start(self) -> None:
        subprocess.Popen(self.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


class ServedSweeps(Sweeps):
    """Sweeps on a server, with the folders that a checkout would have in the test's own."""

    def __init__(self, folder: Path, server: MlflowServer) -> None:
        super().__init__(Store(folder, server.uri))
        self.environment["FAKE_WEIGHTS"] = WEIGHTS  # so that each run is a model

    def start(self, *arguments: str, step_seconds: float = 0.01, command: str = "run") -> Command:
        script = self.folder / f"{command}_here.py"
        script.write_text(
            "import sys, pathlib, sweeps.request, sweeps.start\n"
            f"sweeps.request.ROOT = pathlib.Path({str(self.folder)!r})\n"
            f"sys.exit(sweeps.start.run({command!r}))\n"
        )
        environment = self.environment | {"FAKE_STEP_SECONDS": str(step_seconds)}
        self.process = source().start(script, arguments, self.folder, environment, self.constants)
        self.started.append(self.process)
        return self.process

    def deliver(self) -> tuple[int, str]:
        process = self.start(command="deliver")
        output, _ = process.communicate(timeout=600)
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
        changes = {"code"} if run.tags.get("changes", "").startswith("code/") else set()
        is_model = store.database is None  # see `ServedSweeps`
        weights = WEIGHTS if is_model else "network.bin"
        assert files == {"config.json", weights, "train.log", *changes}
        if not is_model:
            continue
        found = store.client.get_run(run.run_id)
        experiment, which = found.info.experiment_id, f"source_run_id = '{run.run_id}'"
        (model,) = store.client.search_logged_models([experiment], which)
        assert model.status == LoggedModelStatus.READY
        assert [one.model_id for one in found.outputs.model_outputs] == [model.model_id]
        assert [metric.value for metric in model.metrics] == [final.value]
