"""A trial of several processes, with the real training on miniature data."""

from collections import deque
from pathlib import Path
from typing import Any

import pytest

from semidavil.config import ConfigError, preset
from semidavil.data.toy import ensure_toy_data
from semidavil.train import prepare, train
from sweeps.engine import Resources, run_tasks, started_ray
from sweeps.run import base_config, parser
from sweeps.tracking import Store
from sweeps.trial import TRAIN, Task


class Quiet:
    """A `sweeps.engine.Listener` that only remembers what was lost."""

    def __init__(self) -> None:
        self.reasons: list[str] = []

    def started(self, task: Task) -> None: ...
    def told(self, task: Task, news: dict[str, Any]) -> None: ...
    def stops(self, task: Task, news: dict[str, Any]) -> bool:
        return False

    def revived(self, task: Task) -> None: ...
    def lost(self, task: Task, reason: str) -> None:
        self.reasons.append(reason)

    def idle(self) -> None: ...


@pytest.mark.slow
def test_a_trial_of_two_processes_ends_as_a_run_of_one(store: Store, tmp_path: Path) -> None:
    counts = {"train": 8, "val": 4, "gta5": 6}
    settings = {
        "data.toy": False,
        "data.budget": 4,
        "training.steps": 4,
        "training.warmup_steps": 0,
        "training.batch_size": 2,
        "runtime.data_root": str(ensure_toy_data(tmp_path / "data", counts=counts, progress=False)),
        "runtime.cache_dir": str(tmp_path / "cache"),
        "runtime.device": "cpu",
    }
    config = preset("toy", settings)
    prepare(config)
    alone = train(config)

    pair = config.replace({"runtime.world_size": 2})
    run_id = store.open_run(store.experiment_id("attention"), "cell", pair, {})
    task = Task("cell", pair.to_params(), run_id, store.uri, str(store.storage.folder / pair.key()))
    tasks, listener = deque([task]), Quiet()
    resources = Resources(concurrency=1, cpus=2, gpus=0)
    with started_ray(resources, TRAIN):
        run_tasks(lambda: tasks.popleft() if tasks else None, listener, resources)

    (run,) = store.runs()
    assert run.status == "FINISHED", (run.tags.get("reason"), listener.reasons)
    assert run.key == config.key()
    assert run.params["runtime.world_size"] == "2"
    score = run.metrics["final/pixel_accuracy"]
    assert score == pytest.approx(alone.metrics["pixel_accuracy"], abs=0.1)


def test_gpus_per_trial_is_the_number_of_processes() -> None:
    def world_size(*arguments: str) -> int:
        options = parser().parse_args(["--grid", "attention", *arguments])
        return base_config(options)[1].runtime.world_size

    assert world_size() == world_size("--gpus-per-trial", "0.5") == 1
    assert world_size("--gpus-per-trial", "2") == 2
    with pytest.raises(ConfigError, match="equally"):
        world_size("--gpus-per-trial", "3")
