"""Searches: the source of cells by itself, and the command with a stand-in for the training."""

import os
import random
import re
import signal
import sqlite3
import time
from collections.abc import Callable

import optuna
import pytest
from fake_training import STEPS
from optuna.storages import RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial
from studies import age_heartbeats, ask, die, open_study, run, states
from sweep_process import Sweeps
from tracked_runs import finish

from semidavil.config import Config, preset
from sweeps.plan.cells import Cell, State
from sweeps.plan.pace import Pace
from sweeps.run import search
from sweeps.run.events import Done, Progress
from sweeps.run.search import StudySource
from sweeps.track.provenance import owner_tags
from sweeps.track.retry import StoreAway
from sweeps.track.store import Store

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
SEARCH = ("--grid", "search", "--set", "runtime.eval_every=3", "--concurrency")
DONE = Done(31.5, 5.0, 1.0, True, "mIoU 31.50")


@pytest.fixture
def base() -> Config:
    return preset("toy", {"runtime.eval_every": "3"})


@pytest.fixture
def source(base: Config, store: Store) -> StudySource:
    return make_source(base, store)


def make_source(base: Config, store: Store, trials: int = 2, wait: bool = False) -> StudySource:
    return StudySource(open_study(base, store, trials), store, Pace(), print, wait)


def next_cell(source: StudySource) -> Cell:
    cell = source.next()
    assert cell is not None
    return cell


def begin_run(store: Store, config: Config) -> str:
    """A run of a Config, by some sweep that lives."""
    tags = {"key": config.key(), **owner_tags()}
    return store.create_run(store.experiment_id("attention"), "cell", config, tags)


def finish_run(store: Store, run_id: str) -> None:
    now = int(time.time() * 1000)
    store.log(run_id, [("final/miou", 31.5, now, 10), ("final/latency_ms", 5.0, now, 10)])
    store.close(run_id, "FINISHED", "")


def test_a_search_gives_each_trial_once_and_ends(source: StudySource) -> None:
    assert source.total == 2
    first, second = next_cell(source), next_cell(source)
    assert (first.state, first.run) == (State.TODO, None)
    assert source.next() is None
    assert source.exhausted()
    assert source.tags(second)["trial"] == "1"
    source.finished(first, DONE, "first")
    assert not source.should_stop(second, Progress(2, 10, score=None))
    source.stopped(second, "second")
    assert (states(source.study), source.total) == (["complete", "pruned"], 2)
    assert "first,True" in source.study.csv()


def test_a_trial_that_another_search_has_ended_is_not_told_again(
    base: Config, store: Store, source: StudySource
) -> None:
    cell = next_cell(source)
    age_heartbeats(source.study)  # the machine was suspended
    other = open_study(base, store)
    other.tell(ask(other).name, 30.0, 5.0, "theirs")
    assert not source.should_stop(cell, Progress(3, 10, score=1.0))
    source.finished(cell, DONE, "ours")
    assert "30.0,,,,0.003" in (line := other.csv().splitlines()[1])
    assert line.endswith("theirs,True")


def test_a_search_that_is_given_its_own_trial_again_tells_it_once(
    base: Config, store: Store, source: StudySource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "LOOK_SECONDS", 0)
    cell = next_cell(source)
    run_id = begin_run(store, cell.config)
    age_heartbeats(
        source.study
    )  # the machine was suspended; another search had the trial, and died
    other = open_study(base, store)
    assert ask(other).name == cell.name
    die(other)
    again = next_cell(source)
    assert (again.name, again.state) == (cell.name, State.ELSEWHERE)
    source.taken(again)
    finish_run(store, run_id)
    source.finished(cell, DONE, run_id)
    next_cell(source)
    assert states(source.study) == ["complete", "running"]


def test_a_search_whose_trials_all_fail_ends(base: Config, source: StudySource) -> None:
    """Each failed trial was once followed by a new one, without end."""
    while (cell := source.next()) is not None:
        source.failed(cell, "a broken image", "run", diverged=False)
        assert source.total == 2
    assert states(source.study) == ["fail", "fail"]
    assert source.exhausted()
    source.close()
    assert next_cell(make_source(base, source.store)).config.key() == base.key()


def test_a_config_that_has_a_finished_run_is_not_trained(
    base: Config, store: Store, source: StudySource
) -> None:
    finish(store, base, 31.5)
    assert next_cell(source).config.key() != base.key()
    assert source.study.preset().value == 31.5  # type: ignore[union-attr]
    assert source.total == 1


