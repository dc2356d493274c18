"""Images and labels at the working size: windows of the store, or decoded where it has none."""

from collections.abc import Callable, Hashable
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from semidavil.benchmarks import BENCHMARKS, UNKNOWN
from semidavil.config import Config
from semidavil.data.depth import Disparities, disparity_file
from semidavil.data.described import title_of
from semidavil.data.files import DataError
from semidavil.data.images import resize_image, resize_nearest
from semidavil.data.layout import open_reader
from semidavil.data.readers import Reader, Sample
from semidavil.data.store import (
    DISPARITY,
    IMAGE,
    LABEL,
    OWN_LABEL,
    Store,
    disparity_of,
    open_store,
)
from semidavil.data.windows import Box

# Decoded images and labels of each data set that the processes of a run keep in memory, where the store has
# none, or compressed ones: of what is trained on, and of what is scored.
TRAIN_BYTES, EVAL_BYTES = 2**30, 2**29


class Memory:
    """Tensors made of files, up to `limit` bytes; a file that has changed is read anew."""

    def __init__(self, limit: int) -> None:
        self.limit, self.bytes = limit, 0
        self.kept: dict[tuple[str, Path, int, int], Tensor] = {}

    def recall(self, kind: str, path: Path, make: Callable[[], Tensor]) -> Tensor:
        try:
            status = path.stat()
        except OSError:  # the reader will say which file is missing
            return make()
        key = kind, path, status.st_mtime_ns, status.st_size
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
        if (
            sum(memory.limit for memory in _memories.values()) + limit
            > 2 * TRAIN_BYTES + EVAL_BYTES
        ):
            _memories.clear()  # who uses one at the moment has it still
        _memories[key] = Memory(limit)
    return _memories[key]


class Images:
    """A data set's images and labels, as classes of a benchmark, at the working size.

    Args:
        lookup: class index by raw id (65536,) uint8.
        store: of the working size (height, width).
        depth: where disparities come from, `data.depth`; `disparities` reads those that the store lacks.
    """

    def __init__(
        self,
        reader: Reader,
        lookup: np.ndarray,
        store: Store,
        memory: Memory,
        depth: str,
    ) -> None:
        self.reader, self.lookup, self.size = reader, lookup, store.size
        self.store, self.memory, self.depth = store, memory, depth
        self.disparities: Disparities | None = None

    def window(self, sample: Sample, box: Box) -> Tensor:
        """What a box shows of the image: (3, h, w) uint8, channels last in memory."""
        if (stored := self.store.raw(IMAGE, sample.image)) is not None:
            return _channels_first(stored[box.slices].copy())
        return self.image(sample)[..., *box.slices]

    def label_window(self, sample: Sample, box: Box) -> Tensor:
        """Class indices (h, w) uint8 of a box; 255 is ignored."""
        if (stored := self.store.raw(LABEL, sample.label)) is not None:
            return torch.from_numpy(self._known_classes(stored[box.slices]))
        return self.label(sample)[box.slices]

    def disparity_window(self, sample: Sample, box: Box) -> Tensor:
        """Disparities (h, w) float32 of a box, in the stored map's unit."""
        assert self.disparities is not None
        if (stored := self.store.array(DISPARITY, disparity_file(self.depth, sample))) is not None:
            return torch.from_numpy(disparity_of(stored[box.slices].copy()))
        return torch.from_numpy(resize_nearest(self.disparities(sample), self.size)[box.slices])

    def image(self, sample: Sample) -> Tensor:
        """The image (3, H, W) uint8, channels last in memory."""
        return self._whole(IMAGE, sample.image, lambda: self._decoded_image(sample))

    def label(self, sample: Sample) -> Tensor:
        """Class indices (H, W) uint8; 255 is ignored."""
        return self._whole(LABEL, sample.label, lambda: self._decoded_label(LABEL, sample))

    def own_label(self, sample: Sample) -> Tensor:
        """Class indices (H', W') uint8 at the label's own size; 255 is ignored."""
        return self._whole(OWN_LABEL, sample.label, lambda: self._decoded_label(OWN_LABEL, sample))

    def _whole(self, kind: str, path: Path, make: Callable[[], Tensor]) -> Tensor:
        # The system keeps what is read of the raw store in memory, once for all processes.
        if self.store.raw(kind, path) is not None:
            return make()
        return self.memory.recall(kind, path, make)

    def _decoded_image(self, sample: Sample) -> Tensor:
        stored = self.store.array(IMAGE, sample.image)
        if stored is None:
            stored = resize_image(self.reader.read_image(sample), self.size)
        return _channels_first(stored if stored.flags.writeable else stored.copy())

    def _decoded_label(self, kind: str, sample: Sample) -> Tensor:
        stored = self.store.array(kind, sample.label)
        if stored is not None:
            return torch.from_numpy(self._known_classes(stored))
        label = self._classes(self.reader.read_label(sample), sample)
        return torch.from_numpy(label if kind == OWN_LABEL else resize_nearest(label, self.size))

    def _known_classes(self, ids: np.ndarray) -> np.ndarray:
        """Class indices of raw ids (h, w) uint8 that are known: the store holds no others."""
        return cv2.LUT(ids, self.lookup[:256])  # in a tenth of NumPy's time

    def _classes(self, ids: np.ndarray, sample: Sample) -> np.ndarray:
        """Class indices of raw ids (h, w)."""
        label = self.lookup[ids]
        if (label == UNKNOWN).any():
            unknown = sorted(int(i) for i in np.unique(ids[label == UNKNOWN]))
            raise DataError(
                f"{title_of(self.reader.name)}: the label {sample.label} holds the unknown ids {unknown}"
            )
        return label


def open_images(config: Config, dataset: str, scored: bool = False, workers: int = 0) -> Images:
    """The images of one of a benchmark's data sets.

    Args:
        scored: those of the validation set, which are remembered apart from those that are trained on.
        workers: how many processes share what may be kept in memory.
    """
    lookup = BENCHMARKS[config.data.benchmark].lookup(dataset)
    reader, store = open_reader(config, dataset), open_store(config, dataset)
    limit = (EVAL_BYTES if scored else TRAIN_BYTES) // max(1, workers)
    memory = shared_memory(limit, reader.name, reader.root, lookup.tobytes(), store.size, scored)
    return Images(reader, lookup, store, memory, config.data.depth)


def _channels_first(image: np.ndarray) -> Tensor:
    """(H, W, 3) as (3, H, W), without moving a byte: cheapest to resize."""
    return torch.from_numpy(image).permute(2, 0, 1)
