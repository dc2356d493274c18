"""Searches: the study by itself, and the command with a stand-in for the training."""

import json
import math
import os
import random
import re
import signal
import time
from collections import Counter

import optuna
import pytest
from fake_training import STEPS, skill
from optuna.trial import FrozenTrial, Trial
from rich.console import Console
from sweep_process import Sweeps

from semidavil.config import Config, preset
from sweeps.engine import Resources
from sweeps.progress import SweepProgress
from sweeps.search import SearchDriver, confirmation, remove_stopped, waiting_plan
from sweeps.server import TrackingError
from sweeps.study import Study, space_of, study_name
from sweeps.tracking import Store
from sweeps.trial import Task

SEARCH = ("--grid", "search", "--set", "runtime.eval_every=3", "--concurrency")


@pytest.fixture
def base() -> Config:
    return preset("toy", {"runtime.eval_every": "3"})


def open_study(base: Config, store: Store, trials: int = 20, objective: str = "miou") -> Study:
    return Study(base, objective, trials, store)


def elsewhere(store: Store, folder: str) -> Store:
    """Another store, with studies of its own."""
    other = store.folder / folder
    other.mkdir()
    (other / "mlflow.db").write_bytes((store.folder / "mlflow.db").read_bytes())
    return Store(other)


def ask(study: Study) -> tuple[str, Config]:
    asked = study.ask()
    assert asked is not None
    return asked


def run(study: Study, count: int) -> None:
    for _ in range(count):
        name, config = ask(study)
        study.tell(name, skill(config), 5.0, "run")


def finish(store: Store, config: Config, miou: float) -> str:
    """A finished run of a Config, by some sweep."""
    run_id = store.open_run(store.experiment_id("attention"), "cell", config, {})
    store.client.log_metric(run_id, "final/miou", miou)
    store.close(run_id, "FINISHED", "")
    return run_id


def trials_by_number(study: Study) -> dict[int, FrozenTrial]:
    return {trial.number: trial for trial in study.study.trials}


