"""Trains one Config, from its data to its score.

    python -m semidavil.train --benchmark gta5-cityscapes --budget 100

    from semidavil.config import preset
    from semidavil.train import prepare, train
    config = preset("toy")
    prepare(config)                       # data, checks, captions: slow, shared by many runs, once
    result = train(config, report=print, checkpoint_dir=Path("checkpoints") / config.key())

The number reported is the last step's (the teacher's, where a method has one), never the best on
the split that it is reported on. One seed fixes a run: the batch of a step depends on the seed and
the step alone, so a run that was stopped and goes on from its checkpoint ends with the same numbers.
"""

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
import typer
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader

from semidavil.caption_ablation import (
    ORACLE,
    SHUFFLED,
    inner_captioner,
    oracle_captions,
    shuffle_captions,
)
from semidavil.captions import caption_images
from semidavil.checkpoint import TrainingError, resume, save_checkpoint
from semidavil.config import Config, Training
from semidavil.data.benchmarks import BENCHMARKS
from semidavil.data.checks import check_data, class_pixels
from semidavil.data.loading import (
    EvalSet,
    TrainBatches,
    all_samples,
    cache_dir,
    disparities,
    open_reader,
)
from semidavil.evaluate import evaluate, save_examples
from semidavil.losses import build_loss
from semidavil.methods import METHODS
from semidavil.methods.base import Method
from semidavil.metrics import Evaluation, absent_classes, summarise
from semidavil.runtime import Meter, choose_device, make_deterministic, to_device, use_bfloat16
from semidavil.segmenter import build_segmenter, parameter_groups
from semidavil.vlm import VLM, load_vlm


class NonFiniteLossError(TrainingError):
    """The loss became NaN or infinite; the same Config would do so again."""


@dataclass(frozen=True)
class Report:
    """Progress of a run: `metrics` at `step` (counted from 1) of `total_steps`."""

    step: int
    total_steps: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class Result:
    """A finished run."""

    # `miou`, `pixel_accuracy`, `iou/<class>`, ... of the reported network; `<network>_miou` of each
    metrics: dict[str, float]
    evaluation: Evaluation = field(repr=False)  # of the reported network
    absent: list[str]  # classes with neither ground truth nor prediction
    steps: int
    seconds: float  # of this call: a resumed run does not count what it did before
    artifacts: dict[str, Path]  # files worth keeping, by name; empty without a `checkpoint_dir`

    @property
    def confusion(self) -> np.ndarray:
        """(C, C), rows = truth."""
        return self.evaluation.confusion


Reporter = Callable[[Report], None]


def prepare(config: Config, progress: bool = True) -> None:
    """Everything slow that runs share: toy data, data checks, captions. Doing it again costs little."""
    target = BENCHMARKS[config.data.benchmark].target
    check_data(config, progress)
    if METHODS[config.training.method].disparity or config.data.selection == "depth":
        disparities(config, open_reader(config, target).samples("train"), progress)
    if config.model.fusion != "none":
        vlm = load_vlm(config.model.vlm, config.model.weights, seed=config.seed)
        load_captions(config, vlm.to(choose_device(config.runtime.device)), progress)


