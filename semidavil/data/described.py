"""The reader of any data set that a description describes, see `semidavil.descriptions`."""

import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np

from semidavil.data.files import DataError, state_of
from semidavil.data.folders import entries_in, names_below
from semidavil.data.images import read_indices, read_unchanged
from semidavil.data.patterns import Found, Pattern, is_in
from semidavil.data.readers import READERS, Reader, Sample, UnknownValues
from semidavil.descriptions import MARK, REST, DataSet, rgb
from semidavil.registry import DATASETS

LISTS = (".txt", ".csv", ".lst")  # endings of a split that is a list of files
UNKNOWN_CODE = 2**16 - 1  # of a value that the description does not have
SHOWN = 4  # values or files that an error names


class DescribedReader(Reader):
    """Lists and reads a described data set."""

    def __init__(self, about: DataSet, root: Path) -> None:
        super().__init__(root)
        self.about, self.name = about, about.key
        self.splits = tuple(about.splits)
        self.drop_size_mismatch = about.other_sizes == "left out"
        self.layout = f"{about.images} and {about.labels}"

        self.title = about.name
        self.label_ending = os.path.splitext(about.labels)[1]
        self.state = state_of(self.segment_files(), "") if about.segments else ""

    def has(self, split: str) -> bool:
        return split in self.splits

    def left_over(self) -> list[str]:
        used, present, said = set[str](), set[str](), []
        masks, labels = set[str](), set[str]()
        for split in self.splits:
            images = self.images_of(split)
            pattern = self._pattern("labels", split)
            files = [path for path in self._files(pattern.folder) if pattern.find(path)]
            found = self._beside("labels", split, images, files)
            masks |= set(found.values())
            labels |= set(files)
            used |= images.keys()
            pictures = self._pattern("images", split)
            present |= {path for path in self._files(pictures.folder) if pictures.find(path)}
        # Where both lie in one folder, a pattern may fit either.
        if lost := sorted(labels - masks - used - present):
            said.append(f"{len(lost)} labels have no picture; the first is {self.root / lost[0]}")
        if unused := sorted(present - used - masks - labels):
            said.append(
                f"{len(unused)} pictures are in no split; the first is {self.root / unused[0]}"
            )
        return said

    def label_of(self, image: str) -> str:
        """The label of an image of this name, both without endings and folders."""
        name = os.path.splitext(Pattern(self.about.images, "").text.rpartition("/")[2])[0]
        found = Pattern(f"{name}.png").find(f"{image.rpartition('/')[2]}.png")
        label = os.path.splitext(Pattern(self.about.labels, "").text.rpartition("/")[2])[0]
        stem = found.words["stem"] if found else image
        return label.replace("{stem}", stem)

    def segment_files(self) -> list[Path]:
        """COCO's JSON of each split."""
        if not self.about.segments:
            return []
        files = dict.fromkeys(self._segments_of(split) for split in self.splits)
        return [file for file in files if file.is_file()]

    def samples(self, split: str) -> list[Sample]:
        if split not in self.splits:
            raise DataError(f"{self.title} has no split {split!r}: it has {', '.join(self.splits)}")
        if not self.root.is_dir():
            raise DataError(f"{self.title}: the folder {self.root} is not there")
        images = self.images_of(split)
        files = self._files(self._pattern("labels", split).folder)
        labels = self._beside("labels", split, images, files)
        if missing := [path for path in images if path not in labels]:
            pattern = self._pattern("labels", split)
            raise DataError(
                f"{self.title}: {len(missing)} of {len(images)} images of {split} have no label; the first "
                f"is {self.root / missing[0]}, whose label would be "
                f"{self.root / pattern.of(images[missing[0]])}: add it, or leave the image out of its split"
            )
        if not images:
            raise DataError(
                f"{self.title}: no image of {split} in {self.root}: {self.about.images} fits no file there"
            )
        disparities: Mapping[str, str] = {}
        if self.about.disparity:
            folder = self._pattern("disparity", split).folder
            disparities = self._beside("disparity", split, images, set(self._files(folder)))
        return self._named(split, images, labels, disparities)

    def _named(
        self,
        split: str,
        images: Mapping[str, Found],
        labels: Mapping[str, str],
        disparities: Mapping[str, str],
    ) -> list[Sample]:
        """In the order of paths; the path tells apart what has one name in several folders."""
        start = len(f"{folder}/") if (folder := self._pattern("images", split).folder) else 0
        stems = {path: os.path.splitext(path[start:])[0] for path in images}
        counts = Counter(stem.rpartition("/")[2] for stem in stems.values())
        found, seen = [], dict[str, str]()
        for path in sorted(images, key=lambda path: path.split("/")):
            if (stem := stems[path]) in seen:  # it would count, and be drawn, twice
                raise DataError(
                    f"{self.title}: {self.root / seen[stem]} and {os.path.basename(path)} are one picture in "
                    "two files: remove one of each"
                )
            seen[stem] = path
            short = stem.rpartition("/")[2]
            disparity = self._disparity(split, images[path], disparities)
            files = self.root / path, self.root / labels[path]
            found.append(Sample(*files, short if counts[short] == 1 else stem, disparity))
        return found

    def _disparity(self, split: str, image: Found, found: Mapping[str, str]) -> Path | None:
        if not self.about.disparity:
            return None
        path = found.get(image.path) or self._pattern("disparity", split).of(image)
        return self.root / path

    def _pattern(self, entry: str, split: str) -> Pattern:
        said = self.about.splits[split][0] if "{split}" in self.about.images else split
        return Pattern(getattr(self.about, entry), said)

    def _files(self, folder: str) -> list[str]:
        """Paths below the data set's folder of all files in one of its folders."""
        place = self.root / folder
        if not place.is_dir():
            raise DataError(
                f"{self.title}: the folder {place} is missing, in which {self.about.name}'s description "
                f"expects {self.layout}"
            )
        return [f"{folder}/{name}" if folder else name for name in names_below(place)]

    def images_of(self, split: str) -> dict[str, Found]:
        """The images of a split by path, whether they have labels or not."""
        pattern = self._pattern("images", split)
        found = {p: f for p in self._files(pattern.folder) if (f := pattern.find(p))}
        # Of pictures and masks in one folder, a pattern of pictures may fit the masks as well.
        masks = {_lower_ending(self._pattern("labels", split).of(one)) for one in found.values()}
        found = {p: f for p, f in found.items() if _lower_ending(p) not in masks}
        if "{split}" in self.about.images:
            return found
        said = self.about.splits[split]
        if said == (REST,):
            others = [name for name in self.splits if name != split]
            taken = {path for name in others for path in self._chosen(name, found)}
            return {path: one for path, one in found.items() if path not in taken}
        return {path: found[path] for path in self._chosen(split, found)}

    def _chosen(self, split: str, images: Mapping[str, Found]) -> list[str]:
        """The images that a split's lists and patterns name."""
        chosen: dict[str, None] = {}
        for said in self.about.splits[split]:
            if said.lower().endswith(LISTS):
                chosen |= dict.fromkeys(self._listed(split, said, images))
                continue
            fits = [path for path in images if is_in(said, path)]
            if not fits:
                raise DataError(
                    f"{self.title}: no image is in {said!r}, which its description names as {split}"
                )
            chosen |= dict.fromkeys(fits)
        return list(chosen)

    def _listed(self, split: str, listing: str, images: Mapping[str, Found]) -> list[str]:
        file = self.root / listing
        if not file.is_file():
            raise DataError(f"{self.title}: the list {file} of {split} is missing")
        by_name: dict[str, list[str]] = defaultdict(list)
        for path in images:
            for name in {os.path.splitext(path)[0].rpartition("/")[2], images[path].words["stem"]}:
                by_name[name].append(path)
        found, missing = list[str](), list[str]()
        for entry in entries_in(file):
            candidates = by_name.get(entry.rpartition("/")[2], [])
            best = _most_alike(entry, candidates)
            if len(best) > 1:
                raise DataError(
                    f"{self.title}: {file} names {entry}, which is {best[0]} as well as {best[1]}: write "
                    "more of its path"
                )
            (found if best else missing).append(best[0] if best else entry)
        if missing:
            raise DataError(
                f"{self.title}: {file} lists {len(missing)} images that are not there, the first is "
                f"{missing[0]}"
            )
        return found

    def _beside(
        self, entry: str, split: str, images: Mapping[str, Found], files: Iterable[str]
    ) -> dict[str, str]:
        """The file that belongs to each image, where there is one; endings in any case."""
        pattern = self._pattern(entry, split)
        present = {_lower_ending(path): path for path in files}
        wanted = {path: _lower_ending(pattern.of(found)) for path, found in images.items()}
        return {p: present[w] for p, w in wanted.items() if w in present and present[w] != p}

    def read_label(self, sample: Sample) -> np.ndarray:
        """Codes (H, W) of the values in the file, see `DataSet.codes`.

        Raises:
            DataError: also for a value that the description does not have, where codes are not the ids.
        """
        about = self.about
        if about.encoding == "index":
            values = read_indices(sample.label)
        elif about.encoding == "red":
            values = _first_channel(self.title, sample.label)
        elif about.encoding == "panoptic":
            values = self._categories(sample.label)
        else:
            values = _packed_colours(self.title, sample.label)
        if about.divide > 1:
            values = values // about.divide
        table = _table(tuple(about.codes.items()), about.encoding == "colour")
        if table is None:  # codes are the ids: the scan names unknown ones
            return values
        codes = table[values]
        if (unknown := codes == UNKNOWN_CODE).any():
            raise self._unknown(sample, values[unknown], values.size)
        return codes.astype(np.uint8)

    def _unknown(self, sample: Sample, values: np.ndarray, pixels: int) -> UnknownValues:
        found, counts = np.unique(values, return_counts=True)
        order = np.argsort(-counts)
        is_colour = self.about.encoding == "colour"
        by_name = {
            str(list(rgb(int(found[i]))) if is_colour else int(found[i])): int(counts[i])
            for i in order
        }
        shown = [f"{name} ({100 * n / pixels:.2g}%)" for name, n in list(by_name.items())[:SHOWN]]
        more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        blend = ""
        if is_colour and len(found) > 32:
            blend = (
                ": so many are blends at borders, of a picture that was saved as JPEG or smoothed"
            )
        what = "colours" if is_colour else "ids"
        message = (
            f"the label {sample.label} holds the unknown {what} {', '.join(shown)}{more}{blend}"
        )
        return UnknownValues(message, by_name)

    def _segments_of(self, split: str) -> Path:
        said = self.about.splits[split][0] if "{split}" in self.about.images else split
        return self.root / self.about.segments.replace("{split}", said)

    @cached_property
    def _segments(self) -> dict[str, dict[int, int]]:
        """Category of each segment, by the label's file name."""
        found: dict[str, dict[int, int]] = {}
        for file in self.segment_files():
            try:
                tree = json.loads(file.read_text(encoding="utf-8"))
                for one in tree["annotations"]:
                    segments = {s["id"]: s["category_id"] for s in one["segments_info"]}
                    found[one["file_name"]] = segments
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(f"{file} is no COCO-panoptic JSON ({error!r})") from error
        return found

    def _categories(self, label: Path) -> np.ndarray:
        """COCO's category ids (H, W); 0 where no segment is."""
        segments = self._segments.get(label.name)
        if segments is None:
            raise DataError(f"{self.title}: no JSON of {self.about.segments} names {label.name}")
        packed = _packed_colours(self.title, label)
        # COCO's id is red + 256 green + 65536 blue.
        ids = (packed >> 16) | (packed & 0xFF00) | ((packed & 0xFF) << 16)
        found, where = np.unique(ids, return_inverse=True)
        unknown = [int(i) for i in found if i and int(i) not in segments]
        if unknown:
            raise DataError(
                f"the label {label} holds the segments {unknown[:SHOWN]}, which its JSON does not name"
            )
        categories = np.array([segments.get(int(i), 0) for i in found], np.int64)
        return categories[where].reshape(ids.shape)


