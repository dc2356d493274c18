"""A finished run, trained again from what the store knows of it."""

import io
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from tracked_runs import finish

from semidavil.config import Config, preset
from sweeps.show import rerun as module
from sweeps.show.rerun import rerun
from sweeps.track.retry import TrackingError
from sweeps.track.store import Store

ROOT = Path(__file__).parents[2]
ON_GPU = preset("toy", {"runtime.device": "cuda", "data.budget": "100"})


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """The Configs that a stand-in for the training gets; each scores 34.25."""
    configs: list[Config] = []

    def train(config: Config, report: Callable[[Any], None], checkpoint_dir: Path) -> Any:
        configs.append(config)
        return SimpleNamespace(metrics={"miou": 34.25}, data="weights=1 val=3", latency_ms=math.nan)

    stand_in = SimpleNamespace(prepare=lambda config: None), train
    monkeypatch.setattr(module, "load_training", lambda name: stand_in)
    return configs


def again(store: Store, run_id: str, **changes: str) -> tuple[bool, str]:
    console = Console(file=io.StringIO(), width=200)
    same = rerun(store, run_id, changes, ROOT, console, "a:b")
    assert isinstance(console.file, io.StringIO)
    return same, console.file.getvalue()


def test_a_run_of_a_gpu_is_made_again_on_what_this_machine_has(
    store: Store, trained: list[Config]
) -> None:
    run_id = finish(store, ON_GPU, 34.25)
    unfinished = store.create_run(
        store.experiment_id("attention"), "cell 34.25", ON_GPU, {"key": ON_GPU.key()}
    )
    store.end(unfinished, "KILLED")
    assert again(store, "cell 34.25")[0], "an attempt that came later is not meant"
    assert again(store, run_id[:10])[0]
    assert again(store, run_id, **{"runtime.device": "cpu"})[0]
    assert [config.runtime.device for config in trained] == ["auto", "auto", "cpu"]
    assert {config.key() for config in trained} == {ON_GPU.key()}


def test_another_score_and_other_versions_are_named(store: Store, trained: list[Config]) -> None:
    run_id = finish(store, ON_GPU, 34.75)
    store.log(run_id, tags={"version.torch": "0.1", "commit": "c0ffee", "data": "weights=1 val=2"})
    same, told = again(store, run_id)
    assert not same
    for text in ("not reproduced: -0.5000", "version.torch 0.1 -> ", "git checkout c0ffee"):
        assert text in told
    assert "data: val" in told


def test_only_a_finished_run_can_be_made_again(store: Store) -> None:
    with pytest.raises(TrackingError, match="no run"):
        again(store, "no-such-run")
    run_id = store.create_run(
        store.experiment_id("attention"), "cell", ON_GPU, {"key": ON_GPU.key()}
    )
    with pytest.raises(TrackingError, match="RUNNING: it has no final numbers"):
        again(store, run_id)
