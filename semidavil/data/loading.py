"""Batches for training and images for evaluation.

`TrainBatches[t]` is the whole batch of step t and depends on (seed, t) alone: not on the number of
workers, on what was drawn before, or on the model. A run goes on exactly by starting at step t, and
two runs that differ in their attention or loss see the same images.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import Dataset

from semidavil.benchmarks import BENCHMARKS
from semidavil.config import Config
from semidavil.data.augment import draw_strong_views
from semidavil.data.decoded import Images, open_images
from semidavil.data.layout import cache_dir, open_reader
from semidavil.data.rare_classes import TRIES, RareClasses, open_rare_classes, rare_stream
from semidavil.data.readers import Sample
from semidavil.data.scans import usable_samples
from semidavil.data.streams import disparities, train_samples
from semidavil.data.transforms import View, cut, cutmix_box, weak_view
from semidavil.data.windows import Box
from semidavil.names import STREAMS
from semidavil.seeds import seed_of


class Caption(Protocol):
    """What is said of one image."""

    @property
    def texts(self) -> tuple[str, ...]:
        """One of the whole image, or one of each of its sliding windows."""
        ...

    def of_crop(self, box: Box, mirrored: bool) -> str:
        """What is said of a crop that training takes."""
        ...


class TrainBatches(Dataset):
    """The batch of every step, as `augment.finish` takes it: pixels as uint8, and what is still to be done.

    `batches[t]` maps the streams in use to
        source, labelled: image (B, 3, h, w) uint8, label (B, h, w) uint8, language;
        unlabelled: image (the weak view), strong (a `StrongViews`), cutmix (V, B, 4) int64, the boxes
            where the next image of the batch is pasted, language, and disparity (B, h, w) float32,
            0 where unknown, if it is asked for. Without strong views, neither of both.

    Args:
        captions: the caption of every image.
        look_up: captions to what is said of them to the network (a `Language`, on the CPU).
        streams: of "source", "labelled", "unlabelled": those that the method draws from.
        strong_views: V.
        disparity: whether unlabelled images come with theirs.
        workers: how many processes load them; they share what may be kept in memory.
    """

    def __init__(
        self,
        config: Config,
        captions: Mapping[Path, Caption],
        look_up: Callable[[list[str]], object],
        streams: Iterable[str],
        strong_views: int = 1,
        disparity: bool = False,
        workers: int = 0,
    ) -> None:
        self.config, self.captions, self.look_up = config, captions, look_up
        self.strong_views = strong_views
        wanted = frozenset(streams)
        self.samples = {n: s for n, s in train_samples(config).items() if n in wanted}
        benchmark = BENCHMARKS[config.data.benchmark]
        streams_of = {"labelled": benchmark.target, "unlabelled": benchmark.target}
        if benchmark.source:
            streams_of["source"] = benchmark.source
        opened = {d: open_images(config, d, workers=workers) for d in benchmark.datasets}
        self.images = {stream: opened[dataset] for stream, dataset in streams_of.items()}
        self.rare: dict[str, RareClasses] = {}
        if config.data.sampling == "rare":
            stream = rare_stream(self.samples)
            self.rare[stream] = open_rare_classes(config, streams_of[stream], self.samples[stream])
        if disparity:
            target = opened[benchmark.target]
            target.disparities = disparities(config, self.samples["unlabelled"])

    def __len__(self) -> int:
        return self.config.training.steps

    def __getitem__(self, step: int) -> dict[str, dict[str, Any]]:
        batch = {}
        with torch.random.fork_rng(devices=[]):
            for name in STREAMS:
                if name in self.samples:
                    # torch.manual_seed would seed the GPU's generator too, which no fork restores.
                    seed = seed_of(self.config.seed, step, STREAMS.index(name))
                    torch.default_generator.manual_seed(seed)
                    if name in self.rare:
                        drawn = self._draw_rare(name, step)
                    else:
                        drawn = [(sample, None) for sample in self._draw(name, step)]
                    batch[name] = self._weak(name, drawn)
                    if name == "unlabelled" and self.strong_views:
                        batch[name] |= self._strong(len(batch[name]["image"]))
        return batch

    def _draw(self, stream: str, step: int) -> list[Sample]:
        """The step's samples: one random order of the whole stream after another."""
        samples, size = self.samples[stream], self.config.training.batch_size
        drawn = []
        for position in range(step * size, (step + 1) * size):
            epoch, offset = divmod(position, len(samples))
            order = _order(len(samples), self.config.seed, STREAMS.index(stream), epoch)
            drawn.append(samples[order[offset]])
        return drawn

    def _draw_rare(self, stream: str, step: int) -> list[tuple[Sample, int | None]]:
        """The step's samples by rare classes, each with the class that it was drawn for."""
        rng = np.random.default_rng([self.config.seed, STREAMS.index(stream), step, 0x4A4E])
        drawn = [self.rare[stream].draw(rng) for _ in range(self.config.training.batch_size)]
        return [(self.samples[stream][number], index) for number, index in drawn]

    def _weak(self, stream: str, drawn: Sequence[tuple[Sample, int | None]]) -> dict[str, Any]:
        views, captions = [], []
        images, crop, labelled = self.images[stream], self.config.data.crop, stream != "unlabelled"
        with_disparity = bool(images.disparities) and not labelled
        for sample, wanted in drawn:
            view = self._view(images, sample, wanted)
            image = images.window(sample, view.box)
            label = images.label_window(sample, view.box) if labelled else None
            disparity = images.disparity_window(sample, view.box) if with_disparity else None
            views.append(cut(view, crop, image, label, disparity))
            captions.append(self.captions[sample.image].of_crop(view.box, view.flipped))
        parts = {
            "image": [view.image for view in views],
            "label": [view.label for view in views if view.label is not None],
            "disparity": [view.disparity for view in views if view.disparity is not None],
        }
        stacked = {name: torch.stack(part) for name, part in parts.items() if part}
        return {**stacked, "language": self.look_up(captions)}

    def _view(self, images: Images, sample: Sample, wanted: int | None) -> View:
        """A random view; of several, the first that shows enough of the class `wanted`, or the last."""
        data = self.config.data
        view = weak_view(images.size, data.crop)
        if wanted is None:
            return view
        for _ in range(TRIES - 1):
            label = images.label_window(sample, view.box)
            if int((label == wanted).sum()) > data.rare_share * label.numel():
                break
            view = weak_view(images.size, data.crop)
        return view

    def _strong(self, count: int) -> dict[str, Any]:
        crop, views = self.config.data.crop, self.strong_views
        strong = draw_strong_views(views, count, crop)
        boxes = [cutmix_box(crop, self.config.training.cutmix) for _ in range(views * count)]
        return {"strong": strong, "cutmix": torch.tensor(boxes).view(views, count, 4)}


class EvalSet(Dataset):
    """Validation images at the working size with labels at their own.

    Items are image (3, H, W) uint8, label (H', W') uint8, captions (one of the image, or one of
    each of its sliding windows) and name.
    """

    def __init__(self, config: Config, captions: Mapping[Path, Caption], workers: int = 0) -> None:
        target = BENCHMARKS[config.data.benchmark].target
        self.samples = usable_samples(open_reader(config, target), "val", cache_dir(config))
        self.images = open_images(config, target, scored=True, workers=workers)
        self.captions = captions

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = self.samples[index]
        return {
            "image": self.images.image(sample),
            "label": self.images.own_label(sample),
            "captions": self.captions[sample.image].texts,
            "name": sample.name,
        }


def _order(count: int, seed: int, stream: int, epoch: int) -> np.ndarray:
    key = (count, seed, stream, epoch)
    if key not in _orders:
        if len(_orders) > 16:
            _orders.clear()
        _orders[key] = np.random.default_rng([seed, stream, epoch]).permutation(count)
    return _orders[key]


_orders: dict[tuple[int, int, int, int], np.ndarray] = {}
