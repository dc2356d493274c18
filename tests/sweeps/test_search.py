"""Searches: the source of cells by itself, and the command with a stand-in for the training."""

import os
import random
import re
import signal
import sqlite3
import time

import pytest
from fake_training import STEPS
from slow_cases import also_slow
from studies import BASE, age_heartbeats, ask, die, finish_next, open_study, states
from sweep_process import Sweeps
from test_driver import Sweep as DrivenSweep
from test_driver import failing
from tracked_runs import finish

from semidavil.config import Config, preset
from sweeps.cli import main
from sweeps.plan.cells import Cell, State
from sweeps.plan.spec import Spec
from sweeps.run import search
from sweeps.run.events import Done, Failure, Progress
from sweeps.run.search import StudySource
from sweeps.show.overview import open_overview
from sweeps.track.provenance import owner_tags
from sweeps.track.retry import StoreAway
from sweeps.track.store import Store
from sweeps.track.wishes import ask_to_retry

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
SEARCH = ("--grid", "search", "--set", "runtime.eval_every=3", "--concurrency")
DONE = Done(31.5, 5.0, 1.0, True, "mIoU 31.50")


@pytest.fixture
def source(store: Store, monkeypatch: pytest.MonkeyPatch) -> StudySource:
    monkeypatch.setattr(search, "LOOK_SECONDS", 0)
    return make_source(store)


def make_source(store: Store, wait: bool = False) -> StudySource:
    return StudySource(open_study(store, trials=2), store, print, wait)


def next_cell(source: StudySource) -> Cell:
    cell = source.next()
    assert cell is not None
    return cell


def begin_run(store: Store, config: Config) -> str:
    """A run of a Config, by some sweep that lives."""
    tags = {"key": config.key(), **owner_tags()}
    return store.create_run(store.experiment_id("attention"), "cell", config, tags)


def end_run(store: Store, run_id: str, how: str) -> None:
    if how == "FINISHED":
        store.log(run_id, [("final/miou", 31.5, 0, 10), ("final/latency_ms", 5.0, 0, 10)])
    if how == "deleted":
        store.client.delete_run(run_id)
    elif how != "RUNNING":
        store.close(run_id, how, "its sweep ends")


def test_a_search_gives_each_trial_once_and_ends(source: StudySource) -> None:
    assert source.total == 2
    first, second = next_cell(source), next_cell(source)
    assert (first.state, first.run) == (State.TODO, None)
    assert source.next() is None
    assert source.exhausted()
    assert source.tags(second)["trial"] == "1"
    source.finished(first, DONE, "first")
    source.stopped(second, "second")
    assert (states(source.study), source.total) == (["complete", "pruned"], 2)
    assert "first,True" in source.study.csv()


def test_a_trial_that_another_search_has_ended_is_not_told_again(
    store: Store, source: StudySource
) -> None:
    cell = next_cell(source)
    age_heartbeats(source.study)  # the machine was suspended
    other = open_study(store)
    assert finish_next(other, 30.0).name == cell.name
    assert not source.should_stop(cell, Progress(3, 10, score=1.0))
    source.finished(cell, DONE, "ours")
    assert [trial.value for trial in other.finished()] == [30.0]


def test_a_search_that_is_given_its_own_trial_again_tells_it_once(
    store: Store, source: StudySource
) -> None:
    cell = next_cell(source)
    run_id = begin_run(store, cell.config)
    age_heartbeats(source.study)  # the machine was suspended
    other = open_study(store)
    assert ask(other).name == cell.name
    die(other)
    again = next_cell(source)
    assert (again.name, again.state) == (cell.name, State.ELSEWHERE)
    source.taken(again)
    end_run(store, run_id, "FINISHED")
    source.finished(cell, DONE, run_id)
    next_cell(source)
    assert states(source.study) == ["complete", "running"]


@pytest.mark.slow
def test_a_search_whose_trials_all_fail_ends(source: StudySource) -> None:
    """Each failed trial was once followed by a new one, without end."""
    while (cell := source.next()) is not None:
        source.failed(cell, "a broken image", "run", diverged=False)
        assert source.total == 2
    assert states(source.study) == ["fail", "fail"]
    assert source.exhausted()
    assert next_cell(make_source(source.store)).config.key() == BASE.key()


def test_a_config_that_has_a_finished_run_is_not_trained_and_is_counted(
    store: Store, source: StudySource
) -> None:
    run_id = finish(store, BASE, 31.5)
    store.log(run_id, tags={"studies": "another"})
    assert next_cell(source).config.key() != BASE.key()
    assert [trial.value for trial in source.study.finished()] == [31.5]
    assert source.total == 1
    assert store.run(run_id).tags["studies"] == f"another {source.study.name}"


