"""What a sweep decides about its cells, by the events that its workers send."""

import io
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from servers import away, raising
from slow_cases import also_slow

from semidavil.config import preset
from sweeps.plan.cells import Cell, State
from sweeps.plan.pace import Pace
from sweeps.run import store_thread
from sweeps.run.context import SweepContext, SweepOptions
from sweeps.run.driver import DEATHS, Driver
from sweeps.run.events import Done, Failed, Failure, Halted, Lost, Progress, Taken, Task
from sweeps.run.resources import Resources
from sweeps.run.source import QueueSource
from sweeps.run.store_thread import StoreThread
from sweeps.show.progress import SweepProgress
from sweeps.track.retry import StoreAway, StoreRefused
from sweeps.track.store import Store
from sweeps.track.wishes import NOTHING, Wishes

BASE = preset("toy")
ENDED = Done(score=50.0, latency_ms=1.0, seconds=2.0, delivered=True, summary="mIoU 50.00")


def cell(seed: int) -> Cell:
    return Cell(BASE.replace({"seed": seed}), f"cell {seed}", State.TODO, None, float("nan"))


class Remembering(QueueSource):
    """A queue that remembers what it hears, and ends cells early if it is told to."""

    def __init__(self, count: int) -> None:
        super().__init__([cell(seed) for seed in range(count)])
        self.heard: list[tuple[str, str]] = []
        self.stops = False

    def finished(self, cell: Cell, done: Done, run_id: str) -> None:
        self.heard.append(("finished", cell.name))

    def stopped(self, cell: Cell, run_id: str) -> None:
        self.heard.append(("stopped", cell.name))

    def failed(self, cell: Cell, reason: str, run_id: str, diverged: bool) -> None:
        super().failed(cell, reason, run_id, diverged)
        self.heard.append(("diverged" if diverged else "failed", cell.name))

    def taken(self, cell: Cell) -> None:
        super().taken(cell)
        self.heard.append(("taken", cell.name))

    def should_stop(self, cell: Cell, progress: Progress) -> bool:
        return self.stops


