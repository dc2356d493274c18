"""Readers of the real on-disk layouts; labels come back as the data set's own raw ids.

A folder per data set, as it is unpacked:

    cityscapes/leftImg8bit/<split>/<city>/*_leftImg8bit.png  gtFine/<split>/<city>/*_gtFine_labelIds.png
    gta5/images/*.png                                        labels/*.png (paletted)
    synthia/RGB/*.png                                        GT/LABELS/*.png (16-bit, RAND-CITYSCAPES)
    camvid/<split>/*.png|jpg, <split>.txt                    <split>annot/*.png
    idda/<split>/images/*.jpg                                <split>/labels/*.png
"""

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from semidavil.data.files import DataError
from semidavil.data.folders import composed, names_below, names_in
from semidavil.data.images import read_indices, read_rgb, read_unchanged

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg")


@dataclass(frozen=True)
class Sample:
    """One image and its label, both files; its name is no other's of the split."""

    image: Path
    label_file: Path | None  # None of a picture without a label, of which a description says so
    name: str
    disparity: Path | None = None  # where a description says it is

    @property
    def label(self) -> Path:
        if self.label_file is None:
            raise DataError(f"the picture {self.image} has no label")
        return self.label_file

    @property
    def files(self) -> list[Path]:
        return [self.image] if self.label_file is None else [self.image, self.label_file]


class UnknownValues(DataError):  # noqa: N818 - as the field speaks of them
    """Ids or colours that a description does not have: pixels by value, in words."""

    def __init__(self, message: str, pixels: Mapping[str, int]) -> None:
        super().__init__(message)
        self.pixels = pixels


class Reader:
    """Lists and reads one data set; subclasses say where things are."""

    name: str
    splits: tuple[str, ...]
    layout: str  # for the error message when a folder is missing
    # A few of GTA5's labels differ from their image in size: such samples are left out.
    drop_size_mismatch: bool = False
    label_ending: str = ".png"
    state: str = ""  # of what labels depend on beside their own files

    def __init__(self, root: Path) -> None:
        self.root = root

    def segment_files(self) -> list[Path]:
        """The files that `state` is of."""
        return []

    def folders(self, split: str) -> tuple[Path, Path]:
        """The folders of a split's images and labels."""
        raise NotImplementedError

    def left_over(self) -> list[str]:
        """What lies in the folders and is no part of any split, in sentences."""
        return []

    def has(self, split: str) -> bool:
        """Whether a split's folder is there."""
        return self.folders(split)[0].is_dir()

    def is_image(self, name: str) -> bool:
        """Whether a file below the folder of images is one, by its name."""
        return name.lower().endswith(IMAGE_ENDINGS)

    def label_of(self, image: str) -> str:
        """The label of an image: their names below their folders, without endings."""
        return image

    def samples(self, split: str) -> list[Sample]:
        """All images of a split with their labels, in a stable order.

        Raises:
            DataError: an unknown split, a missing folder, no image, or an image without a label.
        """
        if split not in self.splits:
            raise DataError(f"{self.name} has no split {split!r}: it has {', '.join(self.splits)}")
        images, labels = self.folders(split)
        for folder in (images, labels):
            if not folder.is_dir():
                raise DataError(
                    f"{self.name}: the folder {folder} is missing; expected below "
                    f"{self.root}: {self.layout}. --data-root names the folder that holds "
                    f"{self.root.name}/; without it, the toy preset uses generated scenes"
                )
        # By folder and name, as paths are sorted.
        found = sorted(filter(self.is_image, names_below(images)), key=lambda name: name.split("/"))
        if not found:
            raise DataError(f"{self.name}: no image in {images}; expected {self.layout}")
        present = {
            composed(os.path.splitext(name)[0]): name
            for name in names_below(labels)
            if name.lower().endswith(".png")
        }
        stems = [os.path.splitext(name)[0] for name in found]
        counts = Counter(stem.rpartition("/")[2] for stem in stems)
        samples: list[Sample] = []
        seen: dict[str, str] = {}
        for image, stem in zip(found, stems, strict=True):
            if stem in seen:  # it would count, and be drawn, twice
                raise DataError(
                    f"{self.name}: {images / seen[stem]} and {os.path.basename(image)} are one picture in "
                    "two files: remove one of each"
                )
            seen[stem] = image
            label, short = composed(self.label_of(stem)), stem.rpartition("/")[2]
            if label not in present:
                raise DataError(
                    f"{self.name}: the image {images / image} has no label: {labels / label}.png is missing"
                )
            # The path tells apart what has one name in several folders.
            name = short if counts[short] == 1 else stem
            paths = (Path(f"{images}/{image}"), Path(f"{labels}/{present[label]}"))
            samples.append(Sample(*paths, name))
        return samples

    def read_image(self, sample: Sample) -> np.ndarray:
        """The image (H, W, 3) uint8 RGB."""
        return read_rgb(sample.image)

    def read_label(self, sample: Sample) -> np.ndarray:
        """The raw label ids (H, W)."""
        return read_indices(sample.label)


