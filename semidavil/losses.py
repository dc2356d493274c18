"""Supervised losses, one signature; and the consistency loss of the student-teacher pair.

    loss = LOSSES["dyce"](num_classes=19, hard_fraction=0.2, omega=0.5)
    value = loss(logits, targets)     # (B, C, *) float, (B, *) int64 -> scalar

All reductions are over valid pixels (target != ignore_index) alone; a batch without any gives 0
that still has a gradient graph. Losses are computed in float32 whatever the logits' type.
"""

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semidavil.benchmarks import IGNORE_INDEX
from semidavil.settings import Loss


class PixelLoss(nn.Module):
    """What every loss is built with: (logits (B, C, *), targets (B, *)) -> scalar."""

    def __init__(self, num_classes: int, ignore_index: int = IGNORE_INDEX) -> None:
        super().__init__()
        self.num_classes, self.ignore_index = num_classes, ignore_index


class CrossEntropy(PixelLoss):
    """The mean of -log p_y over valid pixels."""

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        losses, labels = valid_pixels(logits, targets, self.ignore_index)
        return losses.mean() if labels.numel() else losses.sum()


class WeightedCrossEntropy(PixelLoss):
    """Cross-entropy weighted by inverse class frequency (Aurelio et al., Neural Processing Letters 2019).

        L = sum_i w_{y_i} (-log p_{y_i}) / sum_i w_{y_i},    w_c = n / (C n_c) clipped to [0.1, 10]

    with n_c the pixels of class c among n training pixels (the clipping is our reading). Without
    counts all weights are 1.

    Args:
        class_pixels: pixels of each class in the training labels, (C,).
    """

    weights: Tensor

    def __init__(
        self,
        num_classes: int,
        ignore_index: int = IGNORE_INDEX,
        class_pixels: Sequence[int] | None = None,
    ) -> None:
        super().__init__(num_classes, ignore_index)
        counts = torch.ones(num_classes) if class_pixels is None else torch.tensor(class_pixels)
        counts = counts.double()
        # A class that never occurs divides by one pixel rather than by none; it is clipped anyway.
        weights = counts.sum() / (num_classes * counts.clamp(min=1))
        self.register_buffer("weights", weights.clamp(0.1, 10).float(), persistent=False)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        losses, labels = valid_pixels(logits, targets, self.ignore_index)
        weights = self.weights[labels]
        return (weights * losses).sum() / weights.sum() if labels.numel() else losses.sum()


class Focal(PixelLoss):
    """Multi-class focal loss (Lin et al., ICCV 2017): the mean of -(1 - p_y)^gamma log p_y."""

    def __init__(
        self, num_classes: int, ignore_index: int = IGNORE_INDEX, gamma: float = 2.0
    ) -> None:
        super().__init__(num_classes, ignore_index)
        self.gamma = gamma

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        losses, labels = valid_pixels(logits, targets, self.ignore_index)
        if not labels.numel():
            return losses.sum()
        # 1 - p_y without the cancellation that would make its gradient infinite near p_y = 1.
        misses = -torch.expm1(-losses)
        return (misses.clamp(min=torch.finfo(misses.dtype).tiny).pow(self.gamma) * losses).mean()


class DualCrossEntropy(PixelLoss):
    """Dual cross-entropy (Li et al., IEEE Transactions on Vehicular Technology 68(5), 2019).

    The mean over pixels of -log p_y + beta sum_{c != y} log(alpha + p_c): wrong classes are pushed
    down as well, and the gradient stays when p_y is small. The paper tunes alpha and beta; 1 for both
    is our reading.
    """

    def __init__(
        self,
        num_classes: int,
        ignore_index: int = IGNORE_INDEX,
        alpha: float = 1.0,
        beta: float = 1.0,
    ) -> None:
        super().__init__(num_classes, ignore_index)
        self.alpha, self.beta = alpha, beta

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        losses, labels, wrong = wrong_probabilities(logits, targets, self.ignore_index)
        if not labels.numel():
            return losses.sum()
        # log(alpha + 0) for the true class's own entry is taken out again.
        penalties = (wrong + self.alpha).log().sum(1) - math.log(self.alpha)
        return (losses + self.beta * penalties).mean()


