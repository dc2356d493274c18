"""Trials that share a process, with the real training on miniature data."""

from pathlib import Path
from typing import Any

import pytest

from semidavil.config import preset
from semidavil.data.toy import ensure_toy_data
from sweeps.tracking import Store
from sweeps.trial import Task, run_trial


@pytest.mark.slow
def test_a_trial_ends_the_same_whatever_its_worker_did_before(store: Store, tmp_path: Path) -> None:
    counts = {"train": 8, "val": 4, "gta5": 6}
    root = ensure_toy_data(tmp_path / "data", counts=counts, progress=False)
    tiny = {
        "data.toy": False,
        "data.budget": 4,
        "training.steps": 4,
        "training.warmup_steps": 0,
        "training.batch_size": 2,
        "runtime.data_root": str(root),
        "runtime.cache_dir": str(tmp_path / "cache"),
        "runtime.threads": 1,
        "runtime.device": "cpu",
    }

    def loss_and_score(changes: dict[str, Any]) -> tuple[float, float]:
        config = preset("toy", tiny | changes)
        run_id = store.open_run(store.experiment_id("attention"), "cell", config, {})
        folder = tmp_path / run_id
        run_trial(Task("cell", config.to_params(), run_id, store.uri, str(folder)), lambda _: None)
        run = store.client.get_run(run_id)
        assert run.info.status == "FINISHED", run.data.tags
        return run.data.metrics["train/loss"], run.data.metrics["final/pixel_accuracy"]

    alone = loss_and_score({})
    other = loss_and_score({"model.fusion": "cross_attention", "seed": 5})
    assert loss_and_score({}) == alone
    assert other != alone
