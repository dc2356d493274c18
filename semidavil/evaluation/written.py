"""What `predict` writes of a picture, and which pictures it finds."""

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from semidavil.benchmarks import UNKNOWN
from semidavil.data.files import DataError, append_rows, read_rows, state_of
from semidavil.data.folders import files_below
from semidavil.data.images import turned
from semidavil.data.readers import Reader, Sample

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm")
VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v")
OPACITY = 0.5  # of the colours that lie over a picture


@dataclass(frozen=True)
class Source:
    """A picture or video, and its name below the folder that is written into, without ending."""

    path: Path
    name: str

    @property
    def is_video(self) -> bool:
        return self.path.suffix.lower() in VIDEOS


def find_sources(given: Sequence[Path]) -> list[Source]:
    """Pictures and videos: files as they are given, of folders all that are in them, sorted.

    Raises:
        DataError: nothing is there, a file is of no known kind, or two would be written to one place.
    """
    found: dict[str, Source] = {}
    for path in given:
        for source in _below(path):
            other = found.setdefault(source.name, source)
            if other.path.absolute() != source.path.absolute():
                raise DataError(
                    f"{other.path} and {source.path} would both be written as {source.name}: rename one, or "
                    "predict them into folders of their own"
                )
    return list(found.values())


def _below(path: Path) -> Iterator[Source]:
    kinds = (*PICTURES, *VIDEOS)
    if path.is_dir():
        files = [file for file in sorted(files_below(path)) if file.suffix.lower() in kinds]
        if not files:
            raise DataError(f"no picture or video in {path} (known are {', '.join(kinds)})")
        for file in files:
            yield Source(file, file.relative_to(path).with_suffix("").as_posix())
    elif not path.exists():
        raise DataError(f"there is no {path}")
    elif path.suffix.lower() not in kinds:
        raise DataError(f"{path} is neither a picture nor a video (known are {', '.join(kinds)})")
    else:
        yield Source(path, path.stem)


def overlay(image: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """The picture with the classes' colours over it, both (H, W, 3) uint8."""
    return cv2.addWeighted(image, 1 - OPACITY, colours, OPACITY, 0)


def write_pictures(
    folder: Path,
    name: str,
    kinds: Sequence[str],
    image: np.ndarray,
    labels: np.ndarray,
    confidence: np.ndarray,
    palette: np.ndarray,
) -> None:
    """PNGs `NAME_<kind>.png`: class indices, their colours, these over it, and confidence (0 to 255).

    Raises:
        OSError: one cannot be written.
    """
    colours = palette[labels]
    pictures: dict[str, Callable[[], np.ndarray]] = {
        "ids": lambda: labels,
        "colours": lambda: colours,
        "overlay": lambda: overlay(image, colours),
        "confidence": lambda: (255 * confidence).round().astype(np.uint8),
    }
    for kind in kinds:
        picture = pictures[kind]()
        if picture.ndim == 3:
            picture = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
        path = file_of(folder, name, kind)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(cv2.imencode(".png", picture)[1].tobytes())


def file_of(folder: Path, name: str, kind: str) -> Path:
    return folder / f"{name}_{kind}.png"


def write_classes(path: Path, classes: Sequence[str], palette: np.ndarray) -> None:
    """A CSV that says what the ids and colours mean."""
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["id", "class", "red", "green", "blue"])
        rows.writerows([i, name, *palette[i].tolist()] for i, name in enumerate(classes))


class Done:
    """Pictures that are done, a row each; one that has changed since is to be done again.

    Args:
        about: what predictions depend on; those of something else are not looked at.
    """

    def __init__(self, path: Path, about: str) -> None:
        self.path, self.about = path, about
        self.rows = {row["name"]: row for row in read_rows(path) if row["about"] == about}

    def has(self, source: Source) -> bool:
        row = self.rows.get(source.name)
        return row is not None and row["state"] == state_of([source.path], self.about)

    def add(self, source: Source, confidence: float, captions: Sequence[str]) -> None:
        row = {
            "name": source.name, "file": str(source.path), "about": self.about,
            "state": state_of([source.path], self.about),
            "confidence": round(confidence, 4), "caption": " | ".join(captions),
        }  # fmt: skip
        append_rows(self.path, [row])
        self.rows[source.name] = row


def label_of(source: Source, folder: Path, reader: Reader) -> Path:
    """The picture's label below a folder: of the same name, or as the data set names its labels.

    Raises:
        DataError: there is none.
    """
    names = (source.name, reader.label_of(source.name))
    paths = [folder / f"{name}{reader.label_ending}" for name in names]
    for path in paths:
        if path.is_file():
            return path
    raise DataError(f"{source.path} has no label {paths[0]}")


def confusion_of(
    labels: np.ndarray,
    label_file: Path,
    reader: Reader,
    lookup: np.ndarray,
    num_classes: int,
    orientation: int = 1,
) -> np.ndarray:
    """(C, C) of one picture, rows = truth, by a label file in the target data set's own ids.

    Args:
        orientation: EXIF's, of the picture: predictions are of the upright one, and its label lies on what is
            stored, as in a data set, or, where only that has the right size, on the upright one, too.

    Raises:
        DataError: the file cannot be read, is of another size, or has ids that the data set does not know.
    """
    raw = reader.read_label(Sample(label_file, label_file, label_file.stem))
    as_stored = turned(raw, orientation)
    raw = as_stored if as_stored.shape == labels.shape else raw
    if raw.shape != labels.shape:
        raise DataError(f"the label {label_file} is {raw.shape}, its picture {labels.shape} pixels")
    truth = lookup[raw]
    unknown = np.unique(raw[truth == UNKNOWN])
    if len(unknown):
        raise DataError(
            f"the label {label_file} has unknown ids: {', '.join(map(str, unknown[:8]))}"
        )
    counted = truth < num_classes
    pairs = num_classes * truth[counted].astype(np.int64) + labels[counted]
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)
