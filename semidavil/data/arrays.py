"""Many arrays of bytes in one growing file: written once, read through the page cache of the machine.

    arrays = Arrays(folder / "images-512x1024", RAW)
    arrays.append("train/a.png", status, image)        # by several threads, if you like
    arrays.commit()
    arrays.read(arrays.entry("train/a.png", status))   # a view of the memory map

An array counts from `commit` on, which writes its line of the index after its bytes: what a killed process
has left without one is written over. One process writes at a time (its caller's matter); any number read.
A file that is begun anew has a new name, which the index says: who has read the index before reads on in
the file of that time, and offsets are never those of another file.
"""

import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from semidavil.data.files import append_rows, read_rows

RAW, PACKED = "raw", "packed"  # forms: as they are, compressed
# Of images of rendered and photographed streets, one core: WebP 24 and 52% of the bytes, read in 11 and
# 9 ms; PNG 42 and 60%, in 18 and 10 ms, but written in a tenth of the time. Labels shrink to 2% either way.
# WebP takes colours alone: it may change those of transparent pixels.
LOSSLESS = {".webp": [cv2.IMWRITE_WEBP_QUALITY, 101], ".png": [cv2.IMWRITE_PNG_COMPRESSION, 1]}


@dataclass(frozen=True)
class Entry:
    """Where an array is, and the file that it was made of; one that was made of no file has zeros."""

    size: int  # of that file, in bytes
    time: int  # of its last change, in ns
    offset: int
    length: int
    shape: tuple[int, ...]


class Arrays:
    """uint8 arrays (H, W), (H, W, 3) or (H, W, 4) by name, in one form; of others, their bytes.

    Raises (from its methods):
        OSError: the disk is full, or takes nothing.
    """

    def __init__(self, stem: Path, form: str) -> None:
        self.stem, self.form = stem, form
        self.index = stem.with_name(f"{stem.name}.{form}.jsonl")
        self.reload()

    def reload(self) -> None:
        """Reads the index; another process may have written meanwhile."""
        rows = list(read_rows(self.index))
        self.generation: int = rows[-1]["generation"] if rows else 0
        self.file = self._file_of(self.generation)
        there = self.bytes()  # less than the index says if the file was cut short or removed
        found = (
            (name, Entry(size, time, offset, length, tuple(shape)))
            for row in rows
            if row["generation"] == self.generation
            for name, size, time, offset, length, shape in row["entries"]
        )
        self.entries = {n: entry for n, entry in found if entry.offset + entry.length <= there}
        self.end = max((entry.offset + entry.length for entry in self.entries.values()), default=0)
        self._map: np.ndarray | None = None
        self._pending: dict[str, Entry] = {}
        self._lock = threading.Lock()
        self._descriptor: int | None = None

    def __getstate__(self) -> dict[str, Any]:
        """For processes that are not forks: they map the file again."""
        closed: dict[str, Any] = {"_map": None, "_lock": None, "_pending": {}, "_descriptor": None}
        return self.__dict__ | closed

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    def _file_of(self, generation: int) -> Path:
        return self.stem.with_name(f"{self.stem.name}.{generation}.{self.form}")

    def bytes(self) -> int:
        return self.file.stat().st_size if self.file.exists() else 0

    def entry(self, name: str, status: os.stat_result) -> Entry | None:
        """The array that was made of a file that has not changed since."""
        entry = self.entries.get(name)
        current = (status.st_size, status.st_mtime_ns)
        return entry if entry and (entry.size, entry.time) == current else None

    def map(self) -> np.ndarray:
        """The file's bytes; once mapped, they stay, even if the file is removed."""
        if self._map is None:
            self._map = np.asarray(np.memmap(self.file, np.uint8, "r"))
        return self._map

    def read(self, entry: Entry) -> np.ndarray:
        """The array, not to be written to: a view of the file, or decoded."""
        stored = self.map()[entry.offset : entry.offset + entry.length]
        if self.form == RAW:
            return stored.reshape(entry.shape)
        return np.asarray(cv2.imdecode(stored, cv2.IMREAD_UNCHANGED))

    def append(self, name: str, status: os.stat_result | None, array: np.ndarray) -> None:
        """Writes an array; `status` is that of the file that it is made of, from before it was read."""
        content = memoryview(packed(array) if self.form == PACKED else array.tobytes())
        with self._lock:
            if self._descriptor is None:
                self.file.parent.mkdir(parents=True, exist_ok=True)
                self._descriptor = os.open(self.file, os.O_WRONLY | os.O_CREAT, 0o644)
            descriptor, offset, self.end = self._descriptor, self.end, self.end + len(content)
        written = 0
        while written < len(content):
            written += os.pwrite(descriptor, content[written:], offset + written)
        size, time = (status.st_size, status.st_mtime_ns) if status else (0, 0)
        with self._lock:
            self._pending[name] = Entry(size, time, offset, len(content), array.shape)

    def commit(self) -> None:
        """Makes what was appended count, also after a power failure."""
        with self._lock:
            pending, self._pending = self._pending, {}
            if not pending or self._descriptor is None:
                return
            os.fsync(self._descriptor)
            rows = [
                [name, entry.size, entry.time, entry.offset, entry.length, entry.shape]
                for name, entry in pending.items()
            ]
            append_rows(self.index, [{"generation": self.generation, "entries": rows}])
            self.entries |= pending
            self._map = None  # of a file that was shorter

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def clear(self) -> None:
        """Begins a new file. The last one stays until the next time: somebody may be about to read it."""
        self.close()
        append_rows(self.index, [{"generation": self.generation + 1, "entries": []}])
        for generation in range(self.generation):
            self._file_of(generation).unlink(missing_ok=True)
        self.reload()


def packed(array: np.ndarray) -> bytes:
    """An image, a label or any other such array, compressed without loss."""
    ending = ".webp" if array.ndim == 3 and array.shape[2] == 3 else ".png"
    done, content = cv2.imencode(ending, array, LOSSLESS[ending])
    assert done, array.shape
    return content.tobytes()
