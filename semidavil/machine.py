"""What this machine has, as far as can be known without loading PyTorch."""

import math
import os
from pathlib import Path

DEVICES = Path("/dev")
CGROUPS = Path("/sys/fs/cgroup")
GPU_FILES = ("nvidia[0-9]*", "kfd", "dxg")  # of drivers: NVIDIA's, AMD's, and of Windows below WSL
HIDDEN = ("", "-1", "NoDevFiles")  # CUDA_VISIBLE_DEVICES where no GPU is to be seen


def available_cpus() -> int:
    """CPU cores that this process may use: a container, or a job of SLURM, may have fewer than it sees."""
    seen = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(seen, cpu_quota(), slurm_cpus())))


def slurm_cpus() -> float:
    """CPU cores of this job on this machine, which not every cluster enforces; infinite outside of one."""
    names = ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE")
    given = [os.environ.get(name, "") for name in names] if "SLURM_JOB_ID" in os.environ else []
    return next((float(text) for text in given if text.isdigit()), math.inf)


def cpu_quota(processes: Path = Path("/proc/self/cgroup"), groups: Path = CGROUPS) -> float:
    """CPUs' worth of time that this process's control groups grant it; infinite without a limit.

    Those of both versions of Linux's cgroups, from the process's own group up to the root: the tightest
    counts. Where a container is shown its host's names of groups, its own limit is at the root.
    """
    quotas = [math.inf]
    try:
        lines = processes.read_text().splitlines()
    except OSError:  # not Linux
        return math.inf
    for line in lines:
        _, controllers, own = line.split(":", 2)
        if controllers not in ("", "cpu") and "cpu" not in controllers.split(","):
            continue
        mount = groups / controllers
        above = [mount / own.lstrip("/"), *(mount / own.lstrip("/")).parents]
        for folder in above[: above.index(mount) + 1]:
            # Version 2 has both numbers in one file, version 1 has -1 for no limit.
            texts = [_read(folder / "cpu.max")] if not controllers else [
                _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
            ]  # fmt: skip
            numbers = " ".join(texts).split()
            if len(numbers) == 2 and numbers[0] not in ("max", "-1"):
                quotas.append(int(numbers[0]) / int(numbers[1]))
    return min(quotas)


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""


def count_gpus() -> int:
    """GPUs that PyTorch sees here. It is asked, which takes seconds, only where there is a driver."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in HIDDEN
    if hidden or not any(any(DEVICES.glob(name)) for name in GPU_FILES):
        return 0
    import torch

    return torch.cuda.device_count()
