"""Batches for training and images for evaluation.

`TrainBatches[t]` is the whole batch of step t and depends on (seed, t) alone: not on the number of
workers, on what was drawn before, or on the model. A run goes on exactly by starting at step t, and
two runs that differ in their attention or loss see the same images.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from semidavil.captions import flip_caption
from semidavil.config import Config
from semidavil.data.benchmarks import BENCHMARKS, IGNORE_INDEX, UNKNOWN
from semidavil.data.depth import Disparities, disparity_source
from semidavil.data.readers import READERS, DataError, Reader, Sample
from semidavil.data.splits import split_target
from semidavil.data.toy import ensure_toy_data
from semidavil.data.toy_abdomen import ensure_toy_abdomen
from semidavil.data.transforms import Weak, cutmix_box, strong_view, weak_view
from semidavil.runtime import seed_of

STREAMS = ("source", "labelled", "unlabelled")
PADDING = 253  # a label value that marks what is not image, so that it can be told from ignored
CACHE_BYTES = 2 * 2**30  # decoded images that a process keeps of what it trains on
EVAL_CACHE_BYTES = 2**28  # and, each, of images and labels that it is scored on


def cache_dir(config: Config) -> Path:
    """Where toy data and captions are kept."""
    return Path(config.runtime.cache_dir or "data").absolute()


def data_root(config: Config) -> Path:
    """The folder that holds a folder per data set; toy data is generated on first use.

    Raises:
        DataError: no folder is configured, or it does not exist.
    """
    if config.data.toy:
        benchmark = BENCHMARKS[config.data.benchmark]
        if benchmark.kind == "volumes":
            return ensure_toy_abdomen(cache_dir(config) / "toy")
        return ensure_toy_data(cache_dir(config) / "toy", benchmark.datasets)
    if not config.runtime.data_root:
        raise DataError(
            f"{config.data.benchmark} needs its data sets: pass --data-root with the folder that "
            "holds one folder per data set, or use the toy preset, which generates its own"
        )
    root = Path(config.runtime.data_root).expanduser().absolute()
    if not root.is_dir():
        raise DataError(f"the data root {root} does not exist (--data-root)")
    return root


def open_reader(config: Config, dataset: str) -> Reader:
    if dataset not in READERS:
        raise DataError(f"unknown data set {dataset!r}: choose from {', '.join(READERS)}")
    return READERS[dataset](data_root(config) / dataset)


def train_samples(config: Config) -> dict[str, list[Sample]]:
    """The samples of each stream: "source" (if any), "labelled" (if any), "unlabelled"."""
    from semidavil.data.checks import usable_samples

    benchmark = BENCHMARKS[config.data.benchmark]
    target = usable_samples(open_reader(config, benchmark.target), "train", cache_dir(config))
    near = disparities(config, target) if config.data.selection == "depth" else None
    labelled, unlabelled = split_target(target, config.data.budget, config.seed, near)
    streams = {"labelled": labelled, "unlabelled": unlabelled}
    if benchmark.source:
        source = open_reader(config, benchmark.source)
        streams["source"] = usable_samples(source, "train", cache_dir(config))
    return {name: samples for name, samples in streams.items() if samples}


def disparities(config: Config, samples: Sequence[Sample], progress: bool = False) -> Disparities:
    """The disparities of target images, from where `data.depth` says."""
    target = BENCHMARKS[config.data.benchmark].target
    return disparity_source(config.data.depth, target, samples, cache_dir(config), progress)


def all_samples(config: Config) -> dict[tuple[str, str], list[Sample]]:
    """Every sample that a run of `config`'s benchmark may look at, by data set and split."""
    from semidavil.data.checks import usable_samples

    benchmark, found = BENCHMARKS[config.data.benchmark], {}
    for dataset in benchmark.datasets:
        reader = open_reader(config, dataset)
        found[dataset, "train"] = usable_samples(reader, "train", cache_dir(config))
    found[benchmark.target, "val"] = open_reader(config, benchmark.target).samples("val")
    return found


def image_paths(config: Config) -> list[Path]:
    """The images of `all_samples`."""
    return [sample.image for samples in all_samples(config).values() for sample in samples]