class Cityscapes(Reader):
    name = "cityscapes"
    splits = ("train", "val")
    layout = "leftImg8bit/<split>/<city>/ and gtFine/<split>/<city>/"

    def folders(self, split: str) -> tuple[Path, Path]:
        return self.root / "leftImg8bit" / split, self.root / "gtFine" / split

    def is_image(self, name: str) -> bool:
        stem, ending = os.path.splitext(name)
        return stem.endswith("_leftImg8bit") and ending.lower() == ".png"

    def label_of(self, image: str) -> str:
        return image.removesuffix("_leftImg8bit") + "_gtFine_labelIds"


class GTA5(Reader):
    name = "gta5"
    splits = ("train",)
    layout = "images/ and labels/"
    drop_size_mismatch = True

    def folders(self, split: str) -> tuple[Path, Path]:
        return self.root / "images", self.root / "labels"


class Synthia(Reader):
    name = "synthia"
    splits = ("train",)
    layout = "RGB/ and GT/LABELS/ (SYNTHIA-RAND-CITYSCAPES)"

    def folders(self, split: str) -> tuple[Path, Path]:
        return self.root / "RGB", self.root / "GT" / "LABELS"

    def read_label(self, sample: Sample) -> np.ndarray:
        # 16-bit RGB: the class is in the first channel, the last in OpenCV's order. Pillow would
        # keep the high byte of each value, which is always zero.
        label = read_unchanged(sample.label)
        if label.dtype != np.uint16 or label.ndim != 3:
            raise DataError(
                f"synthia: the label {sample.label} is {label.dtype} of shape {label.shape}, "
                "expected a 16-bit RGB PNG whose first channel is the class: files that another "
                "program has saved again have lost it"
            )
        return label[..., 2]


class CamVid(Reader):
    name = "camvid"
    splits = ("train", "val", "test")
    layout = (
        "train/, trainannot/, val/, valannot/ (SegNet's split; test/ and testannot/ if you like)"
    )

    def folders(self, split: str) -> tuple[Path, Path]:
        return self.root / split, self.root / f"{split}annot"

    def samples(self, split: str) -> list[Sample]:
        """As for every reader; where `<split>.txt` is there, each image that it lists must be too.

        The original list has lines such as `/SegNet/CamVid/train/a.png /SegNet/CamVid/trainannot/a.png`,
        others the bare name; see `names_in`.
        """
        samples = super().samples(split)
        listing = self.root / f"{split}.txt"
        if listing.is_file():
            present = {composed(sample.image.stem) for sample in samples}
            # Without endings: an image may have been saved with another one than the list has.
            missing = [name for name in names_in(listing) if composed(name) not in present]
            if missing:
                raise DataError(
                    f"camvid: {listing} lists {len(missing)} images that {self.root / split} lacks, "
                    f"the first is {missing[0]}: unpack the data set again"
                )
        return samples


class IDDA(Reader):
    name = "idda"
    splits = ("train", "val", "rain")
    layout = "<split>/images/ and <split>/labels/"

    def folders(self, split: str) -> tuple[Path, Path]:
        return self.root / split / "images", self.root / split / "labels"


READERS: dict[str, type[Reader]] = {r.name: r for r in (Cityscapes, GTA5, Synthia, CamVid, IDDA)}
