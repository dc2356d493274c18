"""What is wrong with a run's data, found before it starts."""

import warnings
from functools import partial

import numpy as np

from semidavil.benchmarks import BENCHMARKS, IGNORE_INDEX, UNKNOWN, Benchmark
from semidavil.config import Config
from semidavil.data.files import DataError
from semidavil.data.filling import Filling
from semidavil.data.layout import cache_dir, open_reader
from semidavil.data.scans import Scan, scan, scan_or_recall
from semidavil.data.splits import split_target
from semidavil.data.streams import train_samples
from semidavil.names import METHODS, ORACLE


def check_data(config: Config, progress: bool = False, filling: Filling | None = None) -> None:
    """Everything about a run's data that can be wrong, found before it starts.

    Args:
        filling: keeps what is decoded for the check, so that no file is decoded twice.

    Raises:
        DataError: a missing folder, an image without a label or with one of another size, an
            unreadable file, an unknown label id, train ids for label ids, labels without any class, a
            budget larger than the set.
    """
    parts = splits_of(BENCHMARKS[config.data.benchmark])
    # What a listing shows comes first: a full scan of real sets takes minutes.
    listings = [open_reader(config, dataset).samples(split) for dataset, split in parts]
    split_target(listings[0], config.data.budget, config.seed)
    if filling:
        filling.begin(dict(zip(parts, listings, strict=True)))
    for (dataset, split), listed in zip(parts, listings, strict=True):
        reader = open_reader(config, dataset)
        seen = partial(filling.keep, dataset) if filling else None
        _, found = scan(
            reader, split, cache_dir(config), listed=listed, progress=progress, seen=seen
        )
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
        if looks_at_labels(config, dataset, split):
            require_classes(BENCHMARKS[config.data.benchmark], dataset, split, found)


def require_classes(benchmark: Benchmark, dataset: str, split: str, found: Scan) -> None:
    """Raises DataError for labels of which no pixel is of a class."""
    lookup = benchmark.lookup(dataset)
    if all(lookup[raw] in (IGNORE_INDEX, UNKNOWN) for raw in found.pixels):
        raise DataError(
            f"{dataset}, {split}: no label holds a class of {benchmark.name}: all is void, as in a test "
            "split whose labels are not published. Use the split's real labels"
        )


def looks_at_labels(config: Config, dataset: str, split: str) -> bool:
    """Whether a run learns from, or is scored by, the labels of a data set's split."""
    benchmark, streams = BENCHMARKS[config.data.benchmark], METHODS[config.training.method].streams
    if split == "val" or config.model.captions == ORACLE:
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


def splits_of(benchmark: Benchmark) -> list[tuple[str, str]]:
    """Data set and split of all that a run looks at."""
    parts = [(benchmark.target, "train"), (benchmark.target, "val")]
    return [*parts, (benchmark.source, "train")] if benchmark.source else parts
