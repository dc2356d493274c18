"""Processes that load batches while the device computes."""

import os
from collections.abc import Iterable, Sequence
from typing import Any

import cv2
import torch
from torch.utils.data import DataLoader, Dataset

from semidavil.config import Config
from semidavil.data.windows import sliding_windows
from semidavil.machine import available_cpus

# More do not help: a step's host work is some 30 ms, and a validation image's a few.
MOST, MOST_FOR_EVALUATION = 16, 4
PREFETCH = 2  # batches that each process has ready


def workers_of(config: Config, device: torch.device) -> int:
    """How many processes load a run's batches.

    `runtime.threads` are the CPUs of the run: a sweep sets it to what each trial gets. On a CPU, computing
    takes all of them, and a batch costs a tenth of a step.
    """
    runtime = config.runtime
    if runtime.num_workers != "auto":
        return runtime.num_workers
    if device.type == "cpu":
        return 0
    # torchrun's own variable: it starts processes without a Config that would say so.
    beside = int(os.environ.get("LOCAL_WORLD_SIZE", runtime.world_size))
    own = runtime.threads or available_cpus() // beside
    return max(0, min(MOST, own - 1))


def training_loader(
    batches: Dataset, steps: Iterable[int], config: Config, device: torch.device
) -> DataLoader:
    """The batches of `steps`, in order."""
    return _loader(batches, workers_of(config, device), device, batch_size=None, sampler=steps)


def evaluation_loader(data: Dataset, config: Config, device: torch.device) -> DataLoader:
    """The validation images in order, as `collate` joins them; its processes stay from one pass to the next.

    As many images a batch as have `runtime.eval_batch_size` windows.
    """
    runtime, windows = config.runtime, sliding_windows(config.data.target_size, config.data.crop)
    size = max(1, runtime.eval_batch_size // len(windows.boxes))
    workers = min(workers_of(config, device), MOST_FOR_EVALUATION)
    return _loader(data, workers, device, batch_size=size, collate_fn=collate)


def collate(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Validation images as one batch: `image` (B, 3, H, W); the rest as lists, as labels differ in size."""
    batch: dict[str, Any] = {name: [item[name] for item in items] for name in items[0]}
    return batch | {"image": torch.stack(batch["image"])}


def _loader(data: Dataset, workers: int, device: torch.device, **options: Any) -> DataLoader:
    if workers:
        options |= {
            "persistent_workers": True,
            "prefetch_factor": PREFETCH,
            "worker_init_fn": _start_worker,
        }
    pin = device.type == "cuda"
    return DataLoader(data, num_workers=workers, pin_memory=pin, **options)


def _start_worker(number: int) -> None:
    """One thread a process: OpenCV would start one for each of the machine's cores in each of them."""
    cv2.setNumThreads(1)  # of PyTorch's own threads, DataLoader leaves one
