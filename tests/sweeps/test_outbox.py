"""What a run logs, and what it keeps while the store is away, refuses, or the run is another sweep's."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock
import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED
from servers import away, raising
from slow_cases import also_slow

from semidavil.config import preset
from semidavil.full_disk import DiskFull
from sweeps.keep.workspace import ENDING, JOURNAL
from sweeps.track import outbox as outbox_module
from sweeps.track.deliver import deliver_all, undelivered
from sweeps.track.lease import Claimed, Leases
from sweeps.track.outbox import Ending, LeaseLost, Outbox
from sweeps.track.retry import RunGone, StoreRefused, TrackingError
from sweeps.track.store import Store

CONFIG = preset("toy", {"data.budget": 200})


def claim(store: Store) -> Claimed:
    found = Leases(store).claim(store.experiment_id("attention"), "cell", CONFIG, {})
    assert isinstance(found, Claimed)
    return found


@pytest.fixture
def lease(store: Store) -> Claimed:
    return claim(store)


def outbox_of(store: Store, lease: Claimed, **options: Any) -> Outbox:
    folder = Path(store.storage.of(CONFIG.key()))
    folder.mkdir(parents=True, exist_ok=True)
    return Outbox(store.within(0), lease.run_id, lease.epoch, folder, lease.logged_step, **options)


def finish(outbox: Outbox) -> bool:
    artifacts = outbox.folder / "artifacts"
    artifacts.mkdir(exist_ok=True)
    (artifacts / "config.json").write_text("{}")
    return outbox.finish({"final/miou": 50.0, "final/seconds": 3.0}, artifacts)


def points(store: Store, run_id: str, name: str = "train/loss") -> list[tuple[int, float]]:
    return [(p.step, p.value) for p in store.client.get_metric_history(run_id, name)]


def take_over(store: Store, run_id: str) -> None:
    """By a sweep on another machine, which lives."""
    store.log(
        run_id, tags={"host": "another machine", "epoch": "2", "alive": str(int(time.time()))}
    )


class Outage:
    """Of the store that a process has; the test itself looks at it through another client."""

    def __init__(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        self.error: Callable[[], Exception] | None = None
        for name in ("log_batch", "get_run", "set_terminated", "log_artifacts", "log_artifact"):
            monkeypatch.setattr(store.client, name, self._failing(getattr(store.client, name)))

    def _failing(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def instead(*arguments: Any, **named: Any) -> Any:
            if self.error:
                raise self.error()
            return call(*arguments, **named)

        return instead

    @contextmanager
    def lasting(self, error: Callable[[], Exception] = away) -> Iterator[None]:
        self.error = error
        yield
        self.error = None


@pytest.fixture
def outage(store: Store, monkeypatch: pytest.MonkeyPatch) -> Outage:
    return Outage(store, monkeypatch)


def refused() -> Exception:
    return MlflowException("the token has expired", PERMISSION_DENIED)


# Metrics


def test_metrics_reach_the_store_once_and_in_order_across_a_kill(
    store: Store, lease: Claimed
) -> None:
    first = outbox_of(store, lease)
    for step in range(1, 6):
        first.metrics(step, {"train/loss": float(step)})
        if step == 3:
            first.flush()
    # killed here; the checkpoint was of step 2, so training repeats the steps from there
    second = outbox_of(store, lease)
    for step in range(3, 8):
        second.metrics(step, {"train/loss": float(step)})
    assert finish(second)
    assert points(store, lease.run_id) == [(step, float(step)) for step in range(1, 8)]
    run = store.run(lease.run_id)
    assert (run.status, run.metrics["final/miou"], run.progress.step) == ("FINISHED", 50.0, 7)


def test_what_another_machine_has_logged_is_not_logged_again(store: Store, lease: Claimed) -> None:
    store.log(lease.run_id, tags={"progress": '{"step": 4, "seconds": 60.0, "time": 0}'})
    outbox = outbox_of(store, lease, behind=True)
    for step in range(3, 7):
        outbox.metrics(step, {"train/loss": float(step)})
    outbox.flush()
    assert points(store, lease.run_id) == [(5, 5.0), (6, 6.0)]
    assert outbox.seconds > 60


def test_a_journal_that_was_cut_short_is_read_and_written_on(store: Store, lease: Claimed) -> None:
    outbox = outbox_of(store, lease)
    line = json.dumps({"step": 1, "time": 5, "values": {"train/loss": 1.0}})
    outbox.journal.write_text(f'{line}\n{{"step": 2, "ti')
    outbox_of(store, lease).metrics(2, {"train/loss": 2.0})
    outbox_of(store, lease).flush()
    assert points(store, lease.run_id) == [(1, 1.0), (2, 2.0)]


@pytest.mark.parametrize("error", [away, refused])
def test_training_goes_on_without_the_store_and_nothing_is_lost(
    error: Callable[[], Exception], store: Store, lease: Claimed, outage: Outage
) -> None:
    outbox = outbox_of(store, lease)
    with outage.lasting(error):
        outbox.tag({"device": "a GPU"})
        outbox.metrics(1, {"train/loss": 1.0})
        outbox.flush()
        outbox.metrics(2, {"train/loss": 2.0})
    outbox.flush()
    assert points(store, lease.run_id) == [(1, 1.0), (2, 2.0)]
    assert store.run(lease.run_id).tags["device"] == "a GPU"


def test_training_does_not_wait_for_a_store_that_hangs(
    store: Store, lease: Claimed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox_module, "SEND_SECONDS", 0.01)
    hangs, asked = threading.Event(), threading.Event()
    real = store.client.log_batch

    def hang(*arguments: Any, **named: Any) -> None:
        asked.set()
        assert hangs.wait(60)
        real(*arguments, **named)

    monkeypatch.setattr(store.client, "log_batch", hang)
    outbox = outbox_of(store, lease)
    outbox.metrics(1, {"train/loss": 1.0})
    assert asked.wait(60)  # the store is being asked,
    outbox.metrics(2, {"train/loss": 2.0})  # and this returns all the same
    hangs.set()
    assert finish(outbox)
    assert points(store, lease.run_id) == [(1, 1.0), (2, 2.0)]


def test_a_full_disk_names_the_folder_and_what_was_logged_is_tracked(
    store: Store, lease: Claimed
) -> None:
    outbox = outbox_of(store, lease)
    outbox.metrics(1, {"train/loss": 1.0})
    journal = outbox.journal
    outbox.journal = Path("/dev/full")  # every write to it fails as on a full disk
    with pytest.raises(DiskFull, match=rf"the disk is full: {outbox.folder}") as full:
        outbox.metrics(2, {"train/loss": 2.0})
    outbox.journal = journal
    assert outbox.fail(f"DiskFull: {full.value}", True, [])
    assert "the disk is full" in store.run(lease.run_id).tags["reason"]
    assert points(store, lease.run_id) == [(1, 1.0)]


# Ends


def finish_unheard(store: Store, lease: Claimed, outage: Outage) -> Outbox:
    """A run that ends while the store is away."""
    outbox = outbox_of(store, lease)
    with outage.lasting():
        outbox.metrics(1, {"train/loss": 1.0})
        assert not finish(outbox)
    return outbox


def test_a_kept_run_is_delivered_once_with_its_own_end(
    store: Store, lease: Claimed, outage: Outage
) -> None:
    outbox = finish_unheard(store, lease, outage)
    ending = Ending.read(outbox.folder)
    assert ending is not None
    store.close(lease.run_id, "KILLED", "the sweep was stopped")
    shown: list[str] = []
    assert [deliver_all(store, shown.append) for _ in range(2)] == [1, 0]
    assert shown == []
    run = store.run(lease.run_id)
    ended = store.client.get_run(lease.run_id).info.end_time
    assert (run.status, ended, run.tags["reason"]) == ("FINISHED", ending.time, "")
    assert points(store, lease.run_id) == [(1, 1.0)]
    assert points(store, lease.run_id, "final/miou") == [(1, 50.0)]
    assert [file.path for file in store.client.list_artifacts(lease.run_id)] == ["config.json"]
    assert not outbox.folder.exists()


def test_a_delivery_that_is_cut_short_is_repeated_without_doubling(
    store: Store, lease: Claimed, outage: Outage, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = finish_unheard(store, lease, outage)
    with monkeypatch.context() as cut:  # the metrics have arrived by then
        cut.setattr(store.client, "set_terminated", raising(away))
        assert [outbox.delivered() for _ in range(2)] == [False, False]
    assert deliver_all(store, print) == 1
    assert points(store, lease.run_id) == [(1, 1.0)]
    assert points(store, lease.run_id, "final/miou") == [(1, 50.0)]


def test_results_that_the_store_refuses_stay_kept(
    store: Store, lease: Claimed, outage: Outage
) -> None:
    outbox, shown = outbox_of(store, lease), list[str]()
    with outage.lasting(lambda: MlflowException("413 Request Entity Too Large")):
        assert not finish(outbox)
        assert deliver_all(store, shown.append) == 0
    assert "is refused and stays in" in shown[0]
    assert "413" in shown[0]
    assert deliver_all(store, shown.append) == 1
    assert store.run(lease.run_id).status == "FINISHED"


def test_a_failure_that_nobody_heard_of_is_delivered_too(
    store: Store, lease: Claimed, outage: Outage
) -> None:
    outbox = outbox_of(store, lease)
    (outbox.folder / "train.log").write_text("Traceback")
    with outage.lasting():
        assert not outbox.fail("ValueError: a broken image", True, [outbox.folder / "train.log"])
    assert deliver_all(store, print) == 1
    run = store.run(lease.run_id)
    assert (run.status, run.tags["reason"]) == ("FAILED", "ValueError: a broken image")
    assert outbox.folder.exists()  # with the checkpoint


def test_a_file_system_without_locks_costs_no_result(
    store: Store, lease: Claimed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lustre, unless it is mounted with -o flock: every trained run used to end as FAILED."""

    def no_locks(*_: Any) -> None:
        raise OSError(38, "Function not implemented")

    outbox = outbox_of(store, lease)
    monkeypatch.setattr("fcntl.flock", no_locks)
    monkeypatch.setattr("fcntl.lockf", no_locks, raising=False)
    assert finish(outbox)
    assert store.run(lease.run_id).status == "FINISHED"


