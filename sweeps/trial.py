"""One cell of a grid, trained in a worker process and tracked."""

import contextlib
import gc
import json
import os
import shutil
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from semidavil.config import Config
from semidavil.data.benchmarks import BENCHMARKS
from sweeps.provenance import device_name
from sweeps.run_log import RunLog

TRAIN = "semidavil.train:train"
LOG_NAME = "train.log"


@dataclass(frozen=True)
class Task:
    """What a worker needs to know, as plain values that travel between machines.

    Attributes:
        name: the cell's readable name.
        params: the Config, flat.
        run_id: the MLflow run to log into; the driver has created it.
        folder: absolute; checkpoints, `train.log` and the metrics' journal go there.
        logged_step, seconds: what an earlier attempt has logged, and its training time.
        train: `module:function` with the signature and the behaviour of `semidavil.train.train`:
            (config, report, checkpoint_dir) -> Result, continuing from `checkpoint_dir`.
    """

    name: str
    params: dict[str, str]
    run_id: str
    tracking_uri: str
    folder: str
    logged_step: int = 0
    seconds: float = 0.0
    train: str = TRAIN

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Task":
        return cls(**json.loads(text))


Tell = Callable[[dict[str, Any]], None]  # to the driver: step, total, and at the end state


def run_trial(task: Task, tell: Tell) -> None:
    """Trains a task's Config and leaves its run FINISHED or FAILED.

    An error of the training is this cell's outcome, not the worker's: the process stays fit for the
    next cell. When the process itself dies, whoever runs it again with the same task continues.
    """
    config = Config.from_params(task.params)
    folder = Path(task.folder)
    folder.mkdir(parents=True, exist_ok=True)
    log = RunLog(task.tracking_uri, task.run_id, folder, task.logged_step, task.seconds)
    with train_log(folder / LOG_NAME, task) as note:
        try:
            final = _train(task, config, folder, log, note, tell)
        except Exception as error:
            traceback.print_exc()
            reason = f"{type(error).__name__}: {error}"
            note(f"failed: {reason}")
            log.fail(reason, _worth_repeating(error), [folder / LOG_NAME])
            tell({"state": "failed", "reason": reason})
        else:
            tell({"state": "done", **final})
            shutil.rmtree(folder, ignore_errors=True)  # all of it is an artifact now
        finally:
            _free_memory()


def _train(
    task: Task,
    config: Config,
    folder: Path,
    log: RunLog,
    note: Callable[[str], None],
    tell: Tell,
) -> dict[str, Any]:
    _, train = load_training(task.train)

    def report(progress: Any) -> None:
        log.metrics(progress.step, progress.metrics)
        note(_line(progress.step, progress.total_steps, progress.metrics))
        tell({"state": "running", "step": progress.step, "total": progress.total_steps})

    here = {"worker_host": socket.gethostname(), "worker_pid": str(os.getpid())}
    log.flush({"device": device_name(), **here})
    result = train(config, report=report, checkpoint_dir=folder)
    seconds = log.seconds
    values = {f"final/{name}": value for name, value in result.metrics.items()}
    with tempfile.TemporaryDirectory(prefix="semidavil-") as scratch:
        collect_artifacts(Path(scratch), config, result, folder)
        log.finish({**values, "final/seconds": seconds, "final/steps": result.steps}, Path(scratch))
    benchmark = BENCHMARKS[config.data.benchmark]
    score = f"{benchmark.score} {result.metrics[benchmark.metric]:.2f}"
    return {"score": score, "seconds": seconds}


def load_training(train: str) -> tuple[ModuleType, Callable[..., Any]]:
    """The training function of `module:function`, and its module, which has `prepare` beside it."""
    module_name, _, name = train.partition(":")
    module = import_module(module_name)
    return module, getattr(module, name)


def collect_artifacts(target: Path, config: Config, result: Any, folder: Path) -> None:
    """Everything worth keeping of a finished run, in one folder."""
    params = config.to_params()
    (target / "config.json").write_text(json.dumps(params, indent=2, sort_keys=True) + "\n")
    for path in (*result.artifacts.values(), folder / LOG_NAME):
        shutil.copyfile(path, target / Path(path).name)


def _worth_repeating(error: Exception) -> bool:
    """A loss that became infinite does so again; by name, so that no training code is imported."""
    return type(error).__name__ != "NonFiniteLossError"


def _line(step: int, total: int, metrics: Mapping[str, float]) -> str:
    shown = {name: value for name, value in metrics.items() if "/iou/" not in name}
    return f"step {step}/{total} " + " ".join(f"{name}={v:.5g}" for name, v in shown.items())


@contextlib.contextmanager
def train_log(path: Path, task: Task) -> Iterator[Callable[[str], None]]:
    """Appends to a log what is noted and all that the training prints."""
    with path.open("a", buffering=1) as file:

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
