"""Which of several sweeps holds a cell, whoever dies when."""

import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest
from servers import away, raising
from slow_cases import also_slow

from semidavil.config import preset
from sweeps.track import lease, provenance
from sweeps.track.lease import Claimed, Held, Leases, is_held
from sweeps.track.once import CLAIMS, WriteOnce
from sweeps.track.retry import RunGone, StoreAway, StoreRefused
from sweeps.track.runs import TrackedRun
from sweeps.track.store import Store

CONFIG = preset("toy")


def claim(store: Store, leases: Leases | None = None) -> Claimed | Held:
    """By a sweep of its own, unless there are `leases`."""
    leases = leases or Leases(store)
    return leases.claim(store.experiment_id("attention"), "cell", CONFIG, {})


def claimed(store: Store) -> Claimed:
    found = claim(store)
    assert isinstance(found, Claimed), found
    return found


def the_run(store: Store) -> TrackedRun:
    (run,) = store.runs()
    return run


class Machine:
    """The one that this process seems to be on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch, self._real = monkeypatch, provenance.machine()

    def pretend(self, **differs: str) -> None:
        self._monkeypatch.setattr(provenance, "machine", lambda: {**self._real, **differs})

    def dies(self) -> None:
        """Everything that this process has claimed so far belongs to one that is gone."""
        later = f"later than {time.monotonic_ns()}"
        self._monkeypatch.setattr(provenance, "process_start", lambda pid: later)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def test_a_cell_is_claimed_once(store: Store) -> None:
    first = claimed(store)
    assert first.epoch == 1
    assert claim(store) == Held()  # its owner, this process, lives
    store.end(first.run_id, "FINISHED")
    assert claim(store) == Held("another sweep has finished it")


def test_a_run_goes_on_from_what_the_store_knows_and_not_from_an_old_plan(
    store: Store, machine: Machine
) -> None:
    first = claimed(store)
    store.log(first.run_id, tags={"progress": '{"step": 4, "seconds": 2.5, "time": 0}'})
    machine.dies()
    assert claim(store) == Claimed(first.run_id, 2, logged_step=4, seconds=2.5)
    assert isinstance(claim(store), Held)
    run = the_run(store)
    assert (run.status, run.epoch, run.tags["attempts"]) == ("RUNNING", 2, "2")


class Died(BaseException):
    """Stands in for SIGKILL: nothing after it is done."""


@pytest.mark.parametrize("continued", [False, True])
@pytest.mark.parametrize("calls", [2, 5, *also_slow(0, 1, 3, 4, 6, 7)])
def test_a_claim_that_is_killed_after_any_call_leaves_one_run_a_cell(
    calls: int, continued: bool, store: Store, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A claim used to hold its place with a run of its own, which a kill left behind for ever."""
    # For the run that all claims are written into, whose creator has died.
    monkeypatch.setattr("sweeps.track.once.CREATION_SECONDS", 0.5)
    if continued:
        store.close(claimed(store).run_id, "KILLED", "stopped")
    left = [calls]

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def until_dead(*arguments: Any, **named: Any) -> Any:
            if not left[0]:
                raise Died
            left[0] -= 1
            return call(*arguments, **named)

        return until_dead

    with monkeypatch.context() as killed:
        for name in (
            "search_runs",
            "log_param",
            "create_run",
            "log_batch",
            "update_run",
            "get_run",
        ):
            killed.setattr(store.client, name, counted(getattr(store.client, name)))
        with suppress(Died):
            claim(store)
    machine.dies()
    found = claimed(store)
    run = the_run(store)
    assert (run.run_id, run.status, run.epoch) == (found.run_id, "RUNNING", found.epoch)
    assert run.params["data.budget"] == "100"


@pytest.mark.slow
@pytest.mark.parametrize("continued", [False, True])
def test_of_many_claims_at_once_one_holds(continued: bool, store: Store) -> None:
    crowd = 6
    together = threading.Barrier(crowd, timeout=60)
    stores = [Store(store.folder, store.uri) for _ in range(crowd)]
    for one in stores:
        one.experiment_id("attention")

    def try_it(one: Store) -> Claimed | Held:
        together.wait()
        return claim(one)

    winners: Counter[int] = Counter()
    with ThreadPoolExecutor(crowd) as pool:
        for _ in range(4):
            if continued:
                store.close(claimed(store).run_id, "KILLED", "stopped")
            won = [x.run_id for x in pool.map(try_it, stores) if isinstance(x, Claimed)]
            winners[len(won)] += 1
            assert [the_run(store).run_id] == won
            store.client.delete_run(won[0])
    assert winners == {1: 4}
    name = [e.name for e in store.client.search_experiments() if e.name.startswith(CLAIMS)]
    assert name == [CLAIMS]
    experiment = store.client.get_experiment_by_name(CLAIMS)
    assert experiment is not None
    assert len(store.client.search_runs([experiment.experiment_id])) == 1


