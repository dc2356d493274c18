"""Trains one Config, from its data to its score.

    python -m semidavil train --benchmark gta5-cityscapes --budget 100

    from semidavil.config import preset
    from semidavil.train import prepare, train
    config = preset("toy")
    prepare(config)                       # data, checks, captions: slow, shared by many runs, once
    result = train(config, report=print, checkpoint_dir=Path("checkpoints") / config.key())

The number reported is the last step's (the teacher's, where a method has one), never the best on
the split that it is reported on. One seed fixes a run: the batch of a step depends on the seed and
the step alone, so a run that was stopped and goes on from its checkpoint ends with the same numbers.

What is trained on, by what and how it is scored is an `Experiment`: of street images, or of CT volumes.
"""

import math
import os
import runpy
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from semidavil.benchmarks import BENCHMARKS
from semidavil.checkpoint import StopTraining, resume, save_checkpoint
from semidavil.config import Config
from semidavil.data.augment import finish
from semidavil.data.loaders import training_loader
from semidavil.device import make_deterministic, to_device, use_bfloat16
from semidavil.distributed import (
    from_first,
    joined,
    own_device,
    rank,
    require_same_start,
    world_size,
)
from semidavil.experiments.base import Experiment
from semidavil.flops import device_peak
from semidavil.full_disk import on_disk
from semidavil.launch import launch
from semidavil.memory import reset_peak_memory
from semidavil.meter import Meter
from semidavil.step import NonFiniteLossError, TrainingStep

__all__ = ["NonFiniteLossError", "Report", "Result", "open_experiment", "prepare", "train"]


@dataclass(frozen=True)
class Report:
    """Progress of a run: `metrics`, if there are any, at `step` (counted from 1) of `total_steps`."""

    step: int
    total_steps: int
    metrics: dict[str, float]
    data: str  # fingerprint of the files that it sees


@dataclass(frozen=True)
class Result:
    """A finished run."""

    # The benchmark's score (`miou`, `dice`), classes (`iou/<class>`, ...), `<network>_<score>` of
    # each network, `parameters` (how many) and more of the reported one.
    metrics: dict[str, float]
    # Of the reported network: Evaluation or VolumeEvaluation. Under torchrun, None but in process 0.
    evaluation: Any = field(repr=False)
    absent: list[str]  # classes with neither ground truth nor prediction
    steps: int
    seconds: float  # of this call: a resumed run does not count what it did before
    artifacts: dict[str, Path]  # files worth keeping, by name; empty without a `checkpoint_dir`
    data: str = ""  # fingerprint of the files that it saw; see `semidavil.data.fingerprint`
    notes: dict[str, str] = field(default_factory=dict)  # of the experiment, to be tracked
    latency_ms: float = math.nan  # of the reported network, for one image

    @property
    def confusion(self) -> np.ndarray:
        """(C, C), rows = truth; of images."""
        return self.evaluation.confusion


Reporter = Callable[[Report], None]


def prepare(config: Config, progress: bool = True) -> str:
    """Everything slow that runs share: toy data, data checks, captions. Doing it again costs little.

    Returns what is to be said of the captions, of which each run's log says more; may be empty.
    """
    if BENCHMARKS[config.data.benchmark].kind == "volumes":
        from semidavil.experiments.volumes import prepare_volumes  # MONAI: seconds to import

        prepare_volumes(config, progress)
        return ""
    from semidavil.experiments.street import prepare_street

    return prepare_street(config, progress)


def open_experiment(config: Config, device: torch.device) -> Experiment:
    """The Experiment of the Config's benchmark, ready to train."""
    if BENCHMARKS[config.data.benchmark].kind == "volumes":
        from semidavil.experiments.volumes import VolumeExperiment

        return VolumeExperiment(config, device)
    from semidavil.experiments.street import StreetExperiment

    return StreetExperiment(config, device)


def train(
    config: Config, report: Reporter | None = None, checkpoint_dir: Path | None = None
) -> Result:
    """Trains `config` and evaluates it, on `runtime.world_size` processes.

    Args:
        report: called with a `Report` after every step; most have no metrics. It may raise
            `StopTraining` to end the run: `train` writes a checkpoint of that step, unless it has
            just done so, and raises it again. Any other exception ends the run without one.
        checkpoint_dir: where checkpoints and results go. A run continues from the one found there,
            and reports that checkpoint's step once more: it may have been killed before it did.

    Raises:
        StopTraining: from `report`.
        TrainingError: the loss is not finite, or the checkpoint belongs to another Config or (as an
            OtherDataError) to other data.
        ParallelError: processes that cannot train together, or of which one died.
        DiskFull: of `checkpoint_dir`; what was written before stays.
        DataError, VLMError, CaptionError: something is missing or broken; the message names it.
    """
    report = report or (lambda _: None)
    if config.runtime.world_size > 1 and "WORLD_SIZE" not in os.environ:
        return launch(train, config, report, checkpoint_dir)
    with joined(config):
        return _train(config, report, checkpoint_dir)