def reader_of(dataset: str, root: Path) -> Reader:
    """The reader of a data set, built-in or described.

    Raises:
        DataError: there is no such data set.
    """
    if dataset in DATASETS:
        return DescribedReader(DATASETS[dataset], root)
    if dataset not in READERS:
        raise DataError(f"unknown data set {dataset!r}: choose from {', '.join(READERS)}")
    return READERS[dataset](root)


def title_of(dataset: str) -> str:
    """What people call a data set: without the hash of its description."""
    return dataset.partition(MARK)[0]


@lru_cache(8)
def _table(codes: tuple[tuple[int, int], ...], is_colour: bool) -> np.ndarray | None:
    """Code by value; None where both are the same."""
    if all(value == code for value, code in codes):
        return None
    table = np.full(2**24 if is_colour else 2**16, UNKNOWN_CODE, np.uint16)
    for value, code in codes:
        table[value] = code
    return table


def _packed_colours(title: str, path: Path) -> np.ndarray:
    """The colours (H, W) of a picture as 0xRRGGBB; transparency is left out."""
    label = read_unchanged(path)
    if label.dtype != np.uint8:
        raise DataError(
            f"{title}: the label {path} has {label.dtype} values, not colours of a byte"
        )
    if label.ndim == 2:
        label = np.repeat(label[..., None], 3, 2)
    blue, green, red = (label[..., channel].astype(np.uint32) for channel in range(3))
    return red << 16 | green << 8 | blue


def _first_channel(title: str, path: Path) -> np.ndarray:
    """The first channel (H, W) of a 16-bit RGB picture, the last in OpenCV's order.

    Pillow would keep the high byte of each value, which is always zero.
    """
    label = read_unchanged(path)
    if label.dtype != np.uint16 or label.ndim != 3:
        raise DataError(
            f"{title}: the label {path} is {label.dtype} of shape {label.shape}, expected a 16-bit RGB PNG "
            "whose first channel is the class: files that another program has saved again have lost it"
        )
    return label[..., 2]


def _lower_ending(path: str) -> str:
    stem, ending = os.path.splitext(path)
    return stem + ending.lower()


def _most_alike(entry: str, paths: list[str]) -> list[str]:
    """Of paths whose name an entry of a list has, those that share most folders with it."""
    if len(paths) < 2:
        return paths
    wanted = entry.split("/")[-2::-1]

    def shared(path: str) -> int:
        count = 0
        for ours, theirs in zip(path.split("/")[-2::-1], wanted, strict=False):
            if ours != theirs:
                break
            count += 1
        return count

    best = max(map(shared, paths))
    return [path for path in paths if shared(path) == best]
