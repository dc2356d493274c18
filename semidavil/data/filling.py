"""Fills the store of decoded images and labels, once for all runs of a benchmark.

    with Filling(config, progress=True) as filling:
        filling.begin({("cityscapes", "train"): samples, ...})
        filling.keep("cityscapes", sample, image, label)     # what a check has just decoded
        filling.finish()                                     # decodes the rest, and says what is kept

What is done stays done, whenever the process ends. Of two processes, one fills and the other waits for it, or
takes over. A disk that is full or read-only ends the filling and nothing else: runs decode what is missing.
"""

import os
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import cv2
import numpy as np
from filelock import FileLock, Timeout
from rich.console import Console

from semidavil.bars import transient_bars
from semidavil.benchmarks import BENCHMARKS, LABEL_IDS
from semidavil.config import Config
from semidavil.data.arrays import PACKED, RAW, Arrays, packed
from semidavil.data.depth import Disparities, disparity_file
from semidavil.data.described import title_of
from semidavil.data.files import DataError
from semidavil.data.layout import cache_dir, open_reader
from semidavil.data.readers import Reader, Sample
from semidavil.data.store import (
    DISPARITY,
    IMAGE,
    LABEL,
    OWN_LABEL,
    Store,
    array_of,
    open_store,
)
from semidavil.full_disk import is_full
from semidavil.machine import available_cpus

# What `auto` takes of the free disk: never more than SHARE of it, and MARGIN stays free.
SHARE, MARGIN = 0.75, 4 * 2**30
BATCH = 256  # images that are decoded again after the process was killed

Listings = Mapping[tuple[str, str], Sequence[Sample]]  # by data set and split


@dataclass
class _Part:
    """What is to be kept of one data set."""

    reader: Reader
    store: Store
    depth: str = ""  # of disparities: `data.depth`
    disparities: Disparities | None = None  # then they are all that is kept
    samples: list[Sample] = field(default_factory=list)
    scored: set[Path] = field(default_factory=set)  # labels that are scored at their own size
    form: str = ""
    missing: dict[Path, list[str]] = field(default_factory=dict)  # kinds by the sample's image
    status: dict[Path, os.stat_result] = field(default_factory=dict)  # from before they are read

    def kinds_of(self, sample: Sample) -> Iterator[tuple[str, Path]]:
        """What is kept of a sample, with the file that it is made of."""
        if self.disparities:
            yield DISPARITY, disparity_file(self.depth, sample)
            return
        yield IMAGE, sample.image
        if (label := sample.label_file) is not None:
            yield (OWN_LABEL if label in self.scored else LABEL), label

    def decode(self, sample: Sample) -> dict[str, np.ndarray]:
        """What `array_of` takes, by kind; nothing of a sample that is broken: who looks at it hears of it."""
        try:
            if self.disparities:
                return {DISPARITY: self.disparities(sample)}
            image = self.reader.read_image(sample)
            if sample.label_file is None:
                return {IMAGE: image}
            label = self.reader.read_label(sample)
        except DataError:
            return {}
        known = set(np.unique(label).tolist()) <= LABEL_IDS[self.reader.name].keys()
        return {IMAGE: image, LABEL: label, OWN_LABEL: label} if known else {}


