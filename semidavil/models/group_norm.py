"""Group norm of maps whose channels lie next to each other, which is how tensor cores read them.

PyTorch's own first copies such maps to its own order on a GPU, and convolutions copy them back: 8.6 of the
70 ms of a step of the `paper` preset.
"""

from typing import Any

import torch
from torch import Tensor


def channels_last_group_norm(
    x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float
) -> Tensor:
    """`F.group_norm` of (B, C, H, W) in the memory format `channels_last`, whose type and format it keeps.

    Sums of bfloat16 are float32.
    """
    rows = x.permute(0, 2, 3, 1).flatten(1, 2)
    normed: Tensor = _GroupNorm.apply(rows, groups, weight, bias, eps)
    return normed.unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)


class _GroupNorm(torch.autograd.Function):
    """y = x a + s of x (B, N, C), where a = w / std and s = b - mean w / std.

    The gradient at x, by dy's and x dy's sums of each channel, is also linear in dy and x:

        dx = a dy - q x + (mean q - sum_g(w dy) / (n std)),  q = sum_g(w dy (x - mean)) / (n std^3)

    with sums over the n values of a group.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float
    ) -> Tensor:
        count = x.shape[1] * x.shape[2] // groups
        dtype = _of_sums(x)
        mean = _over_groups(x.sum(1, dtype=dtype), groups) / count
        norm = torch.linalg.vector_norm(x, dim=1, dtype=dtype)
        variance = _over_groups(norm.square(), groups) / count - mean.square()
        rstd = (variance.clamp(min=0) + eps).rsqrt()
        ctx.save_for_backward(x, mean, rstd, weight)
        ctx.groups, ctx.count = groups, count
        scale = rstd * weight
        return _linear(x, scale, bias - mean * scale)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, rstd, weight = ctx.saved_tensors
        dtype = _of_sums(x)
        of_dy = dy.sum(1, dtype=dtype)
        centred = (x * dy).sum(1, dtype=dtype) - mean * of_dy  # sum of dy (x - mean)
        slope = _over_groups(weight * centred, ctx.groups) * rstd**3 / ctx.count
        offset = mean * slope - _over_groups(weight * of_dy, ctx.groups) * rstd / ctx.count
        dx = _linear(x, -slope, offset)
        dx = torch.addcmul(dx, dy, (rstd * weight).unsqueeze(1), out=dx)
        return dx, None, (centred * rstd).sum(0), of_dy.sum(0), None


def _of_sums(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _over_groups(values: Tensor, groups: int) -> Tensor:
    """(B, C): of each channel, the sum over its group."""
    sums = values.unflatten(1, (groups, -1)).sum(2, keepdim=True)
    return sums.expand(-1, -1, values.shape[1] // groups).flatten(1)


def _linear(x: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    """x * scale + offset of (B, N, C) in the type of x, by coefficients (B, C)."""
    return torch.addcmul(offset.unsqueeze(1), x, scale.unsqueeze(1), out=torch.empty_like(x))
