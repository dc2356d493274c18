"""How dense image features and caption tokens meet: the four attentions of the comparison, two controls.

Every fusion is `FUSIONS[name](towers, dim)` and maps dense features (B, c_v, h, w) and a `Language`, tokens
(B, N, c_l) with their padding mask (B, N; True = a real token), to features (B, c_v, h, w) for the one
common decoder. N may be any number up to `towers.max_tokens`; a padding token takes part in no softmax, no
maximum and no map, so it changes nothing. Each attention makes a map M of its own, and the same
`Readout` reads all of them.

Each attention also says where a token matters to it: `word_maps` gives a map of every token over the
pixels, (B, N, h, w), 0 for padding. Where `words_are_weights`, these are the weights of its softmax over
tokens, of which each pixel's sum to 1; else they are the maps that its readout reads, whose scale is learnt.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semidavil.models.layers import LayerNorm
from semidavil.models.readout import (
    Readout,
    Similarity,
    Towers,
    masked_softmax,
    to_grid,
    to_pixels,
)
from semidavil.models.text import Language
from semidavil.models.vlga import VLGA
from semidavil.plugins import Table, home_of


class DLG(nn.Module):
    """Dense Language Guidance (SemiDAViL, CVPR 2025, eq. 2-3).

    A = F_V^K (F_L^K)^T / sqrt(c); F_V^A = softmax over tokens (A) F_L^V; F_L^A = softmax over
    pixels (A^T) F_V^V; F_M = F_V^A (F_L^A)^T. Both modalities are attended along both axes.
    F_M's channels are the caption's tokens, zero beyond the caption's end; it is scaled by
    1/sqrt(c) and read beside F_V^A (our reading: the paper does not say what the decoder reads).

    The released code differs: its text is one pooled sentence, so that every softmax over tokens is 1,
    and it has neither F_L^A nor F_M. All tokens are the only reading under which language says
    something about places.
    """

    words_are_weights = True

    def __init__(self, towers: Towers, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.vision_key = nn.Linear(towers.vision_dim, dim)
        self.vision_value = nn.Linear(towers.vision_dim, dim)
        self.language_key = nn.Linear(towers.language_dim, dim)
        self.language_value = nn.Linear(towers.language_dim, dim)
        self.readout = Readout(towers.vision_dim, dim + towers.max_tokens, dim)

    def attend(self, vision: Tensor, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Eq. 2-3 on pixels (B, hw, c_v) and tokens (B, N, c_l).

        Returns:
            F_V^A (B, hw, c), F_L^A (B, N, c) and F_M (B, hw, N), unscaled; 0 for padding.
        """
        # Scales and masks go to the tokens, which are fewer than the pixels or the scores.
        real = mask.unsqueeze(2)
        scores, values = self._scores(vision, tokens), self.language_value(tokens)
        over_tokens, over_pixels = masked_softmax(scores, real.mT, dim=2), scores.softmax(dim=1)
        vision_attended = over_tokens @ (values * real)
        language_attended = (over_pixels.mT @ self.vision_value(vision)) * real
        return vision_attended, language_attended, vision_attended @ language_attended.mT

    def _scores(self, vision: Tensor, tokens: Tensor) -> Tensor:
        keys = self.language_key(tokens) / math.sqrt(self.dim)
        return self.vision_key(vision) @ keys.mT  # (B, hw, N)

    def word_maps(self, vision: Tensor, language: Language) -> Tensor:
        """softmax over tokens (A), by which F_V^A mixes the tokens' values."""
        real = language.mask.unsqueeze(1)
        scores = self._scores(to_pixels(vision), language.tokens)
        return to_grid(masked_softmax(scores, real, dim=2) * real, *vision.shape[-2:])

    def forward(self, vision: Tensor, language: Language) -> Tensor:
        tokens, mask = language.tokens, language.mask
        height, width = vision.shape[-2:]
        pixels = to_pixels(vision)
        vision_attended, _, multimodal = self.attend(pixels, tokens, mask)
        read = self.readout(pixels, vision_attended, multimodal / math.sqrt(self.dim))
        return to_grid(read, height, width)


