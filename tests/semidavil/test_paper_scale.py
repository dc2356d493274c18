"""The paper's own scale, as far as a CPU goes: one optimisation step of CLIP ViT-B/16 at 512x512."""

import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
# `python -m semidavil` with weights made for it; it would take five images for the median time of one.
SCRIPT = """
import open_clip
import torch
from safetensors.torch import save_file

from semidavil.__main__ import app
from semidavil.evaluation import latency

torch.manual_seed(0)
save_file(open_clip.create_model("ViT-B-16", pretrained=None).state_dict(), {weights!r})
latency.SLOW = 0.0
app()
"""


@pytest.mark.slow
def test_one_step_of_the_paper_preset(
    tmp_path: Path, write_dataset: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """In a process of its own: it takes gigabytes."""
    label = np.resize(np.repeat(np.arange(34, dtype=np.uint8), 40), (64, 128))
    for dataset in ("gta5", "cityscapes"):
        root = write_dataset(dataset, lambda _: label, count=1, size=(64, 128))
    weights = tmp_path / "vit_b_16.safetensors"
    script = SCRIPT.format(weights=str(weights))
    settings = {
        "training.method": "source_only",  # one image a step
        "data.budget": 0,
        "data.target_size": "512x512",  # one window of the training crops' size
        "model.weights": weights,
        "model.captions": "class_names",  # one text for all images, and no search for classes in them
        "training.steps": 1,
        "training.batch_size": 1,
        "runtime.cache_dir": tmp_path / "cache",
        "runtime.device": "cpu",
    }
    command = [
        sys.executable,
        "-c",
        script,
        "train",
        "--preset",
        "paper",
        "--data-root",
        root,
    ]
    command += [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    started = time.perf_counter()
    done = subprocess.run(
        [*map(str, command), "--out", str(tmp_path / "run")],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "mIoU" in done.stdout
    assert "does not say its activation" in done.stderr
    assert (tmp_path / "run" / "segmenter.safetensors").stat().st_size > 300 * 2**20
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    with capsys.disabled():
        print(
            "\npaper preset, one step of one image 512x512, ViT-B/16, with the evaluation of one "
            f"image: {time.perf_counter() - started:.0f} s, {peak:.1f} GiB"
        )
