"""Weak and strong views, and CutMix boxes.

Weak: random scale, crop and horizontal flip, image and label together. Strong, on top of a weak view
and without moving a pixel: colour jitter, grey, blur (as UniMatch, CVPR 2023; SemiDAViL names no
augmentation of its own). All draw from torch's global generator, which the caller seeds.
"""

import math
from dataclasses import dataclass

import torch
import torchvision.transforms.v2.functional as TF
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2

from semidavil.data.windows import Box

SCALES = (0.75, 1.5)


@dataclass(frozen=True)
class Weak:
    """A crop of one image, its label, and whether it was mirrored."""

    image: Tensor  # (3, h, w) uint8
    label: Tensor  # (h, w) uint8; the padding value where there is no image
    flipped: bool
    box: Box  # what was cut out, in the image's pixels
    disparity: Tensor | None = None  # (h, w) float; 0 where there is no image


def weak_view(
    image: Tensor,
    label: Tensor,
    crop: tuple[int, int],
    fill: int,
    disparity: Tensor | None = None,
) -> Weak:
    """A random scale in `SCALES`, a random crop (h, w) and a flip with probability 1/2.

    Args:
        image, label: (3, H, W) and (H, W) uint8.
        fill: the label where the crop is larger than the scaled image.
        disparity: (H, W) float, cut and mirrored with them; its values stay as they are.
    """
    height, width = image.shape[-2:]
    scale = math.exp(_uniform(math.log(SCALES[0]), math.log(SCALES[1])))
    # Cutting the source window first and scaling it once is scaling and cropping at a fraction of
    # the work; a window larger than the image is padded.
    window_h, window_w = round(crop[0] / scale), round(crop[1] / scale)
    top = int(_uniform(0, max(height - window_h, 0) + 1))
    left = int(_uniform(0, max(width - window_w, 0) + 1))
    flipped = bool(torch.rand(()) < 0.5)
    fills = [0, fill, 0]
    parts = [tv_tensors.Image(image), tv_tensors.Mask(label)]
    if disparity is not None:
        parts.append(tv_tensors.Mask(disparity))
    if window_h > height or window_w > width:
        pad = [0, 0, max(window_w - width, 0), max(window_h - height, 0)]
        parts = [TF.pad(part, pad, fill=value) for part, value in zip(parts, fills, strict=False)]
    parts = [
        TF.resized_crop(
            part, top, left, window_h, window_w, list(crop), antialias=True,
            interpolation=InterpolationMode.BILINEAR,  # masks take the nearest by themselves
        )
        for part in parts
    ]  # fmt: skip
    if flipped:
        parts = [TF.horizontal_flip(part) for part in parts]
    image, label, *maps = (part.as_subclass(Tensor) for part in parts)
    box = Box(top, left, window_h, window_w)
    return Weak(image, label, flipped, box, maps[0] if maps else None)


_jitter = v2.ColorJitter(0.5, 0.5, 0.5, 0.25)


def strong_view(image: Tensor) -> Tensor:
    """Colour jitter (p 0.8), grey (p 0.2) and Gaussian blur (p 0.5) of a (3, h, w) uint8 image."""
    if torch.rand(()) < 0.8:
        image = _jitter(image)
    if torch.rand(()) < 0.2:
        image = TF.rgb_to_grayscale(image, num_output_channels=3)
    if torch.rand(()) < 0.5:
        # UniMatch blurs 0.1 to 2 pixels on crops of hundreds of pixels; smaller crops, less blur.
        largest = 2.0 * min(1.0, image.shape[-1] / 320)
        sigma = _uniform(0.1, max(largest, 0.2))
        image = TF.gaussian_blur(image, [2 * math.ceil(2 * sigma) + 1] * 2, [sigma, sigma])
    return image


def cutmix_box(size: tuple[int, int], probability: float) -> Tensor:
    """A mask (h, w), True inside a random box; all False with 1 - probability.

    The box covers 2 to 40% of the area with an aspect ratio of 0.3 to 1/0.3, as in UniMatch.
    """
    height, width = size
    mask = torch.zeros(height, width, dtype=torch.bool)
    if torch.rand(()) >= probability:
        return mask
    area = _uniform(0.02, 0.4) * height * width
    ratio = _uniform(0.3, 1 / 0.3)
    box_h = max(1, min(height, round(math.sqrt(area * ratio))))
    box_w = max(1, min(width, round(math.sqrt(area / ratio))))
    top, left = int(_uniform(0, height - box_h + 1)), int(_uniform(0, width - box_w + 1))
    mask[top : top + box_h, left : left + box_w] = True
    return mask


def _uniform(low: float, high: float) -> float:
    return float(torch.empty((), dtype=torch.float64).uniform_(low, high))
