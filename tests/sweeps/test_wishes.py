"""What people ask of a running sweep from elsewhere: stop, pause, resume, retry. Without Ray."""

import json
from collections.abc import Callable

import pytest
from servers import away
from test_driver import Sweep, failing
from tracked_runs import DEAD, finished, tracked

from semidavil.config import preset
from sweeps.plan.cells import State, state_of
from sweeps.plan.spec import Selection, Spec
from sweeps.run import driver as driver_module
from sweeps.run import store_thread
from sweeps.run.events import Done, Failure, Halted, Progress
from sweeps.show.overview import open_overview
from sweeps.track.retry import StoreAway
from sweeps.track.runs import TrackedRun
from sweeps.track.store import Store
from sweeps.track.wishes import (
    ASKED,
    REMEMBERED,
    Wishes,
    ask_to_pause,
    ask_to_retry,
    ask_to_stop,
)

SPEC = Spec("attention", "toy", (), (Selection(budgets=(100,)),))


@pytest.fixture
def wished(store: Store, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Sweep]:
    """Begins a sweep of so many cells that has an overview, at which it looks all the time."""
    monkeypatch.setattr(driver_module, "LOOK_SECONDS", 0.05)

    def begin(count: int) -> Sweep:
        overview = open_overview(store, SPEC, "", 2)
        return Sweep(store, count, parent=overview.run_id, before=overview.wishes)

    return begin


def overview(store: Store) -> TrackedRun:
    (found,) = store.overviews()
    return found


def after_a_look(sweep: Sweep) -> None:
    """Waits until the sweep has looked once more, from the beginning to the end."""
    answers: list[object] = []
    hear = sweep.driver._on_wishes

    def heard(found: Wishes | Exception) -> None:
        answers.append(found)
        hear(found)

    sweep.driver._on_wishes = heard  # type: ignore[method-assign]
    sweep.until(lambda: len(answers) > 1)


def test_a_sweep_that_is_told_to_stop_begins_nothing_and_waits_for_checkpoints(
    store: Store, wished: Callable[[int], Sweep]
) -> None:
    sweep = wished(3)
    first, ready = sweep.next(), sweep.until(sweep.driver.next_task)
    sweep.driver.ready.append(ready)  # claimed, and no place for it yet
    ask_to_stop(store, overview(store))
    sweep.until(lambda: sweep.driver.halts())
    assert sweep.driver.next_task() is None
    assert not sweep.driver.finished(), "a run still writes its checkpoint"
    sweep.driver.on_event(first, Halted(4))
    sweep.until(sweep.driver.finished)
    sweep.driver.close("the sweep has ended")
    states = {run.name: run.status for run in store.runs()}
    assert states == {"cell 0": "KILLED", "cell 1": "KILLED"}
    assert store.run(first.run_id).tags["reason"] == "the sweep was stopped"
    assert "told to stop by" in sweep.text()


def test_a_sweep_that_has_nothing_left_looks_no_more(
    store: Store, wished: Callable[[int], Sweep]
) -> None:
    """Looking as often as it was asked whether it had ended, it was never idle, and never ended."""
    sweep = wished(1)
    sweep.driver.on_event(sweep.next(), Done(50.0, 1.0, 2.0, True, "mIoU 50.00"))
    sweep.until(sweep.driver.finished)
    sweep.driver.next_look, sweep.driver.next_sign = 0.0, float("inf")
    sweep.driver.on_step()
    assert sweep.driver.thread.is_idle()
    assert sweep.driver.finished()


def test_what_was_asked_of_earlier_sweeps_is_not_asked_of_this_one(
    store: Store, wished: Callable[[int], Sweep]
) -> None:
    earlier = open_overview(store, SPEC, "", 2)
    ask_to_stop(store, overview(store))
    ask_to_retry(store, [overview(store)], tracked("a-key", run_id=earlier.run_id))
    sweep = wished(1)
    after_a_look(sweep)
    assert (sweep.driver.halts(), sweep.driver.wishes) == (False, Wishes())
    ask_to_stop(store, overview(store))
    sweep.until(lambda: sweep.driver.halts())


