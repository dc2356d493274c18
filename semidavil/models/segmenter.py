"""The segmentation network: vision encoder, language fusion, decoder."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semidavil.models.dropout import drop_channels
from semidavil.models.fusion import FUSIONS, require_shape
from semidavil.models.layers import GroupNorm, upsample
from semidavil.models.readout import Towers
from semidavil.models.text import Language
from semidavil.models.vision import VisionEncoder
from semidavil.models.vlm import VLM
from semidavil.settings import Model


class Decoder(nn.Module):
    """Fused features and fine detail of the image to logits at half its resolution.

    The paper fixes no decoder; all fusions and methods share this one. A plain ViT has one scale, of
    8 to 16 pixels, so thin things would be lost: two convolutions on the image bring edges and
    colours back, as in ViTMatte (Yao et al., Information Fusion 2024). The released code has a 3x3
    convolution to 256 channels, batch norm, ReLU, a 1x1 convolution and bilinear upsampling by 16.
    """

    def __init__(self, in_dim: int, dim: int, num_classes: int) -> None:
        super().__init__()
        half, quarter = dim // 2, dim // 4
        self.detail2 = _block(3, quarter, stride=2)
        self.detail4 = _block(quarter, half, stride=2)
        self.block = _block(in_dim, dim)
        self.merge4 = _block(dim + half, half)
        self.merge2 = _block(half + quarter, half)
        self.classify = nn.Conv2d(half, num_classes, 1)

    def details(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features at half and at a quarter of the resolution of images (B, 3, H, W)."""
        centred = images - 0.5
        if images.is_cuda:  # what its tensor cores read; a CPU's group norm is slower so
            centred = centred.contiguous(memory_format=torch.channels_last)
        fine = self.detail2(centred)
        return fine, self.detail4(fine)

    def forward(self, features: Tensor, details: tuple[Tensor, Tensor]) -> Tensor:
        """(B, c_v, h, w) features and the images' `details` -> (B, C, H/2, W/2) logits."""
        fine, medium = details
        coarse = upsample(self.block(features), medium.shape[-2:])
        merged = upsample(self.merge4(torch.cat([coarse, medium], 1)), fine.shape[-2:])
        return self.classify(self.merge2(torch.cat([merged, fine], 1)))


def _block(in_dim: int, out_dim: int, stride: int = 1) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(in_dim, out_dim, 3, stride=stride, padding=1, bias=False),
        GroupNorm(_groups(out_dim), out_dim),
        nn.GELU(),
    )


def _groups(dim: int) -> int:
    return next(groups for groups in (32, 16, 8, 4, 2, 1) if dim % groups == 0 and dim > groups)


@dataclass(frozen=True)
class Features:
    """What the encoder sees in images: input of `Segmenter.decode`.

    Attributes:
        vision: the vision encoder's output (B, c_v, h, w).
        details: the decoder's, at half and a quarter of the padded images.
        size: (height, width) of the images.
    """

    vision: Tensor
    details: tuple[Tensor, Tensor]
    size: tuple[int, int]

    def split(self, sizes: Sequence[int]) -> "list[Features]":
        """The features of consecutive groups of the images."""
        fine, medium = self.details
        parts = zip(*(x.split(sizes) for x in (self.vision, fine, medium)), strict=True)
        return [Features(v, (f, m), self.size) for v, f, m in parts]

    def drop_channels(self, share: float, generator: torch.Generator) -> "Features":
        """Feature perturbation (UniMatch, CVPR 2023): whole channels set to 0, the rest scaled up.

        Args:
            generator: see `dropout.drop_channels`.
        """
        fine, medium = (drop_channels(part, share, generator) for part in self.details)
        vision = drop_channels(self.vision, share, generator)
        return Features(vision, (fine, medium), self.size)

    def scale_channels(self, factors: Sequence[Tensor]) -> "Features":
        """Channels multiplied by `factors` (B, C), on the CPU, of `vision` and of both `details`."""
        vision, fine, medium = (
            part * factor[..., None, None].to(part, non_blocking=True)
            for part, factor in zip((self.vision, *self.details), factors, strict=True)
        )
        return Features(vision, (fine, medium), self.size)


class Segmenter(nn.Module):
    """Images and captions to per-pixel class logits."""

    def __init__(self, vision: VisionEncoder, fusion: nn.Module, decoder: Decoder) -> None:
        super().__init__()
        self.vision, self.fusion, self.decoder = vision, fusion, decoder

    def forward(self, images: Tensor, language: Language) -> Tensor:
        """Logits (B, C, H, W) for images (B, 3, H, W) in [0, 1] and their captions' tokens."""
        return self.decode(self.encode(images), language)

    def encode(self, images: Tensor) -> Features:
        """Features of images (B, 3, H, W) in [0, 1] of any size, padded to whole patches."""
        height, width = images.shape[-2:]
        images = pad_to_patches(images, self.vision.stride)
        return Features(self.vision(images), self.decoder.details(images), (height, width))

    def decode(self, features: Features, language: Language) -> Tensor:
        """Logits (B, C, H, W) at the images' size, from their features and captions' tokens."""
        fused = self.fusion(features.vision, language)
        if not torch.compiler.is_compiling():
            wanted = tuple(features.vision.shape)
            require_shape(
                self.fusion, "forward", fused, wanted, "to_grid(readout(pixels, maps), h, w)"
            )
        logits = self.decoder(fused, features.details)
        padded = [self.vision.stride * side for side in features.vision.shape[-2:]]
        # In float32: of rounded logits, other classes would win. Pixels of a class lie together, which makes
        # larger products of the upsampling.
        logits = logits.to(torch.float32, memory_format=torch.contiguous_format)
        logits = upsample(logits, padded)
        height, width = features.size
        if padded != [height, width]:  # the gradient of a slice is one more tensor to fill
            logits = logits[..., :height, :width]
        return logits


def pad_to_patches(images: Tensor, stride: int) -> Tensor:
    """Images (B, 3, H, W), their last row and column repeated until both sides are whole patches."""
    height, width = images.shape[-2:]
    pad_h, pad_w = -height % stride, -width % stride
    return F.pad(images, (0, pad_w, 0, pad_h), mode="replicate") if pad_h or pad_w else images


def build_segmenter(config: Model, vlm: VLM, num_classes: int) -> Segmenter:
    """A Segmenter that starts from the VLM's vision encoder; the rest is initialised at random.

    A vision encoder without a linear layer into the joint space gets a fresh one there, which is trained as
    the other is: WPCT and VLGA compare pixels with tokens in that space.
    """
    vision = vlm.vision
    # The decoder comes first: with one seed it then starts the same under every fusion.
    decoder = Decoder(vision.dim, config.decoder_dim, num_classes)
    language_joint, vision_joint = vlm.text.joint_projection(), vision.joint_projection()
    if vision_joint is None:
        vision_joint = nn.Linear(vision.dim, language_joint.out_features)
    towers = Towers(vision.dim, vlm.text.dim, vlm.text.max_tokens, vision_joint, language_joint)
    fusion = FUSIONS[config.fusion](towers, config.fusion_dim)
    return Segmenter(vision, fusion, decoder)