def test_of_two_processes_one_delivers(store: Store, lease: Claimed, outage: Outage) -> None:
    outbox, shown = finish_unheard(store, lease, outage), list[str]()
    with filelock.FileLock(outbox.folder / f"{ENDING}.lock"):
        assert deliver_all(store, shown.append) == 0
    assert "another process delivers it" in shown[0]


def test_a_cell_that_was_finished_elsewhere_keeps_that_run(
    store: Store, lease: Claimed, outage: Outage
) -> None:
    finish_unheard(store, lease, outage)
    theirs = store.create_run(
        store.experiment_id("attention"), "cell", CONFIG, {"key": CONFIG.key()}
    )
    store.end(theirs, "FINISHED")
    shown: list[str] = []
    assert deliver_all(store, shown.append) == 0
    assert "another sweep has finished it" in shown[0]
    assert {r.run_id: r.status for r in store.runs()} == {
        lease.run_id: "KILLED",
        theirs: "FINISHED",
    }


def test_a_kept_run_of_another_store_is_left_for_it(
    store: Store, lease: Claimed, outage: Outage
) -> None:
    outbox, shown = finish_unheard(store, lease, outage), list[str]()
    store.client.delete_run(lease.run_id)
    assert deliver_all(store, shown.append) == 0
    assert "is not in" in shown[0]
    assert (outbox.folder / ENDING).exists()


