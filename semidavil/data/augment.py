"""Batches as methods see them: made on the device, of pixels and of parameters that were drawn on the CPU.

Workers hand over what they have decoded and cropped, as uint8, and a few numbers for each strong view and
CutMix box. What is left to do for each pixel is done here for a whole batch at a time, on the device that
trains. A draw depends on the seed and the step alone, on every device.

Strong views, without moving a pixel: colour jitter (p 0.8), grey (p 0.2), Gaussian blur (p 0.5), as UniMatch
(CVPR 2023) has them; SemiDAViL names no augmentation of its own.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Factors are in [1 - JITTER, 1 + JITTER], shifts of the hue in [-HUE, HUE] turns.
JITTER, HUE = 0.5, 0.25
# The smallest and the largest standard deviation, in pixels of crops of 320 or more.
BLUR = 0.1, 2.0


@dataclass(frozen=True)
class StrongViews:
    """How V strong views of B images are made; whatever is not to be done to an image changes nothing.

    Attributes:
        factors: (V, B, 3) of brightness, contrast and saturation.
        hue: (V, B), shifts in turns.
        grey: (V, B) bool.
        kernels: (V, B, K), blur along one axis.
        orders: of each view, in which its images are jittered: 0 brightness, 1 contrast, 2 saturation, 3 hue.
            torchvision's ColorJitter draws one for each image; one for a batch lets it be computed at once.
    """

    factors: Tensor
    hue: Tensor
    grey: Tensor
    kernels: Tensor
    orders: tuple[tuple[int, ...], ...]

    def to(self, device: torch.device) -> "StrongViews":
        return self._map(lambda values: values.to(device, non_blocking=True))

    def pin_memory(self) -> "StrongViews":
        """In memory that a GPU copies from by itself; `DataLoader` asks for it."""
        return self._map(Tensor.pin_memory)

    def _map(self, change: Callable[[Tensor], Tensor]) -> "StrongViews":
        return StrongViews(
            change(self.factors),
            change(self.hue),
            change(self.grey),
            change(self.kernels),
            self.orders,
        )


def draw_strong_views(views: int, batch: int, crop: tuple[int, int]) -> StrongViews:
    """Parameters from torch's global generator, which the caller seeds."""
    jittered = torch.rand(views, batch) < 0.8
    factors = torch.empty(views, batch, 3).uniform_(1 - JITTER, 1 + JITTER)
    hue = torch.empty(views, batch).uniform_(-HUE, HUE)
    orders = tuple(tuple(torch.randperm(4).tolist()) for _ in range(views))
    grey = torch.rand(views, batch) < 0.2
    blurred = torch.rand(views, batch) < 0.5
    # UniMatch's crops have hundreds of pixels; smaller crops, less blur.
    largest = max(BLUR[1] * min(1.0, crop[1] / 320), 2 * BLUR[0])
    sigma = torch.empty(views, batch).uniform_(BLUR[0], largest)
    return StrongViews(
        torch.where(jittered[..., None], factors, 1.0),
        hue * jittered,
        grey,
        gaussian_kernels(torch.where(blurred, sigma, 0.0), math.ceil(2 * largest)),
        orders,
    )


def gaussian_kernels(sigma: Tensor, radius: int) -> Tensor:
    """Kernels (*, 2 radius + 1) for standard deviations (*), cut off beyond ceil(2 sigma); 0 is no blur."""
    offsets = torch.arange(-radius, radius + 1)
    sigma = sigma[..., None]
    weights = torch.exp(-0.5 * (offsets / sigma.clamp(min=1e-3)) ** 2)
    weights = weights * (offsets.abs() <= (2 * sigma).ceil())
    return weights / weights.sum(-1, keepdim=True)


