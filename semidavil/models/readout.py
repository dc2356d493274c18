"""What the attentions of the comparison share: their input, token maps, and how the decoder reads them."""

import copy
from collections.abc import Sequence
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

    A slice without any True entry becomes anything finite: multiply what it weighs by the mask, which is
    smaller than the weights.
    """
    # A sum has nothing to do on the way back; filling in would copy the scores' gradient.
    lowest = torch.finfo(scores.dtype).min
    penalty = torch.zeros_like(mask, dtype=scores.dtype).masked_fill_(~mask, lowest)
    return (scores + penalty).softmax(dim)


def to_pixels(vision: Tensor) -> Tensor:
    """(B, c, h, w) -> (B, hw, c), contiguous: a ViT's features are so already."""
    return vision.flatten(2).transpose(1, 2).contiguous()


def to_grid(pixels: Tensor, height: int, width: int) -> Tensor:
    return pixels.transpose(1, 2).unflatten(2, (height, width))  # (B, hw, c) -> (B, c, h, w)


def linear_of_parts(weight: Tensor, bias: Tensor | None, parts: Sequence[Tensor]) -> Tensor:
    """`F.linear(torch.cat(parts, -1), weight, bias)` without the copies.

    Parts after the first may have axes of length 1, which are broadcast after their product instead of
    before.
    """
    columns = weight.split([part.shape[-1] for part in parts], dim=1)
    total = F.linear(parts[0], columns[0], bias)
    for part, own in zip(parts[1:], columns[1:], strict=True):
        total.add_(F.linear(part, own))
    return total


class Readout(nn.Module):
    """What the decoder reads: F_V + LayerNorm(W [F_V ; W_m M]) for a multimodal feature M.

    The papers fix how vision and language interact, and not how a common decoder reads the result. Our
    reading, the same for every attention, so that nothing but M differs between them. F_V is
    (B, hw, c_v); M (B, hw, map_dim) is given in parts, and what is beyond the last one is 0.
    """

    def __init__(self, vision_dim: int, map_dim: int, dim: int) -> None:
        super().__init__()
        self.maps = nn.Linear(map_dim, dim)
        self.mix = nn.Linear(vision_dim + dim, vision_dim)
        self.norm = LayerNorm(vision_dim)

    def forward(self, vision: Tensor, *maps: Tensor) -> Tensor:
        """
        Raises:
            ValueError: the parts have more channels than M, `map_dim`; of several attentions the last part's
                channels are tokens.
        """
        tokens = maps[-1].shape[-1]
        room = self.maps.in_features - sum(part.shape[-1] for part in maps[:-1])
        if tokens > room:
            made_for, given = self.maps.in_features, self.maps.in_features - room + tokens
            raise ValueError(
                f"a map of {given} channels does not fit into a Readout that was made for {made_for} "
                "(map_dim). Where the channels are a caption's tokens, those are the text encoder's context "
                "length: choose fewer classes, or model.fusion=cross_attention"
            )
        columns = self.maps.weight[:, : self.maps.in_features - room + tokens]
        read = linear_of_parts(columns, self.maps.bias, maps)
        mixed = linear_of_parts(self.mix.weight, self.mix.bias, [vision, read])
        return vision + self.norm(mixed)


class Similarity(nn.Module):
    """Cosine similarity of every pixel with every token in CLIP's joint space.

    The projections start as the towers' own, where CLIP has aligned both, and are trained.
    """

    def __init__(self, towers: Towers) -> None:
        super().__init__()
        self.vision = copy.deepcopy(towers.vision_joint).requires_grad_(True)
        self.language = copy.deepcopy(towers.language_joint).requires_grad_(True)

    def forward(self, pixels: Tensor, tokens: Tensor, scale: Tensor | float = 1.0) -> Tensor:
        """Pixels (B, hw, c_v) and tokens (B, N, c_l) -> (B, hw, N), times `scale`."""
        image, words = self.vision(pixels), F.normalize(self.language(tokens), dim=-1)
        # There are more channels to divide than similarities.
        lengths = image.norm(dim=-1, keepdim=True).clamp(min=1e-12)
        return image @ (words * scale).mT / lengths
