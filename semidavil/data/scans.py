"""Looks at every file of a data set once, before any training: what is wrong is found here.

A scan's outcome is kept under the listing of the files (paths, sizes, times), so the next start only
lists them.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

import cv2
import numpy as np

from semidavil.bars import transient_bars
from semidavil.benchmarks import IGNORE_INDEX, LABEL_IDS
from semidavil.data.described import title_of
from semidavil.data.files import DataError, state_of
from semidavil.data.readers import Reader, Sample, UnknownValues
from semidavil.descriptions import UNLABELLED
from semidavil.machine import available_cpus
from semidavil.registry import has_unlabelled

_VERSION = 2  # of what a scan records, and of how files are read
# In real labels of these sets, most pixels have ids above this one: vegetation, sky and car are among them.
MOST_UNKNOWN = 100  # ids or colours that a scan names
LAST_TRAIN_ID, WITH_TRAIN_IDS = 18, ("cityscapes", "gta5")


# An image (H, W, 3), and its label's ids (H, W) where it has a label.
Seen = Callable[[Sample, np.ndarray, np.ndarray | None], None]


@dataclass
class Scan:
    """What one split of a data set holds. Sizes are "height x width", ids are raw label ids."""

    count: int
    sizes: dict[str, int] = field(default_factory=dict)  # image size -> images
    pixels: dict[int, int] = field(default_factory=dict)  # id -> pixels
    images: dict[int, int] = field(default_factory=dict)  # id -> images with it
    mismatched: list[str] = field(default_factory=list)  # images whose label has another size
    errors: list[str] = field(default_factory=list)
    unknown: dict[str, int] = field(default_factory=dict)  # ids or colours of no class -> pixels
    void: list[str] = field(default_factory=list)  # images whose labels have no class at all


_memory: dict[tuple[str, Path, str], tuple[list[Sample], Scan]] = {}


def scan(
    reader: Reader,
    split: str,
    cache_dir: Path,
    *,
    listed: list[Sample] | None = None,
    progress: bool = False,
    seen: Seen | None = None,
) -> tuple[list[Sample], Scan]:
    """All samples of a split and what is in them.

    Args:
        cache_dir: where outcomes are kept.
        listed: the split's samples, listed just now; None trusts what this process saw before.
        seen: called, by several threads, with what was decoded if a scan is not there yet.

    Raises:
        DataError: a missing folder, no image, or an image without a label.
    """
    key = (reader.name, reader.root, split)
    if listed is not None or key not in _memory:
        samples = reader.samples(split) if listed is None else listed
        _memory[key] = samples, scan_or_recall(reader, split, samples, cache_dir, progress, seen)
    return _memory[key]


def usable_samples(reader: Reader, split: str, cache_dir: Path) -> list[Sample]:
    """The samples to train on: without those of GTA5 whose label has another size."""
    samples, found = scan(reader, split, cache_dir)
    if not (reader.drop_size_mismatch and found.mismatched):
        return samples
    left_out = set(found.mismatched)
    return [sample for sample in samples if str(sample.image) not in left_out]


def describe(reader: Reader, cache_dir: Path) -> dict[str, Scan]:
    """The scan of every split that is there, for the check command."""
    scans = {}
    for split in reader.splits:
        if split in ("train", "val") or reader.has(split):
            listed = reader.samples(split)
            scans[split] = scan(reader, split, cache_dir, listed=listed, progress=True)[1]
    if has_unlabelled(reader.name):
        listed = reader.samples(UNLABELLED)
        scans[UNLABELLED] = scan(reader, UNLABELLED, cache_dir, listed=listed, progress=True)[1]
    return scans


def scan_or_recall(
    reader: Reader,
    split: str,
    samples: Sequence[Sample],
    cache_dir: Path,
    progress: bool,
    seen: Seen | None = None,
) -> Scan:
    file = cache_dir / "scans" / f"{reader.name}-{split}-{_listing(reader, samples)}.json"
    if file.exists():
        stored = json.loads(file.read_text())
        for name in ("pixels", "images"):
            stored[name] = {int(key): value for key, value in stored[name].items()}
        return Scan(**stored)
    found = _scan(reader, split, samples, progress, seen)
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps(asdict(found)))
    temporary.replace(file)
    return found


def _listing(reader: Reader, samples: Sequence[Sample]) -> str:
    about = f"{_VERSION} {reader.root} {sorted(LABEL_IDS[reader.name])}{reader.state}"
    return state_of((path for s in samples for path in s.files), about)


def _scan(
    reader: Reader,
    split: str,
    samples: Sequence[Sample],
    progress: bool,
    seen: Seen | None = None,
) -> Scan:
    known = np.zeros(65536, dtype=bool)
    known[list(LABEL_IDS[reader.name])] = True
    classes = [raw for raw, name in LABEL_IDS[reader.name].items() if name]

    def look(sample: Sample) -> tuple[str, bool, np.ndarray, str | UnknownValues]:
        """Image size, whether the label has it, pixels by id, and what is wrong."""
        try:
            image = reader.read_image(sample)
            label = reader.read_label(sample) if sample.label_file else None
        except UnknownValues as error:
            return "", True, np.zeros(0, np.int64), error
        except DataError as error:
            return "", True, np.zeros(0, np.int64), str(error)
        size = f"{image.shape[0]}x{image.shape[1]}"
        if label is None:
            if seen:
                seen(sample, image, None)
            return size, True, np.zeros(0, np.int64), ""
        counts = np.bincount(label.ravel())
        unknown = [int(i) for i in np.flatnonzero(counts) if not known[i]]
        problem = f"the label {sample.label} holds the unknown ids {unknown}" if unknown else ""
        if seen and not problem:
            seen(sample, image, label)
        return size, image.shape[:2] == label.shape, counts, problem

    sizes: Counter[str] = Counter()
    pixels: Counter[int] = Counter()
    images: Counter[int] = Counter()
    unknown: Counter[str] = Counter()
    found = Scan(count=len(samples))
    cv2.setNumThreads(1)  # there are as many images at a time
    with (
        transient_bars(progress) as bar,
        ThreadPoolExecutor(available_cpus()) as pool,
    ):
        task = bar.add_task(f"checking {title_of(reader.name)} {split}", total=len(samples))
        for sample, (size, fits, counts, problem) in zip(
            samples, pool.map(look, samples), strict=True
        ):
            bar.advance(task)
            if problem:
                found.errors.append(str(problem))
            if isinstance(problem, UnknownValues):
                unknown.update(problem.pixels)
            elif (
                sample.label_file
                and size
                and not any(counts[c] for c in classes if c < len(counts))
            ):
                found.void.append(str(sample.image))
            if size:
                sizes[size] += 1
            if not fits:
                found.mismatched.append(str(sample.image))
            for index in np.flatnonzero(counts):
                pixels[int(index)] += int(counts[index])
                images[int(index)] += 1
    found.sizes, found.pixels, found.images = dict(sizes), dict(pixels), dict(images)
    unknown.update({str(raw): count for raw, count in pixels.items() if not known[raw]})
    found.unknown = dict(unknown.most_common(MOST_UNKNOWN))
    if reader.name in WITH_TRAIN_IDS and hold_train_ids(found.pixels):
        found.errors.insert(
            0,
            f"no label id is above {LAST_TRAIN_ID}: these are train ids (labelTrainIds), which would teach "
            "the wrong classes. Use the files with label ids (labelIds)",
        )
    return found


def hold_train_ids(pixels: Mapping[int, int]) -> bool:
    """Whether labels in Cityscapes' ids, pixels by id, hold train ids (0 to 18, 255) instead.

    Ids 0 to 6 are void among label ids, and road to traffic light among train ids: half of a street.
    """
    known = {raw: count for raw, count in pixels.items() if raw != IGNORE_INDEX and count}
    below = sum(count for raw, count in known.items() if raw <= 6)
    return bool(known) and max(known) <= LAST_TRAIN_ID and below > sum(known.values()) / 4
