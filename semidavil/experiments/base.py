"""What `semidavil.train` asks of an experiment."""

from pathlib import Path
from typing import Any, Protocol

import torch
from torch.utils.data import Dataset


class Experiment(Protocol):
    """Everything that differs between kinds of data.

    Attributes:
        data: a fingerprint of the files that are trained on and scored on.
        constants: numbers that are the same at every step, to be tracked with the scores.
        notes: what else is to be known of the run, by name.
        method: a `methods.base.Method` or a `methods.volumes.VolumeMethod`.
        batches: `batches[t]` is the batch of step t.
        optimizer: its groups carry `scale`, the share of the learning rate that is theirs.
        lr: the learning rate before the schedule.
        grad_clip: the largest gradient norm; 0 switches clipping off.
    """

    data: str
    constants: dict[str, float]
    notes: dict[str, str]
    method: Any
    batches: Dataset
    optimizer: torch.optim.Optimizer
    lr: float
    grad_clip: float

    def evaluate(self, networks: Any) -> dict[str, Any]:
        """The evaluation of each of the named networks."""
        ...

    def latency(self, name: str) -> float:
        """Milliseconds that a network takes for one validation image, or one patch of a volume."""
        ...

    def summary(self, evaluation: Any) -> dict[str, float]:
        """Scores by name, the benchmark's own among them."""
        ...

    def absent(self, evaluation: Any) -> list[str]:
        """Classes that no score speaks of."""
        ...

    def save(self, name: str, evaluation: Any, folder: Path) -> dict[str, Path]:
        """Writes weights, scores and pictures of the reported network into an existing folder."""
        ...