def _train(config: Config, report: Reporter, checkpoint_dir: Path | None) -> Result:
    started = time.perf_counter()
    setup, settings, benchmark = config.runtime, config.training, BENCHMARKS[config.data.benchmark]
    device = own_device(setup.device)
    reset_peak_memory(device)
    make_deterministic(config.seed, setup.threads, device, setup.deterministic)
    first = rank() == 0  # of several processes, the one that evaluates, reports and saves
    keep = checkpoint_dir if first else None

    experiment = open_experiment(config, device)
    method, optimizer = experiment.method, experiment.optimizer
    autocast = torch.autocast(
        device.type, torch.bfloat16, enabled=use_bfloat16(settings.amp, device)
    )
    take_step = TrainingStep(experiment, settings, autocast, device, setup.cuda_graphs)

    evaluations: dict[str, Any] = {}

    def score() -> dict[str, Any]:
        networks = method.networks()
        if not setup.eval_all:
            networks = dict(list(networks.items())[:1])
        with autocast:
            return experiment.evaluate(networks)

    def save(done: int) -> None:
        if keep:
            take_step.divergence.require_finite()
            save_checkpoint(keep, done, config, experiment.data, method, optimizer, meter)

    def end_step(done: int, saved: bool) -> None:
        """Evaluates, where it is due, and reports."""
        nonlocal evaluations
        metrics: dict[str, float] = {}
        evaluates = is_due(done, setup.eval_every, settings.steps)
        reads = meter.steps and (done % meter.every == 0 or done == settings.steps)
        if evaluates or reads:
            take_step.divergence.require_finite()
        if reads:
            metrics |= meter.read() | {"train/lr": float(optimizer.param_groups[0]["lr"])}
        if not first:
            return
        if evaluates:
            paused = time.perf_counter()
            evaluations = score()
            metrics |= evaluation_metrics(experiment, evaluations, benchmark.metric)
            method.train()
            meter.skip(time.perf_counter() - paused)
        try:
            report(Report(done, settings.steps, metrics, experiment.data))
        except StopTraining:
            if not saved:
                save(done)
            raise

    meter = Meter(every=max(1, min(50, settings.steps // 30)), device=device)
    data = experiment.data
    first_step = resume(checkpoint_dir, config, data, method, optimizer, meter, first)
    require_same_start(first_step, method)
    method.train()
    if first_step:  # its process may have died before the step's evaluation and report
        end_step(first_step, saved=True)
    steps = range(first_step, settings.steps)
    peak = device_peak(device)
    batches = iter(training_loader(experiment.batches, steps, config, device))
    for step in steps:
        with meter.waiting():
            batch = next(batches)
        batch = finish(to_device(batch, device))
        if peak and not meter.ideal_seconds:
            meter.ideal_seconds = method.flops(batch) / (peak * world_size())
        losses = take_step(batch, step)

        done = step + 1
        meter.add(losses, images=sum(len(part["image"]) for part in batch.values()))
        saved = is_due(done, setup.checkpoint_every, settings.steps)
        if saved:  # before the evaluation, in which a process may die as well
            save(done)
        end_step(done, saved)

    if not first:
        metrics, absent = from_first(None)
        return Result(metrics, None, absent, settings.steps, time.perf_counter() - started, {})
    name, reported = next(iter(evaluations.items()))
    artifacts: dict[str, Path] = {}
    if checkpoint_dir:
        checkpoint_dir.mkdir(parents=True, exist_ok=True)
        with on_disk(checkpoint_dir):
            artifacts = experiment.save(name, reported, checkpoint_dir)
    metrics = experiment.summary(reported) | experiment.constants
    network = method.networks()[name]
    metrics["parameters"] = float(sum(p.numel() for p in network.parameters()))
    for other, evaluation in evaluations.items():
        metrics[f"{other}_{benchmark.metric}"] = experiment.summary(evaluation)[benchmark.metric]
    metrics, absent = from_first((metrics, experiment.absent(reported)))
    with autocast:  # as it is evaluated
        latency = experiment.latency(name)
    return Result(
        metrics=metrics,
        evaluation=reported,
        absent=absent,
        steps=settings.steps,
        seconds=time.perf_counter() - started,
        artifacts=artifacts,
        data=experiment.data,
        notes=experiment.notes,
        latency_ms=latency,
    )


def is_due(step: int, every: int, last: int) -> bool:
    """Whether something is to be done after `step`: every so many steps (0: never), and after the last."""
    return step == last or (every > 0 and step % every == 0)


def evaluation_metrics(
    experiment: Experiment, evaluations: dict[str, Any], metric: str
) -> dict[str, float]:
    """`val/*` of the reported (first) network and `val_<name>/<metric>` of every network."""
    metrics: dict[str, float] = {}
    for position, (name, evaluation) in enumerate(evaluations.items()):
        summary = experiment.summary(evaluation)
        if position == 0:
            metrics |= {f"val/{key}": value for key, value in summary.items()}
        metrics[f"val_{name}/{metric}"] = summary[metric]
    return metrics


if __name__ == "__main__":  # `python -m semidavil.train`, the name that the command had once
    sys.argv.insert(1, "train")
    runpy.run_module("semidavil", run_name="__main__")
