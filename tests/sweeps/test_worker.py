"""One cell in a process, without Ray."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_training import BROKEN, NON_FINITE, STEPS
from slow_cases import also_slow
from tracked_runs import take_over

from semidavil.checkpoint import OtherDataError
from semidavil.config import preset
from sweeps.keep.workspace import StorageError, Workspace
from sweeps.run.events import (
    EVALUATION,
    SAVING,
    STARTING,
    TRAIN,
    TRAINING,
    Done,
    Event,
    Failed,
    Failure,
    Halted,
    Lost,
    Progress,
    Taken,
    Task,
    event_from_json,
    event_to_json,
)
from sweeps.run.worker import run_task
from sweeps.track.outbox import Ending
from sweeps.track.runs import TrackedRun
from sweeps.track.store import Store
from sweeps.track.system_metrics import SystemMetrics


@pytest.fixture(autouse=True)
def _fake_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_TRAINING", str(tmp_path))
    monkeypatch.setenv("FAKE_STEP_SECONDS", "0")
    monkeypatch.setattr("sweeps.run.worker.TELL_SECONDS", 0.0)
    # It looks at all that earlier tests have left; test_shared_worker.py sees to it that it is done.
    monkeypatch.setattr("sweeps.run.worker._free_memory", lambda: None)


def open_task(store: Store, changes: dict[str, Any]) -> Task:
    config = preset("toy", changes)
    tags = {"key": config.key(), "epoch": "1"}
    run_id = store.create_run(store.experiment_id("attention"), "cell", config, tags)
    where = store.storage.of(config.key())
    return Task(
        "cell", config.to_params(), run_id, 1, store.uri, where, train="fake_training:train"
    )


class Sweep:
    """Hears a task's events, and answers that it is to stop from a step on."""

    def __init__(self, stop_at: int = STEPS + 1) -> None:
        self.events: list[Event] = []
        self.stop_at = stop_at

    def on_event(self, event: Event) -> bool:
        self.events.append(event)
        return isinstance(event, Progress) and event.step >= self.stop_at

    @property
    def steps(self) -> list[int]:
        """Those of which it has heard while the task trained."""
        training = (TRAINING, EVALUATION)
        return [x.step for x in self.events if isinstance(x, Progress) and x.phase in training]


def run(store: Store, changes: dict[str, Any]) -> tuple[TrackedRun, Sweep, Path]:
    task, sweep = open_task(store, changes), Sweep()
    run_task(Task.from_json(task.to_json()), sweep.on_event)
    return store.run(task.run_id), sweep, Path(task.workspace)


def logged_steps(store: Store, run_id: str) -> list[int]:
    return [point.step for point in store.client.get_metric_history(run_id, "train/loss")]


@pytest.mark.parametrize(
    "event",
    [
        Progress(3, 10, TRAINING, score=41.5, loss=0.25),
        Done(41.5, 3.25, 60.0, True, "mIoU 41.50"),
        Failed("ValueError: a broken image", Failure.INPUT, False),
        Taken("somebody has deleted it", gone=True),
        Halted(7),
        Lost("its worker process died", True),
    ],
)
def test_an_event_travels_as_text(event: Event) -> None:
    arrived = event_from_json(event_to_json(event))
    assert arrived == event
    if isinstance(arrived, Failed):
        assert isinstance(arrived.failure, Failure)


def test_a_finished_run_has_its_scores_and_artifacts_and_leaves_no_folder(store: Store) -> None:
    finished, sweep, folder = run(store, {})
    assert finished.status == "FINISHED"
    done = sweep.events[-1]
    assert isinstance(done, Done)
    assert done.summary == f"mIoU {finished.metrics['final/miou']:.2f}"
    assert (done.score, done.delivered) == (finished.metrics["final/miou"], True)
    assert finished.metrics["final/steps"] == STEPS
    assert finished.tags["caption_prompt"] == "What is where?"  # what training notes of a run
    kept = {item.path for item in store.client.list_artifacts(finished.run_id)}
    assert kept == {"config.json", "network.bin", "train.log"}
    assert not folder.exists()
    first, *_, last, _ = sweep.events
    assert isinstance(first, Progress)
    assert isinstance(last, Progress)
    assert (first.phase, last.phase) == (STARTING, SAVING)
    assert sweep.steps == list(range(1, STEPS + 1))
    told = [x for x in sweep.events if isinstance(x, Progress) and x.loss is not None]
    assert [x.step for x in told if x.phase == EVALUATION] == [STEPS - 1]  # what follows it
    losses = [x.loss for x in told]
    history = store.client.get_metric_history(finished.run_id, "train/loss")
    assert losses == [point.value for point in history]


