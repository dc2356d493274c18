"""The study of a search: what it asks for, what it is told, what it finds."""

import errno
import sqlite3
import time

import optuna
import pytest
from fake_training import skill
from studies import age_heartbeats, ask, die, open_study, run, states

from semidavil.config import Config, preset
from sweeps.run.search import confirmation
from sweeps.run.space import space_of, study_name
from sweeps.run.study import Study
from sweeps.track.retry import TrackingError
from sweeps.track.store import Store


@pytest.fixture
def base() -> Config:
    return preset("toy", {"runtime.eval_every": "3"})


@pytest.fixture
def study(base: Config, store: Store) -> Study:
    return open_study(base, store)


def elsewhere(store: Store, folder: str) -> Store:
    """Another store, with studies of its own."""
    other = store.folder / folder
    other.mkdir()
    (other / "mlflow.db").write_bytes((store.folder / "mlflow.db").read_bytes())
    return Store(other)


@pytest.mark.parametrize("ema", ["0.9", "0.5"], ids=["inside", "outside"])
def test_the_first_trial_is_the_preset_and_all_stay_in_the_space(store: Store, ema: str) -> None:
    base = preset("toy", {"runtime.eval_every": "3", "training.ema": ema})
    study = open_study(base, store)
    assert ask(study).config.key() == base.key()
    for _ in range(12):
        changed = ask(study).config.differences(base)
        assert set(changed) <= set(study.space)
    for trial in study.study.trials:
        assert trial.distributions == study.space, "Optuna has checked the values against them"
    assert "loss.omega" not in space_of(base.replace({"loss.name": "ce"}), "miou")


def test_a_search_that_is_continued_or_killed_takes_the_same_way(
    base: Config, store: Store
) -> None:
    straight = open_study(base, elsewhere(store, "straight"))
    run(straight, 16)
    pieces = elsewhere(store, "pieces")
    for _ in range(4):  # each a process of its own
        piece = open_study(base, pieces)
        run(piece, 3)
        ask(piece)
        die(piece)
        piece = open_study(base, pieces)
        run(piece, 1)
        piece.close()
    ways = [
        [trial.params for trial in one._trials(optuna.trial.TrialState.COMPLETE)]
        for one in (piece, straight)
    ]
    assert ways[0] == ways[1]
    assert len({str(params) for params in ways[0]}) == 16
    assert open_study(base, pieces).left() == 4
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


def test_a_trial_of_a_dead_search_is_begun_again_as_itself(base: Config, store: Store) -> None:
    dead, alive = open_study(base, store, trials=3), open_study(base, store, trials=3)
    run(dead, 1)
    begun = ask(dead)
    assert not dead.should_stop(begun.name, 3, 20.0)
    assert (alive.left(), alive.running_elsewhere()) == (1, {1}), "the other search lives"
    die(dead)
    again = ask(alive)
    assert (again.name, again.number, again.config) == (begun.name, 1, begun.config)
    assert ask(alive).number == 2
    assert alive.ask() is None, "all are given out"
    assert (states(alive), alive.counts()["failed"]) == (["complete", "running", "running"], 0)
    assert ",3,20.0," in alive.csv().splitlines()[2], "what it had told on the way"


@pytest.mark.parametrize("finished", [0, 1], ids=["the preset", "another"])
def test_a_trial_whose_process_died_while_asking_is_completed(
    base: Config, store: Store, finished: int
) -> None:
    dead = open_study(base, store, trials=3)
    run(dead, finished)
    half = dict(list(dead.space.items())[:2])
    begun = dead.study.ask(half)  # the kill
    alive = open_study(base, store, trials=3)
    again = ask(alive)
    assert again.number == begun.number
    assert begun.params.items() <= again.trial.params.items()
    assert set(again.trial.params) == set(alive.space)
    assert (again.config.key() == base.key()) == (finished == 0)
    assert (alive.left(), len(states(alive))) == (2 - finished, 1 + finished)


