"""Weak views and CutMix boxes; strong views are made on the device, see `augment`.

Weak: random scale, crop and horizontal flip, image and label together. All draw from torch's global
generator, which the caller seeds.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
import torchvision.transforms.v2.functional as TF
from torch import Tensor
from torchvision.transforms import InterpolationMode

from semidavil.data.windows import Box

SCALES = (0.75, 1.5)


@dataclass(frozen=True)
class Weak:
    """A crop of one image, what lies on the same pixels, and whether it was mirrored."""

    image: Tensor  # (3, h, w) uint8
    label: Tensor | None  # (h, w) uint8
    disparity: Tensor | None  # (h, w) float32
    flipped: bool
    box: Box  # what was cut out, in the image's pixels


def weak_view(
    image: Tensor,
    label: Tensor | None,
    crop: tuple[int, int],
    disparity: Tensor | None = None,
) -> Weak:
    """A random scale, a random crop (h, w) and a flip with probability 1/2.

    The scale is log-uniform in `SCALES`, from where the crop fits into the scaled image: nothing is
    padded, as black bars on the smaller images alone would tell the domains apart.

    Args:
        image: (3, H, W) uint8, at least as large as the crop.
        label: (H, W) uint8, if there is one.
        disparity: (H, W) float, cut and mirrored with them; its values stay as they are.
    """
    height, width = image.shape[-2:]
    smallest = max(SCALES[0], crop[0] / height, crop[1] / width)
    scale = math.exp(_uniform(math.log(smallest), math.log(max(smallest, SCALES[1]))))
    # Cutting the source window first and scaling it once is scaling and cropping at a fraction of
    # the work.
    window_h, window_w = min(round(crop[0] / scale), height), min(round(crop[1] / scale), width)
    top = int(_uniform(0, height - window_h + 1))
    left = int(_uniform(0, width - window_w + 1))
    flipped = bool(torch.rand(()) < 0.5)
    window = (..., slice(top, top + window_h), slice(left, left + window_w))
    image = TF.resize(image[window], list(crop), InterpolationMode.BILINEAR, antialias=True)
    label = label if label is None else _nearest(label[window], crop)
    disparity = disparity if disparity is None else _nearest(disparity[window], crop)
    if flipped:
        image = image.flip(-1)
        label = label if label is None else label.flip(-1)
        disparity = disparity if disparity is None else disparity.flip(-1)
    return Weak(image, label, disparity, flipped, Box(top, left, window_h, window_w))


def _nearest(values: Tensor, size: tuple[int, int]) -> Tensor:
    """Values (H, W) at another size, each from the pixel whose centre is nearest, as images are sampled.

    PyTorch's plain "nearest" takes the pixel at the floor instead: half an output pixel beside.
    """
    return F.interpolate(values[None, None], size, mode="nearest-exact")[0, 0]


def cutmix_box(size: tuple[int, int], probability: float) -> Box:
    """A random box in an image of (height, width); an empty one with 1 - probability.

    The box covers 2 to 40% of the area with an aspect ratio of 0.3 to 1/0.3, as in UniMatch.
    """
    height, width = size
    if torch.rand(()) >= probability:
        return Box(0, 0, 0, 0)
    area = _uniform(0.02, 0.4) * height * width
    ratio = _uniform(0.3, 1 / 0.3)
    box_h = max(1, min(height, round(math.sqrt(area * ratio))))
    box_w = max(1, min(width, round(math.sqrt(area / ratio))))
    return Box(
        int(_uniform(0, height - box_h + 1)), int(_uniform(0, width - box_w + 1)), box_h, box_w
    )


def _uniform(low: float, high: float) -> float:
    return float(torch.empty((), dtype=torch.float64).uniform_(low, high))
