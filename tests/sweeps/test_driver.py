"""What the driver hands out, and when."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from rich.console import Console
from servers import away, raising
from tracked_runs import take_over

from semidavil.config import preset
from sweeps.cluster import ClusterError
from sweeps.engine import Resources
from sweeps.grids import GRIDS
from sweeps.plan import make_plan
from sweeps.progress import SweepProgress
from sweeps.provenance import owner_tags
from sweeps.sweep import Driver, _starting
from sweeps.tracking import Store
from sweeps.trial import Later, Task

CONCURRENCY = 2


@pytest.fixture
def driver(store: Store) -> Driver:
    """Of a grid with four cells."""
    base = preset("toy")
    cells = GRIDS["attention"].cells(base, budgets=[100])
    plan = make_plan("attention", GRIDS["attention"].around(base), cells, [])
    progress = SweepProgress(Console(quiet=True), len(cells), CONCURRENCY, 1.0)
    return Driver(plan, store, {}, Resources(CONCURRENCY, 1, 0), progress, "no:where", 0)


def task_of(driver: Driver) -> Task:
    task = driver.next_task()
    assert isinstance(task, Task)
    driver.started(task)
    return task


def running(step: int) -> dict[str, Any]:
    return {"state": "running", "step": step, "total": 10}


def test_the_next_cell_is_claimed_while_a_run_is_at_its_last_step(
    driver: Driver, store: Store
) -> None:
    first = task_of(driver)
    driver.told(first, running(9))
    assert len(store.runs()) == 1
    driver.told(first, running(10))
    assert len(store.runs()) == 1  # its worker waits for an answer, and not for a claim
    driver.idle()
    driver.idle()
    _, second = store.runs()
    assert second.status == "RUNNING"
    assert task_of(driver).run_id == second.run_id
    assert len(store.runs()) == 2


def test_the_next_cell_is_claimed_once_shortly_before_a_run_ends(
    driver: Driver, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = task_of(driver)
    claimed = []
    for seconds, step in [(0, 1), (4, 5), (6.9, 7), (7, 8), (8, 9), (9, 10), (9, 10)]:
        monkeypatch.setattr("sweeps.progress.time.monotonic", lambda at=100 + seconds: at)
        driver.told(first, running(step))
        driver.idle()
        claimed.append(len(store.runs()) - 1)
    # A step takes a second; at step 7, after 6.9 s, 3.45 are left.
    assert claimed == [0, 0, 0, 1, 1, 1, 1]


def test_every_cell_is_handed_out_once_and_closed_if_the_sweep_stops(
    driver: Driver, store: Store
) -> None:
    names = []
    while isinstance(task := driver.next_task(), Task):
        driver.started(task)
        driver.told(task, running(10))
        driver.idle()
        names.append(task.name)
    assert isinstance(task, Later)  # one of those that are open may have to be tried again
    assert sorted(names) == sorted(cell.name for cell in driver.plan.cells)
    driver.close_open_runs()
    assert [run.status for run in store.runs()] == ["KILLED"] * len(names)


def test_open_runs_give_signs_of_life_although_they_log_nothing(
    driver: Driver, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = task_of(driver)
    driver.idle()
    assert "alive" not in store.runs()[0].tags
    now = time.monotonic()
    monkeypatch.setattr("sweeps.sweep.time.monotonic", lambda: now + 301)
    driver.idle()
    assert abs(float(store.runs()[0].tags["alive"]) - time.time()) < 60
    driver.store.client.log_batch = raising(away)  # a store that is away is no reason to stop
    monkeypatch.setattr("sweeps.sweep.time.monotonic", lambda: now + 700)
    driver.idle()
    assert task.run_id in driver.open


def test_a_held_cell_is_closed_if_the_sweep_stops(driver: Driver, store: Store) -> None:
    driver.told(task_of(driver), running(10))
    driver.idle()
    driver.close_open_runs()
    assert [run.status for run in store.runs()] == ["KILLED", "KILLED"]


def test_a_run_that_is_another_sweeps_by_now_is_neither_ours_to_close_nor_a_failure(
    driver: Driver, store: Store
) -> None:
    task = task_of(driver)
    assert task.owner == owner_tags()
    assert task.claimed == pytest.approx(time.time(), abs=60)
    driver.told(task, running(3))
    driver.told(task, {"state": "taken", "reason": "another sweep has taken it over"})
    assert (driver.progress.total, driver.outcome.failed, driver.open) == (3, [], {})
    assert (driver.progress.rows, driver.progress.fraction) == ({}, {})
    driver.close_open_runs()
    assert store.runs()[0].status == "RUNNING"
    assert isinstance(driver.next_task(), Task)  # the others are still to do


def test_a_sweep_that_is_stopped_leaves_what_another_has_taken_over(
    driver: Driver, store: Store
) -> None:
    theirs, mine = task_of(driver), task_of(driver)
    take_over(store, theirs.run_id)
    driver.close_open_runs()
    states = {run.run_id: run.status for run in store.runs()}
    assert states == {theirs.run_id: "RUNNING", mine.run_id: "KILLED"}


def test_a_lost_worker_of_a_run_that_is_another_sweeps_is_no_failure(
    driver: Driver, store: Store
) -> None:
    task = task_of(driver)
    take_over(store, task.run_id)
    driver.lost(task, "its worker process died")
    assert (driver.outcome.failed, driver.open) == ([], {})
    assert store.runs()[0].status == "RUNNING"


@contextmanager
def slow_start(events: list[str]) -> Iterator[None]:
    events.append("starts")
    time.sleep(0.3)
    events.append("is up")
    yield
    events.append("ends")


def test_ctrl_c_while_ray_starts_waits_for_it_and_ends_it() -> None:
    events: list[str] = []
    with pytest.raises(KeyboardInterrupt), _starting(slow_start(events)):
        raise KeyboardInterrupt
    assert events == ["starts", "is up", "ends"]


def test_a_second_ctrl_c_while_ray_starts_changes_nothing() -> None:
    events: list[str] = []
    again = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
    again.start()
    with pytest.raises(KeyboardInterrupt, match="the first"), _starting(slow_start(events)):
        raise KeyboardInterrupt("the first")
    again.join()
    assert events == ["starts", "is up", "ends"]


def test_a_start_of_ray_that_fails_says_why() -> None:
    @contextmanager
    def broken() -> Iterator[None]:
        raise ClusterError("no Ray there")
        yield

    with pytest.raises(ClusterError, match="no Ray there"), _starting(broken()) as start:
        start.result()
