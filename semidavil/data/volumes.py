"""Patches of volumes for training; a step's batch depends on seed and step alone."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from semidavil.benchmarks import BENCHMARKS
from semidavil.config import Config
from semidavil.data.files import DataError
from semidavil.data.layout import data_root
from semidavil.data.splits import split_at_random
from semidavil.data.synapse import Case, Scan, Synapse


def open_synapse(config: Config) -> Synapse:
    """The reader below the data root; toy scans are generated on first use."""
    return Synapse(data_root(config) / BENCHMARKS[config.data.benchmark].target)


def split_cases(config: Config, reader: Synapse) -> dict[str, list[Case]]:
    """Labelled and unlabelled training cases; nested budgets by seed.

    Raises:
        DataError: a budget of no scan, or of more than there are.
    """
    cases = reader.cases("train")
    if not 0 < config.data.budget <= len(cases):
        raise DataError(
            f"a budget of {config.data.budget} labelled scans of {len(cases)} training scans: "
            f"choose 1 to {len(cases)} (--budgets)"
        )
    chosen, rest = split_at_random(len(cases), config.data.budget, config.seed)
    return {"labelled": [cases[i] for i in chosen], "unlabelled": [cases[i] for i in rest]}


def check_volumes(config: Config, reader: Synapse) -> None:
    """Reads every scan once: what is wrong is found before training.

    Raises:
        DataError: see `Synapse.read`; or no test scan.
    """
    split_cases(config, reader)
    for split in ("train", "test"):
        if not reader.cases(split):
            raise DataError(f"synapse: there is no scan for {split} in {reader.root}")
    reader.voxels(("train", "test"))


class VolumeBatches(Dataset):
    """`batches[t]`: labelled image (B, 1, d, h, w) and label (B, d, h, w); unlabelled image.

    A random patch; volumes smaller than it are padded with air. Unlike in UA-MT's code, which segments
    one organ, nothing is mirrored or turned: left and right organs would change their names.
    """

    def __init__(self, config: Config, reader: Synapse) -> None:
        self.config = config
        self.scans: dict[str, list[Scan]] = {
            stream: [reader.read(case) for case in cases]
            for stream, cases in split_cases(config, reader).items()
        }

    def class_voxels(self, num_classes: int) -> list[int]:
        """Voxels of each class in the labelled scans."""
        labels = [scan.label.ravel() for scan in self.scans["labelled"]]
        return np.bincount(np.concatenate(labels), minlength=num_classes).tolist()

    def __len__(self) -> int:
        return self.config.training.steps

    def __getitem__(self, step: int) -> dict[str, dict[str, Any]]:
        batch: dict[str, dict[str, Any]] = {}
        for number, (stream, scans) in enumerate(self.scans.items()):
            rng = np.random.default_rng([self.config.seed, step, number])
            size = self.config.volumes.batch_size
            parts = [self._patch(scans[i], rng) for i in rng.integers(len(scans), size=size)]
            images, labels = (torch.stack(column) for column in zip(*parts, strict=True))
            batch[stream] = {"image": images}
            if stream == "labelled":
                batch[stream]["label"] = labels
        return batch

    def _patch(self, scan: Scan, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        patch = self.config.volumes.patch
        missing = [max(0, p - n) for p, n in zip(patch, scan.image.shape, strict=True)]
        pad = [(m // 2, m - m // 2) for m in missing]
        image, label = np.pad(scan.image, pad), np.pad(scan.label, pad)
        starts = [rng.integers(n - p + 1) for n, p in zip(image.shape, patch, strict=True)]
        window = tuple(slice(s, s + p) for s, p in zip(starts, patch, strict=True))
        image, label = image[window], label[window]
        return (
            torch.from_numpy(np.ascontiguousarray(image))[None],
            torch.from_numpy(np.ascontiguousarray(label)).long(),
        )
