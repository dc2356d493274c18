"""Which files of a folder are pictures, and which are their labels, by their names and a look at some."""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from semidavil.data.files import DataError
from semidavil.data.folders import composed, natural_order
from semidavil.data.images import read_unchanged
from semidavil.data.patterns import IMAGE_ENDINGS
from semidavil.data.readers import Sample

# What folders of splits are called, and what the split is called here.
SPLIT_WORDS = {
    "train": "train", "training": "train", "trainset": "train", "val": "val", "valid": "val",
    "validation": "val", "test": "test", "testing": "test",
}  # fmt: skip
# At the beginning of a folder's name, or behind a dash: `train`, `trainannot`, `labels_val`.
_SPLIT = re.compile(
    r"(?<![A-Za-z0-9])(training|trainset|train|validation|valid|val|testing|test)", re.IGNORECASE
)
# What is at the end of names of labels beside pictures in one folder.
MARKS = ("_mask", "_label", "_labels", "_gt", "_seg", "_L", "-mask", "_segmentation", "_labelIds")
OTHERS = (".tif", ".tiff", ".webp", ".bmp", ".heic", ".gif", ".jp2", ".exr", ".npy")
LOOKED_AT = 6  # files of a folder that tell pictures from labels
MOST_COLOURS = 250  # of a label; a picture has thousands


@dataclass(frozen=True)
class Pairing:
    """Patterns of pictures and labels.

    Attributes:
        pairs: how many pictures have a label by them.
        splits: what stands for `{split}`, by split; empty where it is not in the patterns.
    """

    images: str
    labels: str
    pairs: int
    splits: dict[str, str]


@dataclass(frozen=True)
class _Shape:
    """A path with `{split}` in place of a word that tells its split, and that word."""

    path: str
    word: str


def find_pairing(root: Path, paths: Iterable[str]) -> Pairing:
    """The pairing of most files below a folder.

    Args:
        paths: of its files, below `root`.

    Raises:
        DataError: there is no picture, or none has a label; the message says what was looked for.
    """
    paths = list(paths)
    pictures = sorted(path for path in paths if path.lower().endswith(IMAGE_ENDINGS))
    if not pictures:
        raise DataError(
            f"{root} has no picture ({', '.join(IMAGE_ENDINGS)}): nothing to describe{_others(paths)}"
        )
    splits: dict[str, str] = {}
    shapes: dict[str, _Shape] = {}  # by path
    for path in pictures:
        folder, _, name = path.rpartition("/")
        match = _SPLIT.search(folder)
        if match is None:
            shapes[path] = _Shape(path, "")
            continue
        word = match[1]
        splits.setdefault(SPLIT_WORDS[word.lower()], word)
        shaped = f"{folder[: match.start(1)]}{{split}}{folder[match.end(1) :]}"
        shapes[path] = _Shape(f"{shaped}/{name}", word)
    # A folder "train" alone is a name like others.
    if "train" not in splits or "val" not in splits:
        splits, shapes = {}, {path: _Shape(path, "") for path in pictures}
    found = _in_two_folders(root, shapes) or _in_one_folder(shapes)
    if found is None:
        if same := _in_two_folders(root, shapes, whatever=True):
            raise DataError(
                f"{root}: {same[0]} and {same[1]} have pictures of the same names, of which "
                "neither are labels: "
                f"those are PNGs of at most {MOST_COLOURS} ids or colours in flat areas. Were "
                "they saved as JPEG, "
                "or smoothed?"
            )
        folders = Counter(path.rpartition("/")[0] or "." for path in pictures)
        shown = ", ".join(f"{name} ({count})" for name, count in folders.most_common(5))
        raise DataError(
            f"{root}: no picture has a label that could be told by its name. There are pictures "
            f"in {shown}. Labels "
            "are PNGs with the names of their pictures in a folder of their own, or with _mask at the end of "
            f"their names{_others(paths)}"
        )
    images, labels, pairs = found
    used = {name: word for name, word in splits.items() if "{split}" in images}
    return Pairing(images, labels, pairs, used)