@pytest.mark.parametrize("name", ["../secret.txt", "/etc/hostname"])
def test_no_file_outside_a_runs_folder_is_uploaded(name: str, store: Store, lease: Claimed) -> None:
    outbox = outbox_of(store, lease)
    (outbox.folder.parent / "secret.txt").write_text("secret")
    Ending(lease.run_id, store.uri, "FINISHED", 1, 1, 1.0, lease.epoch, files=[name]).write(
        outbox.folder
    )
    with pytest.raises(TrackingError, match="outside its folder"):
        outbox.deliver()
    assert store.client.list_artifacts(lease.run_id) == []


def test_an_unreadable_ending_is_named(store: Store) -> None:
    folder = Path(store.storage.of("key"))
    folder.mkdir(parents=True)
    (folder / ENDING).write_text("{")
    with pytest.raises(TrackingError, match=r"key/ending\.json cannot be read"):
        undelivered(store)


# A run that is another sweep's by now, or nobody's


@pytest.mark.parametrize("how", ["taken over", "closed", "deleted"])
def test_a_run_that_is_not_ours_is_not_written_to(how: str, store: Store, lease: Claimed) -> None:
    outbox = outbox_of(store, lease)
    outbox.metrics(1, {"train/loss": 1.0})
    if how == "taken over":
        take_over(store, lease.run_id)
    elif how == "closed":
        store.close(lease.run_id, "KILLED", "its process ended without a word")
    else:
        store.client.delete_run(lease.run_id)
    expected = RunGone if how == "deleted" else LeaseLost
    with pytest.raises(expected):
        outbox.flush()
    if how != "closed":
        with pytest.raises(expected):
            outbox.fail("CUDA error", True, [])
        assert Ending.read(outbox.folder) is None  # another may train in that folder
    assert points(store, lease.run_id) == []


