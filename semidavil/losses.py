"""Supervised losses, one signature; and the consistency loss of the student-teacher pair.

    loss = LOSSES["dyce"](num_classes=19, hard_fraction=0.2, omega=0.5)
    value = loss(logits, targets)     # (B, C, *) float, (B, *) int64 -> scalar

All reductions are over valid pixels (target != ignore_index) alone; a batch without any gives 0
that still has a gradient graph. Losses are computed in float32 whatever the logits' type.

No shape depends on the targets and nothing is read back, so that no step waits for its device: ignored
pixels stay where they are and weigh nothing. `benchmarks/losses.py` measures each beside PyTorch's own
cross-entropy, of which most is the price of fresh memory for (B, C, *) tensors: what goes through the
classes one after another makes no more of them.
"""

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from semidavil.benchmarks import IGNORE_INDEX
from semidavil.plugins import Table
from semidavil.settings import Loss


class PixelLoss(nn.Module):
    """What every loss is built with: (logits (B, C, *), targets (B, *)) -> scalar."""

    def __init__(self, num_classes: int, ignore_index: int = IGNORE_INDEX) -> None:
        super().__init__()
        self.num_classes, self.ignore_index = num_classes, ignore_index


class CrossEntropy(PixelLoss):
    """The mean of -log p_y over valid pixels."""

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        losses, valid = pixel_losses(logits, targets, self.ignore_index)
        return losses.sum() / valid.sum().clamp(min=1)


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
        losses, valid = pixel_losses(logits, targets, self.ignore_index)
        weights = self.weights[targets.where(valid, 0)] * valid
        # No weight is below 0.1: the smallest number is there for a batch without any valid pixel.
        return (weights * losses).sum() / weights.sum().clamp(min=0.1)


class Focal(PixelLoss):
    """Multi-class focal loss (Lin et al., ICCV 2017): the mean of -(1 - p_y)^gamma log p_y."""

    def __init__(
        self, num_classes: int, ignore_index: int = IGNORE_INDEX, gamma: float = 2.0
    ) -> None:
        super().__init__(num_classes, ignore_index)
        self.gamma = gamma

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        losses, valid = pixel_losses(logits, targets, self.ignore_index)
        return (misses(losses).pow(self.gamma) * losses).sum() / valid.sum().clamp(min=1)


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
        losses, penalties, valid = wrong_logs(logits, targets, self.ignore_index, self.alpha, 1)
        return mean_over(valid, losses + self.beta * penalties)


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
        offset = self.rho + 1e-6
        losses, repelled, valid = wrong_logs(logits, targets, self.ignore_index, offset, -1)
        missed = misses(losses)
        # sum_{c != y} p_c is 1 - p_y: with gamma = 1 both halves of the focal sum are the same.
        focal = (
            2 * missed
            if self.gamma == 1
            else missed.pow(self.gamma) + self._spread(logits, targets)
        )
        return mean_over(valid, losses + self.alpha * focal - self.beta * repelled)

    def _spread(self, logits: Tensor, targets: Tensor) -> Tensor:
        """sum_{c != y} p_c^gamma of each pixel, (B, *)."""
        labels = targets.where(targets != self.ignore_index, 0).unsqueeze(1)
        wrong = logits.float().softmax(1).scatter(1, labels, 0.0)
        tiny = torch.finfo(wrong.dtype).tiny  # the gradient at 0 is infinite for gamma below 1
        return wrong.clamp(min=tiny).pow(self.gamma).sum(1) - tiny**self.gamma


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
        losses, valid = pixel_losses(logits, targets, self.ignore_index)
        # The small number undoes products such as 0.29 * 100 = 28.999999999999996.
        num_hard = (self.hard_fraction * valid.sum().double() + 1e-6).floor().clamp(min=1)
        # As many as there were without ignored pixels; of those, the first `num_hard` are H.
        most = max(1, math.floor(self.hard_fraction * valid.numel() + 1e-6))
        ranked, order = losses.detach().where(valid, -1.0).flatten().topk(most)
        in_h = (torch.arange(most, device=order.device) < num_hard) & (ranked != -1)
        labels = targets.flatten().index_select(0, order).where(in_h, 0)
        classes = torch.arange(self.num_classes, device=order.device).unsqueeze(1)
        counts = ((labels == classes) & in_h).sum(1, dtype=torch.int32)
        of_class = counts.clamp(min=1).float().pow(self.omega - 1)
        weights = of_class.index_select(0, labels) * in_h
        hardest = losses.flatten().index_select(0, order)
        return (weights * hardest).sum() / num_hard.float().pow(self.omega)