def finish(batch: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The batch of a step for its method; see `loading.TrainBatches` for what comes in.

    Images float in [0, 1], labels int64; `strong` (V, B, 3, h, w) float and `cutmix` (V, B, h, w) bool, True
    where the next image of the batch is pasted.
    """
    return {stream: _finished(part) for stream, part in batch.items()}


def _finished(part: dict[str, Any]) -> dict[str, Any]:
    done, image = dict(part), part["image"]
    if image.dtype == torch.uint8:
        done["image"] = as_floats(image)
    if "label" in part:
        done["label"] = part["label"].long()
    if "strong" in part:
        done["strong"] = strong_views(done["image"], part["strong"])
        done["cutmix"] = boxes_to_masks(part["cutmix"], image.shape[-2:])
    return done


def as_floats(pixels: Tensor) -> Tensor:
    """Pixels of uint8 as networks take them, in [0, 1]."""
    return pixels.float() / 255


def boxes_to_masks(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks (*, h, w), True inside boxes (*, 4): top, left, height, width."""
    top, left, height, width = (side[..., None] for side in boxes.unbind(-1))
    rows = torch.arange(size[0], device=boxes.device)
    columns = torch.arange(size[1], device=boxes.device)
    in_rows = (rows >= top) & (rows < top + height)
    in_columns = (columns >= left) & (columns < left + width)
    return in_rows[..., :, None] & in_columns[..., None, :]


def strong_views(images: Tensor, views: StrongViews) -> Tensor:
    """Strong views (V, B, 3, h, w) of images (B, 3, h, w) in [0, 1]."""
    made = []
    for number, order in enumerate(views.orders):
        view, factors = images, views.factors[number]
        for operation in order:
            if operation == 3:
                view = shift_hue(view, views.hue[number])
            else:
                view = _JITTERS[operation](view, factors[:, operation, None, None, None])
        view = torch.where(views.grey[number][:, None, None, None], to_grey(view), view)
        made.append(blur(view, views.kernels[number]))
    return torch.stack(made)


def to_grey(images: Tensor) -> Tensor:
    """Luma (B, 1, h, w) of images (B, 3, h, w), ITU-R 601."""
    red, green, blue = images.unbind(1)
    return (0.2989 * red + 0.587 * green + 0.114 * blue)[:, None]


def _brightness(images: Tensor, factor: Tensor) -> Tensor:
    return (images * factor).clamp(0, 1)


def _contrast(images: Tensor, factor: Tensor) -> Tensor:
    return _blend(images, to_grey(images).mean((1, 2, 3), keepdim=True), factor)


def _saturation(images: Tensor, factor: Tensor) -> Tensor:
    return _blend(images, to_grey(images), factor)


def _blend(images: Tensor, others: Tensor, factor: Tensor) -> Tensor:
    return torch.lerp(others.expand_as(images), images, factor).clamp(0, 1)


_JITTERS = (_brightness, _contrast, _saturation)


def shift_hue(images: Tensor, turns: Tensor) -> Tensor:
    """Images (B, 3, h, w) in [0, 1] whose hue (in HSV) is turned by `turns` (B)."""
    red, green, blue = images.unbind(1)
    value, lowest = images.amax(1), images.amin(1)
    chroma = value - lowest
    span = torch.where(chroma > 0, chroma, 1.0)
    hue = torch.where(  # in sixths of a turn
        value == red,
        (green - blue) / span,
        torch.where(value == green, (blue - red) / span + 2, (red - green) / span + 4),
    )
    hue = hue + 6 * turns[:, None, None]
    channels = []
    for offset in (5, 3, 1):
        k = (hue + offset) % 6
        channels.append(value - chroma * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.stack(channels, 1)


def blur(images: Tensor, kernels: Tensor) -> Tensor:
    """Images (B, 3, h, w), each smoothed along both axes by its kernel (B, K); the border is mirrored."""
    width = kernels.shape[1]
    radius = width // 2
    for axis, pad in ((-1, (radius, radius, 0, 0)), (-2, (0, 0, radius, radius))):
        size, padded = images.shape[axis], F.pad(images, pad, mode="reflect")
        # Sums of shifted images instead of a convolution: exact in float32 where convolutions use TF32.
        images = sum(
            (
                kernels[:, i, None, None, None] * padded.narrow(axis, i, size)
                for i in range(1, width)
            ),
            start=kernels[:, 0, None, None, None] * padded.narrow(axis, 0, size),
        )
    return images
