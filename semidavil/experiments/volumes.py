"""CT volumes: what `semidavil.train` trains on, by what, and how it is scored."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from semidavil.benchmarks import BENCHMARKS
from semidavil.config import Config
from semidavil.data.files import hash_files
from semidavil.data.fingerprint import fingerprint
from semidavil.data.volumes import VolumeBatches, check_volumes, open_synapse
from semidavil.evaluation.latency import milliseconds
from semidavil.evaluation.volumes import VolumeEvaluation, evaluate_volumes, save_slices
from semidavil.experiments.optimizer import adamw
from semidavil.losses import build_loss
from semidavil.methods.table import METHODS
from semidavil.models.unet3d import PyramidUNet
from semidavil.models.weights import save_weights


def prepare_volumes(config: Config, progress: bool) -> None:
    """Toy scans and checks."""
    check_volumes(config, open_synapse(config))
    fingerprint(config, partial(hash_files, progress=progress))


class VolumeExperiment:
    """A `base.Experiment` of CT volumes, scored by Dice on the test scans.

    No choice is made by the score, so that the six test scans serve during training too.
    """

    def __init__(self, config: Config, device: torch.device) -> None:
        self.config, self.device, settings = config, device, config.volumes
        self.organs = BENCHMARKS[config.data.benchmark].classes
        reader = open_synapse(config)
        self.data = fingerprint(config)
        self.constants: dict[str, float] = {}
        self.notes: dict[str, str] = {}
        batches = VolumeBatches(config, reader)
        self.batches: Dataset = batches
        self.scans = {case.name: reader.read(case) for case in reader.cases("test")}
        num_classes = 1 + len(self.organs)
        loss = build_loss(config.loss, num_classes, lambda: batches.class_voxels(num_classes))
        method = METHODS[config.training.method]
        student = PyramidUNet(num_classes, settings.width, method.dropout(settings))
        self.method = method(student, loss, config).to(device)
        trained = [p for p in self.method.parameters() if p.requires_grad]
        self.lr, self.grad_clip = settings.lr, 0.0
        groups = [{"params": trained, "scale": 1.0}]
        self.optimizer: torch.optim.Optimizer
        if settings.optimizer == "adamw":
            self.optimizer = adamw(groups, settings.lr, settings.weight_decay)
        else:
            self.optimizer = torch.optim.SGD(
                groups, settings.lr, momentum=0.9, weight_decay=settings.weight_decay
            )

    def evaluate(self, networks: Mapping[str, PyramidUNet]) -> dict[str, VolumeEvaluation]:
        patch = self.config.volumes.patch
        return evaluate_volumes(networks, self.scans, len(self.organs), patch, self.device)

    def latency(self, name: str) -> float:
        network = self.method.networks()[name].eval()
        patch = torch.zeros(1, 1, *self.config.volumes.patch, device=self.device)
        return milliseconds(lambda: network(patch), self.device)

    def summary(self, evaluation: VolumeEvaluation) -> dict[str, float]:
        return evaluation.summary(self.organs)

    def absent(self, evaluation: VolumeEvaluation) -> list[str]:
        nowhere = np.isnan(evaluation.dice).all(0)
        return [organ for organ, missing in zip(self.organs, nowhere, strict=True) if missing]

    def save(self, name: str, evaluation: VolumeEvaluation, folder: Path) -> dict[str, Path]:
        files = {
            "weights": folder / "network.safetensors",
            "examples": folder / "examples.png",
            "evaluation": folder / "evaluation.npz",
        }
        network = self.method.networks()[name]
        save_weights(files["weights"], network, self.config, name)
        evaluation.save(files["evaluation"])
        patch = self.config.volumes.patch
        save_slices(network, self.scans, patch, self.device, files["examples"])
        return files
