"""One cell in a worker process: fetched, trained, logged, and ended with one event."""

import gc
import json
import math
import os
import shutil
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from semidavil.benchmarks import BENCHMARKS
from semidavil.config import Config
from semidavil.full_disk import DiskFull, on_disk
from semidavil.plugin_files import PLUGINS, Source
from semidavil.plugins import in_use, place_of, use
from sweeps.keep.storage import workspace as open_workspace
from sweeps.keep.workspace import ARTIFACTS, LOG, StorageError
from sweeps.run import events
from sweeps.run.events import Done, Event, Failed, Failure, Halted, Progress, Taken, Task
from sweeps.run.failures import failure_of
from sweeps.run.train_log import train_log
from sweeps.track.credentials import redact
from sweeps.track.outbox import Ending, LeaseLost, Outbox
from sweeps.track.provenance import device_name
from sweeps.track.retry import RunGone, TrackingError
from sweeps.track.store import Store
from sweeps.track.system_metrics import SystemMetrics

TELL_SECONDS = 1.0  # between two reports of progress without a score, of which each costs some 8 ms

Tell = Callable[[Event], bool]  # to the sweep; returns whether the training is to stop here


class DeviceError(RuntimeError):
    """The GPU that the trial was promised is not there."""


class UndefinedScoreError(ValueError):
    """The benchmark's score of a training that has ended is no number."""


def run_task(task: Task, tell: Tell) -> None:
    """Trains a task's Config and leaves its run FINISHED, FAILED, or RUNNING for whoever goes on with it.

    `tell` gets `Progress` events and then one of `Done`, `Failed`, `Taken` and `Halted`. An error of the
    training is this cell's outcome, not the worker's: the process stays fit for the next cell. When the
    process itself dies, whoever runs it again with the same task continues. The store's troubles end no
    training: what the store does not have stays in the run's folder, for `sweeps.track.deliver`.
    """
    attempt = _Attempt(task, tell)
    try:
        event = attempt.run()
    finally:
        _free_memory()
    attempt.tell(event)


class _Attempt:
    def __init__(self, task: Task, tell: Tell) -> None:
        self.task, self.tell = task, tell
        self.workspace = open_workspace(task.workspace)
        self.folder = self.workspace.folder
        self.step = 0
        self.halting = False
        self.data = ""
        self.next_tell = 0.0
        self.plugins = [Source(name, files) for name, files in task.plugins.items()]
        self.system = SystemMetrics() if task.gpus > 0 else None

    def run(self) -> Event:
        task = self.task
        try:
            self.workspace.fetch(task.epoch, task.run_id)
            unfetched = None
        except (StorageError, DiskFull) as error:
            unfetched = error  # raised below, where there is a log
        with train_log(self.folder / LOG) as self.log:
            self.log(f"{task.name}, MLflow run {task.run_id}")
            store = Store(self.folder, task.tracking_uri)
            self.outbox = Outbox(
                store, task.run_id, task.epoch, self.folder, task.logged_step, task.seconds,
                behind=self.workspace.travels,
            )  # fmt: skip
            try:
                if unfetched is not None:
                    raise unfetched
                with use(*self.plugins):
                    return self._train(Config.from_params(task.params))
            except (LeaseLost, RunGone) as taken:
                return self._leave(taken)
            except Exception as error:
                return self._halt() if self._is_halt(error) else self._fail(error)

    def _train(self, config: Config) -> Done:
        self.benchmark = BENCHMARKS[config.data.benchmark]
        ending = Ending.read(self.folder)
        if ending is not None and ending.status == "FINISHED":  # trained, but the store was away
            return self._done(ending.values, self.outbox.delivered())
        self._tell(Progress(0, 0, events.STARTING))
        _, train = load_training(self.task.train)
        _prepare_process()
        if self.task.train == events.TRAIN:  # another training chooses its device by itself
            require_device(self.task, config)
        # They go out with the first metrics.
        self.outbox.tag({
            "device": device_name(), "worker_host": socket.gethostname(), "worker_pid": str(os.getpid())
        })  # fmt: skip
        with self.workspace.pushing(self.log):
            result = train(config, report=self._report, checkpoint_dir=self.folder)
        self.tell(Progress(result.steps, result.steps, events.SAVING))
        self.outbox.tag({"data": result.data, **result.notes})  # goes out with the ending
        values = {f"final/{name}": value for name, value in result.metrics.items()}
        values |= {"final/seconds": self.outbox.seconds, "final/steps": result.steps}
        self._require_score(values)  # before the run is FINISHED
        if not math.isnan(result.latency_ms):
            values["final/latency_ms"] = result.latency_ms
        artifacts = self.folder / ARTIFACTS
        with on_disk(self.folder):
            collect_artifacts(artifacts, config, result, self.folder)
        return self._done(values, self.outbox.finish(values, artifacts))

    def _done(self, values: Mapping[str, float], delivered: bool) -> Done:
        if delivered and Ending.read(self.folder) is None:
            self._keep(self.workspace.remove)  # all of it is an artifact now
        else:
            self._keep(self.workspace.push)
        score = values[f"final/{self.benchmark.metric}"]
        return Done(
            score=score,
            latency_ms=values.get("final/latency_ms", math.nan),
            seconds=values["final/seconds"],
            delivered=delivered,
            summary=f"{self.benchmark.score} {score:.2f}",
        )

    def _require_score(self, values: Mapping[str, float]) -> None:
        """Raises ValueError if the training has not measured the benchmark's score, or it is no number."""
        name = f"final/{self.benchmark.metric}"
        if name not in values:
            what = f"no {self.benchmark.metric}, by which it is scored"
            raise ValueError(f"the training returned {what}")
        if math.isnan(values[name]):
            raise UndefinedScoreError(
                f"the {self.benchmark.score} is undefined: no class is in the validation labels, nor was one "
                "predicted. Look at the labels: python -m semidavil data"
            )

    def _report(self, report: Any) -> None:
        """What training calls after each step, with or without metrics."""
        self.step = report.step
        if report.data != self.data:
            self.data = report.data
            self.outbox.tag({"data": self.data})
        if report.metrics:
            system = self.system.read() if self.system else {}
            self.outbox.metrics(report.step, {**report.metrics, **system})
            self.log(_line(report.step, report.total_steps, report.metrics))
        score = report.metrics.get(f"val/{self.benchmark.metric}")
        loss = report.metrics.get("train/loss")
        evaluates = self._evaluates_after(report.step + 1, report.total_steps)
        if score is not None or evaluates or time.monotonic() >= self.next_tell:
            # Of an evaluation nothing is heard before its end, which may take minutes.
            phase = events.EVALUATION if evaluates else events.TRAINING
            self._tell(Progress(report.step, report.total_steps, phase, score, loss))
            self.next_tell = time.monotonic() + TELL_SECONDS

    def _evaluates_after(self, step: int, last: int) -> bool:
        every = int(self.task.params.get("runtime.eval_every", "0"))
        return step == last or (every > 0 and step % every == 0)

    def _tell(self, progress: Progress) -> None:
        """Reports progress, and stops here if the answer says so, or if Tune ends the trial."""
        try:
            self.halting = self.tell(progress)
        except SystemExit:
            self.halting, self.tell = True, lambda event: False
        if self.halting:
            from semidavil.checkpoint import StopTraining

            raise StopTraining(f"stopped at step {progress.step}")

    def _is_halt(self, error: Exception) -> bool:
        """Whether the training has stopped as it was asked to, and not for want of room on the disk."""
        return self.halting and type(error).__name__ == "StopTraining"

    def _halt(self) -> Halted:
        self.log(f"stopped after step {self.step}, to go on from there")
        self.outbox.close()
        self._keep(self.workspace.push)
        return Halted(self.step)

    def _leave(self, taken: LeaseLost | RunGone) -> Taken:
        """Leaves the run to whoever has it, and its folder as it is."""
        self.log(str(taken))
        return Taken(str(taken), gone=isinstance(taken, RunGone))

    def _fail(self, error: Exception) -> Failed | Taken:
        print(redact("".join(traceback.format_exception(error))), file=sys.stderr)
        place = f"{place_of(error)}: " if place_of(error) else ""
        failure = failure_of(error, self.plugins)
        reason = redact(f"{place}{type(error).__name__}: {error}")
        if failure is Failure.MISTAKE:
            reason += "; once it is mended, the same command trains it anew"
        self.log(f"failed: {reason}")
        try:
            delivered = self.outbox.fail(reason, not failure.is_final, [self.folder / LOG])
        except (LeaseLost, RunGone) as taken:
            return self._leave(taken)
        except (TrackingError, OSError) as unreadable:  # the ending in the folder
            self.log(str(unreadable))
            delivered = False
        self._keep(self.workspace.push)
        return Failed(reason, failure, delivered)

    def _keep(self, change: Callable[[], None]) -> None:
        """Keeps what a run leaves for its next attempt or its delivery, or forgets it."""
        try:
            change()
        except (StorageError, DiskFull) as error:
            self.log(f"{error}; what this run leaves stays in {self.folder}")


