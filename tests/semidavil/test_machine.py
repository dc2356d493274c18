"""What is known of a machine, and set in it, before PyTorch is loaded."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from semidavil import machine
from semidavil.machine import available_cpus, cpu_quota


def test_matrix_products_of_a_gpu_are_deterministic_from_the_first_one() -> None:
    """cuBLAS reads the variable once: captioning uses the GPU long before a run is made deterministic."""
    environment = {n: v for n, v in os.environ.items() if n != "CUBLAS_WORKSPACE_CONFIG"}
    code = "import semidavil, os; print(os.environ['CUBLAS_WORKSPACE_CONFIG'])"
    for given, expected in ({}, ":4096:8"), ({"CUBLAS_WORKSPACE_CONFIG": ":16:8"}, ":16:8"):
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment | given, capture_output=True, text=True
        )
        assert done.stdout.strip() == expected, done.stderr


@pytest.mark.parametrize(
    ("device", "visible", "expected"),
    [
        ("nvidia0", None, 2), ("kfd", None, 2), ("dxg", "0", 2),
        ("nvidia0", "", 0), ("nvidia0", "-1", 0), ("nvidiactl", None, 0), ("null", "0", 0),
    ],
)  # fmt: skip
def test_pytorch_is_asked_for_gpus_only_where_there_is_a_driver(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    visible: str | None,
    expected: int,
) -> None:
    (tmp_path / device).touch()
    monkeypatch.setattr(machine, "DEVICES", tmp_path)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert machine.count_gpus() == expected


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return root


@pytest.mark.parametrize(
    ("own", "files", "quota"),
    [
        ("0::/", {"cpu.max": "400000 100000"}, 4),
        ("0::/", {"cpu.max": "max 100000"}, math.inf),
        ("0::/", {}, math.inf),
        ("0::/pod/box", {"pod/box/cpu.max": "250000 100000"}, 2.5),
        # A group has no more than those above it.
        ("0::/pod/box", {"pod/box/cpu.max": "max 100000", "pod/cpu.max": "50000 100000"}, 0.5),
        ("0::/pod/box", {"pod/box/cpu.max": "300000 50000", "pod/cpu.max": "800000 100000"}, 6),
        # Of another group.
        ("0::/pod/box", {"pod/other/cpu.max": "100000 100000"}, math.inf),
        (
            "5:memory:/a\n4:cpu,cpuacct:/a/b\n3:cpuset:/",
            {
                "cpu,cpuacct/a/b/cpu.cfs_quota_us": "150000",
                "cpu,cpuacct/a/b/cpu.cfs_period_us": "100000",
                "cpu,cpuacct/cpu.cfs_quota_us": "-1",
                "cpu,cpuacct/cpu.cfs_period_us": "100000",
            },
            1.5,
        ),
        # The name of the group is the host's; what is mounted is the container's own.
        (
            "4:cpu:/docker/0a1b",
            {"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"},
            2,
        ),
    ],
)
def test_the_tightest_limit_counts(
    tmp_path: Path, own: str, files: dict[str, str], quota: float
) -> None:
    (tmp_path / "cgroup").write_text(f"{own}\n")
    assert cpu_quota(tmp_path / "cgroup", write(tmp_path / "groups", files)) == quota


def test_without_control_groups_there_is_no_limit(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path / "missing", tmp_path) == math.inf


@pytest.mark.parametrize(
    ("quota", "seen", "cpus"), [(math.inf, 8, 8), (2.5, 8, 3), (0.2, 8, 1), (6, 2, 2), (2, 64, 2)]
)
def test_cpus_are_those_seen_and_granted(
    monkeypatch: pytest.MonkeyPatch, quota: float, seen: int, cpus: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(seen)), raising=False)
    monkeypatch.setattr(machine, "cpu_quota", lambda: quota)
    assert available_cpus() == cpus
