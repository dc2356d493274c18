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
class View:
    """Where a weak view lies in its image."""

    box: Box  # what is cut out, in the image's pixels
    flipped: bool  # whether it is mirrored


@dataclass(frozen=True)
class Weak:
    """A crop of one image and what lies on the same pixels."""

    image: Tensor  # (3, h, w) uint8
    label: Tensor | None  # (h, w) uint8
    disparity: Tensor | None  # (h, w) float32
    view: View


def weak_view(size: tuple[int, int], crop: tuple[int, int]) -> View:
    """A random scale, a random crop and a flip with probability 1/2, of an image that need not be there yet.

    The scale is log-uniform in `SCALES`, from where the crop fits into the scaled image: nothing is
    padded, as black bars on the smaller images alone would tell the domains apart.

    Args:
        size: (height, width) of the image, at least as large as the crop.
        crop: (height, width) of the view.
    """
    height, width = size
    smallest = max(SCALES[0], crop[0] / height, crop[1] / width)
    scale = math.exp(_uniform(math.log(smallest), math.log(max(smallest, SCALES[1]))))
    window_h, window_w = min(round(crop[0] / scale), height), min(round(crop[1] / scale), width)
    top = int(_uniform(0, height - window_h + 1))
    left = int(_uniform(0, width - window_w + 1))
    return View(Box(top, left, window_h, window_w), bool(torch.rand(()) < 0.5))


def cut(
    view: View,
    crop: tuple[int, int],
    image: Tensor,
    label: Tensor | None = None,
    disparity: Tensor | None = None,
) -> Weak:
    """The view's pixels, scaled to `crop`: cutting first and scaling once is a fraction of the work.

    Args:
        image: what `view.box` shows of the image (3, H, W) uint8. Channels last in memory take half the
            time: 0.8 instead of 1.5 ms for 512x512.
        label: of the same box (H, W) uint8, if there is one.
        disparity: of the same box (H, W) float; its values stay as they are.
    """
    image = TF.resize(image, list(crop), InterpolationMode.BILINEAR, antialias=True)
    label = label if label is None else _nearest(label, crop)
    disparity = disparity if disparity is None else _nearest(disparity, crop)
    if view.flipped:
        image = image.flip(-1)
        label = label if label is None else label.flip(-1)
        disparity = disparity if disparity is None else disparity.flip(-1)
    return Weak(image, label, disparity, view)


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
