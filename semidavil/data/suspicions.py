"""What is odd about a data set without being wrong: a person should look before a week of training."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from semidavil.benchmarks import IGNORE_INDEX, Benchmark
from semidavil.data.checks import needs_labels
from semidavil.data.described import title_of
from semidavil.data.files import hash_files
from semidavil.data.images import orientation_of
from semidavil.data.readers import Reader, Sample
from semidavil.data.scans import Scan
from semidavil.registry import is_without_labels

RARE = 0.0005  # of a split's pixels, below which a class is hardly learnt
MOSTLY_IGNORED = 0.5
LOOKED_AT = 50  # pictures whose orientation is looked at
FEW = 10  # validation images, below which a score says little


def class_shares(benchmark: Benchmark, dataset: str, found: Scan) -> np.ndarray:
    """Share (C + 1,) of a split's pixels by class; the last is what is ignored."""
    lookup, counts = benchmark.lookup(dataset), np.zeros(len(benchmark.classes) + 1)
    for raw, pixels in found.pixels.items():
        index = int(lookup[raw])
        counts[index if index < len(benchmark.classes) else -1] += pixels
    return counts / max(1.0, counts.sum())


def class_images(benchmark: Benchmark, dataset: str, found: Scan) -> list[int]:
    """Of each class, the images that hold it; where several ids are one class, at least so many."""
    lookup, counts = benchmark.lookup(dataset), [0] * len(benchmark.classes)
    for raw, images in found.images.items():
        if (index := int(lookup[raw])) != IGNORE_INDEX and index < len(counts):
            counts[index] = max(counts[index], images)
    return counts


def suspicions(
    benchmark: Benchmark, reader: Reader, scans: Mapping[str, Scan], memo: Path
) -> list[str]:
    """A sentence for each thing to look at.

    Args:
        scans: of the data set's splits.
        memo: remembers the hashes of files.
    """
    said, title, is_target = [], title_of(reader.name), reader.name == benchmark.target
    for split, found in scans.items():
        where = f"{title}, {split}"
        said += _shapes(where, found)
        if is_without_labels(reader.name, split):
            continue
        shares = class_shares(benchmark, reader.name, found)
        if not shares[:-1].any():
            # Where a benchmark needs these labels, that is wrong, which is said elsewhere.
            if not needs_labels(benchmark, reader.name, split):
                said.append(f"{where}: no label holds a class: no run may learn from them")
            continue
        of_classes = list(zip(benchmark.classes, shares, strict=False))
        if unseen := [name for name, share in of_classes if share == 0]:
            said.append(f"{where}: no label holds {', '.join(unseen)}")
        if rare := [f"{n} ({100 * s:.3f}%)" for n, s in of_classes if 0 < s < RARE]:
            said.append(f"{where}: hardly any pixel is {', '.join(rare)}")
        if shares[-1] > MOSTLY_IGNORED:
            said.append(f"{where}: {100 * shares[-1]:.0f}% of all pixels are ignored")
        if found.void:
            said.append(
                f"{where}: {len(found.void)} labels have no class at all; the first is that of "
                f"{found.void[0]}"
            )
        if is_target and split == "val" and found.count < FEW:
            said.append(f"{where}: a score over {found.count} images says little")
    if is_target and len(benchmark.classes) == 1:
        said.append(
            f"{title}: whatever is said is right where there is one class alone: describe others"
        )
    listed = {split: reader.samples(split) for split in scans}
    said += _turned(title, [sample.image for samples in listed.values() for sample in samples])
    said += _twins(title, listed, memo)
    return said + [f"{title}: {text}" for text in reader.left_over()]


def _shapes(where: str, found: Scan) -> list[str]:
    shapes = sorted({_shape(size) for size in found.sizes})
    if len(shapes) < 2:
        return []
    return [
        f"{where}: images of {len(shapes)} shapes are all resized to one: {', '.join(shapes[:4])}"
    ]


def _turned(title: str, images: Sequence[Path]) -> list[str]:
    """Pictures that programs show turned or mirrored: their labels may have been drawn on what is shown."""
    some = images[:: max(1, len(images) // LOOKED_AT)]
    turned = [path for path in some if orientation_of(path) != 1]
    if not turned:
        return []
    return [
        f"{title}: {len(turned)} of {len(some)} pictures that were looked at are shown turned or mirrored by "
        f"other programs (EXIF), as {turned[0]}: labels have to lie on what is stored"
    ]


def _twins(title: str, listed: Mapping[str, Sequence[Sample]], memo: Path) -> list[str]:
    """Files that are one picture: within a split, and in two of them."""
    places: dict[str, list[tuple[str, Path]]] = defaultdict(list)
    paths = [sample.image for samples in listed.values() for sample in samples]
    hashes = hash_files(paths, memo, progress=True)
    for split, samples in listed.items():
        for sample in samples:
            places[hashes[sample.image]].append((split, sample.image))
    twins = [found for found in places.values() if len(found) > 1]
    across = [found for found in twins if len({split for split, _ in found}) > 1]
    said = []
    if across:
        (first, one), (second, other) = across[0][0], across[0][-1]
        said.append(
            f"{title}: {_pictures(len(across))} in two splits, so that scores are of what was trained on: "
            f"{one} ({first}) is {other} ({second})"
        )
    if inside := [found for found in twins if found not in across]:
        said.append(
            f"{title}: {_pictures(len(inside))} there twice: {inside[0][0][1]} is {inside[0][1][1]}"
        )
    return said


def _pictures(count: int) -> str:
    return "one picture is" if count == 1 else f"{count} pictures are"


def _shape(size: str) -> str:
    """3:2 of "480x720": height and width that differ by rounding have one shape."""
    height, width = map(int, size.split("x"))
    return f"{width / height:.1f}:1"
