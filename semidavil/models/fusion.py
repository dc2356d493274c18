"""How dense image features and caption tokens meet: the four attentions of the comparison, and none.

Every fusion is `FUSIONS[name](vision_dim, language_dim, dim, max_tokens)` and maps dense features
(B, c_v, h, w), tokens (B, N, c_l) and their padding mask (B, N; True = a real token) to features
(B, c_v, h, w) for the one common decoder. N may be any number up to `max_tokens`; a padding token
takes part in no softmax, no maximum and no map, so it changes nothing.

The papers fix how vision and language interact but not how the common decoder of the comparison
reads the result. Our reading, the same for DLG, VLGA and WPCT, is `Readout` below.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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

    The papers leave this open; it is our reading. M is (B, hw, map_dim), F_V (B, hw, c_v).
    """

    def __init__(self, vision_dim: int, map_dim: int, dim: int) -> None:
        super().__init__()
        self.maps = nn.Linear(map_dim, dim)
        self.mix = nn.Linear(vision_dim + dim, vision_dim)
        self.norm = nn.LayerNorm(vision_dim)

    def forward(self, vision: Tensor, maps: Tensor) -> Tensor:
        return vision + self.norm(self.mix(torch.cat([vision, self.maps(maps)], dim=-1)))


class DLG(nn.Module):
    """Dense Language Guidance (SemiDAViL, CVPR 2025, eq. 2-3).

    A = F_V^K (F_L^K)^T / sqrt(c); F_V^A = softmax over tokens (A) F_L^V; F_L^A = softmax over
    pixels (A^T) F_V^V; F_M = F_V^A (F_L^A)^T. Both modalities are attended along both axes.
    F_M's channels are the caption's tokens, zero beyond the caption's end; it is scaled by
    1/sqrt(c) and read beside F_V^A (our reading: the paper does not say what the decoder reads).
    """

    def __init__(self, vision_dim: int, language_dim: int, dim: int, max_tokens: int) -> None:
        super().__init__()
        self.dim, self.max_tokens = dim, max_tokens
        self.vision_key = nn.Linear(vision_dim, dim)
        self.vision_value = nn.Linear(vision_dim, dim)
        self.language_key = nn.Linear(language_dim, dim)
        self.language_value = nn.Linear(language_dim, dim)
        self.readout = Readout(vision_dim, dim + max_tokens, dim)

    def attend(self, vision: Tensor, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Eq. 2-3 on pixels (B, hw, c_v) and tokens (B, N, c_l).

        Returns:
            F_V^A (B, hw, c), F_L^A (B, N, c) and F_M (B, hw, N), unscaled.
        """
        scores = self.vision_key(vision) @ self.language_key(tokens).transpose(1, 2)
        scores = scores / math.sqrt(self.dim)  # (B, hw, N)
        over_tokens = masked_softmax(scores, mask.unsqueeze(1), dim=2)
        over_pixels = scores.softmax(dim=1) * mask.unsqueeze(1)
        vision_attended = over_tokens @ self.language_value(tokens)
        language_attended = over_pixels.transpose(1, 2) @ self.vision_value(vision)
        return vision_attended, language_attended, vision_attended @ language_attended.mT

    def forward(self, vision: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        height, width = vision.shape[-2:]
        pixels = to_pixels(vision)
        vision_attended, _, multimodal = self.attend(pixels, tokens, mask)
        multimodal = pad_tokens(multimodal / math.sqrt(self.dim), mask, self.max_tokens)
        read = self.readout(pixels, torch.cat([vision_attended, multimodal], dim=-1))
        return to_grid(read, height, width)


class Similarity(nn.Module):
    """Cosine similarity of every pixel with every token, both projected to a common space."""

    def __init__(self, vision_dim: int, language_dim: int, dim: int) -> None:
        super().__init__()
        self.vision = nn.Linear(vision_dim, dim)
        self.language = nn.Linear(language_dim, dim)

    def forward(self, pixels: Tensor, tokens: Tensor) -> Tensor:
        image = F.normalize(self.vision(pixels), dim=-1)
        words = F.normalize(self.language(tokens), dim=-1)
        return image @ words.transpose(1, 2)  # (B, hw, N)


class ASPP(nn.Module):
    """Parallel 3x3 convolutions at several dilations, fused by a 1x1 convolution."""

    def __init__(self, dim: int, rates: tuple[int, ...] = (1, 6, 12, 18)) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Conv2d(dim, dim, 3, padding=rate, dilation=rate) for rate in rates
        )
        self.fuse = nn.Conv2d(dim * len(rates), dim, 1)

    def forward(self, maps: Tensor) -> Tensor:
        branches = [_dilated(maps, branch) for branch in self.branches]
        return self.fuse(F.relu(torch.cat(branches, dim=1)))


def _dilated(maps: Tensor, convolution: nn.Module) -> Tensor:
    """The convolution; where its dilation leaves the map, only the centre of the kernel counts."""
    assert isinstance(convolution, nn.Conv2d)
    if convolution.dilation[0] < max(maps.shape[-2:]):
        return convolution(maps)
    return F.conv2d(maps, convolution.weight[:, :, 1:2, 1:2], convolution.bias)


class SemanticReasoning(nn.Module):
    """A transformer layer across the token maps at each pixel.

    The projected text features join keys and queries only: language acts as attention weights,
    the values are the maps (SemiVL, ECCV 2024).
    """

    def __init__(self, map_dim: int, language_dim: int, num_heads: int = 4) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(map_dim)
        self.language = nn.Linear(language_dim, map_dim)
        self.query = nn.Linear(2 * map_dim, map_dim)
        self.key = nn.Linear(2 * map_dim, map_dim)
        self.value = nn.Linear(map_dim, map_dim)
        self.project = nn.Linear(map_dim, map_dim)
        self.mlp = nn.Sequential(
            nn.LayerNorm(map_dim),
            nn.Linear(map_dim, 2 * map_dim),
            nn.GELU(),
            nn.Linear(2 * map_dim, map_dim),
        )

    def forward(self, maps: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """maps (B, P, N, d) at P pooled pixels, tokens (B, N, c_l), mask (B, N) -> (B, P, N, d)."""
        normed = self.norm(maps)
        text = self.language(tokens).unsqueeze(1).expand(-1, maps.shape[1], -1, -1)
        guided = torch.cat([normed, text], dim=-1)
        query, key, value = (
            layer(x).unflatten(-1, (self.num_heads, -1)).transpose(2, 3)  # (B, P, heads, N, d')
            for layer, x in ((self.query, guided), (self.key, guided), (self.value, normed))
        )
        scores = query @ key.mT / math.sqrt(query.shape[-1])
        weights = masked_softmax(scores, mask[:, None, None, None, :], dim=-1)
        maps = maps + self.project((weights @ value).transpose(2, 3).flatten(3))
        return maps + self.mlp(maps)


class VLGA(nn.Module):
    """Vision-language guided attention of SemiVL (Hoyer et al., ECCV 2024).

    S = <F_V, F_L>, L2-normalised, one map per token; spatial reasoning on each map (7x7
    convolution, ASPP with rates 1, 6, 12, 18); semantic reasoning across the maps at each pixel,
    pooled by 4. SemiVL's maps stand for class prompts; here they stand for the caption's tokens,
    and a last 1x1 layer gives one map per token for the common decoder (both our reading). CLIP's
    token features share no space with its patch features, so both are projected first.
    """

    pooling = 4

    def __init__(self, vision_dim: int, language_dim: int, dim: int, max_tokens: int) -> None:
        super().__init__()
        map_dim = max(4, dim // 16 * 4)  # a quarter of `dim`, divisible by the four heads
        self.max_tokens = max_tokens
        self.similarity = Similarity(vision_dim, language_dim, dim)
        self.embed = nn.Conv2d(1, map_dim, 7, padding=3)
        self.aspp = ASPP(map_dim)
        self.reason = SemanticReasoning(map_dim, language_dim)
        self.to_map = nn.Linear(map_dim, 1)
        self.readout = Readout(vision_dim, max_tokens, dim)

    def forward(self, vision: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        (batch, num_tokens), (height, width) = mask.shape, vision.shape[-2:]
        pixels = to_pixels(vision)
        similarity = self.similarity(pixels, tokens)
        # Captions differ in length: maps of padding, a third of all, are never computed.
        maps = self.embed(similarity.transpose(1, 2)[mask].view(-1, 1, height, width))
        maps = maps + self.aspp(maps)  # (R, d, h, w) for R real tokens in the batch

        pooled = F.avg_pool2d(maps, self.pooling, ceil_mode=True)
        per_token = pooled.new_zeros(batch, num_tokens, *pooled.flatten(2).shape[1:])
        per_token[mask] = pooled.flatten(2)
        per_pixel = per_token.permute(0, 3, 1, 2)
        change = self.reason(per_pixel, tokens, mask) - per_pixel  # (B, P, N, d)
        change = change.permute(0, 2, 3, 1)[mask].unflatten(2, pooled.shape[-2:])
        maps = maps + F.interpolate(change, (height, width), mode="bilinear", align_corners=False)

        values = self.to_map(maps.permute(0, 2, 3, 1)).flatten(1)
        per_token = values.new_zeros(batch, num_tokens, height * width)
        per_token[mask] = values
        read = pad_tokens(per_token.transpose(1, 2), mask, self.max_tokens)
        return to_grid(self.readout(pixels, read), height, width)


class BottleneckBlock(nn.Module):
    """LSeg's spatial regularisation: one 3x3 kernel shared by all maps, plus the maximum map."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, maps: Tensor, mask: Tensor) -> Tensor:
        """maps (B, N, h, w), mask (B, N); the maximum is over real tokens."""
        batch, num_tokens, height, width = maps.shape
        real = mask[:, :, None, None]
        strongest = maps.masked_fill(~real, torch.finfo(maps.dtype).min).amax(1, keepdim=True)
        strongest = strongest * mask.any(1)[:, None, None, None]
        smoothed = self.depthwise(maps.reshape(batch * num_tokens, 1, height, width))
        return F.relu(smoothed.view_as(maps) + strongest)


class WPCT(nn.Module):
    """Word-pixel correlation tensor of LSeg (Li et al., ICLR 2022): F_ijk = <I_ij, T_k>.

    L2-normalised embeddings, a learned temperature, then two BottleneckBlocks on the tensor
    (LSeg offers them and DepthwiseBlocks, and any depth: two is our reading).
    """

    def __init__(self, vision_dim: int, language_dim: int, dim: int, max_tokens: int) -> None:
        super().__init__()
        self.max_tokens = max_tokens
        self.similarity = Similarity(vision_dim, language_dim, dim)
        self.log_temperature = nn.Parameter(torch.tensor(math.log(1 / 0.07)))  # CLIP's start
        self.blocks = nn.ModuleList([BottleneckBlock(), BottleneckBlock()])
        self.readout = Readout(vision_dim, max_tokens, dim)

    def forward(self, vision: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        height, width = vision.shape[-2:]
        pixels = to_pixels(vision)
        correlation = self.similarity(pixels, tokens) * self.log_temperature.exp()
        maps = to_grid(correlation, height, width)  # (B, N, h, w)
        for block in self.blocks:
            maps = block(maps, mask)
        read = pad_tokens(to_pixels(maps), mask, self.max_tokens)
        return to_grid(self.readout(pixels, read), height, width)


class CrossAttention(nn.Module):
    """Cross-attention as in CrossViT (Chen et al., ICCV 2021): F_V + proj(MHA(F_V, F_L, F_L))."""

    def __init__(self, vision_dim: int, language_dim: int, dim: int, max_tokens: int) -> None:
        super().__init__()
        del max_tokens  # the output has no channel per token
        self.num_heads = math.gcd(dim, 8)
        self.query = nn.Linear(vision_dim, dim)
        self.key = nn.Linear(language_dim, dim)
        self.value = nn.Linear(language_dim, dim)
        self.project = nn.Linear(dim, vision_dim)

    def forward(self, vision: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        height, width = vision.shape[-2:]
        pixels = to_pixels(vision)
        query, key, value = (
            x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, heads, hw or N, d)
            for x in (self.query(pixels), self.key(tokens), self.value(tokens))
        )
        scores = query @ key.mT / math.sqrt(query.shape[-1])
        weights = masked_softmax(scores, mask[:, None, None, :], dim=-1)
        attended = (weights @ value).transpose(1, 2).flatten(2)
        return to_grid(pixels + self.project(attended), height, width)


class NoFusion(nn.Module):
    """Vision only: the caption is not used."""

    def __init__(self, vision_dim: int, language_dim: int, dim: int, max_tokens: int) -> None:
        super().__init__()

    def forward(self, vision: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        return vision


FUSIONS: dict[str, type[nn.Module]] = {
    "dlg": DLG,
    "vlga": VLGA,
    "wpct": WPCT,
    "cross_attention": CrossAttention,
    "none": NoFusion,
}
