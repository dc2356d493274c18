"""The machine side of a run: device, determinism, mixed precision, memory, throughput."""

import ctypes
import os
import random
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

M_ARENA_MAX = -8  # of glibc's malloc.h
# Linux; see proc(5).
STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"


def choose_device(name: str) -> torch.device:
    """`auto` takes a CUDA GPU where there is one, else the CPU.

    Raises:
        ValueError: the device named does not exist here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"unknown device {name!r}: use auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device {name!r} was asked for, but PyTorch sees {torch.cuda.device_count()} GPUs: "
            "use --set runtime.device=auto"
        )
    return device


def make_deterministic(seed: int, threads: int) -> None:
    """Sets every global that a run's numbers depend on, whatever ran in this process before."""
    # cuBLAS reads it when its handle is made; without it, deterministic mode refuses to multiply.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    torch.set_default_dtype(torch.float32)
    torch.set_float32_matmul_precision("high")
    torch.set_num_threads(threads or available_cpus())


def seed_of(*parts: int) -> int:
    """A seed for torch from several numbers, without the collisions of adding them."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)


def available_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def use_bfloat16(wanted: bool, device: torch.device) -> bool:
    """Mixed precision where the device computes bfloat16 natively: recent GPUs."""
    return wanted and device.type == "cuda" and torch.cuda.is_bf16_supported()


def to_device(batch: dict[str, dict[str, Any]], device: torch.device) -> dict[str, dict[str, Any]]:
    return {
        stream: {
            name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
            for name, value in part.items()
        }
        for stream, part in batch.items()
    }


def bound_memory() -> None:
    """Lets the threads of this process share one heap; call it before other threads are started.

    glibc gives threads heaps of their own (arenas), and keeps what is freed in them. A process that
    trains run after run, each in a new thread, spreads them over more and more arenas. New threads
    also use the arenas that exist already: where other threads have made some, only `trim_memory`
    after each run gives back what is free in them. Other C libraries have no arenas: nothing is done.

    Measured beside 16 other threads with an arena each: after 12 toy runs, 1326 MiB were resident; 843
    with both functions (918 with this one alone, 860 with the other alone), for the same CPU time.
    """
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(M_ARENA_MAX, 1)


def trim_memory() -> None:
    """Gives what is free in all of glibc's arenas back to the system; nothing elsewhere."""
    if malloc_trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        malloc_trim(0)


def reset_peak_memory(device: torch.device) -> None:
    """Lets `peak_memory_mb` count from here on."""
    if device.type == "cuda":
        torch.cuda.init()  # which is otherwise done by the first tensor
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):  # not Linux, or a /proc that is read-only
        CLEAR_REFS.write_text(RESET_PEAK)


def peak_memory_mb(device: torch.device) -> float:
    """Peak memory in MiB since `reset_peak_memory`: the GPU's allocations, or the process on a CPU.

    Where a process cannot reset its own peak (macOS, some containers), it is that since its start.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    with suppress(OSError, StopIteration):
        lines = STATUS.read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) / 2**10
    bytes_or_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return bytes_or_kib / (2**20 if sys.platform == "darwin" else 2**10)


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
