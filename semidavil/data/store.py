"""The images and labels of a data set as runs look at them, each decoded and resized once.

    store = Store(reader, (512, 1024), cache_dir, ("raw", "packed"))
    store.array("image", sample.image)       # (512, 1024, 3) uint8, or None: decode it

`prepare` fills it (see `filling`). A store is a folder of the cache folder, one for each place of a data set;
its files hold the arrays of one kind and working size, from all splits:

    images-512x1024.raw    images-512x1024.raw.jsonl    labels-512x1024.raw    labels-own-size.raw   ...

Labels are kept as ids of the data set, so that all benchmarks share them. An array is taken for that of its
file as long as the file has the size and the time of change that it had. What changed files leave behind is
written over when it is more than half of a file.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from semidavil.data.arrays import Arrays, Entry
from semidavil.data.images import resize_image, resize_nearest
from semidavil.data.readers import Reader

RAW, PACKED = "raw", "packed"
IMAGE, LABEL, OWN_LABEL = (
    "image",
    "label",
    "own_label",
)  # kinds; the last is a label at its own size
Size = tuple[int, int]

# Which forms are looked for, by `data.store`.
FORMS: dict[str, tuple[str, ...]] = {
    "auto": (RAW, PACKED), RAW: (RAW,), PACKED: (PACKED,), "off": ()
}  # fmt: skip


class Store:
    """What is kept of one data set at one working size (height, width)."""

    def __init__(self, reader: Reader, size: Size, cache_dir: Path, forms: Sequence[str]) -> None:
        self.root, self.size = os.path.join(reader.root, ""), size
        place = hashlib.blake2b(self.root.encode(), digest_size=4).hexdigest()
        self.folder = cache_dir / "store" / f"{reader.name}-{place}"
        at_size = f"{size[0]}x{size[1]}"
        names = {
            IMAGE: f"images-{at_size}", LABEL: f"labels-{at_size}", OWN_LABEL: "labels-own-size"
        }  # fmt: skip
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

    def is_raw(self, kind: str, path: Path) -> bool:
        """Whether `array` costs no more than what is read of it."""
        found = self._find(kind, path)
        return found is not None and found[0].form == RAW

    def name_of(self, path: Path) -> str:
        """What a file below the data set's folder is called here."""
        return os.fspath(path).removeprefix(self.root)

    def current(self, kind: str, path: Path, status: os.stat_result) -> Entry | None:
        """The entry of a file that has this status, in any form."""
        entries = (f.entry(self.name_of(path), status) for f in self._files_of(kind))
        return next(filter(None, entries), None)

    def reload(self) -> None:
        """Reads the indices again, after another process may have written."""
        self._found.clear()
        for arrays in self.files.values():
            arrays.reload()

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
                except OSError:  # the reader will say which file is missing
                    return None
                if entry := arrays.entry(name, status):
                    return arrays, entry
        return None

    def _files_of(self, kind: str) -> Iterator[Arrays]:
        return (arrays for (of, _), arrays in self.files.items() if of == kind)


def array_of(kind: str, decoded: np.ndarray, size: Size) -> np.ndarray:
    """What is kept of a decoded image (H, W, 3), or of a label's ids (H, W).

    Args:
        size: the working size (height, width).
    """
    if kind == IMAGE:
        return resize_image(decoded, size)
    ids = decoded.astype(np.uint8, copy=False)  # known ones are below 256
    return ids if kind == OWN_LABEL else resize_nearest(ids, size)
