"""Vision-language guided attention, SemiVL's head (Hoyer et al., ECCV 2024)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semidavil.models.layers import GroupNorm, LayerNorm, upsample
from semidavil.models.readout import (
    Readout,
    Similarity,
    Towers,
    linear_of_parts,
    masked_softmax,
    to_grid,
    to_pixels,
)
from semidavil.models.text import Language


class Branch(nn.Module):
    """A convolution at one dilation (1x1 at rate 1), group norm and ReLU."""

    def __init__(self, dim: int, rate: int) -> None:
        super().__init__()
        size, padding = (1, 0) if rate == 1 else (3, rate)
        self.conv = nn.Conv2d(dim, dim, size, padding=padding, dilation=rate, bias=False)
        self.norm = _norm(dim)

    def forward(self, maps: Tensor) -> Tensor:
        return F.relu(self.norm(_dilated(maps, self.conv)), inplace=True)


class ASPP(nn.Module):
    """Spatial reasoning: x + the fusion of `Branch`es at several dilations and of the mean over the map."""

    def __init__(self, dim: int, rates: tuple[int, ...] = (1, 6, 12, 18)) -> None:
        super().__init__()
        self.branches = nn.ModuleList(Branch(dim, rate) for rate in rates)
        self.pooled = Branch(dim, 1)
        self.fuse = nn.Conv2d(dim * (len(rates) + 1), dim, 1, bias=False)
        self.norm = _norm(dim)

    def forward(self, maps: Tensor) -> Tensor:
        """(R, d, h, w) -> (R, d, h, w), both in the memory format `channels_last`."""
        branches = [branch(maps) for branch in self.branches]
        branches.append(self.pooled(maps.mean((2, 3), keepdim=True)))  # (R, d, 1, 1)
        parts = [branch.permute(0, 2, 3, 1) for branch in branches]
        fused = linear_of_parts(self.fuse.weight.flatten(1), None, parts).permute(0, 3, 1, 2)
        return maps + F.relu(self.norm(fused), inplace=True)


def _norm(dim: int) -> GroupNorm:
    return GroupNorm(max(1, dim // 16), dim)


def _dilated(maps: Tensor, convolution: nn.Conv2d) -> Tensor:
    """The convolution; where its dilation leaves the map, only the centre of the kernel counts."""
    if convolution.kernel_size == (1, 1) or convolution.dilation[0] < max(maps.shape[-2:]):
        return convolution(maps)
    return F.conv2d(maps, convolution.weight[:, :, 1:2, 1:2])


class SemanticReasoning(nn.Module):
    """A transformer layer across the token maps at each pixel.

    The projected text features join keys and queries only: language acts as attention weights, the
    values are the maps (the paper's text; its code concatenates text to the values as well).
    """

    def __init__(self, dim: int, num_heads: int = 4) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = LayerNorm(dim)
        self.query = nn.Linear(2 * dim, dim)
        self.key = nn.Linear(2 * dim, dim)
        self.value = nn.Linear(dim, dim)
        self.project = nn.Linear(dim, dim)
        self.mlp = nn.Sequential(
            LayerNorm(dim), nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim)
        )

    def forward(self, maps: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        """maps (B, P, N, d) at P pooled pixels, text (B, N, d), mask (B, N) -> (B, P, N, d)."""
        normed = self.norm(maps)
        guided = [normed, text.unsqueeze(1)]
        query = linear_of_parts(self.query.weight, self.query.bias, guided)
        key = linear_of_parts(self.key.weight, self.key.bias, guided)
        query, key, value = (
            x.unflatten(-1, (self.num_heads, -1)).transpose(2, 3)  # (B, P, heads, N, d')
            for x in (query / math.sqrt(query.shape[-1] / self.num_heads), key, self.value(normed))
        )
        # Of a caption without tokens the weights are anything; its maps are never read.
        weights = masked_softmax(query @ key.mT, mask[:, None, None, None, :], dim=-1)
        maps = maps + self.project((weights @ value).transpose(2, 3).flatten(3))
        return maps + self.mlp(maps)


class VLGA(nn.Module):
    """SemiVL's head up to its maps, read as those of every other attention.

    S = <F_V, F_L> in CLIP's joint space, L2-normalised, one map per token; spatial reasoning on each map
    (7x7 convolution, `ASPP`); two layers of semantic reasoning across the maps at each pixel, on maps
    pooled by 4 and added back at full size. SemiVL's maps stand for class prompts; here they stand for
    the caption's tokens. Its head goes on with two upsampling blocks; here a 1x1 layer gives one map per
    token to the common decoder (both our reading). d is half of `dim`: 128 channels at 256, as in SemiVL.
    """

    pooling, num_layers = 4, 2
    reads_lengths = True
    words_are_weights = False

    def __init__(self, towers: Towers, dim: int) -> None:
        super().__init__()
        map_dim = max(4, dim // 8 * 4)  # divisible by the four heads
        self.similarity = Similarity(towers)
        self.embed = nn.Conv2d(1, map_dim, 7, padding=3)
        self.aspp = ASPP(map_dim)
        joint_dim = towers.language_joint.out_features
        self.text = nn.Sequential(nn.Linear(joint_dim, map_dim), nn.ReLU())
        self.layers = nn.ModuleList(SemanticReasoning(map_dim) for _ in range(self.num_layers))
        self.to_map = nn.Linear(map_dim, 1)
        self.readout = Readout(towers.vision_dim, towers.max_tokens, dim)

    def word_maps(self, vision: Tensor, language: Language) -> Tensor:
        """The map of each token, after spatial and semantic reasoning."""
        height, width = vision.shape[-2:]
        return self._maps(to_pixels(vision), language, height, width).unflatten(2, (height, width))

    def forward(self, vision: Tensor, language: Language) -> Tensor:
        height, width = vision.shape[-2:]
        pixels = to_pixels(vision)
        values = self._maps(pixels, language, height, width)
        return to_grid(self.readout(pixels, values.mT), height, width)

    def _maps(self, pixels: Tensor, language: Language, height: int, width: int) -> Tensor:
        """(B, N, hw), 0 for padding."""
        tokens, mask = language.tokens, language.mask
        batch, num_tokens = mask.shape
        real = language.real()

        def of_real(per_token: Tensor) -> Tensor:  # (B, N, *) -> (R, *)
            return per_token.flatten(0, 1).index_select(0, real)

        def per_token(of_real: Tensor) -> Tensor:  # (R, *) -> (B, N, *), 0 for padding
            every = of_real.new_zeros(batch * num_tokens, *of_real.shape[1:])
            return every.index_copy(0, real, of_real).unflatten(0, (batch, num_tokens))

        # Captions differ in length: maps of padding, a third of all, are never computed.
        similarity = of_real(self.similarity(pixels, tokens).mT).view(-1, 1, height, width)
        # Convolutions take half of their time where the channels of a place are beside each other.
        maps = self.embed(similarity).contiguous(memory_format=torch.channels_last)
        maps = self.aspp(maps)  # (R, d, h, w)

        text = self.text(F.normalize(self.similarity.language(tokens), dim=-1))
        for layer in self.layers:
            pooled = F.avg_pool2d(maps, self.pooling, ceil_mode=True).permute(0, 2, 3, 1)
            grid = pooled.shape[1:3]
            pooled = per_token(pooled.flatten(1, 2)).transpose(1, 2)  # (B, P, N, d)
            reasoned = of_real(layer(pooled, text, mask).transpose(1, 2)).unflatten(1, grid)
            maps = maps + upsample(reasoned.permute(0, 3, 1, 2), (height, width))

        return per_token(self.to_map(maps.permute(0, 2, 3, 1)).flatten(1))
