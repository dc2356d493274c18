"""One cell of a grid, trained in a worker process and tracked."""

import contextlib
import gc
import io
import json
import math
import os
import shutil
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from enum import Enum, StrEnum
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from semidavil.config import Config
from semidavil.data.benchmarks import BENCHMARKS
from semidavil.disk import DiskFull, is_full, on_disk
from sweeps.credentials import redact
from sweeps.garbage import spare_imports
from sweeps.provenance import device_name
from sweeps.run_log import Ending, RunLog, TakenOver
from sweeps.storage import ARTIFACTS, LOG, StorageError, Workspace, workspace

TRAIN = "semidavil.train:train"
TELL_SECONDS = 1.0  # a word to the driver costs training some 8 ms: it waits until it is heard
INPUT_ERRORS = ("DataError", "VLMError", "CaptionError", "ConfigError", "DiskFull")


class Failure(StrEnum):
    """Why a training has failed, as far as it matters for trying it again."""

    DIVERGED = "diverged"  # the loss is not finite: it would be so again, in any sweep
    INPUT = "input"  # a file is missing or broken: no use before somebody has mended it
    MEMORY = "memory"  # too little of it beside the others
    OTHER = "other"


@dataclass(frozen=True)
class Task:
    """What a worker needs to know, as plain values that travel between machines.

    Attributes:
        name: the cell's readable name.
        params: the Config, flat.
        run_id: the MLflow run to log into; the driver has created it.
        place: where checkpoints, `train.log` and the metrics' journal are kept; see `sweeps.storage`.
        logged_step, seconds: what an earlier attempt has logged, and its training time.
        train: `module:function` with the signature and the behaviour of `semidavil.train.train`:
            (config, report, checkpoint_dir) -> Result, continuing from `checkpoint_dir`.
        alone: it has run out of memory beside others, and gets a whole GPU or machine.
        owner: the process whose run it is; see `sweeps.provenance.owner_tags`.
        claimed: when it got it, in seconds since 1970.
    """

    name: str
    params: dict[str, str]
    run_id: str
    tracking_uri: str
    place: str
    logged_step: int = 0
    seconds: float = 0.0
    train: str = TRAIN
    alone: bool = False
    owner: Mapping[str, str] = field(default_factory=dict)
    claimed: float | None = None

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Task":
        return cls(**json.loads(text))


class Later(Enum):
    """No task now, but perhaps one when a running task has ended."""

    LATER = "later"


LATER = Later.LATER
Tell = Callable[[dict[str, Any]], None]  # to the driver: step, total, and at the end state


def run_trial(task: Task, tell: Tell) -> None:
    """Trains a task's Config and leaves its run FINISHED or FAILED.

    An error of the training is this cell's outcome, not the worker's: the process stays fit for the
    next cell. When the process itself dies, whoever runs it again with the same task continues.
    Where the store is away at the end, all of the run is kept in its folder, and `tell` hears that
    it is not `delivered`; `sweeps.deliver` does so later.
    """
    config, here = Config.from_params(task.params), workspace(task.place)
    unfetched = _error_of(here.fetch)
    log = RunLog(
        task.tracking_uri, task.run_id, here.folder, task.logged_step, task.seconds, here.travels,
        task.owner, task.claimed,
    )  # fmt: skip
    try:
        with train_log(here.folder / LOG, task) as note:
            error: Exception | None = unfetched
            try:
                if error is None:
                    with here.pushing(note):
                        final = _train(task, config, here.folder, log, note, tell)
            except Exception as failure:
                error = failure  # told below, where no other error can hide behind this one
            except SystemExit:  # Tune's way to end a trial early, at its next word
                with contextlib.suppress(TakenOver):
                    log.flush()
                raise
            if error is None:
                tell({"state": "done", **final})
                _keep(here, note, forget=final["delivered"] and Ending.read(here.folder) is None)
            else:
                news = _fail(error, log, here, note)
                error = None  # and with it what the frames of its traceback hold
                tell(news)
    finally:
        _free_memory()


def _fail(
    error: Exception, log: RunLog, here: Workspace, note: Callable[[str], None]
) -> dict[str, Any]:
    """Leaves a run FAILED, unless it is another sweep's; returns what the driver is told."""
    if isinstance(error, TakenOver):
        return _leave(error, note)
    print(redact("".join(traceback.format_exception(error))), file=sys.stderr)
    reason, failure = redact(f"{type(error).__name__}: {error}"), failure_of(error)
    note(f"failed: {reason}")
    try:
        done = log.fail(reason, failure is not Failure.DIVERGED, [here.folder / LOG])
    except TakenOver as taken:
        return _leave(taken, note)
    _keep(here, note)
    return {"state": "failed", "reason": reason, "failure": failure, "delivered": done}


def _leave(taken: TakenOver, note: Callable[[str], None]) -> dict[str, Any]:
    """Leaves a run to the sweep that has it, and what is kept of it as it is."""
    note(str(taken))
    return {"state": "taken", "reason": str(taken)}


