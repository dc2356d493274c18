"""Studies of searches, in the states in which tests need them."""

import sqlite3

from fake_training import skill

from semidavil.config import Config
from sweeps.run.study import OpenTrial, Study
from sweeps.track.store import Store


def open_study(base: Config, store: Store, trials: int = 20, objective: str = "miou") -> Study:
    return Study(base, objective, trials, store)


def ask(study: Study) -> OpenTrial:
    one = study.ask()
    assert one is not None
    return one


def run(study: Study, count: int) -> None:
    for _ in range(count):
        one = ask(study)
        study.tell(one.name, skill(one.config), 5.0, "run")


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