@pytest.mark.parametrize("name", ["log_param", "create_run", *also_slow("log_batch", "update_run")])
@pytest.mark.parametrize("heard", [False, True], ids=["question lost", "answer lost"])
def test_a_claim_that_the_store_cut_short_is_made_again(
    heard: bool, name: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "update_run":
        store.close(claimed(store).run_id, "KILLED", "stopped")
    leases, real = Leases(store.within(0)), getattr(store.client, name)

    def cut(*arguments: Any, **named: Any) -> Any:
        if heard:
            real(*arguments, **named)
        raise away()

    WriteOnce(store).put("warm", "up")
    with monkeypatch.context() as outage:
        outage.setattr(store.client, name, cut)
        with pytest.raises(StoreAway):
            claim(store, leases)
    assert isinstance(claim(store, leases), Claimed)
    assert the_run(store).status == "RUNNING"
    assert the_run(store).params["data.budget"] == "100"


def test_a_run_whose_creation_was_asked_for_twice_is_there_once(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, lost = store.client.create_run, [True]
    WriteOnce(store).put("warm", "up")

    def answer_is_lost(*arguments: Any, **named: Any) -> Any:
        run = real(*arguments, **named)
        if lost and lost.pop():
            raise away()
        return run

    monkeypatch.setattr(store.client, "create_run", answer_is_lost)
    assert claimed(store).run_id == the_run(store).run_id


@pytest.mark.parametrize(
    "differs",
    [{"host": "another"}, {"boot": "another"}, {"pid_namespace": "pid:[1]"}],
    ids=["host", "boot", "container"],
)
def test_a_run_of_another_machine_is_left_until_it_has_been_silent_for_the_lease(
    differs: dict[str, str], store: Store, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Containers may share a host name, and then even a process's number."""
    first = claimed(store)
    machine.pretend(**differs)
    assert isinstance(claim(store), Held)
    run, now = the_run(store), time.time()
    assert is_held(run, now + lease.LEASE_SECONDS - 10)
    assert not is_held(run, now + lease.LEASE_SECONDS + 10)
    monkeypatch.setattr(lease, "LEASE_SECONDS", -1.0)
    assert claim(store) == Claimed(first.run_id, 2)


def test_a_process_of_an_older_version_is_known_by_its_host(store: Store) -> None:
    host = provenance.machine()["host"]
    assert provenance.owner_is_dead({"host": host, "pid": "1", "pid_started": "never"})
    assert provenance.owner_is_dead({"host": "another", "pid": "1", "pid_started": "never"}) is None


def test_the_claim_of_a_live_process_holds_before_it_has_opened_a_run(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as killed:
        killed.setattr(store, "create_run", raising(Died))
        with pytest.raises(Died):
            claim(store)
    assert claim(store) == Held()
    assert store.runs() == []


def test_a_deleted_run_is_not_continued_and_its_lease_is_not_used_again(store: Store) -> None:
    first = claimed(store)
    store.client.delete_run(first.run_id)
    second = claimed(store)
    assert second.run_id != first.run_id
    assert second.epoch == 2


def test_a_run_that_is_deleted_while_it_is_claimed_makes_room_for_a_new_one(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = claimed(store)
    store.close(first.run_id, "KILLED", "stopped")
    real = store.continue_run

    def deleted_first(run: TrackedRun, *arguments: Any) -> str:
        store.client.delete_run(run.run_id)
        return real(run, *arguments)

    monkeypatch.setattr(store, "continue_run", deleted_first)
    assert claimed(store).run_id != first.run_id


def test_whoever_deletes_the_claims_deletes_no_result_and_stops_no_sweep(store: Store) -> None:
    first = claimed(store)
    experiment = store.client.get_experiment_by_name(CLAIMS)
    assert experiment is not None
    store.client.delete_experiment(experiment.experiment_id)
    assert isinstance(claim(store), Held)
    store.close(first.run_id, "KILLED", "stopped")
    assert claimed(store).run_id == first.run_id


def test_of_several_runs_that_an_older_version_has_left_the_furthest_goes_on(
    store: Store, machine: Machine
) -> None:
    experiment = store.experiment_id("attention")
    tags = {"key": CONFIG.key(), **provenance.owner_tags()}
    first, furthest, last = (store.create_run(experiment, "cell", CONFIG, tags) for _ in range(3))
    store.log(furthest, tags={"progress": '{"step": 4, "seconds": 2.5, "time": 0}'})
    machine.dies()
    assert claim(store) == Claimed(furthest, 1, 4, 2.5)
    assert the_run(store).run_id == furthest
    for gone in (first, last):  # their processes find out, should they wake up
        with pytest.raises(RunGone):
            store.run(gone)


def test_a_claim_on_an_idle_store_takes_five_calls(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = store.experiment_id("attention")
    WriteOnce(store).put("warm", "up")
    leases = Leases(store)
    assert isinstance(leases.claim(experiment, "another", preset("toy", {"seed": 1}), {}), Claimed)
    calls: Counter[str] = Counter()

    def counted(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def count(*arguments: Any, **named: Any) -> Any:
            calls[name] += 1
            return call(*arguments, **named)

        return count

    for name in [name for name in dir(store.client) if not name.startswith("_")]:
        if callable(call := getattr(store.client, name)):
            monkeypatch.setattr(store.client, name, counted(name, call))
    found = leases.claim(experiment, "cell", CONFIG, {})
    assert isinstance(found, Claimed)
    assert calls == {"search_runs": 2, "log_param": 1, "create_run": 1, "log_batch": 1}
    store.end(found.run_id, "KILLED")
    calls.clear()
    assert isinstance(leases.claim(experiment, "cell", CONFIG, {}), Claimed)
    assert calls == {"search_runs": 2, "log_param": 1, "log_batch": 1, "update_run": 1}


def test_a_run_that_is_finished_while_its_cell_is_claimed_stays_finished(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by `deliver.py`, or by a holder that wakes up."""
    first = claimed(store)
    store.close(first.run_id, "KILLED", "stopped")
    leases = Leases(store)
    put = leases._once.put

    def delivered_first(name: str, value: str) -> str:
        store.end(first.run_id, "FINISHED")
        return put(name, value)

    monkeypatch.setattr(leases._once, "put", delivered_first)
    assert claim(store, leases) == Held("another sweep has finished it")
    assert the_run(store).status == "FINISHED"


def test_a_claim_that_waited_for_the_store_is_not_taken_for_an_old_one(
    store: Store, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    leases = Leases(store.within(0))
    with monkeypatch.context() as outage:
        outage.setattr(store.client, "log_param", raising(away))
        with pytest.raises(StoreAway):
            claim(store, leases)
    with monkeypatch.context() as later:
        then = time.time() + 2 * lease.LEASE_SECONDS
        later.setattr(time, "time", lambda: then)
        later.setattr(leases.store, "create_run", raising(Died))
        with pytest.raises(Died):
            claim(store, leases)
        machine.pretend(host="another")
        assert claim(store) == Held()  # who may be about to open the run


def test_silence_while_the_store_was_away_is_no_sign_of_death(
    store: Store, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    claimed(store)
    then = time.time() + 2 * lease.LEASE_SECONDS
    machine.pretend(host="another")
    monkeypatch.setattr(time, "time", lambda: then)
    assert not is_held(the_run(store), then)
    with monkeypatch.context() as outage:
        outage.setattr(store.client, "get_run", raising(away))
        with pytest.raises(StoreAway):
            store.within(0).run("any")
    assert isinstance(claim(store), Held)


def test_a_run_that_cannot_be_created_is_not_asked_for_again_and_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "create_run", raising(lambda: RunGone("no such experiment")))
    with pytest.raises(StoreRefused, match="no such experiment"):
        claim(store)


def test_a_run_that_is_gone_says_so(store: Store) -> None:
    run_id = claimed(store).run_id
    store.client.delete_run(run_id)
    for call in (
        store.run,
        lambda x: store.log(x, tags={"a": "b"}),
        lambda x: store.end(x, "KILLED"),
    ):
        with pytest.raises(RunGone):
            call(run_id)