class Memory:
    """Tensors made of files, up to `limit` bytes; a file that has changed is read anew."""

    def __init__(self, limit: int) -> None:
        self.limit, self.bytes = limit, 0
        self.kept: dict[tuple[Path, int, int], Tensor] = {}

    def recall(self, path: Path, make: Callable[[], Tensor]) -> Tensor:
        if not self.limit:
            return make()
        try:
            status = path.stat()
        except OSError:  # the reader will say which file is missing
            return make()
        key = path, status.st_mtime_ns, status.st_size
        if key in self.kept:
            return self.kept[key]
        made = make()
        if self.bytes + made.nbytes <= self.limit:
            self.bytes += made.nbytes
            self.kept[key] = made
        return made


_memories: dict[Hashable, Memory] = {}


def shared_memory(limit: int, *about: Hashable) -> Memory:
    """What this process remembers of `about`; runs of one worker read the same images again.

    Those of other data sets are let go before all of them would take more than they may.
    """
    key = (limit, *about)
    if key not in _memories:
        if sum(memory.limit for memory in _memories.values()) + limit > (
            CACHE_BYTES + 2 * EVAL_CACHE_BYTES
        ):
            _memories.clear()  # who uses one at the moment has it still
        _memories[key] = Memory(limit)
    return _memories[key]


