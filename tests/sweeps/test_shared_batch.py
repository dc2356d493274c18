"""A trial of several processes, with the real training on miniature data."""

from collections import deque
from pathlib import Path

import pytest
from sweep_process import forked_workers

from semidavil.config import ConfigError, preset
from semidavil.train import prepare, train
from sweeps.cli import parser
from sweeps.request import Options, requested
from sweeps.run.engine import run_tasks, started_ray
from sweeps.run.events import TRAIN, Done, Event, Progress, Task
from sweeps.run.resources import Resources
from sweeps.track.store import Store


class Quiet:
    """A `sweeps.run.engine.Listener` of some tasks."""

    def __init__(self, *tasks: Task) -> None:
        self.tasks = deque(tasks)
        self.end: Event | None = None

    def next_task(self) -> Task | None:
        return self.tasks.popleft() if self.tasks else None

    def on_start(self, task: Task) -> None: ...

    def on_event(self, task: Task, event: Event) -> bool:
        if not isinstance(event, Progress):
            self.end = event
        return False

    def on_step(self) -> None: ...
    def halts(self) -> bool:
        return False

    def finished(self) -> bool:
        return self.end is not None


@pytest.mark.slow
def test_a_trial_of_two_processes_ends_as_a_run_of_one(
    store: Store, few_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {
        "data.toy": False,
        "data.budget": 4,
        "training.steps": 4,
        "training.warmup_steps": 0,
        "training.batch_size": 2,
        "runtime.data_root": str(few_images),
        "runtime.cache_dir": str(tmp_path / "cache"),
        "runtime.device": "cpu",
    }
    config = preset("toy", settings)
    prepare(config)
    alone = train(config)

    pair = config.replace({"runtime.world_size": 2})
    tags = {"key": pair.key(), "epoch": "1"}
    run_id = store.create_run(store.experiment_id("attention"), "cell", pair, tags)
    where = store.storage.of(pair.key())
    listener = Quiet(Task("cell", pair.to_params(), run_id, 1, store.uri, where))
    resources = Resources(concurrency=1, cpus=2, gpus=0)
    monkeypatch.setenv("RAY_worker_niceness", "0")  # see `sweep_process`
    with forked_workers(tmp_path, monkeypatch), started_ray(resources, TRAIN):
        run_tasks(listener, resources)

    assert isinstance(listener.end, Done), listener.end
    run = store.run(run_id)
    assert run.status == "FINISHED"
    assert run.key == config.key()
    assert run.params["runtime.world_size"] == "2"
    score = run.metrics["final/pixel_accuracy"]
    assert score == pytest.approx(alone.metrics["pixel_accuracy"], abs=0.1)


@pytest.mark.parametrize(("gpus", "processes"), [([], 1), (["0.5"], 1), (["2"], 2)])
def test_gpus_per_trial_is_the_number_of_processes(gpus: list[str], processes: int) -> None:
    assert world_size(gpus) == processes


def test_a_batch_that_its_processes_cannot_share_is_refused() -> None:
    with pytest.raises(ConfigError, match="equally"):
        world_size(["3"])


def world_size(gpus: list[str]) -> int:
    arguments = ["run", "--grid", "attention", *(["--gpus-per-trial", *gpus] if gpus else [])]
    options = parser().parse_args(arguments, Options(given=arguments, from_file={}))
    return requested(options).base.runtime.world_size