class DualFocal(PixelLoss):
    """Dual focal loss (Hossain, Betts and Paplinski, Neurocomputing 2021).

    The mean over pixels of

        -log p_y + alpha sum_c |y_c - p_c|^gamma - beta sum_{c != y} log(rho - p_c)

    The focal factor is added instead of multiplied, so that it cannot make the gradient vanish, and
    the last term holds wrong classes down as dual cross-entropy does. No public page states the
    formula, and the focal term's sign is open: by author, one public implementation adds it and two
    subtract it. The abstract ("increase the loss on hard-to-classify classes", "effective against a
    vanishing gradient") speaks for plus, which is our reading, with 1 for all four parameters.
    log(rho - p_c) is kept finite by 1e-6.
    """

    def __init__(
        self,
        num_classes: int,
        ignore_index: int = IGNORE_INDEX,
        alpha: float = 1.0,
        beta: float = 1.0,
        gamma: float = 1.0,
        rho: float = 1.0,
    ) -> None:
        super().__init__(num_classes, ignore_index)
        self.alpha, self.beta, self.gamma, self.rho = alpha, beta, gamma, rho

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        losses, labels, wrong = wrong_probabilities(logits, targets, self.ignore_index)
        if not labels.numel():
            return losses.sum()
        # sum_{c != y} p_c is 1 - p_y: with gamma = 1 both halves of the focal sum are the same.
        missed = wrong.sum(1).clamp(min=torch.finfo(wrong.dtype).tiny)
        spread = wrong.clamp(min=torch.finfo(wrong.dtype).tiny).pow(self.gamma).sum(1)
        repelled = (self.rho - wrong + 1e-6).log().sum(1) - math.log(self.rho + 1e-6)
        focal = missed.pow(self.gamma) + spread
        return (losses + self.alpha * focal - self.beta * repelled).mean()


class DyCE(PixelLoss):
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
        super().__init__(num_classes, ignore_index)
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


def wrong_probabilities(
    logits: Tensor, targets: Tensor, ignore_index: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Cross-entropy (n,), label (n,) and probabilities (n, C) of the n valid pixels, p_y set to 0."""
    losses, labels = valid_pixels(logits, targets, ignore_index)
    valid = targets != ignore_index
    probabilities = logits.float().softmax(1).movedim(1, -1)[valid]
    return losses, labels, probabilities.scatter(1, labels[:, None], 0.0)


def pseudo_label(logits: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Confidence q and label of each pixel (B, *) by logits (B, C, *), as in SemiDAViL, below eq. 4.

    q is the largest probability of softmax(logits / temperature): below 1 the temperature sharpens, so
    that more pixels reach a threshold, and not the same ones as a lower threshold would give. The
    paper has none, which is 1. The label does not depend on it.
    """
    confidence, labels = (logits.float() / temperature).softmax(1).max(1)
    return confidence, labels


def consistency_loss(
    logits: Tensor,
    pseudo_labels: Tensor,
    confidence: Tensor,
    threshold: float,
    over: Literal["all", "confident"] = "all",
) -> Tensor:
    """L_CT (SemiDAViL, eq. 4): cross-entropy with the teacher's label where it is confident.

    The sum in eq. 4 leaves the normalisation open. "all" divides by the number of pixels, so that few
    confident ones weigh little (our reading, and UniMatch's code); "confident" by theirs alone, as
    SemiDAViL's released code does.

    Args:
        logits: the student's on the strong view, (B, C, H, W).
        pseudo_labels, confidence: the teacher's argmax and maximum probability, (B, H, W).
    """
    learn_from = confidence >= threshold
    losses = F.cross_entropy(logits.float(), pseudo_labels, reduction="none")
    count = learn_from.sum().clamp(min=1) if over == "confident" else learn_from.numel()
    return (losses * learn_from).sum() / count


def gradient_norm(loss: Callable[[Sequence[Tensor]], Tensor], logits: Sequence[Tensor]) -> Tensor:
    """The Euclidean norm of a loss's gradient at the logits; the logits' own graph is left alone."""
    leaves = [part.detach().float().requires_grad_() for part in logits]
    gradients = torch.autograd.grad(loss(leaves), leaves)
    return torch.stack([gradient.norm() for gradient in gradients]).norm()


LOSSES: dict[str, type[PixelLoss]] = {
    "ce": CrossEntropy,
    "wce": WeightedCrossEntropy,
    "focal": Focal,
    "dce": DualCrossEntropy,
    "dfl": DualFocal,
    "dyce": DyCE,
}


def build_loss(
    config: Loss, num_classes: int, class_pixels: Callable[[], Sequence[int]] | None = None
) -> PixelLoss:
    """The configured loss; its parameter `x` takes `Config.loss.x`, or `Config.loss.<name>_x`.

    Args:
        class_pixels: counts the pixels of each class in the training labels; called for losses that
            ask for them alone.
    """
    loss = LOSSES[config.name]
    parameters = inspect.signature(loss).parameters
    known = config.model_dump()
    if class_pixels and "class_pixels" in parameters:
        known["class_pixels"] = class_pixels()
    chosen = {
        parameter: known[field]
        for parameter in parameters
        for field in (parameter, f"{config.name}_{parameter}")
        if field in known
    }
    return loss(num_classes, **chosen)
