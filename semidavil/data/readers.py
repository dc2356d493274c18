"""Readers of the real on-disk layouts; labels come back as the data set's own raw ids.

A folder per data set, as it is unpacked:

    cityscapes/leftImg8bit/<split>/<city>/*_leftImg8bit.png  gtFine/<split>/<city>/*_gtFine_labelIds.png
    gta5/images/*.png                                        labels/*.png (paletted)
    synthia/RGB/*.png                                        GT/LABELS/*.png (16-bit, RAND-CITYSCAPES)
    camvid/<split>/*.png|jpg, <split>.txt                    <split>annot/*.png
    idda/<split>/images/*.jpg                                <split>/labels/*.png
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from semidavil.data.files import DataError

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg")


@dataclass(frozen=True)
class Sample:
    """One image and its label, both files."""

    image: Path
    label: Path

    @property
    def name(self) -> str:
        return self.image.stem


class Reader:
    """Lists and reads one data set; subclasses say where things are."""

    name: ClassVar[str]
    splits: ClassVar[tuple[str, ...]]
    layout: ClassVar[str]  # for the error message when a folder is missing
    # A few of GTA5's labels differ from their image in size: such samples are left out.
    drop_size_mismatch: ClassVar[bool] = False

    def __init__(self, root: Path) -> None:
        self.root = root

    def folders(self, split: str) -> tuple[Path, Path]:
        """The folders of a split's images and labels."""
        raise NotImplementedError

    def label_path(self, image: Path, split: str) -> Path:
        """Where an image's label is expected."""
        images, labels = self.folders(split)
        return labels / image.relative_to(images).with_suffix(".png")

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
        found = sorted(p for p in images.rglob("*") if self.is_image(p))
        if not found:
            raise DataError(f"{self.name}: no image in {images}; expected {self.layout}")
        present = {p for p in labels.rglob("*.png")}
        samples = [Sample(image, self.label_path(image, split)) for image in found]
        for sample in samples:
            if sample.label not in present:
                raise DataError(
                    f"{self.name}: the image {sample.image} has no label: {sample.label} is missing"
                )
        return samples

    def is_image(self, path: Path) -> bool:
        return path.suffix.lower() in IMAGE_ENDINGS and not path.name.startswith(".")

    def read_image(self, sample: Sample) -> np.ndarray:
        """The image (H, W, 3) uint8 RGB."""
        return read_rgb(sample.image)

    def read_label(self, sample: Sample) -> np.ndarray:
        """The raw label ids (H, W)."""
        label = read_unchanged(sample.label)
        if label.ndim != 2:
            raise DataError(
                f"{self.name}: the label {sample.label} has {label.shape[2]} channels, expected "
                "one with label ids: is it a colour picture of the labels?"
            )
        return label


class Cityscapes(Reader):
    name = "cityscapes"
    splits = ("train", "val")
    layout = "leftImg8bit/<split>/<city>/ and gtFine/<split>/<city>/"

    def folders(self, split: str) -> tuple[Path, Path]:
        return self.root / "leftImg8bit" / split, self.root / "gtFine" / split

    def is_image(self, path: Path) -> bool:
        return path.name.endswith("_leftImg8bit.png")

    def label_path(self, image: Path, split: str) -> Path:
        images, labels = self.folders(split)
        name = image.name.replace("_leftImg8bit.png", "_gtFine_labelIds.png")
        return labels / image.parent.relative_to(images) / name


class GTA5(Reader):
    name = "gta5"
    splits = ("train",)
    layout = "images/ and labels/"
    drop_size_mismatch = True

    def folders(self, split: str) -> tuple[Path, Path]:
        return self.root / "images", self.root / "labels"

    def read_label(self, sample: Sample) -> np.ndarray:
        # OpenCV would turn the palette into colours; Pillow keeps the index, which is the label id.
        try:
            with Image.open(sample.label) as image:
                if image.mode not in ("P", "L"):
                    raise DataError(
                        f"gta5: the label {sample.label} is a {image.mode} picture, expected a "
                        "paletted PNG whose indices are label ids"
                    )
                return np.array(image)
        except (UnidentifiedImageError, OSError, SyntaxError) as error:
            raise DataError(f"the file {sample.label} cannot be read: {error}") from error


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
        others the bare name; both are understood.
        """
        samples = super().samples(split)
        listing = self.root / f"{split}.txt"
        if listing.is_file():
            present = {text for s in samples for text in (s.name, s.image.name)}
            lines = listing.read_text().splitlines()
            listed = [Path(line.split()[0]) for line in lines if line.strip()]
            # An image may have been saved with another ending than the list has (.png as .jpg).
            missing = [p.name for p in listed if not present & {p.name, p.stem}]
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


def read_rgb(path: Path) -> np.ndarray:
    """An image (H, W, 3) uint8 RGB, whatever channels the file has.

    Raises:
        DataError: the file is missing or cannot be decoded.
    """
    image = cv2.imdecode(_bytes(path), cv2.IMREAD_COLOR)
    if image is None:
        raise DataError(f"the file {path} cannot be read: it is no image, or cut short")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def read_unchanged(path: Path) -> np.ndarray:
    """An image as it is stored, channels in OpenCV's order (blue, green, red)."""
    image = cv2.imdecode(_bytes(path), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise DataError(f"the file {path} cannot be read: it is no image, or cut short")
    return image


def _bytes(path: Path) -> np.ndarray:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"the file {path} cannot be read: {error}") from error
    if path.suffix.lower() == ".png" and b"IEND" not in data[-16:]:
        # OpenCV decodes what there is of a truncated file and only prints a warning.
        raise DataError(f"the file {path} cannot be read: the PNG is cut short")
    return np.frombuffer(data, np.uint8)