def _keep(here: Workspace, note: Callable[[str], None], forget: bool = False) -> None:
    """Keeps what a run leaves, for its next attempt or its delivery; or forgets it."""
    try:
        if forget:
            here.remove()  # all of it is an artifact now
        else:
            here.push()
    except (StorageError, DiskFull) as error:
        note(f"{error}; what this run leaves stays in {here.folder}")


def _error_of(fetch: Callable[[], None]) -> Exception | None:
    """Kept until there is a log to fail the run with."""
    try:
        fetch()
    except (StorageError, DiskFull) as error:
        return error
    return None


def _train(
    task: Task,
    config: Config,
    folder: Path,
    log: RunLog,
    note: Callable[[str], None],
    tell: Tell,
) -> dict[str, Any]:
    kept = Ending.read(folder)
    if kept is not None and kept.status == "FINISHED":  # trained, but the store was away
        return _final(config, kept.values, log.delivered())
    _, train = load_training(task.train)
    spare_imports()
    score = f"val/{BENCHMARKS[config.data.benchmark].metric}"
    next_word = time.monotonic()

    def report(progress: Any) -> None:
        nonlocal next_word
        log.metrics(progress.step, progress.metrics)
        note(_line(progress.step, progress.total_steps, progress.metrics))
        news = {"state": "running", "step": progress.step, "total": progress.total_steps}
        if score in progress.metrics:
            news["value"] = progress.metrics[score]
        if "value" in news or time.monotonic() >= next_word:
            tell(news)
            next_word = time.monotonic() + TELL_SECONDS

    # They go out with the first metrics: a call of their own costs a short run one part in 300.
    log.tags |= {
        "device": device_name(), "worker_host": socket.gethostname(), "worker_pid": str(os.getpid())
    }  # fmt: skip
    result = train(config, report=report, checkpoint_dir=folder)
    log.tags["data"] = result.data  # goes out with the ending
    seconds = log.seconds
    values = {f"final/{name}": value for name, value in result.metrics.items()}
    values |= {"final/seconds": seconds, "final/steps": result.steps}
    if not math.isnan(result.latency_ms):
        values["final/latency_ms"] = result.latency_ms
    artifacts = folder / ARTIFACTS
    with on_disk(folder):
        collect_artifacts(artifacts, config, result, folder)
    return _final(config, values, log.finish(values, artifacts))


def _final(config: Config, values: Mapping[str, float], delivered: bool) -> dict[str, Any]:
    benchmark = BENCHMARKS[config.data.benchmark]
    value = values[f"final/{benchmark.metric}"]
    return {
        "score": f"{benchmark.score} {value:.2f}",
        "value": value,
        "latency_ms": values.get("final/latency_ms", math.nan),
        "seconds": values["final/seconds"],
        "delivered": delivered,
    }


def load_training(train: str) -> tuple[ModuleType, Callable[..., Any]]:
    """The training function of `module:function`, and its module, which has `prepare` beside it."""
    module_name, _, name = train.partition(":")
    module = import_module(module_name)
    return module, getattr(module, name)


def collect_artifacts(target: Path, config: Config, result: Any, folder: Path) -> None:
    """Everything worth keeping of a finished run, in one folder."""
    shutil.rmtree(target, ignore_errors=True)  # of an attempt that was killed here
    target.mkdir()
    params = config.to_params()
    (target / "config.json").write_text(json.dumps(params, indent=2, sort_keys=True) + "\n")
    for path in (*result.artifacts.values(), folder / LOG):
        shutil.copyfile(path, target / Path(path).name)


def failure_of(error: Exception) -> Failure:
    """Judged by the error's name, so that no training code is imported."""
    name = type(error).__name__
    if name == "NonFiniteLossError":
        return Failure.DIVERGED
    if name in ("OutOfMemoryError", "MemoryError") or "out of memory" in str(error).lower():
        return Failure.MEMORY
    return Failure.INPUT if name in INPUT_ERRORS else Failure.OTHER


def _line(step: int, total: int, metrics: Mapping[str, float]) -> str:
    shown = {n: value for n, value in metrics.items() if "/iou/" not in n and "/pseudo/" not in n}
    return f"step {step}/{total} " + " ".join(f"{name}={v:.5g}" for name, v in shown.items())


class _Log(io.TextIOBase):
    """A file that is appended to as long as there is room.

    What does not fit is left out: a full disk is told by what must not be lost, journal and checkpoints.
    Nothing is buffered, so that nothing is left to fail later.
    """

    def __init__(self, path: Path) -> None:
        self._file: io.FileIO | None = None
        with _left_out_if_full():
            self._file = io.FileIO(path, "a")

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        with _left_out_if_full():
            if self._file is not None:
                self._file.write(text.encode(errors="replace"))
        return len(text)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        super().close()


@contextlib.contextmanager
def _left_out_if_full() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if not is_full(error) and not isinstance(error, FileNotFoundError):  # no folder fits either
            raise


@contextlib.contextmanager
def train_log(path: Path, task: Task) -> Iterator[Callable[[str], None]]:
    """Appends to a log what is noted and all that the training prints."""
    with _Log(path) as file:

        def note(text: str) -> None:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

        note(f"{task.name}, MLflow run {task.run_id}")
        with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
            yield note


def _free_memory() -> None:
    """The worker lives on: what this trial held must not count against the next."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
