"""SemiDAViL (Basak and Yin, CVPR 2025): supervised loss plus confident teacher labels."""

import copy
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from semidavil.config import Config
from semidavil.losses import consistency_loss
from semidavil.methods.base import Batch, Losses, Method
from semidavil.segmenter import Segmenter, ema_update
from semidavil.vlm import Language


class SemiDAViL(Method):
    """L = L_sup + lambda L_CT with an EMA teacher (eq. 4 and 6).

    The teacher labels the weak view of an unlabelled target image, the student learns the confident
    labels on the strong view. CutMix (as in UniMatch, CVPR 2023; the paper does not name its
    augmentations) pastes a box of the batch's next image into the strong view together with its
    pseudo-labels. The teacher is reported.
    """

    streams: ClassVar[frozenset[str]] = frozenset({"source", "labelled", "unlabelled"})
    strong_views: ClassVar[int] = 1

    def __init__(
        self,
        student: Segmenter,
        encode: Callable[[Sequence[str]], Language],
        supervised_loss: nn.Module,
        config: Config,
    ) -> None:
        super().__init__(student, encode, supervised_loss, config)
        self.teacher = copy.deepcopy(student).requires_grad_(False).eval()

    def networks(self) -> dict[str, Segmenter]:
        return {"teacher": self.teacher, "student": self.student}

    def train(self, mode: bool = True) -> "SemiDAViL":
        super().train(mode)
        self.teacher.eval()
        return self

    def losses(self, batch: Batch) -> Losses:
        training, unlabelled = self.config.training, batch["unlabelled"]
        captions = unlabelled["caption"]
        with torch.no_grad():
            probabilities = self.teacher(unlabelled["image"], self.encode(captions))
            confidence, pseudo_labels = probabilities.float().softmax(1).max(1)

        box = unlabelled["cutmix"][0]  # (B, H, W)
        strong = paste(unlabelled["strong"][0], box)
        confidence, pseudo_labels = paste(confidence, box), paste(pseudo_labels, box)
        valid = paste(unlabelled["valid"], box)

        supervised, (logits,) = self.supervised(batch, extra=[(strong, captions)])
        consistency = consistency_loss(
            logits, pseudo_labels, confidence, training.confidence, valid
        )
        confident = (valid & (confidence >= training.confidence)).sum() / valid.sum().clamp(min=1)
        return {
            "loss": supervised + training.consistency_weight * consistency,
            "loss_sup": supervised,
            "loss_con": consistency,
            "confident": confident,
        }

    def after_step(self, step: int) -> None:
        ema_update(self.teacher, self.student, self.config.training.ema, step)


def paste(values: Tensor, box: Tensor) -> Tensor:
    """CutMix: inside `box` (B, H, W) the values (B, [C,] H, W) of the batch's next image."""
    mask = box if values.dim() == box.dim() else box.unsqueeze(1)
    return torch.where(mask, values.roll(-1, dims=0), values)
