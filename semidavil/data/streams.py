"""Which images a run draws: the samples of each stream, and of every split."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from semidavil.benchmarks import BENCHMARKS
from semidavil.config import Config
from semidavil.data.depth import Disparities, depth_features, disparity_source
from semidavil.data.layout import cache_dir, open_reader
from semidavil.data.readers import Sample
from semidavil.data.scans import usable_samples
from semidavil.data.splits import split_target
from semidavil.descriptions import UNLABELLED
from semidavil.names import METHODS
from semidavil.registry import has_unlabelled

Groups = dict[tuple[str, str], list[Sample]]  # by data set and split


def streams_of(config: Config) -> frozenset[str]:
    """The streams that a run draws from: its method's, without one that would teach it nothing."""
    traits = METHODS[config.training.method]
    unused = traits.consistency_only and config.training.consistency_weight == 0
    return traits.streams - {"unlabelled"} if unused else traits.streams


def train_samples(config: Config) -> dict[str, list[Sample]]:
    """The samples of each stream: "source" (if any), "labelled" (if any), "unlabelled".

    Unlabelled are the target's training images that the budget leaves out, and those that have no label.
    """
    benchmark = BENCHMARKS[config.data.benchmark]
    target = usable_samples(open_reader(config, benchmark.target), "train", cache_dir(config))
    features = selection_features(config, target) if config.data.selection == "depth" else None
    others = samples_without_labels(config)
    labelled, unlabelled = split_target(target, config.data.budget, config.seed, features, others)
    streams = {"labelled": labelled, "unlabelled": unlabelled}
    if benchmark.source:
        source = open_reader(config, benchmark.source)
        streams["source"] = usable_samples(source, "train", cache_dir(config))
    return {name: samples for name, samples in streams.items() if samples}


def samples_without_labels(config: Config) -> list[Sample]:
    """The pictures that come without labels: of a described target that names such."""
    target = BENCHMARKS[config.data.benchmark].target
    if not has_unlabelled(target):
        return []
    return usable_samples(open_reader(config, target), UNLABELLED, cache_dir(config))


def disparities(config: Config, samples: Sequence[Sample], progress: bool = False) -> Disparities:
    """The disparities of target images, from where `data.depth` says."""
    target = BENCHMARKS[config.data.benchmark].target
    return disparity_source(config.data.depth, target, samples, cache_dir(config), progress)


def selection_features(
    config: Config, samples: Sequence[Sample], progress: bool = False
) -> np.ndarray:
    """What `data.selection=depth` chooses target images by, a row an image."""
    maps = disparities(config, samples, progress)
    return depth_features(config.data.depth, samples, maps, cache_dir(config), progress)


def all_samples(config: Config) -> Groups:
    """Every sample that a run of `config`'s benchmark may look at, by data set and split."""
    benchmark, found = BENCHMARKS[config.data.benchmark], Groups()
    for dataset in benchmark.datasets:
        reader = open_reader(config, dataset)
        found[dataset, "train"] = usable_samples(reader, "train", cache_dir(config))
    target = open_reader(config, benchmark.target)
    found[benchmark.target, "val"] = usable_samples(target, "val", cache_dir(config))
    if has_unlabelled(benchmark.target):
        found[benchmark.target, UNLABELLED] = samples_without_labels(config)
    return found


def image_paths(config: Config) -> list[Path]:
    """The images of `all_samples`."""
    return [sample.image for samples in all_samples(config).values() for sample in samples]