def test_a_living_search_beats_for_its_trials(
    base: Config, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sweeps.run.study.HEARTBEAT_SECONDS", 0.05)
    study, other = open_study(base, store), open_study(base, store)
    ask(study)
    age_heartbeats(study)
    deadline = time.monotonic() + 60
    while old_heartbeats(study):
        assert time.monotonic() < deadline, "nobody beats"
        time.sleep(0.05)
    assert ask(other).number == 1
    study._closed.set()  # the machine is suspended
    age_heartbeats(study)
    ask(study)
    assert states(study)[0] == "running", "it beats before it looks for trials of the dead"
    study.close()
    assert ask(other).number == 0, "a search that ends hands its trials over at once"


def old_heartbeats(study: Study) -> int:
    with sqlite3.connect(study.file) as database:
        old = "SELECT count(*) FROM trial_heartbeats WHERE heartbeat < datetime('now', '-1 minute')"
        return int(database.execute(old).fetchone()[0])


def test_failed_trials_are_tried_again_and_diverged_ones_if_asked(study: Study) -> None:
    study.trials = 3
    first, second = ask(study), ask(study)
    study.tell_failed(first.name, "run", diverged=False)
    study.tell_failed(second.name, "run", diverged=True)
    assert study.left() == 1, "this search has given both up"
    assert study.counts()["failed"] == 2
    for _ in range(2):  # the second time, it waits already
        study.queue_failed()
    assert study.left() == 2
    again = ask(study)
    assert (again.name, again.config.key()) == (first.name, study.base.key())
    study.tell(again.name, 30.0, 5.0, "run")
    assert study.preset() is not None
    study.queue_failed(diverged=True)
    assert ask(study).config == second.config
    assert states(study) == ["complete", "running"]
    assert [line.endswith("True") for line in study.csv().splitlines()] == [False, True, False]


def test_one_in_three_goes_on_but_the_preset_always(study: Study) -> None:
    preset_name, *others = (ask(study).name for _ in range(5))
    values = (30.0, 40.0, 20.0, 50.0)
    stopped = [study.should_stop(name, 3, x) for name, x in zip(others, values, strict=True)]
    # Of those known at the rung the best third, at least one, goes on.
    assert stopped == [False, False, True, False]
    assert not study.should_stop(preset_name, 3, 1.0)
    assert not study.should_stop(others[3], 6, 51.0), "no rung"


def test_the_pareto_front_is_of_trials_that_none_beats_in_both(base: Config, store: Store) -> None:
    study = open_study(base, store, objective="miou-latency")
    study.tell(ask(study).name, 30.0, 5.0, "run")
    assert confirmation(base, study, [1, 2])[1] == [], "nothing is better than the preset"
    for value, latency in [(40.0, 9.0), (29.0, 6.0), (40.0, 8.0), (10.0, 1.0)]:
        study.tell(ask(study).name, value, latency, "run")
    study.tell(ask(study).name, 99.0, float("nan"), "run")
    assert [trial.number for trial in study.best()] == [3, 0, 4]
    assert study.counts() == {"finished": 5, "stopped_early": 0, "failed": 1}
    study.queue_failed()
    assert study.left() == 14, "a run without latency would be one again"
    assert {"model.fusion", "model.decoder_dim"} <= set(study.space)
    grid, configs = confirmation(base, study, [1, 2])
    best = study.base.replace(study.study.trials[3].params)
    assert [(c.seed, c.replace({"seed": 0}).key()) for c in configs] == [
        (seed, one.key()) for seed in (1, 2) for one in (base, best)
    ]
    assert [grid.variant(config) for config in configs] == ["preset", "found"] * 2


def test_importance_goes_to_what_matters(study: Study) -> None:
    run(study, 2)
    assert study.importances() == {}
    for _ in range(18):
        one = ask(study)
        study.tell(one.name, 100 * one.config.loss.omega, 5.0, "run")
    shares = study.importances()
    assert max(shares, key=lambda path: shares[path]) == "loss.omega"
    assert sum(shares.values()) == pytest.approx(1)
    assert study.importances_csv().startswith("setting,importance\nloss.omega,")
    assert len(study.csv().splitlines()) == 21


def test_a_database_that_cannot_be_used_is_named(base: Config, store: Store) -> None:
    (store.folder / "studies.db").write_text("not a database, and long enough to be read as one")
    with pytest.raises(TrackingError, match=r"studies\.db cannot be used \(.*restore the file"):
        open_study(base, store)


@pytest.mark.parametrize("folder", ["a %20 b", "is it?", "{braces}"])
def test_studies_lie_in_a_folder_of_any_name(base: Config, store: Store, folder: str) -> None:
    study = open_study(base, elsewhere(store, folder))
    run(study, 1)
    assert study.file == store.folder / folder / "studies.db"
    assert study.file.stat().st_size > 0
    assert open_study(base, Store(store.folder / folder)).left() == 19


def test_a_file_system_without_flock_will_do(
    base: Config, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", flock)  # as on Lustre
    run(open_study(base, store), 2)
