"""A run that was silent for so long that another sweep has taken it for dead, and wakes up."""

from pathlib import Path

import pytest
from tracked_runs import take_over

from semidavil.config import preset
from sweeps.claims import Claims
from sweeps.deliver import deliver_kept
from sweeps.provenance import owner_tags
from sweeps.run_log import Ending, RunLog, TakenOver
from sweeps.tracking import Store

CONFIG = preset("toy")


@pytest.fixture
def run_id(store: Store) -> str:
    """Of this process."""
    return store.open_run(store.experiment_id("attention"), "cell", CONFIG, {})


def log_of(store: Store, run_id: str, heard: float | None = 0.0) -> RunLog:
    folder = Path(store.storage.of(CONFIG.key()))
    folder.mkdir(parents=True, exist_ok=True)
    return RunLog(store.uri, run_id, folder, owner=owner_tags(), heard=heard)


def status(store: Store, run_id: str) -> str:
    return str(store.client.get_run(run_id).info.status)


def finish(log: RunLog) -> bool:
    artifacts = log.folder / "artifacts"
    artifacts.mkdir(exist_ok=True)
    return log.finish({"final/miou": 50.0}, artifacts)


def test_a_run_that_is_still_ours_goes_on(store: Store, run_id: str) -> None:
    log = log_of(store, run_id)
    log.metrics(1, {"train/loss": 1.0})
    log.flush()
    assert finish(log)
    assert status(store, run_id) == "FINISHED"


def test_a_run_that_was_heard_of_lately_is_not_looked_at(
    store: Store, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = log_of(store, run_id, heard=None)
    monkeypatch.setattr(log.client, "get_run", lambda _: pytest.fail("it was looked at"))
    log.metrics(1, {"train/loss": 1.0})
    log.flush()


@pytest.mark.parametrize("how", ["continued", "closed"])
def test_what_another_sweep_has_taken_for_dead_is_not_written_to(
    how: str, store: Store, run_id: str
) -> None:
    log = log_of(store, run_id)
    log.metrics(1, {"train/loss": 1.0})
    if how == "continued":
        take_over(store, run_id)
    else:
        store.close(run_id, "KILLED", "its process ended without a word")
    with pytest.raises(TakenOver):
        log.flush()
    assert store.client.get_metric_history(run_id, "train/loss") == []


def test_a_takeover_that_was_under_way_at_the_awakening_is_noticed(
    store: Store, run_id: str
) -> None:
    log = log_of(store, run_id)
    log.flush()
    take_over(store, run_id)
    with pytest.raises(TakenOver):
        log.flush()


def test_what_is_trained_to_its_end_is_kept_unless_the_other_sweep_is_at_it(
    store: Store, run_id: str
) -> None:
    take_over(store, run_id)
    with pytest.raises(TakenOver):
        finish(log_of(store, run_id))
    assert status(store, run_id) == "RUNNING"
    store.close(run_id, "KILLED", "the other sweep was stopped")
    assert finish(log_of(store, run_id))
    assert status(store, run_id) == "FINISHED"


def test_a_failure_is_not_that_of_the_other_sweep(store: Store, run_id: str) -> None:
    log = log_of(store, run_id)
    take_over(store, run_id)
    with pytest.raises(TakenOver):
        log.fail("CUDA error", True, [])
    assert status(store, run_id) == "RUNNING"
    assert Ending.read(log.folder) is None  # the other may train in that folder


def test_a_search_does_not_stop_the_run_of_another_sweep(store: Store, run_id: str) -> None:
    take_over(store, run_id)
    assert not store.stop_early(run_id, 3)
    assert "semidavil.stopped_early" not in store.client.get_run(run_id).data.tags
    assert status(store, run_id) == "RUNNING"


def test_a_claim_closes_the_dead_runs_of_its_cell(store: Store, run_id: str) -> None:
    store.client.set_tag(run_id, "semidavil.pid_started", "long ago")
    mine = Claims(store).claim(store.experiment_id("attention"), "cell", CONFIG, {})
    assert mine not in (None, run_id)
    assert status(store, run_id) == "KILLED"  # so that its process finds out if it wakes up


@pytest.mark.parametrize("ends", ["FINISHED", "FAILED"])
@pytest.mark.parametrize("other", ["RUNNING", "FINISHED", "KILLED"])
def test_an_ending_that_was_kept_does_not_undo_what_another_sweep_has_done(
    ends: str, other: str, store: Store, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = log_of(store, run_id, heard=None)
    monkeypatch.setattr(log, "delivered", lambda: False)  # the store is away
    assert not (finish(log) if ends == "FINISHED" else log.fail("a broken image", True, []))
    take_over(store, run_id)
    if other != "RUNNING":
        store.close(run_id, other, "")
    count = deliver_kept(store, lambda _: None)
    kept = Ending.read(log.folder)
    if other == "RUNNING":
        assert (count, status(store, run_id)) == (0, "RUNNING")
        assert kept is not None  # should the other not get to its end
    elif other == "FINISHED":
        assert (count, status(store, run_id), kept) == (0, "FINISHED", None)
        assert store.client.get_metric_history(run_id, "final/miou") == []
    else:  # nobody has it: what was finished is worth having, a failure is not
        assert (count, status(store, run_id), kept) == (
            (1, "FINISHED", None) if ends == "FINISHED" else (0, "KILLED", None)
        )
