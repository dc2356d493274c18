"""Supervised losses, one signature; and the consistency loss of the student-teacher pair.

    loss = LOSSES["dyce"](num_classes=19, hard_fraction=0.2, omega=0.5)
    value = loss(logits, targets)     # (B, C, *) float, (B, *) int64 -> scalar

All reductions are over valid pixels (target != ignore_index) alone; a batch without any gives 0
that still has a gradient graph. Losses are computed in float32 whatever the logits' type.
"""

import inspect
import math

import torch.nn.functional as F
from torch import Tensor, nn

from semidavil.config import Loss

IGNORE_INDEX = 255


class CrossEntropy(nn.Module):
    """The mean of -log p_y over valid pixels."""

    def __init__(self, num_classes: int, ignore_index: int = IGNORE_INDEX) -> None:
        super().__init__()
        self.num_classes, self.ignore_index = num_classes, ignore_index

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        losses, labels = valid_pixels(logits, targets, self.ignore_index)
        return losses.mean() if labels.numel() else losses.sum()


class DyCE(nn.Module):
    """Dynamic cross-entropy (SemiDAViL, CVPR 2025, eq. 9): hard pixels, re-weighted rare classes.

    H holds the `hard_fraction` of valid pixels with the largest cross-entropy (at least one);
    f_H = |H| and f_c counts class c in H:

        L = - 1 / f_H^w  sum_c  1 / f_c^(1-w)  sum_{i in H, y_i = c} log p_{i,c}

    Classes absent from H add nothing; the selection and the counts carry no gradient. omega = 1
    with hard_fraction = 1 is the mean cross-entropy; omega = 0 averages within each class.
    """

    def __init__(
        self,
        num_classes: int,
        ignore_index: int = IGNORE_INDEX,
        hard_fraction: float = 0.2,
        omega: float = 0.5,
    ) -> None:
        super().__init__()
        self.num_classes, self.ignore_index = num_classes, ignore_index
        self.hard_fraction, self.omega = hard_fraction, omega

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        losses, labels = valid_pixels(logits, targets, self.ignore_index)
        if not labels.numel():
            return losses.sum()
        # The small number undoes products such as 0.29 * 100 = 28.999999999999996.
        num_hard = max(1, math.floor(self.hard_fraction * labels.numel() + 1e-6))
        hard = losses.detach().topk(num_hard, sorted=False).indices
        hard_labels = labels[hard]
        counts = hard_labels.bincount(minlength=self.num_classes).float()
        weights = counts[hard_labels].pow(self.omega - 1) / num_hard**self.omega
        return (weights * losses[hard]).sum()


def valid_pixels(logits: Tensor, targets: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Cross-entropy (n,) and label (n,) of the n valid pixels of (B, C, *) logits, (B, *) targets."""
    losses = F.cross_entropy(logits.float(), targets, ignore_index=ignore_index, reduction="none")
    valid = targets != ignore_index
    return losses[valid], targets[valid]


def consistency_loss(
    logits: Tensor, pseudo_labels: Tensor, confidence: Tensor, threshold: float, valid: Tensor
) -> Tensor:
    """L_CT (SemiDAViL, eq. 4): cross-entropy with the teacher's label where it is confident.

    Divided by the number of valid pixels, confident or not, so that few confident pixels weigh
    little (our reading: the sum in eq. 4 leaves the normalisation open).

    Args:
        logits: the student's on the strong view, (B, C, H, W).
        pseudo_labels, confidence: the teacher's argmax and maximum probability, (B, H, W).
        valid: False where the image is padding, (B, H, W).
    """
    learn_from = valid & (confidence >= threshold)
    losses = F.cross_entropy(logits.float(), pseudo_labels, reduction="none")
    return (losses * learn_from).sum() / valid.sum().clamp(min=1)


LOSSES: dict[str, type[nn.Module]] = {
    "ce": CrossEntropy,
    "dyce": DyCE,
}


def build_loss(config: Loss, num_classes: int) -> nn.Module:
    """The configured loss; a field of `Config.loss` that its class names as a parameter is passed."""
    loss = LOSSES[config.name]
    accepted = inspect.signature(loss).parameters
    return loss(num_classes, **{k: v for k, v in config.model_dump().items() if k in accepted})