def test_a_store_that_is_away_loses_no_trial(
    source: StudySource, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(key: str) -> None:
        raise StoreAway("the tracking store does not answer")

    with monkeypatch.context() as patch:
        patch.setattr(source.store, "runs", away)
        for _ in range(2):
            with pytest.raises(StoreAway):
                source.next()
        assert not source.exhausted()
    assert next_cell(source).config.key() == BASE.key()
    assert states(source.study) == ["running"]


@pytest.mark.parametrize(
    "becomes", ["FINISHED", "KILLED", *also_slow("FAILED", "deleted", "RUNNING")]
)
def test_a_trial_that_another_sweep_trains_takes_what_becomes_of_it(
    source: StudySource, store: Store, becomes: str
) -> None:
    cell, _ = next_cell(source), next_cell(source)
    run_id = begin_run(store, cell.config)
    source.taken(cell)
    assert (source.total, source.elsewhere) == (1, 1)
    end_run(store, run_id, becomes)
    again = source.next()
    known = {"FINISHED": "complete", "FAILED": "fail", "deleted": "fail"}
    assert states(source.study)[0] == known.get(becomes, "running")
    given = (again.name, again.state, again.run and again.run.run_id) if again else None
    assert given == ((cell.name, State.INTERRUPTED, run_id) if becomes == "KILLED" else None)
    assert source.elsewhere == (becomes == "RUNNING")
    assert source.total == 1 + (becomes == "KILLED")


@pytest.mark.parametrize("wait", [False, *also_slow(True)])
def test_a_search_goes_on_until_it_knows_that_the_others_live(
    store: Store, monkeypatch: pytest.MonkeyPatch, wait: bool
) -> None:
    other = open_study(store, trials=2)
    theirs = ask(other)
    source = make_source(store, wait)
    source.finished(next_cell(source), DONE, "run")
    assert source.next() is None
    assert not source.exhausted(), "its search may have been killed a moment ago"
    monkeypatch.setattr(search, "KNOWN_SECONDS", 0)
    assert source.next() is None
    assert source.exhausted() is not wait
    die(other)
    assert not wait or next_cell(source).name == theirs.name


def test_studies_that_are_locked_end_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sweeps.run.study.DATABASE_SECONDS", 0.1)
    source = make_source(store)
    cell = next_cell(source)
    lock = sqlite3.connect(source.study.file, isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    assert not source.should_stop(cell, Progress(3, 10, score=1.0))
    for call in (lambda: source.finished(cell, DONE, "run"), source.next):
        with pytest.raises(StoreAway, match="locked"):
            call()
    assert not source.exhausted()
    lock.close()
    source.finished(cell, DONE, "run")
    assert next_cell(source).name != cell.name
    assert states(source.study) == ["complete", "running"]


# What somebody wants tried again


def test_a_trial_that_was_given_up_is_given_once_more(source: StudySource) -> None:
    first, second = next_cell(source), next_cell(source)
    source.failed(first, "the loss is not finite", "run", diverged=True)
    source.finished(second, DONE, "second")
    assert source.next() is None
    assert source.exhausted()
    assert source.retry("another key") == source.retry(second.config.key()) == ""
    assert source.retry(first.config.key()) == first.name
    assert (source.exhausted(), source.total) == (False, 2)
    again = next_cell(source)
    assert (again.name, again.config.key()) == (first.name, first.config.key())
    source.finished(again, DONE, "first")
    assert source.next() is None
    assert (states(source.study), source.total) == (["complete", "complete"], 2)


@pytest.mark.slow
def test_a_trial_of_an_earlier_search_is_tried_again_by_the_next_one(
    store: Store, source: StudySource
) -> None:
    """It had failed for good, and `retry` named a command that did nothing about it."""
    cell = next_cell(source)
    run_id = begin_run(store, cell.config)
    store.close(run_id, "FAILED", "the loss is not finite", tags={"retry": "false"})
    source.failed(cell, "the loss is not finite", run_id, diverged=True)
    source.study.close()
    assert next_cell(make_source(store)).config.key() != cell.config.key()
    ask_to_retry(store, [], store.run(run_id))
    again = next_cell(make_source(store))
    assert (again.name, again.run and again.run.run_id) == (cell.name, run_id)


@pytest.mark.slow
def test_a_running_search_hears_of_it(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sweeps.run.driver.LOOK_SECONDS", 0.05)
    monkeypatch.setattr("sweeps.run.driver.NEXT_LOOK_SECONDS", 0.05)
    overview = open_overview(store, Spec("search", "toy", trials=2, study="a-study"), "", 1)
    sweep = DrivenSweep(store, parent=overview.run_id, source=make_source(store))
    task, other = sweep.next(), sweep.next()
    store.close(task.run_id, "FAILED", "", task.epoch, {"retry": "false"})
    sweep.driver.on_event(task, failing(Failure.DIVERGED))
    sweep.idle()
    ask_to_retry(store, store.overviews(), store.run(task.run_id))
    again = sweep.next()
    assert (again.name, again.run_id) == (task.name, task.run_id)
    assert (sweep.driver.outcome.failed, sweep.driver.progress.failed) == ([], 0)
    for one in (again, other):
        sweep.driver.on_event(one, DONE)
    sweep.until(lambda: sweep.driver.next_task() or sweep.driver.finished())
    assert states(sweep.source.study) == ["complete", "complete"]
    sweep.driver.close("the sweep has ended")


# The command


def assert_all_ended(sweeps: Sweeps, trials: int) -> None:
    """Every trial once, in the study and in the store, with all its steps."""
    ended = open_study(sweeps.store).latest().values()
    assert len(ended) == trials
    by_key = {trial.user_attrs["key"]: trial for trial in ended}
    for found in sweeps.store.runs():
        trial = by_key.pop(found.key)  # fails if a trial has two runs
        expected = {"FINISHED": "COMPLETE", "KILLED": "PRUNED"}[found.status]
        assert (trial.state.name, trial.user_attrs["run_id"]) == (expected, found.run_id)
        assert bool(found.tags["stopped_early"]) == (expected == "PRUNED")
        if expected == "COMPLETE":
            assert found.metrics["final/miou"] == trial.value
            points = sweeps.store.client.get_metric_history(found.run_id, "train/loss")
            assert [point.step for point in points] == list(range(1, STEPS + 1))
    assert not by_key
    assert not list((sweeps.folder / "checkpoints").iterdir())


@pytest.mark.slow
def test_a_search_survives_being_killed_runs_its_trials_once_and_confirms_its_best(
    sweeps: Sweeps,
) -> None:
    generator, interruptions = random.Random(7), 0
    command = (*SEARCH, "2", "--trials", "12")
    # Trials of the dead are begun again sooner, and still not while a process is only slow.
    sweeps.constants |= {
        "sweeps.run.study:HEARTBEAT_SECONDS": 2, "sweeps.run.study:GRACE_SECONDS": 20
    }  # fmt: skip
    for how in ("kill the group", "Ctrl-C", "kill"):
        mine = len(sweeps.trainings()) + 1  # workers of the one before may still take steps
        process = sweeps.start(*command, step_seconds=0.15)
        sweeps.wait_until(lambda mine=mine: len(sweeps.trainings()) >= mine)  # type: ignore[misc]
        time.sleep(generator.uniform(0, 1.5))
        interruptions += process.poll() is None
        if how == "kill":
            process.kill()
        else:
            number = signal.SIGINT if how == "Ctrl-C" else signal.SIGKILL
            os.killpg(process.pid, number)
        output, _ = process.communicate(timeout=600)
        if how == "Ctrl-C":
            assert process.returncode == 130, output
            assert "the same command goes on" in output
            assert sweeps.states()["RUNNING"] == 0
            assert [overview.status for overview in sweeps.store.overviews()] == ["SCHEDULED"]
    assert interruptions == 3, "the search was done before it could be killed"
    code, output = sweeps.run(*command)
    assert code == 0, output
    assert "trial 0 (preset)" in re.sub(r"\s+", " ", output)
    assert_all_ended(sweeps, trials=12)
    assert sweeps.states()["KILLED"] >= 3
    assert [overview.status for overview in sweeps.store.overviews()] == ["FINISHED"]

    before = len(sweeps.trainings())
    code, output = sweeps.run(*command, "--confirm-seeds", "5")
    assert code == 0, output
    assert "found minus preset" in output
    assert len(sweeps.trainings()) == before + 2
    assert len(open_study(sweeps.store).latest()) == 12


@pytest.mark.slow
def test_two_searches_of_one_study_share_its_trials(sweeps: Sweeps) -> None:
    command = (*SEARCH, "1", "--trials", "9", "--wait")
    both = [sweeps.start(*command, step_seconds=0.1) for _ in range(2)]
    outputs = [process.communicate(timeout=600)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], "\n".join(outputs)
    assert_all_ended(sweeps, trials=9)
    assert len(sweeps.trainings()) == 9
    assert len({event.split()[-1] for event in sweeps.trainings()}) == 2, "both took part"


@pytest.mark.slow
def test_latency_is_searched_too(sweeps: Sweeps) -> None:
    code, output = sweeps.run(*SEARCH, "2", "--trials", "4", "--objective", "miou-latency")
    assert code == 0, output
    finished = open_study(sweeps.store, objective="miou-latency").finished()
    widths = [trial.params["model.decoder_dim"] for trial in finished]
    assert len(widths) == 4
    assert [trial.values[1] for trial in finished] == [x / 10 for x in widths], "the stand-in's"


def test_a_search_has_one_seed_which_does_not_confirm_itself(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["run", "--grid", "search", "--seeds", "0", "1"]) == 2
    assert "one value of seed" in capsys.readouterr().err
    assert main(["run", "--grid", "search", "--seeds", "3", "--confirm-seeds", "2", "3"]) == 2
    assert "--confirm-seeds 3" in capsys.readouterr().err


def test_a_list_begins_no_study(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)
    arguments = ["run", "--grid", "search", "--set", "training.steps=31", "--list"]
    assert main(arguments) == 0
    assert "not begun, 20 trials" in capsys.readouterr().out
    assert not (store.folder / "studies.db").exists()
    rungs_from_11 = preset("toy", {"training.steps": "31", "runtime.eval_every": "11"})
    study = open_study(store, base=rungs_from_11)  # a third of 31, rounded up: none at step 30
    finish_next(study)
    assert main(arguments) == 0
    assert f"study {study.name} (toy): 1 finished" in " ".join(capsys.readouterr().out.split())
