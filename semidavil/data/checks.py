"""Looks at every file of a data set once, before any training: what is wrong is found here.

A scan's outcome is kept under the listing of the files (paths, sizes, times), so the next start only
lists them.
"""

import hashlib
import json
import os
import warnings
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from rich.progress import Progress

from semidavil.config import Config
from semidavil.data.benchmarks import BENCHMARKS, LABEL_IDS
from semidavil.data.readers import READERS, DataError, Reader, Sample

_VERSION = 1  # of what a scan records


@dataclass
class Scan:
    """What one split of a data set holds. Sizes are "height x width", ids are raw label ids."""

    count: int
    sizes: dict[str, int] = field(default_factory=dict)  # image size -> images
    pixels: dict[int, int] = field(default_factory=dict)  # id -> pixels
    images: dict[int, int] = field(default_factory=dict)  # id -> images with it
    mismatched: list[str] = field(default_factory=list)  # images whose label has another size
    errors: list[str] = field(default_factory=list)


_memory: dict[tuple[str, Path, str], tuple[list[Sample], Scan]] = {}


def scan(
    reader: Reader,
    split: str,
    cache_dir: Path,
    *,
    listed: list[Sample] | None = None,
    progress: bool = False,
) -> tuple[list[Sample], Scan]:
    """All samples of a split and what is in them.

    Args:
        cache_dir: where outcomes are kept.
        listed: the split's samples, listed just now; None trusts what this process saw before.

    Raises:
        DataError: a missing folder, no image, or an image without a label.
    """
    key = (reader.name, reader.root, split)
    if listed is not None or key not in _memory:
        samples = reader.samples(split) if listed is None else listed
        _memory[key] = samples, _scan_or_recall(reader, split, samples, cache_dir, progress)
    return _memory[key]


def usable_samples(reader: Reader, split: str, cache_dir: Path) -> list[Sample]:
    """The samples to train on: without those of GTA5 whose label has another size."""
    samples, found = scan(reader, split, cache_dir)
    if not (reader.drop_size_mismatch and found.mismatched):
        return samples
    left_out = set(found.mismatched)
    return [sample for sample in samples if str(sample.image) not in left_out]


def class_pixels(config: Config) -> list[int]:
    """Pixels of each class in the labels that a run learns from: its source and labelled target.

    From the scans, so that every set of labels is read once. Labels of unlabelled images are not
    looked at.
    """
    from semidavil.data.loading import cache_dir, open_reader, train_samples
    from semidavil.methods import METHODS

    benchmark, cache = BENCHMARKS[config.data.benchmark], cache_dir(config)
    streams, found = METHODS[config.training.method].streams, []
    if benchmark.source and "source" in streams:
        reader = open_reader(config, benchmark.source)
        found.append((benchmark.source, scan(reader, "train", cache)[1]))
    if config.data.budget and "labelled" in streams:
        reader = open_reader(config, benchmark.target)
        labelled = train_samples(config)["labelled"]
        part = f"labelled-{len(labelled)}"
        scanned = _scan_or_recall(reader, part, labelled, cache, progress=False)
        found.append((benchmark.target, scanned))
    totals = np.zeros(256, np.int64)
    for dataset, scanned in found:
        lookup = benchmark.lookup(dataset)
        for raw, pixels in scanned.pixels.items():
            totals[lookup[raw]] += pixels
    return totals[: len(benchmark.classes)].tolist()


def check_data(config: Config, progress: bool = False) -> None:
    """Everything about a run's data that can be wrong, found before it starts.

    Raises:
        DataError: a missing folder, an image without a label or with one of another size, an
            unreadable file, an unknown label id, a budget larger than the set.
    """
    from semidavil.data.loading import cache_dir, open_reader
    from semidavil.data.splits import split_target

    parts = _parts(config)
    # What a listing shows comes first: a full scan of real sets takes minutes.
    listings = [open_reader(config, dataset).samples(split) for dataset, split in parts]
    split_target(listings[0], config.data.budget, config.seed)
    for (dataset, split), listed in zip(parts, listings, strict=True):
        reader = open_reader(config, dataset)
        _, found = scan(reader, split, cache_dir(config), listed=listed, progress=progress)
        problems = list(found.errors)
        if reader.drop_size_mismatch and found.mismatched:
            warnings.warn(
                f"{dataset}: {len(found.mismatched)} of {found.count} images are left out, since "
                f"their labels have another size (the first is {found.mismatched[0]})",
                stacklevel=2,
            )
        else:
            problems += [f"the label of {path} has another size" for path in found.mismatched]
        if problems:
            more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
            raise DataError(
                f"{dataset}, {split}: {'; '.join(problems[:3])}{more}. "
                "Restore the files from the data set's archive"
            )


