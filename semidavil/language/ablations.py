"""Captions that tell whether language matters: those of other images, and those of the labels.

`model.captions=shuffled:positions` (or `shuffled:blip2:...`) gives every image the caption of another image
of its data set and split: true of some street, not of this one. `model.captions=oracle` describes the
ground truth in the words of `positions`: an upper bound on what a captioner could say, never a
method. It reads labels of unlabelled and validation images, so only an ablation grid may use it.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from semidavil.benchmarks import BENCHMARKS, Benchmark
from semidavil.config import Config
from semidavil.data.layout import open_reader
from semidavil.data.readers import Reader, Sample
from semidavil.data.windows import Windows
from semidavil.descriptions import MARK
from semidavil.language.captions import Caption, describe_files, windows_of
from semidavil.language.positions import phrases, sentence, thirds
from semidavil.names import ORACLE, SHUFFLED


def inner_captioner(name: str) -> str:
    """The captioner whose captions are shuffled; any other name as it is."""
    return name.removeprefix(SHUFFLED)


def shuffle_captions(
    captions: Mapping[Path, Caption], groups: Sequence[Sequence[Path]]
) -> dict[Path, Caption]:
    """Within each group, every image gets the caption of another one; the same on every machine."""
    shuffled = dict(captions)
    for number, group in enumerate(groups):
        order = [
            group[i] for i in np.random.default_rng([number, len(group)]).permutation(len(group))
        ]
        for image, other in zip(order, order[1:] + order[:1], strict=True):
            shuffled[image] = captions[other]
    return shuffled


def oracle_captions(
    config: Config,
    groups: Mapping[tuple[str, str], Sequence[Sample]],
    cache_dir: Path,
    progress: bool = False,
) -> dict[Path, Caption]:
    """What the labels of all samples, by data set and split, hold, and where."""
    benchmark = BENCHMARKS[config.data.benchmark]
    found: dict[Path, Caption] = {}
    for (dataset, _), samples in groups.items():
        reader, lookup = open_reader(config, dataset), benchmark.lookup(dataset)
        by_label = {sample.label: sample for sample in samples}
        windows = windows_of(config, dataset)
        texts = describe_files(
            list(by_label),
            _Labels(dataset, benchmark),
            partial(_read_classes, reader, lookup, by_label, windows),
            cache_dir,
            windows=windows,
            progress=progress,
        )
        found |= {sample.image: texts[label] for label, sample in by_label.items()}
    return found


def _read_classes(
    reader: Reader,
    lookup: np.ndarray,
    by_label: Mapping[Path, Sample],
    windows: Windows | None,
    path: Path,
) -> list[np.ndarray]:
    """The class indices (H, W) of the label at `path`, or what each window shows of them."""
    classes = lookup[reader.read_label(by_label[path])]
    return windows.cut(classes) if windows else [classes]


class _Labels:
    """Maps of class indices (H, W) to captions."""

    MIN_SHARE = 0.002  # of the labelled area: a label is no noise, unlike a zero-shot patch

    def __init__(self, dataset: str, benchmark: Benchmark) -> None:
        self.classes, self.scene = benchmark.classes, benchmark.scene
        self.identity = f"{ORACLE} 1 {dataset} {self.MIN_SHARE} {list(self.classes)}"
        # Two described benchmarks of one data set may map its classes otherwise, to the same names.
        if MARK in benchmark.name:
            self.identity += f" {benchmark.name}"

    def __call__(self, items: Sequence[np.ndarray]) -> list[str]:
        return [self._describe(label) for label in items]

    def _describe(self, label: np.ndarray) -> str:
        count = len(self.classes)
        known = torch.from_numpy(np.minimum(label, count).astype(np.int64))
        masks = torch.nn.functional.one_hot(known, count + 1)[..., :count].float()[None]
        total = masks.mean().clamp(min=1e-9) * count  # the labelled share of the image
        rows, columns = (thirds(masks.mean(axis) / total)[0].numpy() for axis in (2, 1))
        return sentence(phrases(self.classes, rows, columns, self.MIN_SHARE), self.scene)
