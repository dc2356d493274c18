"""Trials of several processes each, with the real training on miniature data."""

from pathlib import Path

import pytest
from test_sweep_command import Sweeps

from semidavil.config import ConfigError
from semidavil.data.toy import ensure_toy_data
from sweeps.run import base_config, parser
from sweeps.tracking import Store


@pytest.mark.slow
def test_trials_of_two_processes_end_as_those_of_one(
    store: Store, empty_store: Path, tmp_path: Path
) -> None:
    root = ensure_toy_data(
        tmp_path / "data", counts={"train": 8, "val": 4, "gta5": 6}, progress=False
    )
    arguments = (
        *("--grid", "baselines", "--budgets", "4", "--preset", "toy", "--data-root", str(root)),
        *("--set", "data.toy=false", f"runtime.cache_dir={tmp_path / 'cache'}"),
        *("training.steps=4", "training.warmup_steps=0", "training.batch_size=2"),
        "runtime.device=cpu",
    )
    (tmp_path / "pairs").mkdir()
    (tmp_path / "pairs" / "mlflow.db").write_bytes(empty_store.read_bytes())
    alone, pairs = Sweeps(store), Sweeps(Store(tmp_path / "pairs"))
    for sweeps in (alone, pairs):
        del sweeps.environment["SEMIDAVIL_TRAIN"]
    code, output = alone.run(*arguments, "--concurrency", "1")
    assert code == 0, output
    code, output = pairs.run(*arguments, "runtime.world_size=2", "--concurrency", "1")
    assert code == 0, output

    expected = {run.key: run.metrics for run in alone.store.runs()}
    assert len(expected) > 2
    assert pairs.keys() == alone.keys()
    for run in pairs.store.runs():
        assert run.params["runtime.world_size"] == "2"
        found = {name: run.metrics[name] for name in ("train/loss", "final/pixel_accuracy")}
        wanted = {name: expected[run.key][name] for name in found}
        assert found == pytest.approx(wanted, rel=1e-3)


def test_gpus_per_trial_is_the_number_of_processes() -> None:
    def world_size(*arguments: str) -> int:
        options = parser().parse_args(["--grid", "attention", *arguments])
        return base_config(options)[1].runtime.world_size

    assert world_size() == world_size("--gpus-per-trial", "0.5") == 1
    assert world_size("--gpus-per-trial", "2") == 2
    with pytest.raises(ConfigError, match="equally"):
        world_size("--gpus-per-trial", "3")
