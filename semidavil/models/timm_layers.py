"""Layers of timm's networks: as a GPU computes them best, and the parts of its attentions."""

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm as TimmLayerNorm
from timm.layers import LayerNorm2d as TimmLayerNorm2d
from timm.layers import apply_rot_embed_cat
from torch import Tensor, nn

from semidavil.models.layers import LayerNorm


class LayerNorm2d(LayerNorm):
    """Layer norm over the channels of (B, C, H, W), whose output has its input's type."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def for_gpus(tower: nn.Module) -> None:
    """Changes in place how norms of timm's network are computed: they keep their input's type.

    Attention needs no change: timm's is PyTorch's fused one. Subclasses that do more than a norm
    (those with an activation) stay as they are.
    """
    ours = {nn.LayerNorm: LayerNorm, TimmLayerNorm: LayerNorm, TimmLayerNorm2d: LayerNorm2d}
    for module in tower.modules():
        if (replacement := ours.get(type(module))) is not None:
            module.__class__ = replacement


def heads_of(attention: Any, x: Tensor, rotation: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values (B, heads, N, d) of one of timm's attentions for tokens (B, N, c).

    `Attention`, `EvaAttention` and `AttentionRope`: normalised and rotated as they do it.
    """
    if attention.qkv is not None:
        bias = attention.qkv.bias
        if getattr(attention, "q_bias", None) is not None:
            bias = torch.cat([attention.q_bias, attention.k_bias, attention.v_bias])
        parts = F.linear(x, attention.qkv.weight, bias).chunk(3, -1)
    else:
        parts = (attention.q_proj(x), attention.k_proj(x), attention.v_proj(x))
    size = attention.head_dim
    query, key, value = (part.unflatten(-1, (-1, size)).transpose(1, 2) for part in parts)
    query, key = attention.q_norm(query), attention.k_norm(key)
    if rotation is not None:
        first, half = attention.num_prefix_tokens, attention.rotate_half
        query, key = (
            torch.cat(
                [part[:, :, :first], apply_rot_embed_cat(part[:, :, first:], rotation, half=half)],
                2,
            ).type_as(value)
            for part in (query, key)
        )
    if (groups := getattr(attention, "num_kv_groups", 1)) > 1:
        key, value = (part.repeat_interleave(groups, dim=1) for part in (key, value))
    return query, key, value


def project(attention: Any, gathered: Tensor, x: Tensor) -> Tensor:
    """What an attention makes of what its heads have gathered, (B, heads, N, d) -> (B, N, c).

    Args:
        x: the tokens that it was given, which its gate reads where it has one.
    """
    joined = attention.norm(gathered.transpose(1, 2).flatten(2))
    if getattr(attention, "gate", None) is not None:
        joined = joined * attention.gate(x).sigmoid()
    return attention.proj(joined)