def train(
    config: Config, report: Reporter | None = None, checkpoint_dir: Path | None = None
) -> Result:
    """Trains `config` and evaluates it on the target validation set.

    Args:
        report: called with a `Report` every few steps; may raise to stop the run.
        checkpoint_dir: where checkpoints and results go. A run continues from the one found there.

    Raises:
        TrainingError: the loss is not finite, or the checkpoint belongs to another Config.
        DataError, VLMError, CaptionError: something is missing or broken; the message names it.
    """
    started = time.perf_counter()
    setup, settings, benchmark = config.runtime, config.training, BENCHMARKS[config.data.benchmark]
    device = choose_device(setup.device)
    make_deterministic(config.seed, setup.threads)
    report = report or (lambda _: None)

    check_data(config)
    vlm = load_vlm(config.model.vlm, config.model.weights, seed=config.seed).to(device)
    captions = load_captions(config, vlm)
    num_classes = len(benchmark.classes)
    method = build_method(config, vlm, num_classes).to(device)
    method_type = METHODS[settings.method]
    batches = TrainBatches(
        config, captions, method_type.streams, method_type.strong_views, method_type.disparity
    )
    validation = EvalSet(config, captions)
    groups = parameter_groups(method.student, settings.lr, settings.backbone_lr_factor)
    optimizer = torch.optim.AdamW(groups, weight_decay=settings.weight_decay)
    parameters = [p for group in groups for p in group["params"]]
    autocast = torch.autocast(
        device.type, torch.bfloat16, enabled=use_bfloat16(settings.amp, device)
    )

    def score() -> dict[str, Evaluation]:
        with autocast:
            return evaluate(
                method.networks(), validation, method.encode, num_classes, config.data.crop,
                device, setup.eval_batch_size, setup.num_workers, settings.confidence,
            )  # fmt: skip

    first_step = resume(checkpoint_dir, config, method, optimizer, device)
    loader = DataLoader(
        batches,
        batch_size=None,
        sampler=range(first_step, settings.steps),
        num_workers=setup.num_workers,
        pin_memory=device.type == "cuda",
    )
    meter = Meter(every=max(1, min(50, settings.steps // 30)), device=device)
    evaluations: dict[str, Evaluation] = {}
    method.train()
    for step, batch in enumerate(loader, start=first_step):
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * group["scale"] * schedule(step, settings)
        batch = to_device(batch, device)
        with autocast:
            losses = method.losses(batch, step)
        require_finite(losses, step)
        optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()
        if settings.grad_clip > 0:
            torch.nn.utils.clip_grad_norm_(parameters, settings.grad_clip)
        optimizer.step()
        method.after_step(step)

        done = step + 1
        meter.add(losses, images=sum(len(part["image"]) for part in batch.values()))
        metrics: dict[str, float] = {}
        if done % meter.every == 0 or done == settings.steps:
            metrics |= meter.read() | {"train/lr": optimizer.param_groups[0]["lr"]}
        if done == settings.steps or (setup.eval_every and done % setup.eval_every == 0):
            paused = time.perf_counter()
            evaluations = score()
            metrics |= evaluation_metrics(evaluations, config)
            method.train()
            meter.skip(time.perf_counter() - paused)
        if metrics:
            report(Report(done, settings.steps, metrics))
        if checkpoint_dir and (
            done == settings.steps
            or (setup.checkpoint_every and done % setup.checkpoint_every == 0)
        ):
            save_checkpoint(checkpoint_dir, done, config, method, optimizer)

    if not evaluations:  # the checkpoint was of the last step: only the evaluation was missing
        evaluations = score()
    return finish(config, method, evaluations, validation, checkpoint_dir, device, started)


def require_finite(losses: dict[str, Tensor], step: int) -> None:
    """Raises NonFiniteLossError before a broken gradient reaches the weights or a checkpoint."""
    if math.isfinite(losses["loss"].item()):
        return
    values = ", ".join(f"{name} = {value.item():g}" for name, value in losses.items())
    raise NonFiniteLossError(
        f"the loss is not finite at step {step + 1} ({values}): lower training.lr, set "
        "training.grad_clip, or switch mixed precision off with training.amp=false"
    )


def build_method(config: Config, vlm: VLM, num_classes: int) -> Method:
    """The configured method around a fresh student."""
    start = vlm
    if config.model.vision_init == "random":  # captions and language stay those of the VLM
        fresh = load_vlm(config.model.vlm, "none", seed=config.seed).vision.to(vlm.device)
        start = replace(vlm, vision=fresh)
    student = build_segmenter(config.model, start, num_classes)
    counts = class_pixels(config) if config.loss.name == "wce" else None
    loss = build_loss(config.loss, num_classes, counts)
    # The bound method, not the module: the frozen text tower has no place in checkpoints.
    method = METHODS[config.training.method](student, vlm.text.forward, loss, config)
    method.use_vlm(vlm, BENCHMARKS[config.data.benchmark].classes)
    return method


def load_captions(config: Config, vlm: VLM, progress: bool = False) -> dict[Path, str]:
    """The caption of every image that the run may draw, from the cache where it is there."""
    name = config.model.captions if config.model.fusion != "none" else "none"
    folder, groups = cache_dir(config) / "captions", all_samples(config)
    if name == ORACLE:
        return oracle_captions(config, groups, folder, progress)
    paths = [[sample.image for sample in samples] for samples in groups.values()]
    captions = caption_images(
        [path for group in paths for path in group],
        inner_captioner(name),
        vlm,
        BENCHMARKS[config.data.benchmark].classes,
        folder,
        progress=progress,
    )
    return shuffle_captions(captions, paths) if name.startswith(SHUFFLED) else captions


def schedule(step: int, settings: Training) -> float:
    """Factor on the learning rate: linear warm-up times the polynomial decay (1 - t/T)^power."""
    warm_up = min(1.0, (step + 1) / (settings.warmup_steps + 1))
    return warm_up * (1 - step / settings.steps) ** settings.poly_power


def evaluation_metrics(evaluations: dict[str, Evaluation], config: Config) -> dict[str, float]:
    """`val/*` of the reported (first) network and `val_<name>/*` of every network."""
    benchmark = BENCHMARKS[config.data.benchmark]
    metrics: dict[str, float] = {}
    for position, (name, evaluation) in enumerate(evaluations.items()):
        summary = summarise(evaluation.confusion, benchmark.classes, benchmark.subsets)
        if position == 0:
            pseudo = {f"pseudo/{key}": v for key, v in evaluation.pseudo_labels().items()}
            metrics |= {f"val/{key}": value for key, value in (summary | pseudo).items()}
        metrics[f"val_{name}/miou"] = summary["miou"]
        metrics[f"val_{name}/pixel_accuracy"] = summary["pixel_accuracy"]
    return metrics


def finish(
    config: Config,
    method: Method,
    evaluations: dict[str, Evaluation],
    validation: EvalSet,
    folder: Path | None,
    device: torch.device,
    started: float,
) -> Result:
    """The Result, with weights and example pictures written into `folder`."""
    benchmark = BENCHMARKS[config.data.benchmark]
    name, network = next(iter(method.networks().items()))
    metrics = summarise(evaluations[name].confusion, benchmark.classes, benchmark.subsets)
    for other, evaluation in evaluations.items():
        metrics[f"{other}_miou"] = summarise(evaluation.confusion, benchmark.classes)["miou"]
    artifacts: dict[str, Path] = {}
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
        artifacts = {
            "weights": folder / "segmenter.safetensors",
            "examples": folder / "examples.png",
            "evaluation": folder / "evaluation.npz",
        }
        about = {"config": json.dumps(config.to_params()), "network": name, "key": config.key()}
        save_file(network.state_dict(), artifacts["weights"], metadata=about)
        evaluations[name].save(artifacts["evaluation"])
        save_examples(
            network,
            validation,
            method.encode,
            benchmark.palette,
            config.data.crop,
            device,
            artifacts["examples"],
        )
    return Result(
        metrics=metrics,
        evaluation=evaluations[name],
        absent=absent_classes(evaluations[name].confusion, benchmark.classes),
        steps=config.training.steps,
        seconds=time.perf_counter() - started,
        artifacts=artifacts,
    )


if __name__ == "__main__":
    from semidavil.commandline import main

    typer.run(main)
