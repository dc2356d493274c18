"""What this machine has, as far as can be known without loading PyTorch."""

import os
from pathlib import Path

DEVICES = Path("/dev")
GPU_FILES = ("nvidia[0-9]*", "kfd", "dxg")  # of drivers: NVIDIA's, AMD's, and of Windows below WSL
HIDDEN = ("", "-1", "NoDevFiles")  # CUDA_VISIBLE_DEVICES where no GPU is to be seen


def available_cpus() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def count_gpus() -> int:
    """GPUs that PyTorch sees here. It is asked, which takes seconds, only where there is a driver."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in HIDDEN
    if hidden or not any(any(DEVICES.glob(name)) for name in GPU_FILES):
        return 0
    import torch

    return torch.cuda.device_count()
