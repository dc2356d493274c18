"""What UA-MT and URPC share.

SemiDAViL's Synapse experiment replaces the cross-entropy inside their supervised terms by DyCE.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from semidavil.config import Config
from semidavil.flops import TRAINED, forward_flops
from semidavil.methods.base import Batch, Losses
from semidavil.models.unet3d import PyramidUNet
from semidavil.seeds import seed_of
from semidavil.settings import Volumes


class VolumeMethod(nn.Module):
    """A student on labelled and unlabelled volumes.

    Args:
        student: the network to train.
        supervised_loss: (logits, labels) -> scalar, what CE or DyCE computes.
        config: the run.
    """

    def __init__(self, student: PyramidUNet, supervised_loss: nn.Module, config: Config) -> None:
        super().__init__()
        self.student, self.supervised_loss, self.config = student, supervised_loss, config

    def replayable(self) -> bool:
        """See `Method.replayable`: each step draws from a generator of its own."""
        return False

    @staticmethod
    def dropout(settings: Volumes) -> Sequence[float]:
        """What its `PyramidUNet` is made with."""
        raise NotImplementedError

    def generator(self, step: int, device: torch.device | None = None) -> torch.Generator:
        """What a step draws from: dropout on the CPU, whose masks are then the same on every device.

        Noise is drawn on the device, as a step of UA-MT at full size needs 16 million numbers: 71 ms of a
        CPU. So noise depends on the seed, the step and the kind of device.
        """
        which = 0x0A37 if device is None else 0x0153
        seed = seed_of(self.config.seed, step, which)
        return torch.Generator(device or "cpu").manual_seed(seed)

    def supervised(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Half the loss under test plus half the Dice loss."""
        return 0.5 * (self.supervised_loss(logits, labels) + dice_loss(logits, labels))

    def weight(self, step: int) -> float:
        """Of the unsupervised term: `weight` times a Gaussian ramp-up over epochs."""
        settings = self.config.volumes
        return settings.weight * ramp_up(step // settings.epoch_steps, settings.rampup_epochs)

    def networks(self) -> dict[str, PyramidUNet]:
        """Networks to evaluate; the first is reported."""
        return {"student": self.student}

    def losses(self, batch: Batch, step: int) -> Losses:
        """The losses of one step; `["loss"]` is the one to minimise."""
        raise NotImplementedError

    def teacher_passes(self) -> int:
        """Forward passes of a teacher for each unlabelled volume of a step."""
        return 0

    def flops(self, batch: Batch) -> float:
        """FLOPs of a step on these volumes, as `semidavil.flops` counts them."""
        counts = {name: len(stream["image"]) for name, stream in batch.items()}
        volume = next(iter(batch.values()))["image"][:1]
        passes = TRAINED * sum(counts.values()) + self.teacher_passes() * counts["unlabelled"]
        return float(passes * forward_flops(lambda: self.student(volume)))

    def after_step(self, step: int) -> None:
        """Called when the optimiser has made step number `step`, counted from 0."""


def ramp_up(position: float, length: float) -> float:
    """exp(-5 (1 - t/T)^2), and 1 from T on (Laine and Aila, ICLR 2017)."""
    if length <= 0 or position >= length:
        return 1.0
    return math.exp(-5.0 * (1.0 - position / length) ** 2)


def dice_loss(logits: Tensor, labels: Tensor, smooth: float = 1e-5) -> Tensor:
    """1 - (2 sum p y + smooth) / (sum p^2 + sum y + smooth), the mean over classes.

    As in both official codes: squares in the denominator, sums over the whole batch; the mean over classes is
    our reading, as theirs have one organ. MONAI's DiceLoss computes the same and reads the labels back.

    Args:
        logits: (B, C, *).
        labels: (B, *), each a class.
    """
    probabilities = logits.float().softmax(1)
    classes = torch.arange(logits.shape[1], device=logits.device)
    truth = labels[:, None] == classes.view(-1, *[1] * (labels.dim() - 1))  # (B, C, *)
    axes = (0, *range(2, logits.dim()))
    overlap = torch.where(truth, probabilities, 0.0).sum(axes)
    sizes = probabilities.square().sum(axes) + truth.sum(axes)
    return (1 - (2 * overlap + smooth) / (sizes + smooth)).mean()
