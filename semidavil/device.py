"""Where a run computes: its device, determinism and mixed precision."""

import random
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from semidavil.machine import available_cpus


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


def make_deterministic(seed: int, threads: int, device: torch.device, strict: bool = True) -> None:
    """Sets every global that a run's numbers depend on, whatever ran in this process before.

    On a CPU the same Config gives the same numbers to the last bit, with one number of threads. On a GPU
    PyTorch then takes no kernel that it knows to be non-deterministic: it raises an error instead. What may
    differ all the same: another kind of card, driver, or version of PyTorch, cuDNN or cuBLAS; and several
    processes, whose sums are in another order. CUBLAS_WORKSPACE_CONFIG is set where the package is imported.

    Args:
        strict: else a GPU takes the fastest kernels, whatever the order of their sums.
    """
    free = device.type == "cuda" and not strict
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    # On CUDA, attention that is only asked to warn takes kernels that sum in any order.
    torch.use_deterministic_algorithms(not free, warn_only=device.type != "cuda")
    # Deterministic mode would fill each new tensor before it is used, 8% of a toy step, for programs that
    # read what they have not written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = free
    torch.set_default_dtype(torch.float32)
    # Nothing of a step is float32 for speed: what is, is so because it must not be rounded.
    torch.set_float32_matmul_precision("highest")
    torch.set_num_threads(threads or available_cpus())
    cv2.setNumThreads(1)  # a window is too small to be shared


def use_bfloat16(wanted: bool, device: torch.device) -> bool:
    """Mixed precision where the device computes bfloat16 natively: recent GPUs."""
    return (
        wanted and device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    )


def to_device(batch: dict[str, dict[str, Any]], device: torch.device) -> dict[str, dict[str, Any]]:
    """A batch on the device; from pinned memory, the copy does not wait for what the device computes."""
    return {
        stream: {name: _moved(value, device) for name, value in part.items()}
        for stream, part in batch.items()
    }


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    return value.to(device)  # a Language or StrongViews, whose own `to` does not wait either
