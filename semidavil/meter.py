"""Mean losses, throughput and memory between two reports."""

import time
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from semidavil.memory import peak_memory_mb


class Meter:
    """Averages losses and counts images between two reports."""

    def __init__(self, every: int, device: torch.device) -> None:
        self.every, self.device = every, device
        self._reset()

    def _reset(self) -> None:
        self.sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=self.device))
        self.steps = self.images = 0
        self.started = time.perf_counter()
        self.paused = 0.0

    def add(self, losses: dict[str, Tensor], images: int) -> None:
        for name, value in losses.items():
            self.sums[name] += value.detach().float()
        self.steps += 1
        self.images += images

    def skip(self, seconds: float) -> None:
        """Leaves `seconds` (an evaluation) out of the throughput."""
        self.paused += seconds

    def read(self) -> dict[str, float]:
        """`train/<loss>` means since the last reading, throughput and peak memory; starts anew."""
        seconds = time.perf_counter() - self.started - self.paused
        values = {f"train/{name}": (total / self.steps).item() for name, total in self.sums.items()}
        values["train/images_per_second"] = self.images / seconds
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
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a `state_dict`."""
        self._reset()
        for name, total in state["sums"].items():
            self.sums[name] += total
        self.steps, self.images = state["steps"], state["images"]
        self.started -= state["seconds"]