def fingerprint(config: Config) -> str:
    """16 hex digits of the images and labels that a run trains on and is scored on.

    Of the files' names and sizes and of the labels' pixel counts: the same wherever the folder lies
    and whenever it was copied.
    """
    from semidavil.data.loading import cache_dir, open_reader

    digest = hashlib.blake2b(digest_size=8)
    for dataset, split in _parts(config):
        reader = open_reader(config, dataset)
        samples, found = scan(reader, split, cache_dir(config))
        digest.update(f"{dataset} {split} {sorted(found.pixels.items())}\0".encode())
        paths = [path for sample in samples for path in (sample.image, sample.label)]
        digest.update(names_and_sizes(reader.root, paths))
    return digest.hexdigest()


def names_and_sizes(root: Path, paths: Sequence[Path]) -> bytes:
    """What `fingerprint` takes of files below `root`."""
    # os.path: pathlib's relative paths cost a second per ten thousand files.
    start = len(os.path.join(root, ""))
    return "".join(f"{os.fspath(p)[start:]}\0{os.stat(p).st_size}\0" for p in paths).encode()


def _parts(config: Config) -> list[tuple[str, str]]:
    """Data set and split of all that a run looks at."""
    benchmark = BENCHMARKS[config.data.benchmark]
    parts = [(benchmark.target, "train"), (benchmark.target, "val")]
    return [*parts, (benchmark.source, "train")] if benchmark.source else parts


def _scan_or_recall(
    reader: Reader, split: str, samples: Sequence[Sample], cache_dir: Path, progress: bool
) -> Scan:
    file = cache_dir / "scans" / f"{reader.name}-{split}-{_listing(reader, samples)}.json"
    if file.exists():
        stored = json.loads(file.read_text())
        for name in ("pixels", "images"):
            stored[name] = {int(key): value for key, value in stored[name].items()}
        return Scan(**stored)
    found = _scan(reader, split, samples, progress)
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps(asdict(found)))
    temporary.replace(file)
    return found


def _listing(reader: Reader, samples: Sequence[Sample]) -> str:
    about = f"{_VERSION} {reader.root} {sorted(LABEL_IDS[reader.name])}"
    digest = hashlib.blake2b(about.encode(), digest_size=8)
    for sample in samples:
        for path in (sample.image, sample.label):
            status = path.stat()
            digest.update(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
    return digest.hexdigest()


def _scan(reader: Reader, split: str, samples: Sequence[Sample], progress: bool) -> Scan:
    known = np.zeros(65536, dtype=bool)
    known[list(LABEL_IDS[reader.name])] = True

    def look(sample: Sample) -> tuple[str, bool, np.ndarray, str]:
        """Image size, whether the label has it, pixels by id, and what is wrong."""
        try:
            image, label = reader.read_image(sample), reader.read_label(sample)
        except DataError as error:
            return "", True, np.zeros(0, np.int64), str(error)
        counts = np.bincount(label.ravel())
        unknown = [int(i) for i in np.flatnonzero(counts) if not known[i]]
        problem = f"the label {sample.label} holds the unknown ids {unknown}" if unknown else ""
        size = f"{image.shape[0]}x{image.shape[1]}"
        return size, image.shape[:2] == label.shape, counts, problem

    sizes: Counter[str] = Counter()
    pixels: Counter[int] = Counter()
    images: Counter[int] = Counter()
    found = Scan(count=len(samples))
    with (
        Progress(disable=not progress, transient=True) as bar,
        ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool,
    ):
        task = bar.add_task(f"checking {reader.name} {split}", total=len(samples))
        for sample, (size, fits, counts, problem) in zip(
            samples, pool.map(look, samples), strict=True
        ):
            bar.advance(task)
            if problem:
                found.errors.append(problem)
            if size:
                sizes[size] += 1
            if not fits:
                found.mismatched.append(str(sample.image))
            for index in np.flatnonzero(counts):
                pixels[int(index)] += int(counts[index])
                images[int(index)] += 1
    found.sizes, found.pixels, found.images = dict(sizes), dict(pixels), dict(images)
    return found


def describe(dataset: str, root: Path, cache_dir: Path) -> dict[str, Scan]:
    """The scan of every split that is there, for the check command."""
    reader = READERS[dataset](root)
    scans = {}
    for split in reader.splits:
        if split in ("train", "val") or reader.folders(split)[0].is_dir():
            listed = reader.samples(split)
            scans[split] = scan(reader, split, cache_dir, listed=listed, progress=True)[1]
    return scans
