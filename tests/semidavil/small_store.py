"""Street images of two data sets, four a split, and what a store keeps of them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from semidavil.config import Config, preset
from semidavil.data.checks import check_data
from semidavil.data.decoded import open_images
from semidavil.data.filling import Filling
from semidavil.data.readers import Sample
from semidavil.data.store import IMAGE, LABEL, OWN_LABEL
from semidavil.data.streams import all_samples
from semidavil.data.windows import Box

BOX = Box(3, 5, 7, 11)


def make_config(write_dataset: Callable[..., Path], tmp_path: Path) -> Config:
    """Full-size files larger than the working size, labels of all ids: 4 images a split."""
    rng = np.random.default_rng(1)

    def label(size: tuple[int, int], ids: int) -> Callable[[int], np.ndarray]:
        return lambda _: rng.integers(0, ids, size, np.uint8)

    root = write_dataset("synthia", label((38, 64), 23), 4, (38, 64))
    write_dataset("cityscapes", label((32, 66), 34), 4, (32, 66))
    return preset("small", {
        "data.benchmark": "synthia-cityscapes",
        "data.budget": 2,
        "data.source_size": "20x32",
        "data.target_size": "16x33",
        "data.crop": "16x16",
        "training.batch_size": 2,
        "runtime.data_root": str(root),
        "runtime.cache_dir": str(tmp_path / "cache"),
    })  # fmt: skip


def fill(config: Config) -> Filling:
    with Filling(config) as found:
        check_data(config, filling=found)
        found.finish()
    return found


def samples_of(config: Config) -> list[tuple[str, str, Sample]]:
    return [(d, split, s) for (d, split), group in all_samples(config).items() for s in group]


def pixels(config: Config) -> list[torch.Tensor]:
    """All that runs look at, whole and in windows."""
    opened = {name: open_images(config, name) for name in ("synthia", "cityscapes")}
    found = []
    for dataset, split, sample in samples_of(config):
        images = opened[dataset]
        found += [images.image(sample), images.window(sample, BOX)]
        found += [images.label(sample), images.label_window(sample, BOX)]
        if split == "val":
            found.append(images.own_label(sample))
    return found


def same(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def afresh(config: Config) -> list[torch.Tensor]:
    return pixels(config.replace({"data.store": "off"}))


def kept(config: Config) -> dict[tuple[str, str], int]:
    """How many arrays there are, by data set and kind."""
    counts: dict[tuple[str, str], int] = {}
    for dataset in ("synthia", "cityscapes"):
        for (kind, _), arrays in open_images(config, dataset).store.files.items():
            if arrays.entries:
                counts[dataset, kind] = counts.get((dataset, kind), 0) + len(arrays.entries)
    return counts


EVERYTHING = {
    ("synthia", IMAGE): 4, ("synthia", LABEL): 4,
    ("cityscapes", IMAGE): 8, ("cityscapes", LABEL): 4, ("cityscapes", OWN_LABEL): 4,
}  # fmt: skip