def load_training(train: str) -> tuple[ModuleType, Callable[..., Any]]:
    """The training function of `module:function`, and its module, which has `prepare` beside it."""
    module_name, _, name = train.partition(":")
    module = import_module(module_name)
    return module, getattr(module, name)


def require_device(task: Task, config: Config) -> None:
    """Refuses to train for weeks on a CPU what was promised a GPU, of which PyTorch sees none."""
    import torch

    wanted = task.gpus > 0 and config.runtime.device.startswith(("auto", "cuda"))
    if not wanted or torch.cuda.is_available():
        return
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "not set")
    raise DeviceError(
        f"this run was promised {task.gpus:g} GPUs of {socket.gethostname()}, where PyTorch "
        f"{torch.__version__} sees none (CUDA_VISIBLE_DEVICES is {visible}): look at nvidia-smi and install "
        "a PyTorch for its CUDA version, or train on the CPU with --gpus-per-trial 0"
    )


def collect_artifacts(target: Path, config: Config, result: Any, folder: Path) -> None:
    """Everything worth keeping of a finished run, in one folder."""
    shutil.rmtree(target, ignore_errors=True)  # of an attempt that was killed here
    target.mkdir()
    params = config.to_params()
    (target / "config.json").write_text(json.dumps(params, indent=2, sort_keys=True) + "\n")
    for plugin in in_use(config.plugins):
        plugin.write(target / PLUGINS)
    for path in (*result.artifacts.values(), folder / LOG):
        shutil.copyfile(path, target / Path(path).name)


def _line(step: int, total: int, metrics: Mapping[str, float]) -> str:
    shown = {n: value for n, value in metrics.items() if "/iou/" not in n and "/pseudo/" not in n}
    return f"step {step}/{total} " + " ".join(f"{name}={v:.5g}" for name, v in shown.items())


@cache
def _prepare_process() -> None:
    """Once in a worker's process, when the training's code has been imported and no training has begun."""
    if "torch" in sys.modules:
        from semidavil.memory import bound_memory

        bound_memory()
    # Looking at all that was imported after each run takes a third of a second.
    gc.freeze()


def _free_memory() -> None:
    """The worker lives on: what this trial held must not count against the next."""
    gc.collect()
    if (torch := sys.modules.get("torch")) is None:
        return
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    from semidavil.memory import trim_memory

    trim_memory()
