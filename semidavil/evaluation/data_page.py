"""A page about a benchmark's data: counts, classes, sizes, labels drawn over pictures, what is odd."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from semidavil.benchmarks import Benchmark
from semidavil.data.described import title_of
from semidavil.data.files import DataError
from semidavil.data.images import resize_image, resize_nearest
from semidavil.data.readers import Reader, Sample
from semidavil.data.scans import Scan
from semidavil.data.suspicions import class_images, class_shares
from semidavil.evaluation.written import overlay
from semidavil.registry import is_without_labels

PICTURES, WIDTH = 10, 360  # of a page, and pixels of each


@dataclass(frozen=True)
class Row:
    """A class in one split."""

    name: str
    colour: str
    share: float  # of its pixels, in per cent
    bar: float  # its length, in per cent of the longest of the split
    images: int


@dataclass(frozen=True)
class SplitOnPage:
    title: str
    count: int
    sizes: list[tuple[str, int]]
    rows: list[Row]
    ignored: float  # in per cent
    used: bool  # whether training or scoring looks at it
    labelled: bool = True


@dataclass(frozen=True)
class Picture:
    name: str
    split: str
    image: str  # base64 of a JPEG, labels drawn over the right half where it has some
    classes: list[tuple[str, str]]  # name and colour
    labelled: bool = True


@dataclass
class DataPage:
    """What is on the page."""

    benchmark: Benchmark
    problems: list[str] = field(default_factory=list)
    suspicions: list[str] = field(default_factory=list)
    splits: list[SplitOnPage] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)

    @property
    def title(self) -> str:
        return title_of(self.benchmark.name)

    def add(self, reader: Reader, scans: Mapping[str, Scan]) -> None:
        """A data set by the scans of its splits."""
        palette = self.benchmark.palette
        colours = [_hex(palette[i]) for i in range(len(self.benchmark.classes))]
        for split, found in scans.items():
            is_target, sizes = reader.name == self.benchmark.target, _by_count(found.sizes)
            title = f"{title_of(reader.name)}, {split}"
            if is_without_labels(reader.name, split):
                card = SplitOnPage(title, found.count, sizes, [], 0.0, is_target, labelled=False)
                self.splits.append(card)
                continue
            shares = 100 * class_shares(self.benchmark, reader.name, found)
            longest = max(shares[:-1].max(initial=0.0), 1e-9)
            images = class_images(self.benchmark, reader.name, found)
            rows = [
                Row(name, colour, float(share), float(100 * share / longest), count)
                for name, colour, share, count in zip(
                    self.benchmark.classes, colours, shares[:-1], images, strict=True
                )
            ]
            used = split == "train" or (is_target and split == "val")
            ignored = float(shares[-1])
            self.splits.append(SplitOnPage(title, found.count, sizes, rows, ignored, used))

    def add_pictures(
        self, reader: Reader, split: str, samples: Sequence[Sample], most: int
    ) -> None:
        """Some of a split's pictures, evenly spaced; broken ones, which are named elsewhere, are left out."""
        chosen = {round(i) for i in np.linspace(0, len(samples) - 1, min(most, len(samples)))}
        for number in sorted(chosen):
            try:
                self.pictures.append(self._picture(reader, split, samples[number]))
            except DataError:
                continue

    def _picture(self, reader: Reader, split: str, sample: Sample) -> Picture:
        image = reader.read_image(sample)
        size = max(1, round(image.shape[0] * WIDTH / image.shape[1])), WIDTH
        image, where = resize_image(image, size), f"{title_of(reader.name)}, {split}"
        if sample.label_file is None:
            return Picture(sample.name, where, _jpeg(image), [], labelled=False)
        labels = self.benchmark.lookup(reader.name)[reader.read_label(sample)]
        labels = resize_nearest(labels, size)
        palette = self.benchmark.palette
        drawn = np.concatenate([image, overlay(image, palette[labels])], axis=1)
        drawn[:, WIDTH - 1 : WIDTH + 1] = 255
        present = [int(i) for i in np.unique(labels) if i < len(self.benchmark.classes)]
        classes = [(self.benchmark.classes[i], _hex(palette[i])) for i in present]
        return Picture(sample.name, where, _jpeg(drawn), classes)

    def write(self, path: Path) -> None:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined

        loader = FileSystemLoader(Path(__file__).parent)
        template = Environment(
            loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True
        ).get_template("data_page.html.j2")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(template.render(page=self), encoding="utf-8")


def _by_count(sizes: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(sizes.items(), key=lambda item: -item[1])


def _jpeg(image: np.ndarray) -> str:
    encoded = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1]
    return base64.b64encode(encoded.tobytes()).decode()


def _hex(colour: np.ndarray) -> str:
    red, green, blue = colour.tolist()
    return f"#{red:02x}{green:02x}{blue:02x}"
