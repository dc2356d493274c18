"""A training step: from a batch on the device to the next weights, without waiting for the device.

Nothing in a step reads a value back or has a shape that depends on data. A GPU then always has work queued;
one that is asked for a value each step stands still while the next step is being prepared.
"""

from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from semidavil.checkpoint import TrainingError
from semidavil.distributed import sum_gradients, world_size
from semidavil.experiments.base import Experiment
from semidavil.methods.base import Batch, Losses
from semidavil.replay import Compute, Replay
from semidavil.settings import Training


class NonFiniteLossError(TrainingError):
    """The loss became NaN or infinite; the same Config would do so again."""


class Divergence:
    """Whether a loss was not finite: the first such step and its losses, kept on the device.

    Steps go on until somebody asks, so whoever is about to write or to report something asks first.
    """

    def __init__(self, device: torch.device) -> None:
        self.step = torch.full((), -1, dtype=torch.int64, device=device)
        self.values = torch.zeros((), device=device)  # (n,) from the first step on
        self.names: tuple[str, ...] = ()

    @torch.no_grad()
    def watch(self, losses: Losses, step: int) -> None:
        """Notes the losses of step number `step`, counted from 0."""
        self.names = tuple(losses)
        values = torch.stack([value.detach().float() for value in losses.values()])
        is_first = ~losses["loss"].detach().isfinite() & (self.step < 0)
        self.step = self.step.masked_fill(is_first, step)
        self.values = torch.where(is_first, values, self.values)

    def require_finite(self) -> None:
        """Waits for the device, and raises NonFiniteLossError if a loss was not finite."""
        step = int(self.step)
        if step < 0:
            return
        pairs = zip(self.names, self.values.tolist(), strict=True)
        values = ", ".join(f"{name} = {value:g}" for name, value in pairs)
        raise NonFiniteLossError(
            f"the loss is not finite at step {step + 1} ({values}): lower training.lr, set "
            "training.grad_clip, or switch mixed precision off with training.amp=false"
        )


class Update:
    """From a batch to the next weights; the optimiser's groups hold the step's learning rates.

    Args:
        autocast: what the forward pass computes under.
    """

    def __init__(self, experiment: Experiment, autocast: AbstractContextManager) -> None:
        self.method, self.optimizer = experiment.method, experiment.optimizer
        self.grad_clip, self.autocast = experiment.grad_clip, autocast
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]

    def __call__(self, batch: Batch, step: int) -> Losses:
        with self.autocast:
            losses: Losses = self.method.losses(batch, step)
        self.optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()
        sum_gradients(self.parameters)
        if self.grad_clip > 0:
            nn.utils.clip_grad_norm_(self.parameters, self.grad_clip, foreach=True)
        self.optimizer.step()
        return {name: value.detach() for name, value in losses.items()}


class TrainingStep:
    """Makes the steps of an experiment.

    Args:
        autocast: what the forward pass computes under.
        replay: a GPU replays the update where the method allows it, see `semidavil.replay`.
    """

    def __init__(
        self,
        experiment: Experiment,
        settings: Training,
        autocast: AbstractContextManager,
        device: torch.device,
        replay: bool = False,
    ) -> None:
        self.method, self.optimizer = experiment.method, experiment.optimizer
        self.lr, self.settings = experiment.lr, settings
        self.divergence = Divergence(device)
        self.update: Compute = Update(experiment, autocast)
        groups = self.optimizer.param_groups
        self.rates: list[Tensor | None] = [
            # A recording reads the rate from the device; so does what is not recorded, to round alike.
            torch.zeros((), device=device) if device.type == "cuda" and group.get("fused") else None
            for group in groups
        ]
        if replay and device.type == "cuda" and world_size() == 1 and self.method.replayable():
            for group in groups:
                group["capturable"] = True
            self.update = Replay(self.update)

    def __call__(self, batch: Batch, step: int) -> Losses:
        """Step number `step`, counted from 0; returns its losses, which the next step may overwrite."""
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            lr = self.lr * group["scale"] * schedule(step, self.settings)
            group["lr"] = lr if rate is None else rate.fill_(lr)
        losses = self.update(batch, step)
        self.divergence.watch(losses, step)
        self.method.after_step(step)
        return losses


def schedule(step: int, settings: Training) -> float:
    """Factor on the learning rate: linear warm-up times the polynomial decay (1 - t/T)^power."""
    warm_up = min(1.0, (step + 1) / (settings.warmup_steps + 1))
    return warm_up * (1 - step / settings.steps) ** settings.poly_power
