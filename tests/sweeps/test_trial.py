from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_training import BROKEN, NON_FINITE, STEPS
from tracked_runs import take_over

from semidavil.config import Config, preset
from sweeps.provenance import owner_tags
from sweeps.run_log import Ending
from sweeps.tracking import Store, TrackedRun
from sweeps.trial import Task, run_trial


@pytest.fixture(autouse=True)
def _events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_TRAINING", str(tmp_path))
    monkeypatch.setenv("FAKE_STEP_SECONDS", "0")
    monkeypatch.setattr("sweeps.trial.TELL_SECONDS", 0.0)


def open_task(store: Store, changes: dict[str, Any]) -> Task:
    config: Config = preset("toy", changes)
    run_id = store.open_run(store.experiment_id("attention"), "cell", config, {})
    place = store.storage.of(config.key())
    return Task("cell", config.to_params(), run_id, store.uri, place, train="fake_training:train")


def run(store: Store, changes: dict[str, Any]) -> tuple[TrackedRun, list[dict[str, Any]], Path]:
    task = open_task(store, changes)
    heard: list[dict[str, Any]] = []
    run_trial(Task.from_json(task.to_json()), heard.append)
    ended = next(run for run in store.runs() if run.run_id == task.run_id)
    return ended, heard, Path(task.place)


def test_a_finished_trial_leaves_its_scores_and_artifacts_and_no_checkpoint(store: Store) -> None:
    finished, heard, folder = run(store, {})
    assert finished.status == "FINISHED"
    assert heard[-1]["state"] == "done"
    assert heard[-1]["score"] == f"mIoU {finished.metrics['final/miou']:.2f}"
    assert finished.metrics["final/steps"] == STEPS
    kept = {item.path for item in store.client.list_artifacts(finished.run_id)}
    assert kept == {"config.json", "segmenter.safetensors", "train.log"}
    assert not folder.exists()
    assert [x["step"] for x in heard[:-1]] == list(range(1, STEPS + 1))


def test_the_driver_hears_what_matters_at_once_and_of_the_rest_now_and_then(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sweeps.trial.TELL_SECONDS", 3600.0)
    _, heard, _ = run(store, {"runtime.eval_every": 4})
    told = [(x["step"], "value" in x) for x in heard[:-1]]
    assert told == [(1, False), (4, True), (8, True), (STEPS, True)]
    _, heard, _ = run(store, {"training.lr": 0.02})
    assert [x["step"] for x in heard[:-1]] == [1]


@pytest.mark.parametrize(
    ("changes", "reason", "retry"),
    [
        ({"training.lr": NON_FINITE}, "NonFiniteLossError: the loss is not finite", "false"),
        ({"training.lr": BROKEN, "model.fusion": "vlga"}, "ValueError: a broken image", "true"),
    ],
)
def test_a_failed_trial_says_why_and_keeps_its_checkpoint(
    store: Store, changes: dict[str, Any], reason: str, retry: str
) -> None:
    failed, heard, folder = run(store, changes)
    assert failed.status == "FAILED"
    assert failed.tags["reason"].startswith(reason)
    assert failed.tags["retry"] == retry
    assert heard[-1]["state"] == "failed"
    assert (folder / "last.pt").exists()
    assert "Traceback" in (folder / "train.log").read_text()
    assert [x.path for x in store.client.list_artifacts(failed.run_id)] == ["train.log"]


def test_a_trial_that_was_silent_for_long_ends_if_its_run_is_another_sweeps(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sweeps.run_log.FLUSH_SECONDS", 0.0)
    task = replace(open_task(store, {}), owner=owner_tags())
    heard: list[dict[str, Any]] = []

    def tell(news: dict[str, Any]) -> None:
        heard.append(news)
        if news.get("step") == 3:  # another machine takes it over, and nothing is noticed at once
            take_over(store, task.run_id)
        if news.get("step") == 5:
            monkeypatch.setattr("sweeps.run_log.SILENCE_SECONDS", 0.0)

    run_trial(Task.from_json(task.to_json()), tell)
    assert [news["state"] for news in heard] == [*5 * ["running"], "taken"]
    (run,) = store.runs()
    assert (run.status, run.progress["step"]) == ("RUNNING", 5)  # it is another's to end
    assert list(Path(task.place).glob("last.pt"))
    assert Ending.read(Path(task.place)) is None

    heard.clear()  # the other's attempt
    run_trial(replace(task, owner=owner_tags() | {"host": "another machine"}), heard.append)
    assert heard[-1]["state"] == "done"
    losses = store.client.get_metric_history(task.run_id, "train/loss")
    assert [point.step for point in losses] == list(range(1, STEPS + 1))


def test_a_worker_that_is_started_again_looks_whose_its_run_is(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sweeps.run_log.FLUSH_SECONDS", 0.0)
    task = replace(open_task(store, {}), owner=owner_tags(), claimed=0.0)
    take_over(store, task.run_id)
    heard: list[dict[str, Any]] = []
    run_trial(task, heard.append)
    assert [news["state"] for news in heard] == ["taken"]


def test_a_trial_that_is_stopped_early_has_logged_all_its_steps(store: Store) -> None:
    task = open_task(store, {})

    def stop(news: dict[str, Any]) -> None:
        if news["step"] == 7:
            raise SystemExit  # as Tune does, in the training's thread

    with pytest.raises(SystemExit):
        run_trial(task, stop)
    points = store.client.get_metric_history(task.run_id, "train/loss")
    assert [point.step for point in points] == list(range(1, 8))
    assert (Path(task.place) / "last.pt").exists()
