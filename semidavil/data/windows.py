"""Overlapping windows of the training crops' size: what is evaluated, and what captions may speak of."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class Box(NamedTuple):
    """A rectangle of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Rows and columns, to cut it out of an array."""
        rows = slice(self.top, self.top + self.height)
        return rows, slice(self.left, self.left + self.width)

    def overlap(self, other: "Box") -> int:
        """The area in pixels that two boxes share."""
        height, width = (
            max(0, min(mine.stop, theirs.stop) - max(mine.start, theirs.start))
            for mine, theirs in zip(self.slices, other.slices, strict=True)
        )
        return height * width


@dataclass(frozen=True)
class Windows:
    """Windows that together cover every image of one size, from top left to bottom right."""

    size: tuple[int, int]  # (height, width) of the images
    boxes: tuple[Box, ...]

    def nearest(self, box: Box) -> int:
        """The number of the window that shares most with `box`; of equal ones the first."""
        return max(range(len(self.boxes)), key=lambda number: self.boxes[number].overlap(box))

    def cut(self, image: np.ndarray) -> list[np.ndarray]:
        """The part of an array (H, W, ...) of any size that each window shows of it."""
        rows, columns = (mine / own for mine, own in zip(image.shape, self.size, strict=False))
        return [
            image[
                round(top * rows) : round((top + height) * rows),
                round(left * columns) : round((left + width) * columns),
            ]
            for top, left, height, width in self.boxes
        ]


def sliding_windows(size: Sequence[int], window: Sequence[int]) -> Windows:
    """Evenly spaced windows, at most two thirds of a window apart: 512x512 of 512x1024 at 0, 256, 512.

    Args:
        size: (height, width) of the images.
        window: (height, width); along an axis where it is larger than the image, it is the whole image.
    """
    height, width = (min(pair) for pair in zip(size, window, strict=True))
    tops, lefts = (_starts(*pair) for pair in zip(size, window, strict=True))
    boxes = tuple(Box(top, left, height, width) for top in tops for left in lefts)
    return Windows((size[0], size[1]), boxes)


def _starts(size: int, window: int) -> list[int]:
    """Where windows begin along one axis."""
    if window >= size:
        return [0]
    count = 1 + -(-(size - window) // max(1, window * 2 // 3))
    return [round(i * (size - window) / (count - 1)) for i in range(count)]
