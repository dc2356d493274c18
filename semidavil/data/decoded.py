"""Decoded images at the working size, kept in memory."""

from collections.abc import Callable, Hashable
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from semidavil.benchmarks import UNKNOWN
from semidavil.data.depth import Disparities
from semidavil.data.files import DataError
from semidavil.data.readers import Reader, Sample
from semidavil.data.windows import Box

CACHE_BYTES = 2 * 2**30  # decoded images that a process keeps of what it trains on
EVAL_CACHE_BYTES = 2**28  # and, each, of images and labels that it is scored on


class Memory:
    """Tensors made of files, up to `limit` bytes; a file that has changed is read anew."""

    def __init__(self, limit: int) -> None:
        self.limit, self.bytes = limit, 0
        self.kept: dict[tuple[Path, int, int], Tensor] = {}

    def recall(self, path: Path, make: Callable[[], Tensor]) -> Tensor:
        if not self.limit:
            return make()
        try:
            status = path.stat()
        except OSError:  # the reader will say which file is missing
            return make()
        key = path, status.st_mtime_ns, status.st_size
        if key in self.kept:
            return self.kept[key]
        made = make()
        if self.bytes + made.nbytes <= self.limit:
            self.bytes += made.nbytes
            self.kept[key] = made
        return made


_memories: dict[Hashable, Memory] = {}


def shared_memory(limit: int, *about: Hashable) -> Memory:
    """What this process remembers of `about`; runs of one worker read the same images again.

    Those of other data sets are let go before all of them would take more than they may.
    """
    key = (limit, *about)
    if key not in _memories:
        if sum(memory.limit for memory in _memories.values()) + limit > (
            CACHE_BYTES + 2 * EVAL_CACHE_BYTES
        ):
            _memories.clear()  # who uses one at the moment has it still
        _memories[key] = Memory(limit)
    return _memories[key]


class Images:
    """Decodes, resizes and maps labels; keeps what it has decoded, up to `limit` bytes."""

    def __init__(
        self, reader: Reader, lookup: np.ndarray, size: tuple[int, int], limit: int
    ) -> None:
        self.reader, self.lookup, self.size = reader, lookup, size
        about = reader.name, reader.root, lookup.tobytes(), size
        self.memory = shared_memory(limit, *about)
        self.disparities: Disparities | None = None

    def image(self, sample: Sample) -> Tensor:
        """The image (3, H, W) uint8 at the working size."""
        return self.memory.recall(sample.image, lambda: self._resized_image(sample))

    def label(self, sample: Sample) -> Tensor:
        """Class indices (H, W) uint8 at the working size; 255 is ignored."""
        return self.memory.recall(sample.label, lambda: self._resized_label(sample))

    def window(self, sample: Sample, box: Box) -> Tensor:
        """What a box shows of the image: (3, h, w) uint8."""
        return self.image(sample)[..., *box.slices]

    def label_window(self, sample: Sample, box: Box) -> Tensor:
        """What a box shows of the label: (h, w) uint8."""
        return self.label(sample)[box.slices]

    def disparity_window(self, sample: Sample, box: Box) -> Tensor:
        """What a box shows of the disparity: (h, w) float32."""
        return self.disparity(sample)[box.slices]

    def disparity(self, sample: Sample) -> Tensor:
        """The disparity (H, W) float32 at the working size, in the stored map's unit."""
        assert self.disparities is not None
        disparity, (height, width) = self.disparities(sample), self.size
        # The nearest value: an average would invent surfaces between near and far, and known ones
        # where nothing is known.
        disparity = cv2.resize(disparity, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
        return torch.from_numpy(disparity)

    def _resized_image(self, sample: Sample) -> Tensor:
        image = resize_image(self.reader.read_image(sample), self.size)
        return torch.from_numpy(image).permute(2, 0, 1)  # cheapest to resize

    def _resized_label(self, sample: Sample) -> Tensor:
        label = self.full_label(sample)
        if label.shape != self.size:
            height, width = self.size
            label = cv2.resize(label, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
        return torch.from_numpy(label)

    def full_label(self, sample: Sample) -> np.ndarray:
        """Class indices (H, W) uint8 at the label's own size; 255 is ignored."""
        raw = self.reader.read_label(sample)
        label = self.lookup[raw]
        if (label == UNKNOWN).any():
            unknown = sorted(int(i) for i in np.unique(raw[label == UNKNOWN]))
            raise DataError(
                f"{self.reader.name}: the label {sample.label} holds the unknown ids {unknown}"
            )
        return label


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) uint8 to another (height, width), averaging where it shrinks."""
    height, width = size
    if image.shape[:2] == (height, width):
        return image
    shrinks = image.shape[0] >= height and image.shape[1] >= width
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(image, (width, height), interpolation=how)
