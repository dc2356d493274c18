"""What the attentions of the comparison share: their input, token maps, and how the decoder reads them."""

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semidavil.models.layers import LayerNorm


@dataclass(frozen=True)
class Towers:
    """What a fusion stands between: sizes of both towers, and their ways into CLIP's joint space.

    Attributes:
        vision_dim, language_dim: channels c_v of dense features and c_l of tokens.
        max_tokens: the text encoder's context length.
        vision_joint, language_joint: c_v -> e and c_l -> e, CLIP's own projections.
    """

    vision_dim: int
    language_dim: int
    max_tokens: int
    vision_joint: nn.Linear
    language_joint: nn.Linear


def masked_softmax(scores: Tensor, mask: Tensor, dim: int) -> Tensor:
    """Softmax over the entries where `mask` (broadcastable to `scores`) is True; 0 elsewhere.

    A slice without any True entry becomes all zeros, not NaN.
    """
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return scores.softmax(dim) * mask


def pad_tokens(maps: Tensor, mask: Tensor, max_tokens: int) -> Tensor:
    """Maps per token (..., N) to (..., max_tokens), with zeros where there is no real token.

    Raises:
        ValueError: more tokens than channels to put them into.
    """
    if maps.shape[-1] > max_tokens:
        raise ValueError(
            f"{maps.shape[-1]} tokens do not fit into the {max_tokens} channels of the fusion, which are "
            "the text encoder's context length: choose fewer classes, or model.fusion=cross_attention"
        )
    return F.pad(maps * mask.unsqueeze(1), (0, max_tokens - maps.shape[-1]))


def to_pixels(vision: Tensor) -> Tensor:
    return vision.flatten(2).transpose(1, 2)  # (B, c, h, w) -> (B, hw, c)


def to_grid(pixels: Tensor, height: int, width: int) -> Tensor:
    return pixels.transpose(1, 2).unflatten(2, (height, width))  # (B, hw, c) -> (B, c, h, w)


class Readout(nn.Module):
    """What the decoder reads: F_V + LayerNorm(W [F_V ; W_m M]) for a multimodal feature M.

    The papers fix how vision and language interact, and not how a common decoder reads the result. Our
    reading, the same for every attention, so that nothing but M differs between them. M is
    (B, hw, map_dim), F_V (B, hw, c_v).
    """

    def __init__(self, vision_dim: int, map_dim: int, dim: int) -> None:
        super().__init__()
        self.maps = nn.Linear(map_dim, dim)
        self.mix = nn.Linear(vision_dim + dim, vision_dim)
        self.norm = LayerNorm(vision_dim)

    def forward(self, vision: Tensor, maps: Tensor) -> Tensor:
        return vision + self.norm(self.mix(torch.cat([vision, self.maps(maps)], dim=-1)))


class Similarity(nn.Module):
    """Cosine similarity of every pixel with every token in CLIP's joint space.

    The projections start as the towers' own, where CLIP has aligned both, and are trained.
    """

    def __init__(self, towers: Towers) -> None:
        super().__init__()
        self.vision = copy.deepcopy(towers.vision_joint).requires_grad_(True)
        self.language = copy.deepcopy(towers.language_joint).requires_grad_(True)

    def forward(self, pixels: Tensor, tokens: Tensor) -> Tensor:
        """Pixels (B, hw, c_v) and tokens (B, N, c_l) -> (B, hw, N)."""
        image = F.normalize(self.vision(pixels), dim=-1)
        words = F.normalize(self.language(tokens), dim=-1)
        return image @ words.transpose(1, 2)
