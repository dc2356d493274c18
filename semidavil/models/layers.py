"""Layers that PyTorch has, as a GPU computes them best: deterministic, and small under autocast."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semidavil.models.group_norm import channels_last_group_norm

SMALL = 32  # pixels of a side


class GroupNorm(nn.GroupNorm):
    """Group norm whose output has its input's type and, on a GPU, its memory format.

    Under autocast PyTorch's own would read and return float32, which everything up to the next
    convolution would then read and keep for the backward pass.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.is_cuda and is_channels_last(x):
            return channels_last_group_norm(x, self.num_groups, self.weight, self.bias, self.eps)
        return super().forward(x).to(x.dtype)


class LayerNorm(nn.LayerNorm):
    """Layer norm whose output has its input's type; its sums are float32.

    On a GPU, what it reads is not copied to float32 first; weight and bias are rounded as those of linear
    layers are.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not x.is_cuda or x.dtype == self.weight.dtype:
            return super().forward(x).to(x.dtype)
        return self.rounded(x)

    def rounded(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            weight = self.weight.to(x.dtype)
            bias = None if self.bias is None else self.bias.to(x.dtype)
            return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps)


class SelfAttention(nn.MultiheadAttention):
    """PyTorch's multi-head attention of tokens (B, N, c) to themselves, without its copies on a GPU.

    PyTorch's own computes (N, B, c), for which queries, keys and values are copied, and their gradients;
    of a network that is not trained, it makes N small matrix products instead of one.
    """

    def forward(self, query: Tensor, *others: Any, **how: Any) -> tuple[Tensor, Tensor | None]:
        plain = how == {"need_weights": False, "attn_mask": None}
        if query.is_cuda and plain and all(other is query for other in others):
            return self.attend(query), None
        return super().forward(query, *others, **how)

    def attend(self, x: Tensor) -> Tensor:
        """Of every token, (B, N, c), without mask and dropout."""
        return self.project(F.scaled_dot_product_attention(*self.heads(x)))

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of tokens (B, N, c), each (B, heads, N, c / heads)."""
        projected = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        # Split along the last axis, where three gradients are joined by one copy.
        query, key, value = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for part in projected.chunk(3, -1)
        )
        return query, key, value

    def project(self, gathered: Tensor) -> Tensor:
        """What the heads have gathered, (B, heads, N, c / heads), as tokens (B, N, c)."""
        return self.out_proj(gathered.transpose(1, 2).flatten(2))


def for_gpus(tower: nn.Module) -> None:
    """Changes in place how layers of open_clip's image tower are computed on a GPU; on a CPU, nothing.

    Their parameters, and the names of these, stay what they are.
    """
    for module in tower.modules():
        if isinstance(module, nn.LayerNorm):
            module.__class__ = LayerNorm
        elif type(module) is nn.MultiheadAttention and module.batch_first:
            module.__class__ = SelfAttention


def embed_patches(images: Tensor, convolution: nn.Conv2d) -> Tensor:
    """Patches (B, hw, c) by a convolution whose stride is its kernel.

    On a GPU as one matrix product, which takes a third of the time.
    """
    if not images.is_cuda:
        return convolution(images).flatten(2).transpose(1, 2)
    return patch_products(images, convolution)


def patch_products(images: Tensor, convolution: nn.Conv2d) -> Tensor:
    high, wide = convolution.kernel_size
    patches = images.unflatten(3, (-1, wide)).unflatten(2, (-1, high))  # (B, 3, h, high, w, wide)
    patches = patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
    return F.linear(patches, convolution.weight.flatten(1), convolution.bias)


def is_channels_last(x: Tensor) -> bool:
    """Whether maps (B, C, H, W) have that memory format, and not PyTorch's usual one as well."""
    return not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def upsample(x: Tensor, size: Sequence[int]) -> Tensor:
    """Linear interpolation of (B, C, *) to a size (*), with `align_corners=False`; to its own size, itself.

    Bilinear for images, trilinear for volumes. On a GPU as products with matrices: PyTorch's own has no
    deterministic backward pass there but a slow one of gathers and sorted sums. Small maps also on a CPU,
    where it takes 8.6 ms from (12, 19, 32, 32) to 64 x 64, forward and backward, and products 3.4; from
    sides of 64 on they are slower.
    """
    if tuple(x.shape[2:]) == tuple(size):
        return x
    if x.is_cuda or max(x.shape[2:]) <= SMALL:
        return by_products(x, size)
    mode = {2: "bilinear", 3: "trilinear"}[len(size)]
    return F.interpolate(x, tuple(size), mode=mode, align_corners=False)


def by_products(x: Tensor, size: Sequence[int]) -> Tensor:
    """`upsample` of (B, C, *) as one matrix product for each axis, in the memory format of `x`."""
    channels_last = is_channels_last(x)
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
