"""A student and its exponential moving average."""

import copy
from typing import Self

import torch
from torch import Tensor

from semidavil.distributed import gather, share
from semidavil.losses import pseudo_label
from semidavil.methods.base import Method
from semidavil.methods.ema import ema_update
from semidavil.models.segmenter import Segmenter
from semidavil.models.text import Language


class MeanTeacher(Method):
    """A Method whose teacher follows the student by EMA, labels images and is reported."""

    def extend(self) -> None:
        self.teacher = copy.deepcopy(self.student).requires_grad_(False).eval()

    def networks(self) -> dict[str, Segmenter]:
        return {"teacher": self.teacher, "student": self.student}

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.teacher.eval()
        return self

    @torch.no_grad()
    def pseudo_labels(self, images: Tensor, language: Language) -> tuple[Tensor, Tensor]:
        """The teacher's confidence and label (B, H, W) of each pixel of images (B, 3, H, W)."""
        mine = share(len(images))
        logits = self.teacher(images[mine], language[mine])
        confidence, labels = pseudo_label(logits, self.config.training.temperature)
        return gather(confidence), gather(labels)

    def ema(self) -> float:
        """The decay of the moving average."""
        return self.config.training.ema

    def after_step(self, step: int) -> None:
        ema_update(self.teacher, self.student, self.ema(), step)
