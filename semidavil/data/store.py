"""The images, labels and disparities of a data set as runs look at them, each decoded and resized once.

    store = open_store(config, "cityscapes")
    store.array("image", sample.image)       # (512, 1024, 3) uint8, or None: decode it

`prepare` fills it (see `filling`). A store is a folder of the cache folder, one for each place of a data set;
its files hold the arrays of one kind and working size, from all splits:

    images-512x1024.0.raw  images-512x1024.raw.jsonl  labels-512x1024.0.raw  labels-own-size.0.raw  ...

Labels are kept as ids of the data set, so that all benchmarks share them. An array is taken for that of its
file as long as the file has the size and the time of change that it had. What changed files leave behind is
written over when it is more than half of a file.
"""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from semidavil.benchmarks import LABEL_IDS
from semidavil.config import Config
from semidavil.data.arrays import PACKED, RAW, Arrays, Entry
from semidavil.data.images import resize_image, resize_nearest
from semidavil.data.layout import cache_dir, open_reader, working_size
from semidavil.data.readers import Reader

# Kinds; the third is a label at its own size.
IMAGE, LABEL, OWN_LABEL, DISPARITY = "image", "label", "own_label", "disparity"
Size = tuple[int, int]
VERSION = 1  # of decoding and resizing: raise it where they come to give other pixels

# Which forms are looked for, by `data.store`.
FORMS: dict[str, tuple[str, ...]] = {
    "auto": (RAW, PACKED), RAW: (RAW,), PACKED: (PACKED,), "off": ()
}  # fmt: skip


class Store:
    """What is kept of one data set at one working size (height, width).

    Args:
        depth: where disparities come from, `data.depth`.
        forms: those that are looked for.
    """

    def __init__(
        self, reader: Reader, size: Size, depth: str, cache_dir: Path, forms: Sequence[str]
    ) -> None:
        self.root, self.size, self.forms = os.path.join(reader.root, ""), size, tuple(forms)
        # Of what else pixels and ids depend on: they are not those of other code.
        about = f"{VERSION} {self.root} {sorted(LABEL_IDS[reader.name])}{reader.state}"
        place = hashlib.blake2b(about.encode(), digest_size=4).hexdigest()
        self.folder = cache_dir / "store" / f"{reader.name}-{place}"
        at_size = f"{size[0]}x{size[1]}"
        source = hashlib.blake2b(depth.encode(), digest_size=4).hexdigest()
        names = {
            IMAGE: f"images-{at_size}",
            LABEL: f"labels-{at_size}",
            OWN_LABEL: "labels-own-size",
            DISPARITY: f"disparities-{at_size}-{source}",
        }
        self.files = {
            (kind, form): Arrays(self.folder / name, form)
            for form in forms
            for kind, name in names.items()
        }
        self._found: dict[tuple[str, Path], tuple[Arrays, Entry] | None] = {}

    def array(self, kind: str, path: Path) -> np.ndarray | None:
        """What is kept of a file, not to be written to; None where that is nothing."""
        found = self._find(kind, path)
        return found and found[0].read(found[1])

    def raw(self, kind: str, path: Path) -> np.ndarray | None:
        """`array`, where it costs no more than what is read of it."""
        found = self._find(kind, path)
        return found[0].read(found[1]) if found and found[0].form == RAW else None

    def name_of(self, path: Path) -> str:
        """What a file below the data set's folder is called here."""
        return os.fspath(path).removeprefix(self.root)

    def holds(self, kind: str, path: Path, status: os.stat_result) -> bool:
        """Whether there is an array of a file that has this status, in any form."""
        filled = [arrays for arrays in self._files_of(kind) if arrays.entries]
        return any(arrays.entry(self.name_of(path), status) for arrays in filled)

    def reload(self) -> bool:
        """Reads the indices again, after another process may have written; whether it has."""
        before = [arrays.entries for arrays in self.files.values()]
        self._found.clear()
        for arrays in self.files.values():
            arrays.reload()
        return before != [arrays.entries for arrays in self.files.values()]

    def _find(self, kind: str, path: Path) -> tuple[Arrays, Entry] | None:
        # Asked once: on a network's file system, a status at every look would cost a millisecond.
        key = kind, path
        if key not in self._found:
            self._found[key] = self._look_up(kind, path)
        return self._found[key]

    def _look_up(self, kind: str, path: Path) -> tuple[Arrays, Entry] | None:
        name = self.name_of(path)
        for arrays in self._files_of(kind):
            if name in arrays.entries:
                try:
                    status = path.stat()
                    arrays.map()  # from here on, nobody can take the bytes away
                except (
                    OSError
                ):  # of the image, which the reader will name; or somebody emptied the store
                    continue
                if entry := arrays.entry(name, status):
                    return arrays, entry
        return None

    def _files_of(self, kind: str) -> list[Arrays]:
        return [self.files[kind, form] for form in self.forms]


def open_store(config: Config, dataset: str) -> Store:
    """The store of one of a benchmark's data sets, as `data.store` and `data.depth` say."""
    reader, size = open_reader(config, dataset), working_size(config, dataset)
    return Store(reader, size, config.data.depth, cache_dir(config), FORMS[config.data.store])


def array_of(kind: str, decoded: np.ndarray, size: Size) -> np.ndarray:
    """What is kept of a decoded image (H, W, 3), of a label's ids (H, W) or of a disparity (H, W) float32.

    Args:
        size: the working size (height, width).
    """
    if kind == IMAGE:
        return resize_image(decoded, size)
    if kind == DISPARITY:  # the four bytes of each value
        values = np.ascontiguousarray(resize_nearest(decoded, size), np.float32)
        return values.view(np.uint8).reshape(*size, 4)
    ids = decoded.astype(np.uint8, copy=False)  # known ones are below 256
    return ids if kind == OWN_LABEL else resize_nearest(ids, size)


def disparity_of(stored: np.ndarray) -> np.ndarray:
    """Disparities (h, w) float32 of what is kept of them (h, w, 4)."""
    return np.ascontiguousarray(stored).view(np.float32)[..., 0]
