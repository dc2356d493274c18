"""The study of a search: what it asks for, what it is told, what it finds."""

import errno
import sqlite3
import time

import pytest
from fake_training import skill
from optuna.trial import TrialState
from studies import BASE, age_heartbeats, ask, die, finish_next, open_study, states

from semidavil.config import preset
from sweeps.run.search import confirmation
from sweeps.run.study import Study, space_of, study_name
from sweeps.track.retry import TrackingError
from sweeps.track.store import Store


@pytest.fixture
def study(store: Store) -> Study:
    return open_study(store)


def elsewhere(store: Store, folder: str) -> Store:
    """Another store, with studies of its own."""
    other = store.folder / folder
    other.mkdir()
    (other / "mlflow.db").write_bytes((store.folder / "mlflow.db").read_bytes())
    return Store(other)


@pytest.mark.parametrize("ema", ["0.9", "0.5"], ids=["inside", "outside"])
def test_the_first_trial_is_the_preset_and_all_stay_in_the_space(store: Store, ema: str) -> None:
    base = preset("toy", {"runtime.eval_every": "3", "training.ema": ema})
    study = open_study(store, base=base)
    assert ask(study).config.key() == base.key()
    for _ in range(3):
        assert set(ask(study).config.differences(base)) <= set(study.space)
    for trial in study.study.trials:
        assert trial.distributions == study.space, "Optuna has checked the values against them"
    assert "loss.omega" not in space_of(base.replace({"loss.name": "ce"}), "miou")


@pytest.mark.slow
def test_a_search_that_is_continued_or_killed_takes_the_same_way(store: Store) -> None:
    straight = open_study(elsewhere(store, "straight"))
    configs = [finish_next(straight).config for _ in range(16)]
    pieces = elsewhere(store, "pieces")
    for _ in range(4):  # each a process of its own
        piece = open_study(pieces)
        for _ in range(3):
            finish_next(piece)
        ask(piece)
        die(piece)
        piece = open_study(pieces)
        finish_next(piece)
        piece.close()
    assert [BASE.replace(trial.params) for trial in piece.finished()] == configs
    assert len({config.key() for config in configs}) == 16
    assert open_study(pieces).left() == 4
    (best,) = straight.best()
    assert best.value == max(skill(config) for config in configs) > skill(BASE)


def test_trials_that_cannot_be_compared_are_of_another_study() -> None:
    local = "sqlite:////a/mlflow.db"
    names = {
        study_name(BASE, "miou", local),
        study_name(BASE, "miou", "sqlite:////b/mlflow.db"),  # it lies beside its studies
        study_name(BASE.replace({"runtime.eval_every": 4}), "miou", local),  # other rungs
        study_name(BASE.replace({"seed": 1}), "miou", local),
        study_name(BASE, "miou-latency", local),
        study_name(BASE, "miou", "http://server:5000"),
    }
    assert len(names) == 5


@pytest.mark.slow
def test_a_trial_of_a_dead_search_is_begun_again_as_itself(store: Store) -> None:
    dead, alive = open_study(store, trials=3), open_study(store, trials=3)
    finish_next(dead)
    begun = ask(dead)
    assert not dead.should_stop(begun.name, 3, 20.0)
    assert (alive.left(), alive.running_elsewhere()) == (1, 1), "the other search lives"
    die(dead)
    again = ask(alive)
    assert (again.name, again.number, again.config) == (begun.name, 1, begun.config)
    assert len({begun.name, ask(alive).name}) == 2
    assert alive.ask() is None, "all are given out"
    assert (states(alive), alive.counts()["failed"]) == (["complete", "running", "running"], 0)
    assert ",3,20.0," in alive.csv().splitlines()[2], "what it had told on the way"


@pytest.mark.parametrize("finished", [0, 1], ids=["the preset", "another"])
def test_a_trial_whose_process_died_while_asking_is_completed(store: Store, finished: int) -> None:
    dead = open_study(store, trials=3)
    for _ in range(finished):
        finish_next(dead)
    begun = dead.study.ask(dict(list(dead.space.items())[:2]))  # the kill
    alive = open_study(store, trials=3)
    again = ask(alive)
    assert again.number == begun.number
    assert begun.params.items() <= again.trial.params.items()
    assert set(again.trial.params) == set(alive.space)
    assert (again.config.key() == BASE.key()) == (finished == 0)
    assert (alive.left(), len(states(alive))) == (2 - finished, 1 + finished)


