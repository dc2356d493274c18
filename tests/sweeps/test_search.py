"""Searches: the study by itself, and the command with a stand-in for the training."""

import re
from collections import Counter
from pathlib import Path

import optuna
import pytest
from fake_training import STEPS, skill
from sweep_process import Sweeps

from semidavil.config import Config, preset
from sweeps.search import Search, space_of

SEARCH = ("--grid", "search", "--set", "runtime.eval_every=3", "--concurrency")


@pytest.fixture
def base() -> Config:
    return preset("toy", {"runtime.eval_every": "3"})


def open_study(base: Config, tmp_path: Path, trials: int = 20, objective: str = "miou") -> Search:
    return Search(base, objective, trials, tmp_path / "studies.db")


def run(search: Search, count: int) -> None:
    for _ in range(count):
        cell = search.ask()
        search.tell(cell.name, skill(cell.config), 5.0, "run")


def params_of(search: Search) -> list[dict[str, float]]:
    return [trial.params for trial in search.study.trials]


def test_the_first_trial_is_the_preset_and_all_stay_in_the_space(
    base: Config, tmp_path: Path
) -> None:
    search = open_study(base, tmp_path)
    assert search.ask().config.key() == base.key()
    for _ in range(12):
        changed = search.ask().config.differences(base)
        assert set(changed) <= set(search.space)
        assert all(search.space[path]._contains(value) for path, (value, _) in changed.items())
    assert "loss.omega" not in space_of(base.replace({"loss.name": "ce"}), "miou")


def test_a_search_that_is_continued_takes_the_same_way(base: Config, tmp_path: Path) -> None:
    straight = open_study(base, tmp_path / "straight")
    run(straight, 16)
    for _ in range(4):  # each a process of its own
        run(open_study(base, tmp_path / "pieces"), 4)
    pieces = open_study(base, tmp_path / "pieces")
    assert params_of(pieces) == params_of(straight)
    assert pieces.left() == 4
    assert len({str(params) for params in params_of(straight)}) == 16
    assert straight.best()[0].value == max(trial.value for trial in straight.study.trials)
    assert straight.best()[0].value > skill(base)


def test_a_trial_of_a_dead_process_is_begun_again(
    base: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = open_study(base, tmp_path, trials=3)
    run(dead, 1)
    begun = dead.ask()
    alive = open_study(base, tmp_path, trials=3)
    assert alive.left() == 1, "the other process lives, and has one"
    monkeypatch.setattr("sweeps.search.is_gone", lambda *_: True)
    assert alive.left() == 2
    again = alive.ask()
    assert (again.name, again.config) == (begun.name, begun.config)
    assert alive.ask().name != begun.name
    assert alive.left() == 0, "all are given out"


def test_one_in_three_goes_on_but_the_preset_always(base: Config, tmp_path: Path) -> None:
    search = open_study(base, tmp_path)
    preset_cell, *others = (search.ask() for _ in range(5))
    told = [(others[0], 30.0), (others[1], 40.0), (others[2], 20.0), (others[3], 50.0)]
    stopped = [search.should_stop(cell.name, 3, value) for cell, value in told]
    # Of those known at the rung the best third, at least one, goes on.
    assert stopped == [False, False, True, False]
    assert not search.should_stop(preset_cell.name, 3, 1.0)
    assert not search.should_stop(others[3].name, 6, 51.0), "no rung"


def test_the_pareto_front_is_of_trials_that_none_beats_in_both(
    base: Config, tmp_path: Path
) -> None:
    search = open_study(base, tmp_path, objective="miou-latency")
    values = [(30.0, 5.0), (40.0, 9.0), (29.0, 6.0), (40.0, 8.0), (10.0, 1.0)]
    for value, latency in values:
        search.tell(search.ask().name, value, latency, "run")
    search.tell(search.ask().name, 99.0, float("nan"), "run")
    assert {trial.number for trial in search.best()} == {0, 3, 4}
    assert search.counts() == {"finished": 5, "stopped_early": 0, "failed": 1}
    assert {"model.fusion", "model.decoder_dim"} <= set(search.space)


def test_importance_goes_to_what_matters(base: Config, tmp_path: Path) -> None:
    search = open_study(base, tmp_path)
    assert search.importances() == {}
    for _ in range(30):
        cell = search.ask()
        search.tell(cell.name, 100 * cell.config.loss.omega, 5.0, "run")
    shares = search.importances()
    assert max(shares, key=lambda path: shares[path]) == "loss.omega"
    assert sum(shares.values()) == pytest.approx(1)
    assert search.importances_csv().startswith("setting,importance\nloss.omega,")
    assert len(search.csv().splitlines()) == 31


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
