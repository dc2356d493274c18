"""Layers that PyTorch has, as a GPU computes them best: deterministic, and small under autocast."""

from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SMALL = 32  # pixels of a side


class GroupNorm(nn.GroupNorm):
    """Group norm in float32 whose output has its input's type, as open_clip's LayerNorm.

    Under autocast PyTorch's own returns float32, which everything up to the next convolution would
    then read and keep for the backward pass.
    """

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).to(x.dtype)


class LayerNorm(nn.LayerNorm):
    """Layer norm in float32 whose output has its input's type, see `GroupNorm`."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).to(x.dtype)


def upsample(x: Tensor, size: Sequence[int]) -> Tensor:
    """Linear interpolation of (B, C, *) to a size (*), with `align_corners=False`; to its own size, itself.

    Bilinear for images, trilinear for volumes. On a GPU as products with matrices: PyTorch's own has no
    deterministic backward pass there but a slow one of gathers and sorted sums. Small maps also on a
    CPU, where it takes 8.6 ms from (12, 19, 32, 32) to 64 x 64, forward and backward, and products 3.4;
    from sides of 64 on they are slower.
    """
    if tuple(x.shape[2:]) == tuple(size):
        return x
    if x.device.type == "cuda" or max(x.shape[2:]) <= SMALL:
        return by_products(x, size)
    mode = {2: "bilinear", 3: "trilinear"}[len(size)]
    return F.interpolate(x, tuple(size), mode=mode, align_corners=False)


def by_products(x: Tensor, size: Sequence[int]) -> Tensor:
    """`upsample` of (B, C, *) as one matrix product for each axis, in the memory format of `x`."""
    channels_last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    if channels_last:
        x = x.permute(0, 2, 3, 1)  # (B, H, W, C)
    first = 1 if channels_last else 2
    # Autocast would round what is not to be rounded.
    with torch.autocast(x.device.type, enabled=False):
        for axis, new in enumerate(size, first):
            old = x.shape[axis]
            if old == new:
                continue
            matrix = resize_matrix(old, new, "linear", x.device, x.dtype)
            if axis == x.dim() - 1:
                x = x @ matrix.T
            else:  # all further axes are the columns of one product
                x = (matrix @ x.flatten(axis + 1)).unflatten(-1, x.shape[axis + 1 :])
    return x.permute(0, 3, 1, 2) if channels_last else x


@torch.compiler.disable  # a compiled network would ignore the cache and make it anew at every call
def resize_matrix(
    old: int, new: int, mode: str, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Resizing is linear: the matrix (new, old) that does it along one axis.

    Args:
        mode: "linear", or "bicubic", with antialiasing.
    """
    return _resize_matrix(old, new, mode, device, dtype)


@lru_cache(maxsize=64)
def _resize_matrix(
    old: int, new: int, mode: str, device: torch.device, dtype: torch.dtype
) -> Tensor:
    with torch.inference_mode(False):  # a cached inference tensor could not be used in training
        identity = torch.eye(old, dtype=torch.float64)
        if mode == "bicubic":
            resized = F.interpolate(identity[None, None], (new, old), mode=mode, antialias=True)[
                0, 0
            ]
        else:
            resized = F.interpolate(identity[None], new, mode=mode, align_corners=False)[0].T
        return resized.contiguous().to(device, dtype)