class Images:
    """Decodes, resizes and maps labels; keeps what it has decoded, up to `limit` bytes."""

    def __init__(
        self, reader: Reader, lookup: np.ndarray, size: tuple[int, int], limit: int
    ) -> None:
        self.reader, self.lookup, self.size = reader, lookup, size
        about = reader.name, reader.root, lookup.tobytes(), size
        self.memory = shared_memory(limit, *about)
        # Stands for the label of an unlabelled image.
        self.blank = torch.zeros(size, dtype=torch.uint8)
        self.near: Disparities | None = None

    def __call__(self, sample: Sample) -> tuple[Tensor, Tensor]:
        """Image (3, H, W) and class indices (H, W), both uint8, at the working size."""
        return self.image(sample), self.memory.recall(
            sample.label, lambda: self._resized_label(sample)
        )

    def image(self, sample: Sample) -> Tensor:
        """The image (3, H, W) uint8 alone; its label is not read."""
        return self.memory.recall(sample.image, lambda: self._resized_image(sample))

    def disparity(self, sample: Sample) -> Tensor:
        """The disparity (H, W) float32 at the working size, in the stored map's unit."""
        assert self.near is not None
        near, (height, width) = self.near(sample), self.size
        # The nearest value: an average would invent surfaces between near and far, and known ones
        # where nothing is known.
        near = cv2.resize(near, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
        return torch.from_numpy(near)

    def _resized_image(self, sample: Sample) -> Tensor:
        image = resize_image(self.reader.read_image(sample), self.size)
        return torch.from_numpy(image).permute(2, 0, 1).contiguous()

    def _resized_label(self, sample: Sample) -> Tensor:
        label = self.label(sample)
        if label.shape != self.size:
            height, width = self.size
            label = cv2.resize(label, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
        return torch.from_numpy(label)

    def label(self, sample: Sample) -> np.ndarray:
        """Class indices (H, W) uint8 at the label's own size; 255 is ignored."""
        raw = self.reader.read_label(sample)
        label = self.lookup[raw]
        if (label == UNKNOWN).any():
            unknown = sorted(int(i) for i in np.unique(raw[label == UNKNOWN]))
            raise DataError(
                f"{self.reader.name}: the label {sample.label} holds the unknown ids {unknown}"
            )
        return label


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) uint8 to another (height, width), averaging where it shrinks."""
    height, width = size
    if image.shape[:2] == (height, width):
        return image
    shrinks = image.shape[0] >= height and image.shape[1] >= width
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(image, (width, height), interpolation=how)


class TrainBatches(Dataset):
    """The batch of every step.

    `batches[t]` maps the streams in use to
        source, labelled: image (B, 3, h, w) float in [0, 1], label (B, h, w) int64, caption [B];
        unlabelled: image (the weak view), strong (V, B, 3, h, w), valid (B, h, w) bool,
            cutmix (V, B, h, w) bool, True where the next image of the batch is pasted, caption [B],
            and disparity (B, h, w) float, 0 where unknown, if it is asked for.

    Args:
        captions: the caption of every image.
        streams: of "source", "labelled", "unlabelled": those that the method draws from.
        strong_views: V.
        disparity: whether unlabelled images come with theirs.
    """

    def __init__(
        self,
        config: Config,
        captions: Mapping[Path, str],
        streams: Iterable[str],
        strong_views: int = 1,
        disparity: bool = False,
    ) -> None:
        self.config, self.captions, self.strong_views = config, captions, strong_views
        wanted = frozenset(streams)
        self.samples = {n: s for n, s in train_samples(config).items() if n in wanted}
        benchmark = BENCHMARKS[config.data.benchmark]
        share = CACHE_BYTES // len(benchmark.datasets)
        target = Images(
            open_reader(config, benchmark.target),
            benchmark.lookup(benchmark.target),
            config.data.target_size,
            share,
        )
        if disparity:
            target.near = disparities(config, self.samples["unlabelled"])
        self.images = {"labelled": target, "unlabelled": target}
        if benchmark.source:
            self.images["source"] = Images(
                open_reader(config, benchmark.source),
                benchmark.lookup(benchmark.source),
                config.data.source_size,
                share,
            )

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
                    make = self._unlabelled if name == "unlabelled" else self._labelled
                    batch[name] = make(name, self._draw(name, step))
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

    def _weak(self, stream: str, samples: Sequence[Sample]) -> tuple[list[Weak], list[str]]:
        views, captions = [], []
        for sample in samples:
            source = self.images[stream]
            # Of an unlabelled image, only what the crop pads is asked for: a blank label shows it.
            pair = (
                (source.image(sample), source.blank) if stream == "unlabelled" else source(sample)
            )
            near = source.disparity(sample) if stream == "unlabelled" and source.near else None
            view = weak_view(*pair, self.config.data.crop, PADDING, near)
            views.append(view)
            caption = self.captions[sample.image]
            captions.append(flip_caption(caption) if view.flipped else caption)
        return views, captions

    def _labelled(self, stream: str, samples: Sequence[Sample]) -> dict[str, Any]:
        views, captions = self._weak(stream, samples)
        labels = torch.stack([view.label for view in views])
        labels = torch.where(labels == PADDING, IGNORE_INDEX, labels.long())
        images = torch.stack([view.image for view in views])
        return {"image": _to_float(images), "label": labels, "caption": captions}

    def _unlabelled(self, stream: str, samples: Sequence[Sample]) -> dict[str, Any]:
        views, captions = self._weak(stream, samples)
        images = [view.image for view in views]
        training, crop = self.config.training, self.config.data.crop
        strong = [torch.stack([strong_view(x) for x in images]) for _ in range(self.strong_views)]
        boxes = [
            torch.stack([cutmix_box(crop, training.cutmix) for _ in images])
            for _ in range(self.strong_views)
        ]
        batch = {
            "image": _to_float(torch.stack(images)),
            "strong": _to_float(torch.stack(strong)),
            "valid": torch.stack([view.label for view in views]) != PADDING,
            "cutmix": torch.stack(boxes),
            "caption": captions,
        }
        near = [view.disparity for view in views if view.disparity is not None]
        return {**batch, "disparity": torch.stack(near)} if near else batch


class EvalSet(Dataset):
    """Validation images at the working size with labels at their own.

    Items are image (3, H, W) float in [0, 1], label (H', W') int64, caption and name.
    """

    def __init__(self, config: Config, captions: Mapping[Path, str]) -> None:
        benchmark = BENCHMARKS[config.data.benchmark]
        reader = open_reader(config, benchmark.target)
        self.samples = reader.samples("val")
        # Processes that load batches end with each evaluation, and what they remember with them.
        limit = 0 if config.runtime.num_workers else EVAL_CACHE_BYTES
        lookup, size = benchmark.lookup(benchmark.target), config.data.target_size
        self.images = Images(reader, lookup, size, limit)
        # At their own size, unlike those that are trained on.
        self.labels = shared_memory(limit, "labels", reader.name, reader.root, lookup.tobytes())
        self.captions = captions

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = self.samples[index]
        label = self.labels.recall(
            sample.label, lambda: torch.from_numpy(self.images.label(sample))
        )
        return {
            "image": _to_float(self.images.image(sample)),
            "label": label.long(),
            "caption": self.captions[sample.image],
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


def _to_float(image: Tensor) -> Tensor:
    return image.float() / 255
