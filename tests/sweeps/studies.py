"""Studies of searches, in the states in which tests need them."""

import sqlite3

from fake_training import skill

from semidavil.config import Config, preset
from sweeps.run.study import OpenTrial, Study
from sweeps.track.store import Store

BASE = preset("toy", {"runtime.eval_every": "3"})
OPENED: list[Study] = []  # by the test that runs


def open_study(
    store: Store, trials: int = 20, objective: str = "miou", base: Config = BASE
) -> Study:
    study = Study(base, objective, trials, store)
    OPENED.append(study)
    return study


def forget_studies() -> None:
    """Ends the threads that would beat for trials of an earlier test."""
    for study in OPENED:
        study._closed.set()
    OPENED.clear()


def ask(study: Study) -> OpenTrial:
    one = study.ask()
    assert one is not None
    return one


def finish_next(study: Study, score: float | None = None, latency_ms: float = 5.0) -> OpenTrial:
    """The next trial, with its settings' score unless one is given."""
    one = ask(study)
    score = skill(one.config) if score is None else score
    study.tell(one.name, "run", score=score, latency_ms=latency_ms)
    return one


def die(study: Study) -> None:
    """Its process is gone, and so is the grace period of its trials."""
    study._closed.set()
    study.open.clear()
    age_heartbeats(study)


def age_heartbeats(study: Study) -> None:
    with sqlite3.connect(study.file) as database:
        database.execute("UPDATE trial_heartbeats SET heartbeat = datetime('now', '-1 hour')")


def states(study: Study) -> list[str]:
    """By number, each trial as it was begun last."""
    return [line.split(",")[1] for line in study.csv().splitlines()[1:]]