class Filling:
    """A context manager: on its way out, what was written counts and others may write.

    Attributes:
        said: for people, what was kept where, or why not; empty where all was there.
    """

    def __init__(self, config: Config, progress: bool = False) -> None:
        self.config, self.progress, self.said = config, progress, ""
        self._parts: dict[str, _Part] = {}
        self._locks = ExitStack()
        self._uncommitted, self._count = 0, threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        try:
            self._commit()
        finally:
            for part in self._parts.values():
                for arrays in part.store.files.values():
                    arrays.close()
            self._locks.close()

    def begin(self, listings: Listings) -> None:
        """Chooses a form for what is missing; waits while another process fills the same store."""
        config = self.config
        if config.data.store == "off":
            return
        for (dataset, split), samples in listings.items():
            if dataset not in self._parts:
                store = open_store(config, dataset)
                self._parts[dataset] = _Part(open_reader(config, dataset), store)
            part = self._parts[dataset]
            part.samples += samples
            if split == "val":
                part.scored |= {sample.label for sample in samples}
        self._start()

    def begin_disparities(self, samples: Sequence[Sample], disparities: Disparities) -> None:
        """The same for the disparities of target images."""
        config, target = self.config, BENCHMARKS[self.config.data.benchmark].target
        if config.data.store == "off":
            return
        reader, store = open_reader(config, target), open_store(config, target)
        self._parts[target] = _Part(reader, store, config.data.depth, disparities, list(samples))
        self._start()

    def _start(self) -> None:
        try:
            for _, part in sorted(self._parts.items()):
                if self._look(part):
                    self._lock(part)
                    if part.store.reload():  # another process was faster
                        self._look(part)
            self._choose_forms()
        except (OSError, NotImplementedError) as error:  # the latter of file systems without locks
            self._give_up(error)

    def keep(
        self, dataset: str, sample: Sample, image: np.ndarray, label: np.ndarray | None
    ) -> None:
        """Keeps a decoded image (H, W, 3) and the ids of its label (H, W), if any; threads may call it."""
        if part := self._parts.get(dataset):
            of_label = {} if label is None else {LABEL: label, OWN_LABEL: label}
            self._keep(part, sample, {IMAGE: image, **of_label})

    def _keep(self, part: _Part, sample: Sample, decoded: Mapping[str, np.ndarray]) -> None:
        form = part.form  # another thread may give up meanwhile
        kinds = part.missing.pop(sample.image, []) if form and decoded else []
        if not kinds:
            return
        try:
            for kind, path in part.kinds_of(sample):
                if kind in kinds:
                    array = array_of(kind, decoded[kind], part.store.size)
                    arrays = part.store.files[kind, form]
                    arrays.append(part.store.name_of(path), part.status[path], array)
            with self._count:
                self._uncommitted += 1
                due = self._uncommitted % BATCH == 0
            if due:
                self._commit()
        except OSError as error:
            self._give_up(error)

    def finish(self) -> None:
        """Decodes what is missing still, on all CPUs that this process may use."""
        cv2.setNumThreads(1)  # there are as many images at a time
        for dataset, part in self._parts.items():
            todo = [sample for sample in part.samples if sample.image in part.missing]
            if not (part.form and todo):
                continue
            with (
                transient_bars(self.progress) as bar,
                ThreadPoolExecutor(available_cpus()) as pool,
            ):
                task = bar.add_task(f"decoding {title_of(dataset)}", total=len(todo))
                for _ in pool.map(lambda sample, of=part: self._decode(of, sample), todo):
                    bar.advance(task)
        self._commit()
        if self.progress and self.said:
            Console().print(self.said, soft_wrap=True, markup=False, highlight=False)

    def _decode(self, part: _Part, sample: Sample) -> None:
        if part.form:  # not given up meanwhile
            self._keep(part, sample, part.decode(sample))

    def _look(self, part: _Part) -> bool:
        """Finds out what of a part is missing."""
        part.missing.clear()
        for sample in part.samples:
            for kind, path in part.kinds_of(sample):
                status = part.status[path] = os.stat(path)
                if not part.store.holds(kind, path, status):
                    part.missing.setdefault(sample.image, []).append(kind)
        return bool(part.missing)

    def _lock(self, part: _Part) -> None:
        folder = part.store.folder
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / "lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if self.progress:
                Console().print(f"waiting for the process that fills {folder}")
            lock.acquire()
        self._locks.callback(lock.release)

    def _choose_forms(self) -> None:
        """Raw where there is room, else packed, else none; the target first."""
        store = self.config.data.store
        parts = [part for part in self._parts.values() if part.missing]
        if not parts:
            return
        folder = parts[0].store.folder.parent
        free = shutil.disk_usage(folder).free
        room = free - min(MARGIN, free // 4)  # a small disk holds small data, too
        if store == "auto":
            room = min(room, int(free * SHARE))
        lines = []
        for part in parts:
            self._drop_stale(part)
            raw, name = self._raw_bytes(part), title_of(part.reader.name)
            sizes = f"{name}: {raw / 1e9:.2f} GB raw"
            needed = {RAW: raw} if store != PACKED else {}
            if store == PACKED or (store == "auto" and raw > room):
                needed[PACKED] = int(raw * self._packed_share(part))
                sizes += f" or about {needed[PACKED] / 1e9:.2f} packed"
            part.form = next((form for form, size in needed.items() if size <= room), "")
            if part.form:
                room -= needed[part.form]
                lines.append(f"{sizes}, kept {part.form}")
            else:
                lines.append(f"{sizes}, which does not fit: decoded at every look")
        what = "disparities" if parts[0].disparities else "images and labels"
        self.said = f"decoded {what} in {folder} ({free / 1e9:.1f} GB free): {'; '.join(lines)}"

    def _drop_stale(self, part: _Part) -> None:
        """Begins a file anew of which more than half was made of files that have changed since."""
        files: dict[str, list[Path]] = {}
        for sample in part.samples:
            for kind, path in part.kinds_of(sample):
                files.setdefault(kind, []).append(path)
        for (kind, _), arrays in part.store.files.items():
            known = {part.store.name_of(path): path for path in files.get(kind, ())}
            entries = (arrays.entry(name, part.status[path]) for name, path in known.items())
            used = sum(entry.length for entry in entries if entry)
            # Another benchmark's splits may be in it too.
            if known and arrays.entries.keys() <= known.keys() and used < arrays.bytes() / 2:
                arrays.clear()

    def _raw_bytes(self, part: _Part) -> int:
        """Of what is missing."""
        height, width = part.store.size
        own = self._own_label_bytes(part)
        pixels = height * width
        of_kind = {IMAGE: 3 * pixels, LABEL: pixels, OWN_LABEL: own, DISPARITY: 4 * pixels}
        return sum(of_kind[kind] for kinds in part.missing.values() for kind in kinds)

    def _own_label_bytes(self, part: _Part) -> int:
        """Of one label; those of a data set are of about one size."""
        for sample in part.samples:
            if OWN_LABEL in part.missing.get(sample.image, ()):
                return part.reader.read_label(sample).size
        return 0

    def _packed_share(self, part: _Part) -> float:
        """How much of their bytes a few images keep when they are compressed."""
        few = [sample for sample in part.samples if sample.image in part.missing]
        raw = small = 1
        for sample in few[:: max(1, len(few) // 4)]:
            for kind, decoded in part.decode(sample).items():
                if kind in part.missing[sample.image]:
                    array = array_of(kind, decoded, part.store.size)
                    raw, small = raw + array.nbytes, small + len(packed(array))
        return small / raw

    def _commit(self) -> None:
        for part in self._parts.values():
            for arrays in part.store.files.values():
                self._commit_one(arrays)

    def _commit_one(self, arrays: Arrays) -> None:
        try:
            arrays.commit()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: BaseException) -> None:
        """Nothing more is written; what was, counts."""
        for part in self._parts.values():
            part.form = ""
        why = "its disk is full" if is_full(error) else str(error)
        self.said = (
            f"the store of decoded images in {cache_dir(self.config) / 'store'} takes no more ({why}): what "
            "it lacks is decoded at every look, more slowly. Free space, or name another folder with "
            "--set runtime.cache_dir=DIR"
        )