class BottleneckBlock(nn.Module):
    """LSeg's spatial regularisation: one 3x3 kernel shared by all maps, plus the maximum map."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, maps: Tensor, mask: Tensor, activate: bool = True) -> Tensor:
        """maps (B, N, h, w), mask (B, N); the maximum is over real tokens."""
        batch, num_tokens, height, width = maps.shape
        real = mask[:, :, None, None]
        strongest = maps.masked_fill(~real, torch.finfo(maps.dtype).min).amax(1, keepdim=True)
        strongest = strongest * mask.any(1)[:, None, None, None]
        smoothed = self.depthwise(maps.reshape(batch * num_tokens, 1, height, width))
        summed = smoothed.view_as(maps) + strongest
        return F.relu(summed) if activate else summed


class WPCT(nn.Module):
    """Word-pixel correlation tensor of LSeg (Li et al., ICLR 2022): F_ijk = <I_ij, T_k>.

    L2-normalised embeddings, a learned temperature, then one BottleneckBlock, applied `depth` times and
    the last time without activation, as in LSeg's code. LSeg offers DepthwiseBlocks as well, and any
    depth: two BottleneckBlocks are our reading.
    """

    depth = 2
    words_are_weights = False

    def __init__(self, towers: Towers, dim: int) -> None:
        super().__init__()
        self.similarity = Similarity(towers)
        self.log_temperature = nn.Parameter(torch.tensor(math.log(1 / 0.07)))  # CLIP's start
        self.block = BottleneckBlock()
        self.readout = Readout(towers.vision_dim, towers.max_tokens, dim)

    def _maps(self, pixels: Tensor, language: Language, height: int, width: int) -> Tensor:
        correlation = self.similarity(pixels, language.tokens, self.log_temperature.exp())
        maps = to_grid(correlation, height, width)  # (B, N, h, w)
        for left in reversed(range(self.depth)):
            maps = self.block(maps, language.mask, activate=left > 0)
        return maps

    def word_maps(self, vision: Tensor, language: Language) -> Tensor:
        """The correlation of each token with the pixels, after the last block."""
        maps = self._maps(to_pixels(vision), language, *vision.shape[-2:])
        return maps * language.mask[:, :, None, None]

    def forward(self, vision: Tensor, language: Language) -> Tensor:
        height, width = vision.shape[-2:]
        pixels = to_pixels(vision)
        maps = self._maps(pixels, language, height, width)
        read = self.readout(pixels, to_pixels(maps) * language.mask.unsqueeze(1))
        return to_grid(read, height, width)


class CrossAttention(nn.Module):
    """Cross-attention as in CrossViT (Chen et al., ICCV 2021): M = MHA(LN(F_V), LN(F_L), LN(F_L)).

    Queries from vision, keys and values from language, softmax over tokens. CrossViT adds a projection
    of M to its input; here the common readout does so for every attention.
    """

    words_are_weights = True

    def __init__(self, towers: Towers, dim: int) -> None:
        super().__init__()
        self.num_heads = math.gcd(dim, 8)
        self.vision_norm = LayerNorm(towers.vision_dim)
        self.language_norm = LayerNorm(towers.language_dim)
        self.query = nn.Linear(towers.vision_dim, dim)
        self.key = nn.Linear(towers.language_dim, dim)
        self.value = nn.Linear(towers.language_dim, dim)
        self.readout = Readout(towers.vision_dim, dim, dim)

    def _by_head(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, heads, hw or N, d)

    def _weights(self, pixels: Tensor, words: Tensor, mask: Tensor) -> Tensor:
        """(B, heads, hw, N) of pixels (B, hw, c_v) and normalised tokens (B, N, c_l)."""
        query = self._by_head(self.query(self.vision_norm(pixels)))
        key = self._by_head(self.key(words))
        scores = query @ (key / math.sqrt(query.shape[-1])).mT
        return masked_softmax(scores, mask[:, None, None, :], dim=-1)

    def word_maps(self, vision: Tensor, language: Language) -> Tensor:
        """The weights of the tokens' values, as the mean over heads."""
        words, mask = self.language_norm(language.tokens), language.mask
        weights = self._weights(to_pixels(vision), words, mask).mean(1) * mask.unsqueeze(1)
        return to_grid(weights, *vision.shape[-2:])

    def forward(self, vision: Tensor, language: Language) -> Tensor:
        tokens, mask = language.tokens, language.mask
        height, width = vision.shape[-2:]
        pixels, words = to_pixels(vision), self.language_norm(tokens)
        value = self._by_head(self.value(words))
        weights = self._weights(pixels, words, mask)
        attended = (weights @ (value * mask[:, None, :, None])).transpose(1, 2).flatten(2)
        return to_grid(self.readout(pixels, attended), height, width)


class NoFusion(nn.Module):
    """A control: vision only. The caption is not used, and nothing is added to the features."""

    def __init__(self, towers: Towers, dim: int) -> None:
        super().__init__()

    def forward(self, vision: Tensor, language: Language) -> Tensor:
        return vision


class Blank(nn.Module):
    """A control: the readout of WPCT with M = 0, what the extra layer is worth without a caption."""

    def __init__(self, towers: Towers, dim: int) -> None:
        super().__init__()
        self.max_tokens = towers.max_tokens
        self.readout = Readout(towers.vision_dim, towers.max_tokens, dim)

    def forward(self, vision: Tensor, language: Language) -> Tensor:
        pixels = to_pixels(vision)
        nothing = pixels.new_zeros(*pixels.shape[:2], self.max_tokens)
        return to_grid(self.readout(pixels, nothing), *vision.shape[-2:])


_FUSIONS: dict[str, type[nn.Module]] = {
    "dlg": DLG,
    "vlga": VLGA,
    "wpct": WPCT,
    "cross_attention": CrossAttention,
    "none": NoFusion,
    "blank": Blank,
}
FUSIONS = Table("FUSIONS", _FUSIONS)


def require_shape(
    fusion: nn.Module, method: str, made: object, wanted: tuple[int, ...], as_in: str
) -> None:
    """Raises ValueError where an attention, which may be a plugin's, returns another shape than is read.

    Args:
        method: of the attention, which has returned `made`.
        as_in: an expression that has the right shape.
    """
    got = tuple(made.shape) if isinstance(made, Tensor) else f"a {type(made).__name__}"
    if got != wanted:
        place = f"{home}: " if (home := home_of(fusion)) else ""
        raise ValueError(
            f"{place}{method} of the attention {type(fusion).__name__} returns {got} where {wanted} is "
            f"wanted, as {as_in} has it"
        )
