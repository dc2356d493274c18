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
from semidavil.data.synapse import Scan, Synapse


def open_synapse(config: Config) -> Synapse:
    """The reader below the data root; toy scans are generated on first use."""
    root = data_root(config) / BENCHMARKS[config.data.benchmark].target
    return Synapse(root, config.volumes)


def check_volumes(config: Config, reader: Synapse) -> None:
    """Reads every scan once: what is wrong is found before training.

    Raises:
        DataError: see `Synapse.labelled_and_not` and `Synapse.read`; or no test scan.
    """
    reader.labelled_and_not(config.data.budget, config.seed)
    for split in ("train", "test"):
        if not reader.cases(split):
            raise DataError(f"synapse: there is no scan for {split} in {reader.root}")
    reader.voxels(("train", "test"))


class VolumeBatches(Dataset):
    """`batches[t]`: labelled image (B, 1, d, h, w) and label (B, d, h, w) uint8; unlabelled image.

    A random patch; volumes smaller than it are padded with air. Unlike in UA-MT's code, which segments
    one organ, nothing is mirrored or turned: left and right organs would change their names.
    """

    def __init__(self, config: Config, reader: Synapse) -> None:
        self.config = config
        parts = reader.labelled_and_not(config.data.budget, config.seed)
        self.scans: dict[str, list[Scan]] = {
            stream: [reader.read(case) for case in cases]
            for stream, cases in zip(("labelled", "unlabelled"), parts, strict=True)
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
        window, pad = [], []
        for size, wanted in zip(scan.image.shape, self.config.volumes.patch, strict=True):
            missing = max(0, wanted - size)
            start = rng.integers(size + missing - wanted + 1)
            window.append(slice(start, start + wanted))
            pad.append((missing // 2, missing - missing // 2))
        # Cut out before padding, which copies: 5 instead of 26 ms of CPU for 96 voxels a side of 150x512x512.
        image, label = (np.pad(part[tuple(window)], pad) for part in (scan.image, scan.label))
        return torch.from_numpy(image)[None], torch.from_numpy(label)