def the_asker_has_died(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sweeps.study.is_gone", lambda *_: True)


def test_the_first_trial_is_the_preset_and_all_stay_in_the_space(
    base: Config, store: Store
) -> None:
    study = open_study(base, store)
    _, first = ask(study)
    assert first.key() == base.key()
    for _ in range(12):
        changed = ask(study)[1].differences(base)
        assert set(changed) <= set(study.space)
        assert all(study.space[path]._contains(value) for path, (value, _) in changed.items())
    assert "loss.omega" not in space_of(base.replace({"loss.name": "ce"}), "miou")


def test_a_search_that_is_continued_takes_the_same_way(base: Config, store: Store) -> None:
    straight = open_study(base, elsewhere(store, "straight"))
    run(straight, 16)
    pieces = elsewhere(store, "pieces")
    for _ in range(4):  # each a process of its own
        run(open_study(base, pieces), 4)
    study = open_study(base, pieces)
    ways = [[trial.params for trial in one.study.trials] for one in (study, straight)]
    assert ways[0] == ways[1]
    assert study.left() == 4
    assert len({str(params) for params in ways[0]}) == 16
    assert straight.best()[0].value == max(trial.value for trial in straight.study.trials)
    assert straight.best()[0].value > skill(base)


def test_trials_that_cannot_be_compared_are_of_another_study(base: Config) -> None:
    local = "sqlite:////a/mlflow.db"
    names = {
        study_name(base, "miou", local),
        study_name(base, "miou", "sqlite:////b/mlflow.db"),  # it lies beside its studies
        study_name(base.replace({"runtime.eval_every": 4}), "miou", local),  # other rungs
        study_name(base.replace({"seed": 1}), "miou", local),
        study_name(base, "miou-latency", local),
        study_name(base, "miou", "http://server:5000"),
    }
    assert len(names) == 5


def test_a_trial_of_a_dead_process_is_begun_again(
    base: Config, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = open_study(base, store, trials=3)
    run(dead, 1)
    name, config = ask(dead)
    alive = open_study(base, store, trials=3)
    assert alive.left() == 1, "the other process lives, and has one"
    the_asker_has_died(monkeypatch)
    assert alive.left() == 2
    assert ask(alive) == (name, config)
    assert ask(alive)[0] != name
    assert alive.left() == 0, "all are given out"
    assert alive.ask() is None


def test_a_trial_whose_process_died_while_asking_is_completed(base: Config, store: Store) -> None:
    dead = open_study(base, store, trials=3)
    run(dead, 1)
    half = dict(list(dead.space.items())[:2])
    begun = dead.study.ask(half)  # the kill
    alive = open_study(base, store, trials=3)
    assert alive.csv()
    assert alive.left() == 2
    _, config = ask(alive)
    trial = trials_by_number(alive)[begun.number]
    assert set(trial.params) == set(alive.space)
    assert half.keys() <= begun.params.keys()
    assert all(trial.params[path] == value for path, value in begun.params.items())
    assert base.replace(trial.params).key() == config.key()


def test_a_live_trial_on_another_machine_is_left_alone(
    base: Config, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = open_study(base, store, trials=2)
    _, config = ask(there)
    began = time.time()
    run_id = store.open_run(store.experiment_id("search"), "trial", config, {})
    trial = there.given_out[next(iter(there.given_out))]
    trial.set_user_attr("owner", {"host": "another machine", "pid": "1", "pid_started": "1"})
    here = open_study(base, store, trials=2)
    an_hour_later = began + 3600
    monkeypatch.setattr("sweeps.study.time.time", lambda: an_hour_later)
    assert here.left() == 2, "its run is silent"
    word = json.dumps({"step": 5, "seconds": 3000.0, "time": an_hour_later - 60})
    store.client.set_tag(run_id, "semidavil.progress", word)
    assert here.left() == 1


def test_a_trial_that_another_sweep_trains_takes_its_result(base: Config, store: Store) -> None:
    study = open_study(base, store, trials=2)
    name, config = ask(study)
    study.leave(name)
    assert study.left() == 1
    study.take_busy()
    assert study.busy == {0}, "it is not finished yet"
    run_id = finish(store, config, 31.5)
    study.take_busy()
    assert (study.preset().value, study.busy) == (31.5, set())  # type: ignore[union-attr]
    assert f"{run_id},True" in study.csv()


def test_a_trial_whose_run_is_taken_over_takes_the_result_of_the_other_sweep(
    base: Config, store: Store
) -> None:
    study = open_study(base, store, trials=2)
    progress = SweepProgress(Console(quiet=True), 2, 1, math.nan)
    driver = SearchDriver(
        study, waiting_plan(study, []), store, {}, Resources(1, 1, 0), progress, "no:where", 0
    )
    task = driver.next_task()
    assert isinstance(task, Task)
    driver.started(task)
    driver.told(task, {"state": "taken", "reason": "another sweep has taken this run over"})
    assert (study.busy, driver.outcome.failed) == ({0}, [])
    store.client.log_metric(task.run_id, "final/miou", 31.5)
    store.close(task.run_id, "FINISHED", "")
    study.take_busy()
    assert study.preset().value == 31.5  # type: ignore[union-attr]


def test_a_trial_of_a_dead_process_takes_what_another_sweep_has_finished(
    base: Config, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, config = open_study(base, store).ask()
    finish(store, config, 31.5)
    study = open_study(base, store)
    study.catch_up()
    assert study.preset() is None, "its process lives, and will tell"
    the_asker_has_died(monkeypatch)
    study.catch_up()
    assert study.preset().value == 31.5  # type: ignore[union-attr]


def test_a_trial_is_told_its_end_once(base: Config, store: Store) -> None:
    first, second = open_study(base, store), open_study(base, store)
    name, _ = ask(first)
    second.given_out[name] = Trial(second.study, first.given_out[name]._trial_id)
    first.tell(name, 30.0, 5.0, "mine")
    assert not second.should_stop(name, 3, 1.0)
    second.tell(name, 20.0, 5.0, "theirs")
    (trial,) = first.study.trials
    assert (trial.value, trial.user_attrs["run_id"]) == (30.0, "mine")


def test_failed_trials_are_tried_again_and_hopeless_ones_if_asked(
    base: Config, store: Store
) -> None:
    study = open_study(base, store, trials=3)
    (preset_name, _), (other, config) = ask(study), ask(study)
    study.tell_failed(preset_name, "run", hopeless=False)
    study.tell_failed(other, "run", hopeless=True)
    assert study.left() == 2, "the hopeless one is spent"
    for _ in range(2):  # the second time, it waits already
        study.catch_up()
    name, again = ask(study)
    assert again.key() == base.key()
    study.tell(name, 30.0, 5.0, "run")
    assert study.preset().number == 2  # type: ignore[union-attr]
    assert study.left() == 1
    study.catch_up(retry_hopeless=True)
    assert study.left() == 2
    assert ask(study)[1].key() == config.key()
    assert [line.endswith("True") for line in study.csv().splitlines()] == [
        False, True, False, True, False
    ]  # fmt: skip


def test_one_in_three_goes_on_but_the_preset_always(base: Config, store: Store) -> None:
    study = open_study(base, store)
    preset_name, *others = (ask(study)[0] for _ in range(5))
    values = (30.0, 40.0, 20.0, 50.0)
    stopped = [study.should_stop(name, 3, x) for name, x in zip(others, values, strict=True)]
    # Of those known at the rung the best third, at least one, goes on.
    assert stopped == [False, False, True, False]
    assert not study.should_stop(preset_name, 3, 1.0)
    assert not study.should_stop(others[3], 6, 51.0), "no rung"


def test_the_pareto_front_is_of_trials_that_none_beats_in_both(base: Config, store: Store) -> None:
    study = open_study(base, store, objective="miou-latency")
    values = [(30.0, 5.0), (40.0, 9.0), (29.0, 6.0), (40.0, 8.0), (10.0, 1.0)]
    for value, latency in values:
        study.tell(ask(study)[0], value, latency, "run")
    study.tell(ask(study)[0], 99.0, float("nan"), "run")
    assert [trial.number for trial in study.best()] == [3, 0, 4]
    assert study.counts() == {"finished": 5, "stopped_early": 0, "failed": 1}
    study.catch_up()
    assert study.left() == 14, "a run without latency would be one again"
    assert {"model.fusion", "model.decoder_dim"} <= set(study.space)
    grid, configs = confirmation(base, study, [1, 2])
    best = study.base.replace(trials_by_number(study)[3].params)
    assert [(c.seed, c.replace({"seed": 0}).key()) for c in configs] == [
        (seed, one.key()) for seed in (1, 2) for one in (base, best)
    ]
    assert [grid.variant(config) for config in configs] == ["preset", "found"] * 2


def test_where_nothing_beats_the_preset_there_is_nothing_to_confirm(
    base: Config, store: Store
) -> None:
    study = open_study(base, store)
    for value in (30.0, 20.0):
        study.tell(ask(study)[0], value, 5.0, "run")
    assert confirmation(base, study, [1, 2])[1] == []


def test_importance_goes_to_what_matters(base: Config, store: Store) -> None:
    study = open_study(base, store, trials=30)
    assert study.importances() == {}
    for _ in range(30):
        name, config = ask(study)
        study.tell(name, 100 * config.loss.omega, 5.0, "run")
    shares = study.importances()
    assert max(shares, key=lambda path: shares[path]) == "loss.omega"
    assert sum(shares.values()) == pytest.approx(1)
    assert study.importances_csv().startswith("setting,importance\nloss.omega,")
    assert len(study.csv().splitlines()) == 31


def test_a_database_that_cannot_be_used_is_named(base: Config, store: Store) -> None:
    (store.folder / "studies.db").write_text("not a database, and long enough to be read as one")
    with pytest.raises(TrackingError, match=r"studies\.db cannot be used \(.*restore the file"):
        open_study(base, store)


def test_what_was_stopped_early_leaves_no_folder(base: Config, store: Store) -> None:
    experiment = store.experiment_id("search")
    configs = [base.replace({"seed": seed}) for seed in range(3)]
    for config, end in zip(configs, ("stopped", "killed", "trained on"), strict=True):
        run_id = store.open_run(experiment, "trial", config, {})
        (store.storage.folder / config.key()).mkdir(parents=True)
        if end == "trained on":  # the store went away between the tag and the end of the run
            store.client.set_tag(run_id, "semidavil.stopped_early", "3")
            store.close(run_id, "FINISHED", "")
        elif end == "stopped":
            store.stop_early(run_id, 3)
        else:
            store.close(run_id, "KILLED", "the sweep was stopped")
    remove_stopped(store, store.runs())
    left = {path.name for path in store.storage.folder.iterdir()}
    assert left == {configs[1].key(), configs[2].key()}


def trials_of(sweeps: Sweeps) -> list[optuna.trial.FrozenTrial]:
    (name,) = optuna.get_all_study_names(f"sqlite:///{sweeps.folder / 'studies.db'}")
    storage = f"sqlite:///{sweeps.folder / 'studies.db'}"
    return optuna.load_study(study_name=name, storage=storage).trials


@pytest.mark.slow
def test_a_search_runs_its_trials_once_and_confirms_its_best(sweeps: Sweeps) -> None:
    code, output = sweeps.run(*SEARCH, "2", "--trials", "12")
    assert code == 0, output
    assert "trial 0 (preset)" in re.sub(r"\s+", " ", output)
    trials = trials_of(sweeps)
    assert [trial.number for trial in trials] == list(range(12))
    states = Counter(trial.state.name for trial in trials)
    assert states["PRUNED"] >= 3
    assert sweeps.states() == {"FINISHED": states["COMPLETE"], "KILLED": states["PRUNED"]}
    for found in sweeps.store.runs():
        trial = trials[int(found.tags["trial"])]
        assert found.run_id == trial.user_attrs["run_id"]
        assert bool(found.tags["stopped_early"]) == (trial.state.name == "PRUNED")
        if trial.state.name == "COMPLETE":
            assert found.metrics["final/miou"] == trial.value
    assert not list((sweeps.folder / "checkpoints").iterdir())

    before = len(sweeps.trainings())
    code, output = sweeps.run(*SEARCH, "2", "--trials", "12", "--confirm-seeds", "5")
    assert code == 0, output
    assert "found minus preset" in output
    assert len(sweeps.trainings()) == before + 2
    assert len(trials_of(sweeps)) == 12


@pytest.mark.slow
def test_a_killed_search_loses_and_repeats_no_trial(sweeps: Sweeps) -> None:
    process = sweeps.start(*SEARCH, "2", "--trials", "10", step_seconds=0.2)
    sweeps.wait_until(lambda: len(sweeps.trainings()) >= 4)
    process.kill()
    process.communicate(timeout=60)
    assert sweeps.states()["RUNNING"] >= 1

    code, output = sweeps.run(*SEARCH, "2", "--trials", "10")
    assert code == 0, output
    trials = trials_of(sweeps)
    assert [trial.number for trial in trials] == list(range(10))
    assert all(trial.state.is_finished() for trial in trials)
    assert sweeps.states()["RUNNING"] == 0
    assert sweeps.keys().most_common(1)[0][1] == 1
    assert len(sweeps.store.runs()) == 10
    for found in sweeps.store.runs():
        if found.status == "FINISHED":
            points = sweeps.store.client.get_metric_history(found.run_id, "train/loss")
            assert [point.step for point in points] == list(range(1, STEPS + 1))


def assert_all_ended(sweeps: Sweeps, trials: int) -> None:
    """Every trial once, in the study and in the store."""
    told = trials_of(sweeps)
    assert len(told) == trials
    assert {trial.state.name for trial in told} <= {"COMPLETE", "PRUNED"}
    assert sweeps.keys().most_common(1)[0][1] == 1
    ended = {trial.user_attrs["key"]: trial.state.name for trial in told}
    for found in sweeps.store.runs():
        expected = {"FINISHED": "COMPLETE", "KILLED": "PRUNED"}[found.status]
        assert ended.pop(found.key) == expected
    assert not ended
    assert not list((sweeps.folder / "checkpoints").iterdir())


@pytest.mark.slow
def test_a_search_survives_being_killed_again_and_again(sweeps: Sweeps) -> None:
    generator, interrupted = random.Random(7), 0
    command = (*SEARCH, "2", "--trials", "12")
    for how in ("kill the group", "Ctrl-C", "kill", "Ctrl-C", "kill the group"):
        process = sweeps.start(*command, step_seconds=0.15)
        begun = len(sweeps.events())
        sweeps.wait_until(lambda begun=begun: len(sweeps.events()) > begun + 4)  # type: ignore[misc]
        time.sleep(generator.uniform(0, 2.5))
        interrupted += process.poll() is None
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
    assert interrupted >= 3, "the search was done before it could be killed"
    code, output = sweeps.run(*command)
    assert code == 0, output
    assert_all_ended(sweeps, trials=12)
    assert overview_status(sweeps) == "FINISHED"
    for found in sweeps.store.runs():
        if found.status == "FINISHED":
            points = sweeps.store.client.get_metric_history(found.run_id, "train/loss")
            assert [point.step for point in points] == list(range(1, STEPS + 1))


def overview_status(sweeps: Sweeps) -> str:
    store = sweeps.store
    (run_id,) = store._find_overviews(store.experiment_id("search"))
    return store.client.get_run(run_id).info.status


@pytest.mark.slow
def test_two_searches_of_one_study_share_its_trials(sweeps: Sweeps) -> None:
    command = (*SEARCH, "1", "--trials", "9")
    both = [sweeps.start(*command, step_seconds=0.1) for _ in range(2)]
    outputs = [process.communicate(timeout=180)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], "\n".join(outputs)
    assert_all_ended(sweeps, trials=9)
    assert len(sweeps.trainings()) == 9
    assert len({event.split()[-1] for event in sweeps.trainings()}) == 2, "both took part"


@pytest.mark.slow
def test_latency_is_searched_too_and_finished_runs_are_taken(sweeps: Sweeps) -> None:
    code, output = sweeps.run(
        "--grid", "attention", "--budgets", "100", "--concurrency", "2",
        "--set", "runtime.eval_every=3",
    )  # fmt: skip
    assert code == 0, output
    before = len(sweeps.trainings())
    code, output = sweeps.run(*SEARCH, "2", "--trials", "6", "--objective", "miou-latency")
    assert code == 0, output
    assert "trial-0/100/s0 has a finished run" in output
    assert len(sweeps.trainings()) == before + 5
    trials = trials_of(sweeps)
    assert {trial.state.name for trial in trials} == {"COMPLETE"}
    for trial in trials:
        assert trial.values[1] == pytest.approx(
            trial.params["model.decoder_dim"] / 10
        )  # as the stand-in has it


def test_a_search_has_one_seed(capsys: pytest.CaptureFixture[str]) -> None:
    from sweeps.run import main

    assert main(["--grid", "search", "--seeds", "0", "1"]) == 2
    assert "one value of seed" in capsys.readouterr().err


def test_a_seed_does_not_confirm_itself(capsys: pytest.CaptureFixture[str]) -> None:
    from sweeps.run import main

    assert main(["--grid", "search", "--seeds", "3", "--confirm-seeds", "2", "3"]) == 2
    assert "--confirm-seeds 3" in capsys.readouterr().err


def test_a_list_begins_no_study(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from sweeps.run import main

    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)
    arguments = ["--grid", "search", "--set", "training.steps=31", "--list"]
    assert main(arguments) == 0
    assert "not begun, 20 trials" in capsys.readouterr().out
    assert not (store.folder / "studies.db").exists()
    rungs_from_11 = preset("toy", {"training.steps": "31", "runtime.eval_every": "11"})
    study = open_study(rungs_from_11, store)  # a third of 31, rounded up: none at step 30
    study.tell(ask(study)[0], 30.0, 5.0, "run")
    assert main(arguments) == 0
    assert f"study {study.name}: 1 finished" in " ".join(capsys.readouterr().out.split())
