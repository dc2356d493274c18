"""`sweeps/run.py` as a process of its own, with `fake_training` for the training."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest
from forked_commands import ROOT, ForkedCommand, Source, hear_signals
from forked_workers import ENVIRONMENT

from sweeps.track.store import Store

RUN = ROOT / "sweeps" / "run.py"
FOUR = ("--grid", "attention", "--budgets", "100", "--concurrency", "2")  # cells


Command = subprocess.Popen[str] | ForkedCommand


@cache
def source() -> Source:
    """Of this process's commands; ends with it."""
    return Source()


@contextmanager
def forked_workers(folder: Path, environment: pytest.MonkeyPatch) -> Iterator[None]:
    """Ray that this process starts within has forks for workers, as that of commands has."""
    script = folder / "nursery.py"
    script.write_text("import sys, time\nprint(sys.executable, flush=True)\ntime.sleep(10**6)\n")
    nursery = source().start(script, [], folder, os.environ)
    try:
        environment.setattr(sys, "executable", nursery.stdout.readline().strip())
        for name, value in ENVIRONMENT.items():
            environment.setenv(name, value)
        yield
    finally:
        nursery.kill()
        nursery.communicate()


class Sweeps:
    """Starts the command against a store of its own."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.folder = store.folder
        self.forks = True  # else all is imported, as for a user
        self.constants: dict[str, float] = {}  # see `Source.start`
        self.started: list[Command] = []
        self.process: Command | None = None  # the last one that was started
        self.environment = os.environ | {
            "MLFLOW_TRACKING_URI": store.uri,
            "SEMIDAVIL_TRAIN": "fake_training:train",
            "FAKE_TRAINING": str(store.folder),
            # This checkout's code, whichever is installed; and the stand-in.
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(Path(__file__).parent)]),
            "COLUMNS": "200",
            "OMP_NUM_THREADS": "1",
            # Ray's own 15 lets workers wait for ever beside other busy processes.
            "RAY_worker_niceness": "0",
        }

    def start(self, *arguments: str, step_seconds: float = 0.01) -> Command:
        environment = self.environment | {"FAKE_STEP_SECONDS": str(step_seconds)}
        if self.forks:
            self.process = source().start(RUN, arguments, self.folder, environment, self.constants)
        else:
            self.process = subprocess.Popen(
                [sys.executable, str(RUN), *arguments],
                cwd=self.folder,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,  # a Ctrl-C of the tests is not one of theirs
                preexec_fn=hear_signals,
            )
        self.started.append(self.process)
        return self.process

    def close(self) -> None:
        """Ends what a test that has failed has left running."""
        for process in self.started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate(timeout=60)

    def run(self, *arguments: str, step_seconds: float = 0.01) -> tuple[int, str]:
        process = self.start(*arguments, step_seconds=step_seconds)
        output, _ = process.communicate(timeout=600)
        return process.returncode, output

    def states(self) -> Counter[str]:
        return Counter(run.status for run in self.store.runs())

    def keys(self) -> Counter[str]:
        return Counter(run.key for run in self.store.runs())

    def events(self) -> list[str]:
        path = self.folder / "events.txt"
        return path.read_text().splitlines() if path.exists() else []

    def trainings(self) -> list[str]:
        return [event for event in self.events() if event.startswith("train-from")]

    def wait_until(self, reached: Callable[[], bool], seconds: float = 300) -> None:
        deadline = time.monotonic() + seconds
        while not reached():
            if self.process is not None and self.process.poll() is not None and not reached():
                assert self.process.stdout is not None
                raise AssertionError(f"not reached before its end: {self.process.stdout.read()}")
            assert time.monotonic() < deadline, f"not reached; events: {self.events()}"
            time.sleep(0.1)