def test_a_pause_ends_runs_with_checkpoints_and_resume_goes_on_with_the_same_ones(
    store: Store, wished: Callable[[int], Sweep]
) -> None:
    sweep = wished(1)
    task = sweep.next()
    ask_to_pause(store, overview(store), True)
    sweep.until(lambda: sweep.driver.halts())
    sweep.driver.on_event(task, Halted(4))
    assert sweep.status(task) == "KILLED"
    assert not sweep.driver.finished()
    assert sweep.driver.next_task() is None
    ask_to_pause(store, overview(store), False)
    sweep.until(lambda: not sweep.driver.halts())
    again = sweep.next()
    assert (again.run_id, again.epoch) == (task.run_id, task.epoch + 1)
    sweep.driver.on_event(again, Done(50.0, 1.0, 2.0, True, "mIoU 50.00"))
    sweep.until(sweep.driver.finished)
    assert sweep.source.heard == [("finished", "cell 0")]
    assert all(words in sweep.text() for words in ("paused by", "resume", "resumed"))


def test_a_run_that_was_given_up_is_tried_again_when_somebody_asks(
    store: Store, wished: Callable[[int], Sweep]
) -> None:
    sweep = wished(2)
    task, other = sweep.next(), sweep.next()
    sweep.driver.on_event(task, failing(Failure.DIVERGED))
    assert [one.name for one in sweep.driver.outcome.failed] == ["cell 0"]
    store.close(task.run_id, "FAILED", "", task.epoch, {"retry": "false"})
    (run,) = (run for run in store.runs() if run.run_id == task.run_id)
    ask_to_retry(store, [overview(store)], run)
    again = sweep.next()
    assert (again.run_id, again.name) == (task.run_id, "cell 0")
    assert (sweep.driver.outcome.failed, sweep.driver.progress.failed) == ([], 0)
    for one in (again, other):
        sweep.driver.on_event(one, Done(50.0, 1.0, 2.0, True, "mIoU 50.00"))
    sweep.until(sweep.driver.finished)


def test_while_the_store_is_away_a_sweep_goes_on_as_it_was(
    store: Store, wished: Callable[[int], Sweep], monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = wished(1)
    task = sweep.next()
    monkeypatch.setattr(store_thread, "AGAIN_SECONDS", 0.01)
    real, calls = sweep.driver._read_wishes, []

    def read() -> Wishes:
        calls.append(1)
        if len(calls) < 3:
            raise StoreAway(str(away()))
        return real()

    monkeypatch.setattr(sweep.driver, "_read_wishes", read)
    ask_to_pause(store, overview(store), True)
    sweep.until(lambda: calls)
    assert not sweep.driver.on_event(task, Progress(1, 10))
    sweep.until(lambda: sweep.driver.halts())


def test_a_deleted_overview_asks_for_nothing(store: Store, wished: Callable[[int], Sweep]) -> None:
    sweep = wished(1)
    store.delete(overview(store).run_id)
    sweep.next()
    after_a_look(sweep)
    assert not sweep.driver.halts()


def test_wishes_that_somebody_has_broken_are_none() -> None:
    assert Wishes.of({"wish_retry": "[not json"}).retries == ()
    assert Wishes.of({"wish_retry": "7"}).retries == ()


def test_the_tag_of_retries_does_not_grow_for_ever(store: Store) -> None:
    open_overview(store, SPEC, "", 1)
    many = [f"key{number}.token" for number in range(REMEMBERED)]

    store.log(overview(store).run_id, tags={"wish_retry": json.dumps(many)})
    ask_to_retry(store, [overview(store)], tracked("new", run_id=overview(store).run_id))
    assert Wishes.of(overview(store).tags).keys == [
        *(f"key{n}" for n in range(1, REMEMBERED)),
        "new",
    ]


def test_a_cell_that_has_failed_for_good_waits_once_its_retry_was_asked_for() -> None:
    config = preset("toy")
    undefined = finished(config, float("nan"), tags=DEAD)
    assert state_of([undefined], 0.0)[0] is State.DIVERGED
    asked = finished(config, float("nan"), tags={**DEAD, "retry": ASKED})
    assert state_of([asked], 0.0)[0] is State.FAILED
    diverged = tracked(config.key(), "FAILED", tags={**DEAD, "retry": ASKED})
    assert state_of([diverged], 0.0)[0] is State.FAILED
