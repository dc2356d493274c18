"""The paper's own scale, as far as a CPU goes: one optimisation step of CLIP ViT-B/16 at 512x512."""

import resource
from collections.abc import Callable
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import save_file

from semidavil.config import preset
from semidavil.train import Report, train


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*does not say its activation")
def test_one_step_of_the_paper_preset(
    tmp_path: Path, write_dataset: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    label = np.resize(np.repeat(np.arange(34, dtype=np.uint8), 40), (64, 128))
    for dataset in ("gta5", "cityscapes"):
        root = write_dataset(dataset, lambda _: label, count=1, size=(64, 128))
    weights = tmp_path / "vit_b_16.safetensors"
    torch.manual_seed(0)
    save_file(open_clip.create_model("ViT-B-16", pretrained=None).state_dict(), weights)
    config = preset(
        "paper",
        {
            "data.budget": 1,
            "model.weights": str(weights),
            "training.steps": 1,
            "training.batch_size": 1,
            "runtime.data_root": str(root),
            "runtime.cache_dir": str(tmp_path / "cache"),
            "runtime.eval_batch_size": 1,
        },
    )
    assert config.data.crop == (512, 512)
    assert config.model.fusion == "dlg"
    reports: list[Report] = []
    result = train(config, reports.append, tmp_path / "run")
    assert len(result.confusion) == 19
    assert result.confusion.sum() > 0
    (metrics,) = [r.metrics for r in reports]
    assert np.isfinite(metrics["train/loss"])
    assert metrics["train/loss_sup"] > 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    with capsys.disabled():
        print(
            f"\npaper preset, one step of 3 images 512x512, ViT-B/16: {result.seconds:.0f} s with "
            f"the evaluation of one image, peak memory {peak:.1f} GiB (the whole process)"
        )
