"""UA-MT (Yu et al., MICCAI 2019), with CE or DyCE."""

import copy
import math
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn

from semidavil.config import Config
from semidavil.methods.base import Batch, Losses
from semidavil.methods.ema import ema_update
from semidavil.methods.volume_method import VolumeMethod, ramp_up
from semidavil.models.unet3d import SCALES, PyramidUNet
from semidavil.settings import Volumes


class UAMT(VolumeMethod):
    """A mean teacher whose targets count where it is certain.

        L = (L_s + Dice) / 2 + w(t) sum_M (p_S - p_T)^2 / (C sum M)

    The teacher sees unlabelled volumes with noise clamp(0.1 N(0, 1), -0.2, 0.2). M = 1 where the
    entropy u of the mean of T further noisy passes is below (0.75 + 0.25 rampup(t, t_max)) ln C
    (the official code has ln 2 and 2 for two classes; ln C and C are our reading). Student and teacher
    drop channels in every pass, the target's and the T others (Monte Carlo dropout), as the official code
    keeps both in training mode. The student is reported, as in the official code.

    The ramp-up over 200 epochs and the polynomial decay are SSL4MIS's; the official code has 40 epochs and a
    learning rate that falls to a tenth every 2,500 steps.
    """

    def __init__(self, student: PyramidUNet, supervised_loss: nn.Module, config: Config) -> None:
        super().__init__(student, supervised_loss, config)
        self.teacher = copy.deepcopy(student).requires_grad_(False).eval()

    def networks(self) -> dict[str, PyramidUNet]:
        return {"student": self.student, "teacher": self.teacher}

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.teacher.eval()
        return self

    def teacher_passes(self) -> int:
        return 1 + self.config.volumes.uamt_passes

    @staticmethod
    def dropout(settings: Volumes) -> Sequence[float]:
        """As V-Net in the official code: behind the bottleneck and before the last layer."""
        return (settings.uamt_dropout, *[0.0] * (SCALES - 1), settings.uamt_dropout)

    def losses(self, batch: Batch, step: int) -> Losses:
        labelled, images = batch["labelled"], batch["unlabelled"]["image"]
        generator, noise = self.generator(step), self.generator(step, images.device)
        logits = self.student(torch.cat([labelled["image"], images]), generator)
        count = len(labelled["image"])
        supervised = self.supervised(logits[:count], labelled["label"])
        with torch.no_grad():
            target = self._guess(images, noise, generator)
            total, passes = torch.zeros_like(target), self.config.volumes.uamt_passes
            for _ in range(passes):
                total += self._guess(images, noise, generator)
            uncertainty = entropy(total / passes)
        classes = logits.shape[1]
        limit = 0.75 + 0.25 * ramp_up(step, self.config.training.steps)
        certain = uncertainty < limit * math.log(classes)
        distance = (logits[count:].float().softmax(1) - target) ** 2
        consistency = (distance * certain[:, None]).sum() / (classes * certain.sum() + 1e-16)
        return {
            "loss": supervised + self.weight(step) * consistency,
            "loss_sup": supervised,
            "loss_con": consistency,
            "confident": certain.float().mean(),
        }

    def _guess(self, images: Tensor, noise: torch.Generator, dropout: torch.Generator) -> Tensor:
        """One noisy pass of the teacher: probabilities (B, C, D, H, W)."""
        return self.teacher(self._noisy(images, noise), dropout).float().softmax(1)

    def _noisy(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Volumes with noise from a generator on their own device."""
        noise = torch.empty_like(images).normal_(generator=generator)
        return images + (noise * self.config.volumes.uamt_noise).clamp(-0.2, 0.2)

    def after_step(self, step: int) -> None:
        ema_update(self.teacher, self.student, self.config.volumes.ema, step)


def entropy(probabilities: Tensor) -> Tensor:
    """-sum_c p_c log(p_c + 1e-6) of (B, C, *): (B, *)."""
    return -(probabilities * (probabilities + 1e-6).log()).sum(1)
