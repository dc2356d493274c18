"""The reader of any data set that a description describes, see `semidavil.descriptions`."""

import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path

import numpy as np

from semidavil.data.encodings import UNKNOWN_CODE, first_channel, packed_colours, table
from semidavil.data.files import DataError, state_of
from semidavil.data.folders import as_matched, composed, entries_in, names_below
from semidavil.data.images import read_indices
from semidavil.data.patterns import IMAGE_ENDINGS, Found, Pattern, folder_of, is_in
from semidavil.data.readers import READERS, Reader, Sample, UnknownValues
from semidavil.descriptions import LISTS, MARK, REST, UNLABELLED, DataSet
from semidavil.label_values import written
from semidavil.registry import DATASETS

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
        if self.about.unlabelled:
            used |= set(self._pictures_without_label())
            said += self._left_out()
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
        """As for every reader; "unlabelled" are the pictures that the description says have no label."""
        if not self.root.is_dir():
            raise DataError(f"{self.title}: the folder {self.root} is not there")
        if split == UNLABELLED and self.about.unlabelled:
            return self._unlabelled()
        if split not in self.splits:
            raise DataError(f"{self.title} has no split {split!r}: it has {', '.join(self.splits)}")
        images = self.images_of(split)
        labels = self._labels_of(split, images)
        missing = [path for path in images if path not in labels]
        if missing and self.about.unlabelled:
            free = set(missing) & self._free_of_labels(split, missing)
            images = {path: one for path, one in images.items() if path not in free}
            missing = [path for path in missing if path not in free]
        if missing:
            pattern = self._pattern("labels", split)
            rest = ", or say that such pictures have none, with `unlabelled: rest`"
            raise DataError(
                f"{self.title}: {len(missing)} of {len(images)} images of {split} have no label; the first "
                f"is {self.root / missing[0]}, whose label would be "
                f"{self.root / pattern.of(images[missing[0]])}: add it, or leave the image out of its split"
                f"{rest if split == 'train' else ''}"
            )
        if not images:
            raise DataError(
                f"{self.title}: no image of {split} in {self.root}: {self.about.images} fits no file there"
            )
        return self._named(split, images, labels, self._disparities_of(split, images))

    def _disparities_of(self, split: str, images: Mapping[str, Found]) -> Mapping[str, str]:
        """The disparity of each image that has one: who needs them says what is missing."""
        if not self.about.disparity:
            return {}
        folder = self._pattern("disparity", split).folder
        files = self._files(folder) if (self.root / folder).is_dir() else []
        return self._beside("disparity", split, images, files)

    def _labels_of(self, split: str, images: Mapping[str, Found]) -> dict[str, str]:
        """The label of each image that has one."""
        files = self._files(self._pattern("labels", split).folder)
        return self._beside("labels", split, images, files)

    def without_label(self, split: str) -> list[str]:
        """The images of a split that have no label."""
        images = self.images_of(split)
        labels = self._labels_of(split, images)
        return [path for path in images if path not in labels]

    def _left_out(self) -> list[str]:
        """Pictures of what is scored that have no label, in sentences; see `_free_of_labels`."""
        found = {split: self.without_label(split) for split in self.splits if split != "train"}
        return [
            f"{len(paths)} pictures of {split} have no label and are left out, of training too; the first is "
            f"{self.root / paths[0]}"
            for split, paths in found.items()
            if paths
        ]

    def _free_of_labels(self, split: str, missing: Iterable[str]) -> set[str]:
        """Those images of a split, of those that have no label, that need none.

        With "rest" these are all: what is not of train is near what is scored, and nothing learns from it.
        """
        if REST in self.about.unlabelled:
            return set(missing)
        said = self.about.unlabelled if split == "train" else ()
        return {path for path in missing if any(is_in(one, path) for one in said)}

    def _pictures_without_label(self) -> list[str]:
        """What `unlabelled` names: never an image of another split than train, and never a label."""
        missing = self.without_label("train")
        found = dict.fromkeys(missing if REST in self.about.unlabelled else ())
        taken, masks = set[str](), list[Pattern]()
        for split in self.splits:
            taken |= self.images_of(split).keys()
            masks.append(self._pattern("labels", split))
        taken -= set(missing)
        for said in self.about.unlabelled:
            if said == REST:
                continue
            folder = folder_of(said)
            place = self.root / folder
            below = [said] if place.is_file() else self._files(folder) if place.is_dir() else []
            fits = [
                path for path in below if path.lower().endswith(IMAGE_ENDINGS) and is_in(said, path)
            ]
            if not fits:
                raise DataError(
                    f"{self.title}: no picture is in {said!r}, which its description names as unlabelled"
                )
            found |= dict.fromkeys(
                path for path in fits if path not in taken and not any(m.find(path) for m in masks)
            )
        return list(found)

    def _unlabelled(self) -> list[Sample]:
        paths = self._pictures_without_label()
        train = self.images_of("train")
        images = {path: train.get(path, Found(path, {}, ())) for path in paths}
        return self._named("train", images, {}, self._disparities_of("train", train), start=0)

    def _named(
        self,
        split: str,
        images: Mapping[str, Found],
        labels: Mapping[str, str],
        disparities: Mapping[str, str],
        start: int | None = None,
    ) -> list[Sample]:
        """In the order of paths; the path tells apart what has one name in several folders.

        Args:
            start: where paths begin to tell them apart; None: below the folder of the split's images.
        """
        if start is None:
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
            label = self.root / labels[path] if path in labels else None
            name = short if counts[short] == 1 else stem
            found.append(Sample(self.root / path, label, name, disparity))
        return found

    def _disparity(self, split: str, image: Found, found: Mapping[str, str]) -> Path | None:
        if not self.about.disparity or not image.words:  # a picture that `images` does not fit
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
        masks = {as_matched(self._pattern("labels", split).of(one)) for one in found.values()}
        found = {p: f for p, f in found.items() if as_matched(p) not in masks}
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
                by_name[composed(name)].append(path)
        found, missing = list[str](), list[str]()
        if not (entries := entries_in(file)):
            raise DataError(f"{self.title}: the list {file} of {split} is empty")
        for entry in entries:
            candidates = by_name.get(composed(entry.rpartition("/")[2]), [])
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
        present = {as_matched(path): path for path in files}
        wanted = {path: as_matched(pattern.of(found)) for path, found in images.items()}
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
            values = first_channel(self.title, sample.label)
        elif about.encoding == "panoptic":
            values = self._categories(sample.label)
        else:
            values = packed_colours(self.title, sample.label)
        if about.divide > 1:
            values = values // about.divide
        code_of = table(tuple(about.codes.items()), about.encoding == "colour")
        if code_of is None:  # codes are the ids: the scan names unknown ones
            return values
        codes = code_of[values]
        if (unknown := codes == UNKNOWN_CODE).any():
            raise self._unknown(sample, values[unknown], values.size)
        return codes.astype(np.uint8)

    def _unknown(self, sample: Sample, values: np.ndarray, pixels: int) -> UnknownValues:
        found, counts = np.unique(values, return_counts=True)
        order = np.argsort(-counts)
        is_colour = self.about.encoding == "colour"
        by_name = {
            written(int(found[i])) if is_colour else str(found[i]): int(counts[i]) for i in order
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
        packed = packed_colours(self.title, label)
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
