"""UA-MT (Yu et al., MICCAI 2019), with CE or DyCE."""

import copy
import math
from typing import Self

import torch
from torch import Tensor, nn

from semidavil.config import Config
from semidavil.methods.base import Batch, Losses
from semidavil.methods.ema import ema_update
from semidavil.methods.volume_method import VolumeMethod, ramp_up
from semidavil.models.unet3d import PyramidUNet
from semidavil.seeds import seed_of


class UAMT(VolumeMethod):
    """A mean teacher whose targets count where it is certain.

        L = (L_s + Dice) / 2 + w(t) sum_M (p_S - p_T)^2 / (C sum M)

    The teacher sees unlabelled volumes with noise clamp(0.1 N(0, 1), -0.2, 0.2). M = 1 where the
    entropy u of the mean of T further noisy passes is below (0.75 + 0.25 rampup(t, t_max)) ln C
    (the official code has ln 2 and 2 for two classes; ln C and C are our reading). The student is
    reported, as in the official code.
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

    def losses(self, batch: Batch, step: int) -> Losses:
        labelled, images = batch["labelled"], batch["unlabelled"]["image"]
        logits = self.student(torch.cat([labelled["image"], images]))
        count = len(labelled["image"])
        supervised = self.supervised(logits[:count], labelled["label"])
        generator = torch.Generator().manual_seed(seed_of(self.config.seed, step, 0x0A37))
        with torch.no_grad():
            target = self.teacher(self._noisy(images, generator)).float().softmax(1)
            passes = self.config.volumes.uamt_passes
            mean = sum(
                self.teacher(self._noisy(images, generator)).float().softmax(1)
                for _ in range(passes)
            )
            uncertainty = entropy(mean / passes)
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

    def _noisy(self, images: Tensor, generator: torch.Generator) -> Tensor:
        noise = torch.randn(images.shape, generator=generator) * self.config.volumes.uamt_noise
        return images + noise.clamp(-0.2, 0.2).to(images.device)

    def after_step(self, step: int) -> None:
        ema_update(self.teacher, self.student, self.config.volumes.ema, step)


def entropy(probabilities: Tensor) -> Tensor:
    """-sum_c p_c log(p_c + 1e-6) of (B, C, *): (B, *)."""
    return -(probabilities * (probabilities + 1e-6).log()).sum(1)