def test_scores_are_told_at_once_and_other_steps_now_and_then(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sweeps.run.worker.TELL_SECONDS", 3600.0)
    _, sweep, _ = run(store, {"runtime.eval_every": 4})
    assert sweep.steps == [1, 3, 4, 7, 8, STEPS - 1, STEPS]
    scores = [x.score is not None for x in sweep.events if isinstance(x, Progress)]
    # From `starting` to `saving`; before each evaluation it is said that one follows.
    assert scores == [False, False, *[False, True] * 3, False]


def test_a_step_without_metrics_is_not_logged(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_METRICS_EVERY", "5")
    finished, sweep, _ = run(store, {})
    assert logged_steps(store, finished.run_id) == [5, 10]
    assert sweep.steps == list(range(1, STEPS + 1))


@pytest.mark.parametrize(
    ("changes", "failure", "reason"),
    [
        (
            {"training.lr": NON_FINITE},
            Failure.DIVERGED,
            "NonFiniteLossError: the loss is not finite",
        ),
        (
            {"training.lr": BROKEN, "model.fusion": "vlga"},
            Failure.OTHER,
            "ValueError: a broken image",
        ),
    ],
)
def test_a_failed_run_says_why_and_keeps_its_checkpoint(
    store: Store, changes: dict[str, Any], failure: Failure, reason: str
) -> None:
    failed, sweep, folder = run(store, changes)
    assert failed.status == "FAILED"
    assert failed.tags["reason"].startswith(reason)
    assert failed.tags["retry"] == str(failure is not Failure.DIVERGED).lower()
    event = sweep.events[-1]
    assert isinstance(event, Failed)
    assert (event.failure, event.delivered) == (failure, True)
    assert (folder / "last.pt").exists()
    assert "Traceback" in (folder / "train.log").read_text()
    assert [x.path for x in store.client.list_artifacts(failed.run_id)] == ["train.log"]


@pytest.mark.parametrize("stop_at", [7, *also_slow(0)])
def test_a_run_that_is_told_to_stop_leaves_a_checkpoint_of_that_step(
    store: Store, stop_at: int
) -> None:
    """`CHECKPOINT_EVERY` is 2: without a checkpoint at the stop, step 7 would be trained twice."""
    task, sweep = open_task(store, {}), Sweep(stop_at)
    run_task(task, sweep.on_event)
    assert sweep.events[-1] == Halted(stop_at)
    assert store.run(task.run_id).status == "RUNNING"
    assert logged_steps(store, task.run_id) == list(range(1, stop_at + 1))

    again = Sweep()
    run_task(task, again.on_event)
    assert isinstance(again.events[-1], Done)
    assert again.steps == list(range(stop_at + 1, STEPS + 1))
    assert logged_steps(store, task.run_id) == list(range(1, STEPS + 1))


def test_a_trial_that_tune_ends_writes_its_checkpoint(store: Store) -> None:
    task, events = open_task(store, {}), []

    def tell(event: Event) -> bool:
        events.append(event)
        if isinstance(event, Progress) and event.step == 7:
            raise SystemExit  # as Tune does, in the training's thread
        return False

    run_task(task, tell)
    assert events[-1].step == 7  # Tune does not listen any more
    assert (Path(task.workspace) / "last.pt").read_text() == "7"
    assert logged_steps(store, task.run_id) == list(range(1, 8))


@pytest.mark.parametrize("gone", [False, *also_slow(True)])
def test_a_run_that_is_not_ours_any_more_is_left_alone(
    store: Store, monkeypatch: pytest.MonkeyPatch, gone: bool
) -> None:
    monkeypatch.setattr("sweeps.track.outbox.SEND_SECONDS", 0.01)
    monkeypatch.setattr("sweeps.track.outbox.FENCE_SECONDS", 0.0)
    monkeypatch.setenv("FAKE_STEP_SECONDS", "0.2")
    task, sweep = open_task(store, {}), Sweep()

    def tell(event: Event) -> bool:
        if isinstance(event, Progress) and event.step == 3:
            if gone:
                store.client.delete_run(task.run_id)
            else:
                take_over(store, task.run_id)
        return sweep.on_event(event)

    run_task(task, tell)
    taken = sweep.events[-1]
    assert isinstance(taken, Taken)
    assert taken.gone == gone
    assert sweep.steps[-1] < STEPS
    assert (Path(task.workspace) / "last.pt").exists()
    assert Ending.read(Path(task.workspace)) is None
    assert store.client.get_run(task.run_id).info.status == "RUNNING"  # somebody else's to end


def test_a_run_that_was_promised_a_gpu_does_not_train_on_the_cpu(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    task = replace(open_task(store, {"runtime.device": "auto"}), train=TRAIN, gpus=0.5)
    sweep = Sweep()
    run_task(task, sweep.on_event)
    failed = sweep.events[-1]
    assert isinstance(failed, Failed)
    assert failed.failure is Failure.INPUT
    assert "promised 0.5 GPUs" in failed.reason
    assert "--gpus-per-trial 0" in failed.reason
    assert sweep.steps == []


def test_a_run_that_cannot_be_fetched_fails_by_itself(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch(self: Workspace, epoch: int, run_id: str) -> None:
        raise StorageError("the bucket does not answer")

    monkeypatch.setattr(Workspace, "fetch", fetch)
    failed, sweep, folder = run(store, {})
    assert sweep.events == [
        Failed("StorageError: the bucket does not answer", Failure.OTHER, delivered=True)
    ]
    assert failed.status == "FAILED"
    assert not folder.exists()


def test_what_a_training_prints_is_in_its_log_alone(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sys.stdout
    finished, _, _ = run(store, {})
    assert sys.stdout is before
    assert "code from" not in capsys.readouterr().out
    path = store.client.download_artifacts(finished.run_id, "train.log", str(store.folder))
    assert "code from" in Path(path).read_text()


def test_a_run_says_from_its_start_what_it_sees(store: Store) -> None:
    task, sweep = open_task(store, {}), Sweep(stop_at=3)
    run_task(task, sweep.on_event)
    assert store.run(task.run_id).data == "feed"


def test_a_score_that_is_no_number_is_a_failure_for_good(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a run was FINISHED: done for the sweep, and missing in the figures."""
    monkeypatch.setattr("fake_training.skill", lambda config: float("nan"))
    failed, sweep, _ = run(store, {"runtime.eval_every": 4})
    event = sweep.events[-1]
    assert isinstance(event, Failed)
    assert event.failure is Failure.DIVERGED
    assert (failed.status, failed.tags["retry"]) == ("FAILED", "false")
    assert "the mIoU is undefined" in failed.tags["reason"]


def test_a_checkpoint_of_other_data_is_a_failure_of_its_own(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(*_: object, **__: object) -> None:
        raise OtherDataError("not the same are gta5/train/labels")

    monkeypatch.setattr("fake_training.train", train)
    failed, sweep, _ = run(store, {})
    assert sweep.events[-1] == Failed(failed.tags["reason"], Failure.OTHER_DATA, delivered=True)


class Gauge:
    """One of MLflow's monitors; of the GPU's, the driver does not answer."""

    def __init__(self, name: str, value: float) -> None:
        self.name, self.value, self.samples = name, value, []

    def collect_metrics(self) -> None:
        if self.name == "gpu":
            raise RuntimeError("the driver does not answer")
        self.samples.append(self.value)

    def aggregate_metrics(self) -> dict[str, float]:
        return {self.name: sum(self.samples) / len(self.samples)}

    def clear_metrics(self) -> None:
        self.samples = []


@pytest.mark.parametrize("gpus", [1, *also_slow(0)])
def test_runs_on_gpus_have_system_metrics(
    store: Store, monkeypatch: pytest.MonkeyPatch, gpus: int
) -> None:
    gauges = [Gauge("cpu_utilization_percentage", 40.0), Gauge("gpu", 1.0)]
    opened = iter([gauges[0], None, None, gauges[1]])  # two cannot be measured here
    monkeypatch.setattr("sweeps.track.system_metrics._open", lambda name: next(opened))
    task, sweep = replace(open_task(store, {}), gpus=gpus), Sweep()
    run_task(task, sweep.on_event)
    assert isinstance(sweep.events[-1], Done)
    run = store.client.get_run(task.run_id)
    found = {name: v for name, v in run.data.metrics.items() if name.startswith("system/")}
    assert found == ({"system/cpu_utilization_percentage": 40.0} if gpus else {})
    history = store.client.get_metric_history(task.run_id, "system/cpu_utilization_percentage")
    assert [point.step for point in history] == (list(range(1, STEPS + 1)) if gpus else [])


def test_a_monitor_that_cannot_be_opened_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sweeps.track.system_metrics.MONITORS", ("no_monitor.NoMonitor",))
    assert SystemMetrics().read() == {}
