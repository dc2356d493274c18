"""Rare class sampling: labelled images are drawn by the classes in them (`data.sampling=rare`).

    rare = open_rare_classes(config, "gta5", samples)
    image, index = rare.draw(rng)       # the number of a sample, and the class that it was drawn for

From DAFormer (Hoyer, Dai and Van Gool, CVPR 2022, section 3.2), and as in its code:

    P(c) = exp((1 - f_c) / T) / sum_c' exp((1 - f_c') / T)

with f_c the share of class c among the labelled pixels. A class is drawn by P, then one of the images that
hold enough pixels of it, all with equal chance, and of this image the first of ten random crops that holds
enough of it, or else the last. Draws are with replacement.

How many pixels are enough is a share of the crop (`data.rare_share`), for the image at its working size
and for the crop (our reading: the code asks for 3,000 pixels of a GTA5 label, which are 1,370 at
1280x720, and for 1,500 of a crop of 512x512). A class that no image holds enough of is drawn from all
images that have any of it (the code refuses to start), and one that no image has is not drawn.

As there, it is for the source. A method or a benchmark without one draws its labelled target images so (our
reading): beside a source they are few, and each comes every few steps anyway.
"""

import hashlib
import os
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from semidavil.bars import transient_bars
from semidavil.benchmarks import BENCHMARKS
from semidavil.config import Config
from semidavil.data.decoded import Images, Memory, open_images
from semidavil.data.described import title_of
from semidavil.data.files import state_of
from semidavil.data.layout import cache_dir
from semidavil.data.readers import Sample
from semidavil.data.streams import streams_of, train_samples
from semidavil.machine import available_cpus

VERSION = 1  # of what is counted
TRIES = 10  # crops of an image, of which the first that shows enough of its class is taken


@dataclass(frozen=True)
class RareClasses:
    """Draws images by the classes in them.

    Attributes:
        counts: pixels (n, C) of each class in each image.
        temperature: T.
        enough: an image is drawn for a class of which it has more pixels.
    """

    counts: np.ndarray
    temperature: float
    enough: float

    @cached_property
    def probabilities(self) -> np.ndarray:
        """P(c), (C,); 0 for a class that no image has."""
        totals = self.counts.sum(0)
        scores = (1 - totals / max(1, totals.sum())) / self.temperature
        weights = np.where(totals > 0, np.exp(scores - scores[totals > 0].max(initial=0)), 0.0)
        return weights / weights.sum()

    @cached_property
    def images(self) -> list[np.ndarray]:
        """The numbers of the images that each class is drawn from."""
        enough = [np.flatnonzero(pixels > self.enough) for pixels in self.counts.T]
        some = [np.flatnonzero(pixels) for pixels in self.counts.T]
        return [one if len(one) else other for one, other in zip(enough, some, strict=True)]

    def draw(self, rng: np.random.Generator) -> tuple[int, int]:
        """The number of an image, and the class that it is drawn for."""
        index = int(rng.choice(len(self.probabilities), p=self.probabilities))
        return int(rng.choice(self.images[index])), index


def rare_stream(streams: Collection[str]) -> str:
    """Which of the streams that a run draws from is sampled by classes."""
    return "source" if "source" in streams else "labelled"


def open_rare_classes(
    config: Config, dataset: str, samples: Sequence[Sample], progress: bool = False
) -> RareClasses:
    """Of a data set's labelled samples; their pixels are counted once and kept."""
    images = open_images(config, dataset)
    images.memory = Memory(0)  # each is looked at once
    counts = class_pixels_of_images(config, images, samples, progress)
    crop = config.data.crop
    enough = config.data.rare_share * crop[0] * crop[1]
    return RareClasses(counts, config.data.rare_temperature, enough)


def prepare_rare_classes(config: Config, progress: bool) -> None:
    """Counts the pixels that a run will draw by, if it does."""
    if config.data.sampling != "rare":
        return
    benchmark = BENCHMARKS[config.data.benchmark]
    samples = train_samples(config)
    stream = rare_stream(samples.keys() & streams_of(config))
    dataset = benchmark.source if stream == "source" else None
    open_rare_classes(config, dataset or benchmark.target, samples[stream], progress)


def class_pixels_of_images(
    config: Config, images: Images, samples: Sequence[Sample], progress: bool = False
) -> np.ndarray:
    """Pixels (n, C) of each class in each label at the working size, from the cache where they are there."""
    classes = len(BENCHMARKS[config.data.benchmark].classes)
    table = hashlib.blake2b(images.lookup.tobytes(), digest_size=8).hexdigest()
    about = f"{VERSION} {images.size} {table}"
    state = state_of((sample.label for sample in samples), about)
    file = cache_dir(config) / "scans" / f"{images.reader.name}-classes-{state}.npy"
    if file.exists():
        return np.load(file, allow_pickle=False)

    def count(sample: Sample) -> np.ndarray:
        return np.bincount(images.label(sample).numpy().ravel(), minlength=256)[:classes]

    counts = np.zeros((len(samples), classes), np.int64)
    with (
        transient_bars(progress) as bar,
        ThreadPoolExecutor(available_cpus()) as pool,
    ):
        task = bar.add_task(
            f"counting classes of {title_of(images.reader.name)}", total=len(samples)
        )
        for row, found in enumerate(pool.map(count, samples)):
            counts[row] = found
            bar.advance(task)
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(f".{os.getpid()}.tmp")
    with temporary.open("wb") as out:
        np.save(out, counts)
    temporary.replace(file)
    return counts