@pytest.mark.slow
def test_a_living_search_beats_for_its_trials(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sweeps.run.study.HEARTBEAT_SECONDS", 0.2)
    study, other = open_study(store), open_study(store)
    ask(study)
    age_heartbeats(study)
    deadline = time.monotonic() + 60
    with sqlite3.connect(study.file) as database:
        old = "SELECT 1 FROM trial_heartbeats WHERE heartbeat < datetime('now', '-1 minute')"
        while database.execute(old).fetchone():
            assert time.monotonic() < deadline, "nobody beats"
            time.sleep(0.1)
    assert ask(other).number == 1
    study._closed.set()  # the machine is suspended
    age_heartbeats(study)
    ask(study)
    assert states(study)[0] == "running", "it beats before it looks for trials of the dead"
    study.close()
    assert ask(other).number == 0, "a search that ends hands its trials over at once"


def test_failed_trials_are_tried_again_and_diverged_ones_if_asked(study: Study) -> None:
    study.trials = 3
    first, second = ask(study), ask(study)
    study.tell(first.name, "run", TrialState.FAIL)
    study.tell(second.name, "run", TrialState.FAIL, diverged=True)
    assert (study.left(), study.counts()["failed"]) == (1, 2), "this search has given both up"
    for _ in range(2):  # the second time, it waits already
        study.queue_failed("other")
    assert study.left() == 2
    again = finish_next(study)
    assert (again.name, again.config.key()) == (first.name, study.base.key())
    study.queue_failed("other", "diverged")
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


def test_the_pareto_front_is_of_trials_that_none_beats_in_both(store: Store) -> None:
    study = open_study(store, objective="miou-latency")
    finish_next(study, 30.0)
    assert confirmation(study, [1, 2])[1] == [], "nothing is better than the preset"
    for value, latency in [(40, 9), (29, 6), (40, 8), (10, 1), (99, float("nan"))]:
        finish_next(study, value, latency)
    assert [trial.number for trial in study.best()] == [3, 0, 4]
    assert study.counts() == {"finished": 5, "stopped_early": 0, "failed": 1}
    study.queue_failed("other")
    assert study.left() == 14, "a run without latency would be one again"
    assert {"model.fusion", "model.decoder_dim"} <= set(study.space)
    grid, configs = confirmation(study, [1, 2])
    best = study.base.replace(study.study.trials[3].params)
    assert [(c.seed, c.replace({"seed": 0}).key()) for c in configs] == [
        (seed, one.key()) for seed in (1, 2) for one in (BASE, best)
    ]
    assert [grid.variant(config) for config in configs] == ["preset", "found"] * 2


@pytest.mark.slow
def test_importance_goes_to_what_matters(study: Study) -> None:
    for _ in range(20):
        one = ask(study)
        assert study.importances() == {} or one.number > 3
        study.tell(one.name, "run", score=100 * one.config.loss.omega)
    shares = study.importances()
    assert max(shares, key=lambda path: shares[path]) == "loss.omega"
    assert sum(shares.values()) == pytest.approx(1)
    assert study.importances_csv().startswith("setting,importance\nloss.omega,")
    assert len(study.csv().splitlines()) == 21


def test_a_database_that_cannot_be_used_is_named(store: Store) -> None:
    (store.folder / "studies.db").write_text("not a database, and long enough to be read as one")
    with pytest.raises(TrackingError, match=r"studies\.db cannot be used \(.*restore the file"):
        open_study(store)


@pytest.mark.parametrize("folder", ["a %20 b", "is it?", "{braces}"])
def test_studies_lie_in_a_folder_of_any_name(store: Store, folder: str) -> None:
    study = open_study(elsewhere(store, folder))
    finish_next(study)
    assert study.file == store.folder / folder / "studies.db"
    assert open_study(Store(store.folder / folder)).left() == 19


def test_a_file_system_without_flock_will_do(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", flock)  # as on Lustre
    finish_next(open_study(store))