def _others(paths: Iterable[str]) -> str:
    """What is said of pictures of kinds that are not looked at; empty if there are none."""
    kinds = Counter(ending for p in paths if (ending := os.path.splitext(p)[1].lower()) in OTHERS)
    if not kinds:
        return ""
    shown = ", ".join(f"{count} {ending}" for ending, count in kinds.most_common())
    return f". There are files of kinds that are not looked at ({shown}): save them as PNG"


def find_unlabelled(
    root: Path,
    files: Iterable[str],
    samples: Sequence[Sample],
    without: Sequence[str],
    said: list[str],
) -> list[str]:
    """Folders of pictures that have no labels, beside those that have.

    Args:
        samples: the pictures that have labels.
        without: those beside them that have none, below `root`.
        said: gets what was found and left alone, in sentences.
    """
    start = len(os.path.join(root, ""))
    known = {os.fspath(path)[start:] for one in samples for path in one.files} | set(without)
    taken = {folder for path in known for folder in _folders_above(path)}
    # By the highest folder that holds nothing known.
    groups: dict[str, list[str]] = defaultdict(list)
    for path in sorted(files, key=natural_order):
        free = [folder for folder in _folders_above(path) if folder not in taken]
        if path.lower().endswith(IMAGE_ENDINGS) and free:
            groups[free[0]].append(path)
    like = read_unchanged(samples[0].image)
    images = [os.fspath(one.image) for one in samples] + list(without)
    stems = {_stem(path) for path in images}
    found = []
    for folder, paths in groups.items():
        scored = _SPLIT.search(os.path.commonpath([path.rpartition("/")[0] for path in paths]))
        if _are_labels(root, paths) is not False or not _are_like(root, paths, like):
            continue  # labels of another kind, depth, ...
        if {_stem(path) for path in paths} == stems:
            said.append(f"{folder}: pictures of the same names, which are left alone")
        elif scored and SPLIT_WORDS[scored[1].lower()] != "train":
            shown = paths[0].rpartition("/")[0]
            said.append(f"{shown}: {len(paths)} pictures without labels, which are left alone")
        else:
            found.append(folder)
    return found


def _stem(path: str) -> str:
    return os.path.splitext(path)[0].rpartition("/")[2]


def _folders_above(path: str) -> list[str]:
    """The folders that a path lies in, the highest first."""
    parts = path.split("/")[:-1]
    return ["/".join(parts[:depth]) for depth in range(1, len(parts) + 1)]


def _are_like(root: Path, paths: Sequence[str], like: np.ndarray) -> bool:
    """Whether a picture has channels and depth of those that have labels."""
    try:
        one = read_unchanged(root / paths[0])
    except DataError:
        return False
    return one.dtype == like.dtype and one.shape[2:] == like.shape[2:]


def _in_two_folders(
    root: Path, shapes: dict[str, _Shape], whatever: bool = False
) -> tuple[str, str, int] | None:
    """Patterns of pictures and labels in folders of their own, and how many pairs there are.

    Args:
        whatever: what is in the files does not count.
    """
    below: dict[str, list[str]] = defaultdict(list)  # paths by each folder that they lie in
    for path, shape in shapes.items():
        parts = shape.path.split("/")[:-1]
        for depth in range(1, len(parts) + 1):
            below["/".join(parts[:depth])].append(path)
    folders = sorted(below)
    kinds = {folder: _are_labels(root, below[folder]) for folder in folders}
    best: tuple[tuple[int, int], str, str] | None = None
    names = {folder: _names(folder, below[folder], shapes) for folder in folders}
    for image_folder in folders:
        for label_folder in folders:
            nested = label_folder.startswith(f"{image_folder}/") or image_folder.startswith(
                f"{label_folder}/"
            )
            if image_folder == label_folder or nested:
                continue
            fits = kinds[image_folder] is False and kinds[label_folder] is True
            if not (fits or whatever):
                continue
            ours, theirs = names[image_folder], names[label_folder]
            count = len(ours.stems & theirs.stems)
            rank = (count, -len(image_folder))
            if count and (best is None or rank > best[0]):
                best = rank, ours.pattern, theirs.pattern
    return (best[1], best[2], best[0][0]) if best else None