class Sweep:
    """A driver and Ray Tune's part, without Ray."""

    def __init__(
        self,
        store: Store,
        count: int = 1,
        retries: int = 1,
        parent: str = "",
        before: Wishes = NOTHING,
        source: Any = None,
    ) -> None:
        self.store, self.source = store, source or Remembering(count)
        context = SweepContext(
            store, Resources(concurrency=2, cpus=1, gpus=0),
            SweepOptions({"commit": "c0ffee"}, "fake:train", retries), "attention",
            store.experiment_id("attention"), parent, before,
        )  # fmt: skip
        self.output = Console(record=True, quiet=False, width=200, file=io.StringIO())
        self.driver = Driver(
            self.source, context, SweepProgress(self.output, self.source, [], 2, Pace())
        )

    def until(self, reached: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + 60
        while not (found := reached()):
            assert time.monotonic() < deadline, self.output.export_text()
            self.driver.on_step()
            time.sleep(0.005)
        return found

    def next(self) -> Task:
        task = self.until(self.driver.next_task)
        self.driver.on_start(task)
        return task

    def idle(self) -> None:
        self.until(self.driver.thread.is_idle)

    def status(self, task: Task) -> str:
        self.idle()
        return self.store.run(task.run_id).status

    def text(self) -> str:
        return self.output.export_text(clear=False)


@pytest.fixture
def sweep(store: Store) -> Sweep:
    return Sweep(store)


def test_every_cell_is_handed_out_once_and_its_end_is_heard(store: Store) -> None:
    sweep = Sweep(store, count=3)
    tasks = [sweep.next() for _ in range(3)]
    assert len({task.run_id for task in tasks}) == 3
    assert not sweep.driver.finished()
    for task in tasks:
        assert not sweep.driver.on_event(task, Progress(1, 10))
        sweep.driver.on_event(task, ENDED)
    sweep.until(sweep.driver.finished)
    assert sweep.source.heard == [("finished", f"cell {i}") for i in range(3)]


def test_a_task_carries_the_lease_and_what_the_store_knows(sweep: Sweep, store: Store) -> None:
    task = sweep.next()
    run = store.run(task.run_id)
    assert (run.epoch, run.tags["commit"], run.tags["grid"]) == (task.epoch, "c0ffee", "attention")
    store.log(task.run_id, tags={"progress": '{"step": 4, "seconds": 2.5, "time": 0}'})
    sweep.driver.on_event(task, Lost("its worker process died", False))
    again = sweep.next()
    assert (again.run_id, again.epoch, again.logged_step, again.seconds) == (
        task.run_id, task.epoch + 1, 4, 2.5
    )  # fmt: skip
    assert not again.exclusive


def failing(failure: Failure) -> Failed:
    return Failed("ValueError: a broken image", failure, delivered=True)


@pytest.mark.parametrize(
    ("event", "attempts", "heard"),
    [
        (failing(Failure.OTHER), [False, False], "failed"),
        (failing(Failure.DIVERGED), [False], "diverged"),
        (failing(Failure.MEMORY), [False, True, True], "failed"),
        *also_slow(
            (failing(Failure.INPUT), [False], "failed"),
            (Lost("killed", out_of_memory=True), [False] + [True] * DEATHS, "failed"),
            (Lost("killed", out_of_memory=False), [False, False, True], "failed"),
        ),
    ],
    ids=["other", "diverged", "memory", "input", "killed for memory", "killed"],
)
def test_what_fails_is_tried_again_where_that_may_help_and_alone_where_memory_was_short(
    event: Failed | Lost, attempts: list[bool], heard: str, sweep: Sweep, store: Store
) -> None:
    """A worker that the kernel had killed used to be tried beside the others, until it was given up."""
    exclusive = []
    while not sweep.driver.finished():
        task = sweep.until(lambda: sweep.driver.next_task() or sweep.driver.finished())
        if task is True:
            break
        exclusive.append(task.exclusive)
        if isinstance(event, Failed):
            store.end(task.run_id, "FAILED")
        sweep.driver.on_event(task, event)
        sweep.idle()
    assert exclusive == attempts
    assert sweep.source.heard == [(heard, "cell 0")]
    assert [one.name for one in sweep.driver.outcome.failed] == ["cell 0"]


def test_a_cell_that_runs_alone_waits_for_the_others(store: Store) -> None:
    sweep = Sweep(store, count=2)
    first, second = sweep.next(), sweep.next()
    sweep.driver.on_event(first, Lost("killed", out_of_memory=True))
    sweep.idle()
    assert sweep.driver.next_task() is None
    sweep.idle()
    assert sweep.driver.next_task() is None
    sweep.driver.on_event(second, ENDED)
    assert sweep.next().exclusive


@pytest.mark.parametrize("gone", [False, True])
def test_a_run_that_is_not_ours_any_more_is_no_failure(
    gone: bool, sweep: Sweep, store: Store
) -> None:
    task = sweep.next()
    sweep.driver.on_event(task, Taken("another sweep has taken it over", gone))
    sweep.until(sweep.driver.finished)
    assert sweep.driver.outcome.failed == []
    assert sweep.driver.outcome.taken == (set() if gone else {cell(0).config.key()})
    sweep.driver.close("the sweep was stopped")
    assert store.run(task.run_id).status == "RUNNING"  # not ours to close


@pytest.mark.parametrize("how", ["deleted", "taken over", "ended"])
def test_the_run_of_a_dead_worker_may_be_gone_or_anothers(
    how: str, sweep: Sweep, store: Store
) -> None:
    """A run deleted in MLflow's page used to end the whole sweep with 500 lines of traceback."""
    task = sweep.next()
    if how == "deleted":
        store.delete(task.run_id)
    elif how == "taken over":
        store.log(task.run_id, tags={"epoch": "7", "host": "another"})
    else:
        store.end(task.run_id, "FINISHED")
    sweep.driver.on_event(task, Lost("its worker process died", False))
    sweep.until(sweep.driver.finished)
    assert sweep.source.heard == [("taken", "cell 0")]
    assert sweep.driver.outcome.failed == []


def test_a_sweep_that_is_stopped_closes_its_runs_and_no_other(store: Store) -> None:
    sweep = Sweep(store, count=4)
    mine, theirs, gone, halted = (sweep.next() for _ in range(4))
    store.log(theirs.run_id, tags={"epoch": "7", "host": "another"})
    store.delete(gone.run_id)
    sweep.driver.on_event(halted, Halted(3))
    sweep.driver.close("the sweep was stopped")
    assert store.run(mine.run_id).tags["reason"] == "the sweep was stopped"
    assert [store.run(t.run_id).status for t in (mine, theirs, halted)] == [
        "KILLED", "RUNNING", "KILLED"
    ]  # fmt: skip


def test_a_claim_that_is_under_way_when_a_sweep_is_stopped_is_closed_too(
    sweep: Sweep, store: Store
) -> None:
    assert sweep.driver.next_task() is None  # which begins the claim
    sweep.driver.close("the sweep was stopped")
    assert [run.status for run in store.runs()] == ["KILLED"]


def test_a_cell_is_ended_early_once_its_worker_has_left_the_folder(
    sweep: Sweep, store: Store
) -> None:
    task = sweep.next()
    folder = Path(task.workspace)
    folder.mkdir(parents=True)
    sweep.source.stops = True
    assert not sweep.driver.on_event(task, Progress(3, 10))  # without a score
    assert not sweep.driver.on_event(task, Progress(10, 10, score=1.0))  # ends by itself
    assert sweep.driver.on_event(task, Progress(3, 10, score=1.0))
    assert folder.exists()
    sweep.driver.on_event(task, Halted(4))
    assert sweep.status(task) == "KILLED"
    assert store.run(task.run_id).stopped_early
    assert sweep.source.heard == [("stopped", "cell 0")]
    assert not folder.exists()
    sweep.until(sweep.driver.finished)


def test_a_cell_that_is_another_sweeps_when_it_is_ended_early_keeps_its_folder(
    sweep: Sweep, store: Store
) -> None:
    task = sweep.next()
    folder = Path(task.workspace)
    folder.mkdir(parents=True)
    sweep.source.stops = True
    assert sweep.driver.on_event(task, Progress(3, 10, score=1.0))
    store.log(task.run_id, tags={"epoch": "7", "host": "another"})
    sweep.driver.on_event(task, Halted(4))
    assert sweep.status(task) == "RUNNING"
    assert folder.exists()


def test_open_runs_give_signs_of_life_although_they_log_nothing(
    sweep: Sweep, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = sweep.next()
    sweep.idle()
    before = store.run(task.run_id).tags.get("alive")
    sweep.driver.next_sign = 0.0
    sweep.until(lambda: store.run(task.run_id).tags.get("alive") != before)


# A store that is away, or refuses


class Outage:
    """Every call of the driver's leases fails while there is an error."""

    def __init__(self, sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
        self.error: Callable[[], Exception] | None = None
        monkeypatch.setattr(store_thread, "AGAIN_SECONDS", 0.01)
        leases = sweep.driver.leases
        real = leases.claim

        def claim(*arguments: Any, **named: Any) -> Any:
            if self.error:
                raise self.error()
            return real(*arguments, **named)

        monkeypatch.setattr(leases, "claim", claim)


def test_no_callback_waits_for_a_store_that_is_away(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    outage = Outage(sweep, monkeypatch)
    outage.error = lambda: StoreAway("the tracking store does not answer")
    for _ in range(5):
        assert sweep.driver.next_task() is None
        sweep.driver.on_step()
        time.sleep(0.01)
    sweep.until(lambda: "no run begins before it answers" in sweep.text())
    assert not sweep.driver.finished()
    outage.error = None
    assert sweep.next().name == "cell 0"
    assert sweep.text().count("no run begins") == 1


def test_a_sweep_whose_store_stays_away_ends_with_its_cells_undone(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.patience.seconds = 0.05
    sweep = Sweep(store)
    Outage(sweep, monkeypatch).error = lambda: StoreAway("away")
    assert sweep.driver.next_task() is None
    sweep.until(sweep.driver.finished)
    assert isinstance(sweep.driver.problem, StoreAway)
    assert sweep.driver.outcome.failed == []


def test_a_cell_that_the_store_refuses_does_not_cost_the_others(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sweeps.run.driver.REFUSED_SECONDS", 0.0)
    sweep = Sweep(store, count=2)
    outage = Outage(sweep, monkeypatch)
    outage.error = lambda: StoreRefused("the token has expired")
    assert sweep.driver.next_task() is None
    sweep.until(lambda: sweep.driver.outcome.failed)
    outage.error = None
    assert sweep.next().name == "cell 1"
    (failed,) = sweep.driver.outcome.failed
    assert (failed.name, failed.reason) == ("cell 0", "the token has expired")


def test_a_source_that_is_refused_ends_the_sweep_and_says_so(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep.source, "next", raising(lambda: StoreRefused("expired")))
    assert sweep.driver.next_task() is None
    sweep.until(sweep.driver.finished)
    assert isinstance(sweep.driver.problem, StoreRefused)
    assert sweep.driver.next_task() is None


def test_a_dead_worker_whose_run_cannot_be_closed_gives_up_its_cell(
    sweep: Sweep, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = sweep.next()
    monkeypatch.setattr(sweep.driver.store, "close", raising(lambda: StoreRefused("forbidden")))
    sweep.driver.on_event(task, Lost("killed", False))
    sweep.until(sweep.driver.finished)
    assert [one.name for one in sweep.driver.outcome.failed] == ["cell 0"]


def test_results_that_the_store_does_not_have_are_named(sweep: Sweep) -> None:
    task = sweep.next()
    sweep.driver.on_event(task, replace(ENDED, delivered=False))
    assert sweep.driver.outcome.undelivered == [task]
    assert f"they wait in {task.workspace}" in sweep.text()


def test_a_closing_sweep_does_not_wait_for_ever_for_its_store(
    sweep: Sweep, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = sweep.next()
    monkeypatch.setattr("sweeps.run.driver.CLOSING_SECONDS", 0.2)
    monkeypatch.setattr(store.client, "get_run", raising(away))
    sweep.driver.close("the sweep was stopped")
    assert "the next sweep closes what this one ran" in sweep.text()
    monkeypatch.undo()
    assert store.run(task.run_id).status == "RUNNING"


def test_a_fault_of_the_program_in_the_thread_is_not_swallowed() -> None:
    thread = StoreThread(lambda error: None)
    thread.submit(lambda: 1 / 0)
    deadline = time.monotonic() + 30

    def poll_for_long() -> None:
        while time.monotonic() < deadline:
            thread.poll()
            time.sleep(0.01)

    with pytest.raises(ZeroDivisionError):
        poll_for_long()
    thread.close(10)
