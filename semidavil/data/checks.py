"""What is wrong with a run's data, found before it starts; and what it is trained on, as a fingerprint."""

import hashlib
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from semidavil.benchmarks import BENCHMARKS, IGNORE_INDEX, UNKNOWN, Benchmark
from semidavil.config import Config
from semidavil.data.files import DataError
from semidavil.data.layout import cache_dir, open_reader
from semidavil.data.scans import Scan, scan, scan_or_recall
from semidavil.data.splits import split_target
from semidavil.data.streams import train_samples
from semidavil.names import METHODS


def check_data(config: Config, progress: bool = False) -> None:
    """Everything about a run's data that can be wrong, found before it starts.

    Raises:
        DataError: a missing folder, an image without a label or with one of another size, an
            unreadable file, an unknown label id, train ids for label ids, labels without any class, a
            budget larger than the set.
    """
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
        if _is_looked_at(config, dataset, split):
            require_classes(BENCHMARKS[config.data.benchmark], dataset, split, found)


def require_classes(benchmark: Benchmark, dataset: str, split: str, found: Scan) -> None:
    """Raises DataError for labels of which no pixel is of a class."""
    lookup = benchmark.lookup(dataset)
    if all(lookup[raw] in (IGNORE_INDEX, UNKNOWN) for raw in found.pixels):
        raise DataError(
            f"{dataset}, {split}: no label holds a class of {benchmark.name}: all is void, as in a test "
            "split whose labels are not published. Use the split's real labels"
        )


def _is_looked_at(config: Config, dataset: str, split: str) -> bool:
    """Whether a run learns from, or is scored by, the labels of a data set's split."""
    benchmark, streams = BENCHMARKS[config.data.benchmark], METHODS[config.training.method].streams
    if split == "val":
        return True
    if dataset == benchmark.source:
        return "source" in streams
    return "labelled" in streams and config.data.budget > 0


def class_pixels(config: Config) -> list[int]:
    """Pixels of each class in the labels that a run learns from: its source and labelled target.

    From the scans, so that every set of labels is read once. Labels of unlabelled images are not
    looked at.
    """
    benchmark, cache = BENCHMARKS[config.data.benchmark], cache_dir(config)
    streams, found = METHODS[config.training.method].streams, []
    if benchmark.source and "source" in streams:
        reader = open_reader(config, benchmark.source)
        found.append((benchmark.source, scan(reader, "train", cache)[1]))
    if config.data.budget and "labelled" in streams:
        reader = open_reader(config, benchmark.target)
        labelled = train_samples(config)["labelled"]
        part = f"labelled-{len(labelled)}"
        scanned = scan_or_recall(reader, part, labelled, cache, progress=False)
        found.append((benchmark.target, scanned))
    totals = np.zeros(256, np.int64)
    for dataset, scanned in found:
        lookup = benchmark.lookup(dataset)
        for raw, pixels in scanned.pixels.items():
            totals[lookup[raw]] += pixels
    return totals[: len(benchmark.classes)].tolist()


def fingerprint(config: Config) -> str:
    """16 hex digits of the images and labels that a run trains on and is scored on.

    Of the files' names and sizes and of the labels' pixel counts: the same wherever the folder lies
    and whenever it was copied.
    """
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
