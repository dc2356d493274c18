"""Mean losses, throughput, waiting, utilisation and memory between two reports.

Nothing is read from the device between two readings.
"""

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from semidavil.memory import peak_memory_mb


class Meter:
    """Averages losses and counts images between two reports.

    Attributes:
        ideal_seconds: the time that a step would take at the device's peak, in seconds; 0 where that is not
            known.
    """

    def __init__(self, every: int, device: torch.device) -> None:
        self.every, self.device = every, device
        self.ideal_seconds = 0.0
        self._reset()

    def _reset(self) -> None:
        self.sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=self.device))
        self.steps = self.images = 0
        self.started = time.perf_counter()
        self.paused = self.waited = 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around what waits for a batch."""
        start = time.perf_counter()
        yield
        self.waited += time.perf_counter() - start

    def add(self, losses: dict[str, Tensor], images: int) -> None:
        for name, value in losses.items():
            self.sums[name] += value.detach().float()
        self.steps += 1
        self.images += images

    def skip(self, seconds: float) -> None:
        """Leaves `seconds` (an evaluation) out of the throughput."""
        self.paused += seconds

    def read(self) -> dict[str, float]:
        """What has happened since the last reading; starts anew.

        Means of the losses (`train/<loss>`); `train/images_per_second`; `train/data_wait_ms`, for a batch,
        per step; `train/peak_memory_mb`, the GPU's or the process's; and on GPUs whose peak is known,
        `train/mfu`, the model FLOP utilisation.
        """
        values = {f"train/{name}": (total / self.steps).item() for name, total in self.sums.items()}
        seconds = time.perf_counter() - self.started - self.paused  # the losses are there by now
        values["train/images_per_second"] = self.images / seconds
        values["train/data_wait_ms"] = 1000 * self.waited / self.steps
        if self.ideal_seconds:
            values["train/mfu"] = self.steps * self.ideal_seconds / seconds
        values["train/peak_memory_mb"] = peak_memory_mb(self.device)
        self._reset()
        return values

    def state_dict(self) -> dict[str, Any]:
        """What was added since the last reading, as plain values for a checkpoint."""
        return {
            "sums": {name: total.item() for name, total in self.sums.items()},
            "steps": self.steps,
            "images": self.images,
            "seconds": time.perf_counter() - self.started - self.paused,
            "waited": self.waited,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a `state_dict`."""
        self._reset()
        for name, total in state["sums"].items():
            self.sums[name] += total
        self.steps, self.images = state["steps"], state["images"]
        self.started -= state["seconds"]
        self.waited = state.get("waited", 0.0)  # not in checkpoints of earlier versions
