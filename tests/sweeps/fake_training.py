"""Stands in for `semidavil.train` in the sweeps' tests: the same contract, no network to train.

What it does to a cell follows from the Config: the test chooses cells by learning rate, and where a
cell should die or wait, by files in the folder that `FAKE_TRAINING` names.
"""

import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

import sweeps
from semidavil.config import Config
from semidavil.full_disk import on_disk

STEPS = 10
CHECKPOINT_EVERY = 2
# Learning rates that end a cell that way; BROKEN_ONCE only at its first attempt, CROWDED beside others.
NON_FINITE, BROKEN, KILLED, BROKEN_ONCE, CROWDED = 0.111, 0.222, 0.333, 0.444, 0.555
TROUBLED = 0.666  # one of these ways for each attention
TROUBLES = {"dlg": BROKEN_ONCE, "vlga": BROKEN, "wpct": NON_FINITE, "cross_attention": KILLED}

PIECE_BYTES, HUNGER_BYTES = 2**11, 64 * 2**20
REMEMBERED: list[bytes] = []


class NonFiniteLossError(RuntimeError):
    pass


class OutOfMemoryError(RuntimeError):
    pass


@dataclass(frozen=True)
class Report:
    step: int
    total_steps: int
    metrics: dict[str, float]
    data: str = "feed"


@dataclass(frozen=True)
class Result:
    metrics: dict[str, float]
    steps: int
    artifacts: dict[str, Path]
    data: str = "feed"
    notes: dict[str, str] = field(default_factory=lambda: {"caption_prompt": "What is where?"})
    latency_ms: float = math.nan


def prepare(config: Config) -> str:
    _log("prepare", config)
    return ""


def _log(event: str, config: Config) -> None:
    folder = Path(os.environ["FAKE_TRAINING"])
    with (folder / "events.txt").open("a") as file:
        file.write(f"{event} {config.model.fusion} {config.data.budget} {os.getpid()}\n")


def train(
    config: Config,
    report: Callable[[Report], None],
    checkpoint_dir: Path,
) -> Result:
    with _at_work(config):
        return _train(config, report, checkpoint_dir)


def hungry_train(config: Config, report: Callable[[Report], None], checkpoint_dir: Path) -> Result:
    """Takes much memory and gives back all but a little, as libraries do that remember something."""
    pieces = [bytes(PIECE_BYTES) for _ in range(HUNGER_BYTES // PIECE_BYTES)]
    REMEMBERED.append(pieces[-1])
    return train(config, report, checkpoint_dir)


@contextmanager
def _at_work(config: Config) -> Iterator[None]:
    """Leaves word of a training, so that those at the same time can be counted."""
    mark = Path(os.environ["FAKE_TRAINING"]) / f"at-work-{os.getpid()}"
    mark.touch()
    try:
        yield
    finally:
        mark.unlink()
        _log("left", config)


def _train(config: Config, report: Callable[[Report], None], checkpoint_dir: Path) -> Result:
    # Globals that trials share in a reused worker: a real training sets its own, as this one does.
    print(f"code from {Path(sweeps.__file__).parent} and {Path(__file__).parent}")
    trouble = config.training.lr
    if trouble == TROUBLED:
        trouble = TROUBLES[config.model.fusion]
    generator = np.random.default_rng(config.seed)
    checkpoint = checkpoint_dir / "last.pt"
    first = int(checkpoint.read_text()) if checkpoint.exists() else 0
    draws = generator.random(STEPS)
    _log(f"train-from-{first}", config)
    _log(f"gpu-{os.environ.get('CUDA_VISIBLE_DEVICES', 'none')}", config)
    for step in range(first + 1, STEPS + 1):
        time.sleep(float(os.environ.get("FAKE_STEP_SECONDS", "0.01")))
        _log(f"step-{step}", config)
        metrics = {"train/loss": float(draws[step - 1]), "train/lr": 0.1}
        every = config.runtime.eval_every
        if every and (step % every == 0 or step == STEPS):
            metrics["val/miou"] = skill(config) * step / STEPS
        if step % int(os.environ.get("FAKE_METRICS_EVERY", "1")):
            metrics = {}
        try:
            report(Report(step, STEPS, metrics))
        except Exception as stop:
            if type(stop).__name__ == "StopTraining":  # importing it imports PyTorch
                _save(checkpoint, step)
                _log(f"stopped-at-{step}", config)
            raise
        if step % CHECKPOINT_EVERY == 0:
            _save(checkpoint, step)
        if step == 5 and trouble == NON_FINITE:
            raise NonFiniteLossError("the loss is not finite at step 5")
        if step == 5 and trouble == BROKEN and config.model.fusion == "vlga":
            raise ValueError("a broken image")
        if step == 5 and trouble == BROKEN_ONCE and first == 0:
            raise ValueError("the network drive is away")
        if trouble == CROWDED:
            _need_all_memory()
        if step == 5 and trouble == KILLED and first == 0:
            os.kill(os.getpid(), signal.SIGKILL)
    _log("trained", config)
    # By the name of a real run's weights, each of hundreds of runs would get a model in MLflow.
    weights = checkpoint_dir / os.environ.get("FAKE_WEIGHTS", "network.bin")
    weights.write_bytes(b"weights")
    miou = 30 + 10 * float(draws.mean()) + config.data.budget / 1000
    miou = skill(config) if config.runtime.eval_every else miou
    metrics = {"miou": miou, "iou/road": 90.0}
    return Result(metrics, STEPS, {"weights": weights}, latency_ms=config.model.decoder_dim / 10)


def _save(checkpoint: Path, step: int) -> None:
    written = checkpoint.with_suffix(".tmp")
    with on_disk(checkpoint.parent):
        written.write_text(str(step))
    written.replace(checkpoint)


def skill(config: Config) -> float:
    """What searches look for: the best learning rate is 1e-2, the best omega 0.3; wider is better."""
    distance = abs(math.log10(config.training.lr / 1e-2)) + abs(config.loss.omega - 0.3)
    return 50 - 10 * distance + math.log2(config.model.decoder_dim)


def _need_all_memory() -> None:
    if len(list(Path(os.environ["FAKE_TRAINING"]).glob("at-work-*"))) > 1:
        raise OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
