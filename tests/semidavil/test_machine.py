"""What is known of a machine, and set in it, before PyTorch is loaded."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from semidavil import machine


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