def test_a_store_that_is_away_loses_no_trial(
    base: Config, source: StudySource, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(key: str) -> None:
        raise StoreAway("the tracking store does not answer")

    with monkeypatch.context() as patch:
        patch.setattr(source.store, "runs", away)
        for _ in range(2):
            with pytest.raises(StoreAway):
                source.next()
        assert not source.exhausted()
    assert next_cell(source).config.key() == base.key()
    assert states(source.study) == ["running"]


def left_alone(store: Store, run_id: str) -> None:
    """Its sweep is at work on it still."""


def interrupted(store: Store, run_id: str) -> None:
    store.close(run_id, "KILLED", "the sweep was stopped")


def failed(store: Store, run_id: str) -> None:
    store.close(run_id, "FAILED", "a broken image")


def deleted(store: Store, run_id: str) -> None:
    store.client.delete_run(run_id)


@pytest.mark.parametrize(
    ("becomes", "state", "given_again"),
    [
        (finish_run, "complete", False),
        (failed, "fail", False),
        (interrupted, "running", True),
        (deleted, "running", False),
        (left_alone, "running", False),
    ],
)
def test_a_trial_that_another_sweep_trains_takes_what_becomes_of_it(
    source: StudySource,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    becomes: Callable[[Store, str], None],
    state: str,
    given_again: bool,
) -> None:
    monkeypatch.setattr(search, "LOOK_SECONDS", 0)
    cell, _ = next_cell(source), next_cell(source)
    run_id = begin_run(store, cell.config)
    source.taken(cell)
    assert (source.total, source.elsewhere) == (1, 1)
    becomes(store, run_id)
    again = source.next()
    assert states(source.study)[0] == state
    assert (again is not None and again.name == cell.name) == given_again
    if again is not None:
        assert (again.state, again.run and again.run.run_id) == (State.INTERRUPTED, run_id)
    assert source.elsewhere == (becomes is left_alone)


def test_what_another_sweep_ends_meanwhile_is_taken_at_the_end(
    source: StudySource, store: Store
) -> None:
    cells = [next_cell(source), next_cell(source)]
    finish_run(store, begin_run(store, cells[0].config))
    for cell in cells:
        source.taken(cell)
    source.close()
    assert states(source.study) == ["complete", "waiting"]


@pytest.mark.parametrize("wait", [False, True])
def test_a_search_goes_on_until_it_knows_that_the_others_live(
    base: Config, store: Store, monkeypatch: pytest.MonkeyPatch, wait: bool
) -> None:
    other = open_study(base, store, trials=2)
    theirs = ask(other)
    source = make_source(base, store, wait=wait)
    source.finished(next_cell(source), DONE, "run")
    assert source.next() is None
    assert not source.exhausted(), "its search may have been killed a moment ago"
    monkeypatch.setattr(search, "KNOWN_SECONDS", 0)
    assert source.next() is None
    assert source.exhausted() is not wait
    die(other)
    assert not wait or next_cell(source).name == theirs.name


def test_studies_that_are_locked_end_nothing(
    base: Config, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sweeps.run.study.DATABASE_SECONDS", 0.1)
    source = make_source(base, store)
    cell = next_cell(source)
    lock = sqlite3.connect(source.study.file, isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    assert not source.should_stop(cell, Progress(3, 10, score=1.0))
    source.finished(cell, DONE, "run")
    with pytest.raises(StoreAway, match="locked"):
        source.next()
    assert not source.exhausted()
    lock.close()
    assert next_cell(source).name != cell.name
    assert states(source.study) == ["complete", "running"]


# The command


def trials_of(sweeps: Sweeps) -> list[FrozenTrial]:
    """By number, each trial as it was begun last."""
    storage = f"sqlite:///{sweeps.folder / 'studies.db'}"
    (name,) = optuna.get_all_study_names(storage)
    latest = {}
    for trial in optuna.load_study(study_name=name, storage=storage).trials:
        first = RetryHeartbeatStaleTrialCallback.retried_trial_number(trial)
        latest[trial.number if first is None else first] = trial
    return list(latest.values())


def assert_all_ended(sweeps: Sweeps, trials: int) -> None:
    """Every trial once, in the study and in the store, with all its steps."""
    ended = trials_of(sweeps)
    assert len(ended) == trials
    assert {trial.state.name for trial in ended} <= {"COMPLETE", "PRUNED"}
    assert sweeps.keys().most_common(1)[0][1] == 1
    by_key = {trial.user_attrs["key"]: trial for trial in ended}
    for found in sweeps.store.runs():
        trial = by_key.pop(found.key)
        expected = {"FINISHED": "COMPLETE", "KILLED": "PRUNED"}[found.status]
        assert (trial.state.name, trial.user_attrs["run_id"]) == (expected, found.run_id)
        assert bool(found.tags["stopped_early"]) == (expected == "PRUNED")
        if expected == "COMPLETE":
            assert found.metrics["final/miou"] == trial.value
            points = sweeps.store.client.get_metric_history(found.run_id, "train/loss")
            assert [point.step for point in points] == list(range(1, STEPS + 1))
    assert not by_key
    assert not list((sweeps.folder / "checkpoints").iterdir())


def overview_status(sweeps: Sweeps) -> str:
    (overview,) = sweeps.store.overviews()
    return overview.status


@pytest.mark.slow
def test_a_search_runs_its_trials_once_and_confirms_its_best(sweeps: Sweeps) -> None:
    code, output = sweeps.run(*SEARCH, "2", "--trials", "12")
    assert code == 0, output
    assert "trial 0 (preset)" in re.sub(r"\s+", " ", output)
    assert_all_ended(sweeps, trials=12)
    assert sweeps.states()["KILLED"] >= 3

    before = len(sweeps.trainings())
    code, output = sweeps.run(*SEARCH, "2", "--trials", "12", "--confirm-seeds", "5")
    assert code == 0, output
    assert "found minus preset" in output
    assert len(sweeps.trainings()) == before + 2
    assert len(trials_of(sweeps)) == 12


@pytest.mark.slow
def test_a_search_survives_being_killed_again_and_again(sweeps: Sweeps) -> None:
    generator, interruptions = random.Random(7), 0
    command = (*SEARCH, "2", "--trials", "12")
    for how in ("kill the group", "Ctrl-C", "kill", "Ctrl-C", "kill the group"):
        process = sweeps.start(*command, step_seconds=0.15)
        begun = len(sweeps.events())
        sweeps.wait_until(lambda begun=begun: len(sweeps.events()) > begun + 4)  # type: ignore[misc]
        time.sleep(generator.uniform(0, 2.5))
        interruptions += process.poll() is None
        if how == "kill":
            process.kill()
        else:
            number = signal.SIGINT if how == "Ctrl-C" else signal.SIGKILL
            os.killpg(process.pid, number)
        output, _ = process.communicate(timeout=60)
        if how == "Ctrl-C":
            assert process.returncode == 130, output
            assert "the same command goes on" in output
            assert sweeps.states()["RUNNING"] == 0
            assert overview_status(sweeps) == "SCHEDULED"
    assert interruptions >= 3, "the search was done before it could be killed"
    code, output = sweeps.run(*command)
    assert code == 0, output
    assert_all_ended(sweeps, trials=12)
    assert overview_status(sweeps) == "FINISHED"


@pytest.mark.slow
def test_two_searches_of_one_study_share_its_trials(sweeps: Sweeps) -> None:
    command = (*SEARCH, "1", "--trials", "9", "--wait")
    both = [sweeps.start(*command, step_seconds=0.1) for _ in range(2)]
    outputs = [process.communicate(timeout=180)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], "\n".join(outputs)
    assert_all_ended(sweeps, trials=9)
    assert len(sweeps.trainings()) == 9
    assert len({event.split()[-1] for event in sweeps.trainings()}) == 2, "both took part"


@pytest.mark.slow
def test_latency_is_searched_too(sweeps: Sweeps) -> None:
    code, output = sweeps.run(*SEARCH, "2", "--trials", "4", "--objective", "miou-latency")
    assert code == 0, output
    for trial in trials_of(sweeps):
        assert trial.state.name == "COMPLETE"
        width = trial.params["model.decoder_dim"]
        assert trial.values[1] == pytest.approx(width / 10), "as the stand-in has it"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--seeds", "0", "1"), "one value of seed"),
        (("--seeds", "3", "--confirm-seeds", "2", "3"), "--confirm-seeds 3"),
    ],
)
def test_a_search_has_one_seed_which_does_not_confirm_itself(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    from sweeps.cli import main

    assert main(["run", "--grid", "search", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_list_begins_no_study(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from sweeps.cli import main

    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)
    arguments = ["run", "--grid", "search", "--set", "training.steps=31", "--list"]
    assert main(arguments) == 0
    assert "not begun, 20 trials" in capsys.readouterr().out
    assert not (store.folder / "studies.db").exists()
    rungs_from_11 = preset("toy", {"training.steps": "31", "runtime.eval_every": "11"})
    study = open_study(rungs_from_11, store)  # a third of 31, rounded up: none at step 30
    run(study, 1)
    assert main(arguments) == 0
    assert f"study {study.name}: 1 finished" in " ".join(capsys.readouterr().out.split())