def test_training_hears_at_its_next_step_that_the_run_is_not_ours(
    store: Store, lease: Claimed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox_module, "SEND_SECONDS", 0.01)
    take_over(store, lease.run_id)
    outbox = outbox_of(store, lease)

    def train() -> None:
        for step in range(1, 5000):
            outbox.metrics(step, {"train/loss": 1.0})
            time.sleep(0.01)

    with pytest.raises(LeaseLost):
        train()


def test_a_lease_is_looked_at_now_and_then(
    store: Store, lease: Claimed, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = outbox_of(store, lease)
    outbox.flush()
    take_over(store, lease.run_id)
    outbox.flush()
    monkeypatch.setattr(outbox_module, "FENCE_SECONDS", 0.0)
    with pytest.raises(LeaseLost):
        outbox.flush()


def test_what_is_trained_to_its_end_is_kept_unless_the_other_sweep_is_at_it(
    store: Store, lease: Claimed
) -> None:
    take_over(store, lease.run_id)
    with pytest.raises(LeaseLost):
        finish(outbox_of(store, lease))
    assert store.run(lease.run_id).status == "RUNNING"
    store.close(lease.run_id, "KILLED", "the other sweep was stopped")
    assert finish(outbox_of(store, lease))
    assert store.run(lease.run_id).status == "FINISHED"


@pytest.mark.parametrize("ends", ["FINISHED", *also_slow("FAILED")])
@pytest.mark.parametrize("other", ["RUNNING", "KILLED", *also_slow("FINISHED")])
def test_an_ending_that_was_kept_does_not_undo_what_another_sweep_has_done(
    ends: str, other: str, store: Store, lease: Claimed, outage: Outage
) -> None:
    outbox = outbox_of(store, lease)
    with outage.lasting():
        assert not (finish(outbox) if ends == "FINISHED" else outbox.fail("broken", True, []))
    take_over(store, lease.run_id)
    if other != "RUNNING":
        store.close(lease.run_id, other, "")
    count = deliver_all(store, lambda _: None)
    found = count, store.run(lease.run_id).status, Ending.read(outbox.folder) is None
    if other == "RUNNING":
        assert found == (0, "RUNNING", False)  # should the other not get to its end
    elif other == "FINISHED":
        assert found == (0, "FINISHED", True)
        assert points(store, lease.run_id, "final/miou") == []
    else:  # nobody has it: what was finished is worth having, a failure is not
        assert found == ((1, "FINISHED", True) if ends == "FINISHED" else (0, "KILLED", True))


def test_an_uploads_errors_are_the_stores(store: Store, lease: Claimed, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    with pytest.raises(StoreRefused):
        store.log_files(lease.run_id, tmp_path / "missing")
    assert not (tmp_path / JOURNAL).exists()
