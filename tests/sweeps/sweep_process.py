"""`sweeps/run.py` as a process of its own, with `fake_training` for the training."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from sweeps.track.store import Store

ROOT = Path(__file__).parents[2]
RUN = ROOT / "sweeps" / "run.py"
FOUR = ("--grid", "attention", "--budgets", "100", "--concurrency", "2")  # cells


def hear_signals() -> None:
    """In a process that the tests start: `nohup pytest` or `pytest &` ignores some of them."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


class Sweeps:
    """Starts the command against a store of its own."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.folder = store.folder
        self.process: subprocess.Popen[str] | None = None  # the last one that was started
        self.environment = os.environ | {
            "MLFLOW_TRACKING_URI": store.uri,
            "SEMIDAVIL_TRAIN": "fake_training:train",
            "FAKE_TRAINING": str(store.folder),
            # This checkout's code, whichever is installed; and the stand-in.
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(Path(__file__).parent)]),
            "COLUMNS": "200",
            "OMP_NUM_THREADS": "1",
        }

    def start(self, *arguments: str, step_seconds: float = 0.01) -> subprocess.Popen[str]:
        self.process = subprocess.Popen(
            [sys.executable, str(RUN), *arguments],
            cwd=self.folder,
            env=self.environment | {"FAKE_STEP_SECONDS": str(step_seconds)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # a Ctrl-C of the tests is not one of theirs
            preexec_fn=hear_signals,
        )
        return self.process

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