def pixel_losses(logits: Tensor, targets: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Cross-entropy (0 where ignored) and whether it is valid, of each pixel: (B, *)."""
    losses = F.cross_entropy(logits.float(), targets, ignore_index=ignore_index, reduction="none")
    return losses, targets != ignore_index


def mean_over(valid: Tensor, values: Tensor) -> Tensor:
    """The mean of the values where `valid`, both (B, *); 0 where none is."""
    return values.where(valid, 0.0).sum() / valid.sum().clamp(min=1)


def misses(losses: Tensor) -> Tensor:
    """1 - p_y of cross-entropies, without the cancellation that would make its gradient infinite."""
    return (-torch.expm1(-losses)).clamp(min=torch.finfo(losses.dtype).tiny)


def wrong_logs(
    logits: Tensor, targets: Tensor, ignore_index: int, offset: float, sign: Literal[1, -1]
) -> tuple[Tensor, Tensor, Tensor]:
    """Of each pixel, (B, *): cross-entropy, sum_{c != y} log(offset + sign p_c), whether it is valid.

    The first two are any finite number where it is not.
    """
    valid = targets != ignore_index
    labels = targets.where(valid, 0)
    losses, logs = _WrongLogs.apply(logits.float(), labels, offset, sign)
    return losses, logs, valid


class _WrongLogs(torch.autograd.Function):
    """-log p_y and sum_{c != y} log(t_c), t_c = offset + sign p_c, with their gradient at the logits.

    A gradient u at the probabilities is p (u - <u, p>) at the logits. Of the sum of logs, u_c is
    sign / t_c but for the true class, where it is 0; of -log p_y it gives p - y. Plain autograd would
    take four times as long as PyTorch's cross-entropy, this takes 1.3 times.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, logits: Tensor, labels: Tensor, offset: float, sign: int
    ) -> tuple[Tensor, Tensor]:
        truth = labels.unsqueeze(1)
        log_p = logits.log_softmax(1)
        losses = -log_p.gather(1, truth).squeeze(1)
        wrong = log_p.exp_().scatter_(1, truth, 0.0)  # p_c, and 0 for the true class
        logs = torch.full_like(losses, -math.log(offset))  # the true class's own t_c is the offset
        mean_slope = torch.zeros_like(losses)  # <u, p>
        for p in wrong.unbind(1):
            t = _shifted(p, offset, sign)
            mean_slope.addcdiv_(p, t, value=sign)
            logs += t.log_()
        ctx.save_for_backward(wrong, labels, losses, mean_slope)
        ctx.offset, ctx.sign = offset, sign  # type: ignore[attr-defined]
        return losses, logs

    @staticmethod
    @once_differentiable
    def backward(ctx, of_losses: Tensor, of_logs: Tensor):  # type: ignore[no-untyped-def]
        wrong, labels, losses, mean_slope = ctx.saved_tensors
        gradient = torch.empty_like(wrong)
        common, slope = of_losses - of_logs * mean_slope, ctx.sign * of_logs
        for p, part in zip(wrong.unbind(1), gradient.unbind(1), strict=True):
            torch.addcdiv(common, slope, _shifted(p, ctx.offset, ctx.sign), out=part).mul_(p)
        true = (-losses).exp() * common - of_losses
        return gradient.scatter_(1, labels.unsqueeze(1), true.unsqueeze(1)), None, None, None


def _shifted(p: Tensor, offset: float, sign: int) -> Tensor:
    return offset + p if sign > 0 else offset - p  # one pass over memory


def pseudo_label(logits: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Confidence q and label of each pixel (B, *) by logits (B, C, *), as in SemiDAViL, below eq. 4.

    q is the largest probability of softmax(logits / temperature): below 1 the temperature sharpens, so
    that more pixels reach a threshold, and not the same ones as a lower threshold would give. The
    paper has none, which is 1. The label does not depend on it.
    """
    pseudo_labels = by_reductions if logits.is_cuda else class_by_class
    return pseudo_labels(logits.float(), temperature)


def by_reductions(logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """`pseudo_label` in five kernels instead of six for each class."""
    highest, labels = logits.max(1)
    total = (logits - highest.unsqueeze(1)).div_(temperature).exp_().sum(1)
    return total.reciprocal(), labels


def class_by_class(logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """`pseudo_label` in a third of the time that reductions over the classes take on a CPU."""
    highest = logits.amax(1)
    # Of equal logits the first class wins: what is kept is how many classes come after it.
    after = torch.zeros_like(highest, dtype=torch.uint8)
    total = torch.zeros_like(highest)
    last = logits.shape[1] - 1
    for label, of_class in enumerate(logits.unbind(1)):
        wins = (of_class >= highest).view(torch.uint8)
        after = torch.maximum(after, wins * (last - label))
        total += (of_class - highest).div_(temperature).exp_()
    return total.reciprocal(), last - after.long()


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
        pseudo_labels: the teacher's argmax, (B, H, W).
        confidence: its maximum probability, (B, H, W).
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


_LOSSES: dict[str, type[PixelLoss]] = {
    "ce": CrossEntropy,
    "wce": WeightedCrossEntropy,
    "focal": Focal,
    "dce": DualCrossEntropy,
    "dfl": DualFocal,
    "dyce": DyCE,
}
LOSSES = Table("LOSSES", _LOSSES)


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
