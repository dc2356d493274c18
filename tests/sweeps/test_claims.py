"""Which of several sweeps gets a cell."""

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from semidavil.config import preset
from sweeps import claims
from sweeps.claims import Claims
from sweeps.tracking import Store, TrackedRun

CONFIG = preset("toy")


def claim(store: Store, previous: TrackedRun | None = None) -> str | None:
    """By a sweep of its own."""
    experiment = store.experiment_id("attention")
    return Claims(store).claim(experiment, "cell", CONFIG, {}, previous)


def begin(store: Store) -> str:
    """Another sweep's run that has no number yet."""
    return store.open_run(store.experiment_id("attention"), "cell", CONFIG, {"claim": "theirs"})


def blind_at_first(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next claim looks before anything is there."""
    look, first = store.runs, [True]
    monkeypatch.setattr(store, "runs", lambda key=None: [] if first and first.pop() else look(key))


def test_a_cell_is_claimed_once(store: Store) -> None:
    run_id = claim(store)
    assert run_id is not None
    assert claim(store) is None  # its owner, this process, lives
    store.close(run_id, "FINISHED", "")
    assert claim(store) is None
    assert [run.run_id for run in store.runs()] == [run_id]


def test_the_run_of_a_dead_process_is_taken_over(store: Store) -> None:
    run_id = claim(store)
    assert run_id is not None
    store.client.set_tag(run_id, "semidavil.pid_started", "long ago")
    (dead,) = store.runs()
    assert dead.is_dead()
    assert claim(store, dead) == run_id
    assert claim(store, dead) is None
    (run,) = store.runs()  # the run that held the place is gone
    assert (run.status, run.tags["attempts"]) == ("RUNNING", "2")


@pytest.mark.parametrize("continued", [False, True])
def test_a_run_that_starts_earlier_and_is_seen_later_does_not_get_the_cell(
    continued: bool, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = None
    if continued:
        store.close(str(claim(store)), "KILLED", "stopped")
        (stopped,) = store.runs()
    first = claim(store, stopped)
    create = store.client.create_run
    monkeypatch.setattr(  # its start was noted, then it waited for the database
        store.client, "create_run", lambda *a, **named: create(*a, **named, start_time=1)
    )
    blind_at_first(store, monkeypatch)
    assert claim(store, stopped) is None
    assert [run.run_id for run in store.runs()] == [first]


def test_a_cell_that_was_finished_meanwhile_is_not_begun(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = begin(store)  # by a version that gave no numbers
    store.close(first, "FINISHED", "")
    blind_at_first(store, monkeypatch)
    assert claim(store) is None
    assert [run.run_id for run in store.runs()] == [first]


@pytest.mark.parametrize(
    ("then", "wins"), [("a lower number", False), ("a higher number", True), ("gone", True)]
)
def test_one_that_has_no_number_yet_is_waited_for(
    then: str, wins: bool, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = begin(store)
    blind_at_first(store, monkeypatch)
    waits = threading.Event()
    monkeypatch.setattr(
        claims.time, "sleep", lambda seconds, wait=claims.time.sleep: (waits.set(), wait(seconds))
    )
    with ThreadPoolExecutor(1) as pool:
        mine = pool.submit(claim, store)
        assert waits.wait(20)
        assert not mine.done()
        if then == "gone":
            store.close(theirs, "KILLED", "stopped")
        else:
            store.client.set_tag(theirs, "semidavil.number", {"a lower number": 0}.get(then, 9))
        assert (mine.result(20) is not None) == wins


def test_one_that_never_gets_a_number_is_not_waited_for_forever(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "CHOOSING_SECONDS", 0.2)
    theirs = begin(store)
    blind_at_first(store, monkeypatch)
    assert claim(store) is None
    assert [run.run_id for run in store.runs()] == [theirs]


@pytest.mark.parametrize("continued", [False, True])
def test_of_many_claims_at_once_one_holds(continued: bool, store: Store) -> None:
    crowd = 6
    together = threading.Barrier(crowd, timeout=60)
    stores = [Store(store.folder, store.uri) for _ in range(crowd)]
    for one in stores:
        one.experiment_id("attention")

    def try_it(one: Store, previous: TrackedRun | None) -> str | None:
        together.wait()
        return claim(one, previous)

    winners: Counter[Any] = Counter()
    with ThreadPoolExecutor(crowd) as pool:
        for _ in range(5):
            stopped = None
            if continued:
                store.close(str(claim(store)), "KILLED", "stopped")
                (stopped,) = store.runs()
            won = [x for x in pool.map(try_it, stores, [stopped] * crowd) if x is not None]
            winners[len(won)] += 1
            (run,) = store.runs()
            assert [run.run_id] == won
            store.client.delete_run(run.run_id)
    assert winners == {1: 5}