@dataclass(frozen=True)
class _Names:
    """The names below a folder without what all of them begin and end with."""

    stems: set[str]
    pattern: str


def _names(folder: str, paths: Sequence[str], shapes: dict[str, _Shape]) -> _Names:
    start = len(folder) + 1
    # What `{split}` stands for tells apart what has one name in several splits.
    whole = [(path, os.path.splitext(shapes[path].path[start:])[0]) for path in paths]
    tail = _common_tail([stem for _, stem in whole])
    stems = {f"{shapes[path].word}|{composed(s.removesuffix(tail))}" for path, s in whole}
    endings = {os.path.splitext(path)[1].lower() for path in paths}
    ending = endings.pop() if len(endings) == 1 else ".*"
    deep = "**/" if any("/" in stem.replace("{split}/", "") for _, stem in whole) else ""
    inner = "{split}/" if all(stem.startswith("{split}/") for _, stem in whole) else ""
    return _Names(stems, f"{folder}/{inner}{deep}{{stem}}{tail}{ending}")


def _common_tail(stems: Sequence[str]) -> str:
    """What all names end with, from a `_` or `-` on; nothing of a single name."""
    if len(stems) < 2:
        return next((mark for mark in MARKS if stems and stems[0].endswith(mark)), "")
    names = {stem.rpartition("/")[2] for stem in stems}
    candidates = re.finditer(r"[_-](?=[A-Za-z])", min(names))
    tails = [min(names)[match.start() :] for match in candidates]  # the longest first
    return next((tail for tail in tails if all(name.endswith(tail) for name in names)), "")


def _in_one_folder(shapes: dict[str, _Shape]) -> tuple[str, str, int] | None:
    """Patterns of pictures with their labels beside them."""
    present = {(shape.word, shape.path.lower()) for shape in shapes.values()}

    def labelled(mark: str) -> list[str]:
        """The pictures, as shapes, whose name with the mark is a PNG beside them."""
        found = []
        for shape in shapes.values():
            stem, _ = os.path.splitext(shape.path)
            label = shape.word, f"{stem}{mark}.png".lower()
            if label in present and label[1] != shape.path.lower():
                found.append(shape.path)
        return found

    # Without a mark, the ending alone tells them apart.
    mark = max(("", *MARKS), key=lambda mark: len(labelled(mark)))
    if not (pictures := labelled(mark)):
        return None
    endings = {os.path.splitext(shape)[1].lower() for shape in pictures}
    ending = endings.pop() if len(endings) == 1 else ".*"
    folder = os.path.commonpath([shape.rpartition("/")[0] or "." for shape in pictures])
    folder = "" if folder in ("", ".") else f"{folder}/"
    deep = "**/" if any("/" in shape[len(folder) :] for shape in pictures) else ""
    patterns = f"{folder}{deep}{{stem}}{ending}", f"{folder}{deep}{{stem}}{mark}.png"
    return *patterns, len(pictures)


def _are_labels(root: Path, paths: Sequence[str]) -> bool | None:
    """Whether files are labels, by some of them; None where they are of both kinds, or broken."""
    chosen = {paths[round(i)] for i in np.linspace(0, len(paths) - 1, min(LOOKED_AT, len(paths)))}
    found = set()
    for path in chosen:
        try:
            found.add(path.lower().endswith(".png") and is_label(read_unchanged(root / path)))
        except DataError:
            continue
    return found.pop() if len(found) == 1 else None


def is_label(picture: np.ndarray) -> bool:
    """Whether a picture (H, W) or (H, W, C) has as few values as a label."""
    step = max(1, picture.shape[0] * picture.shape[1] // 50_000)
    flat = picture.reshape(picture.shape[0] * picture.shape[1], -1)[::step].astype(np.int64)
    packed = (flat << (16 * np.arange(flat.shape[1]))).sum(1)  # a number for each colour
    return len(np.unique(packed)) <= MOST_COLOURS and _is_flat(picture)


def _is_flat(picture: np.ndarray) -> bool:
    """Whether most pixels are as the one beside them; a grey photograph has few values, but noise."""
    same = picture[:, 1:] == picture[:, :-1]
    return bool((same if same.ndim == 2 else same.all(2)).mean() > 0.8)
