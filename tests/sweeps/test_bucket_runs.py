"""Runs that are kept in a bucket: trained, failed, delivered and taken over on another machine."""

import os
import shutil
from collections import Counter
from pathlib import Path

import pytest
from buckets import Machines
from mlflow import MlflowClient
from servers import assert_undisturbed, away, raising
from sweep_process import FOUR, Sweeps

from semidavil.config import preset
from sweeps.cli import main
from sweeps.keep.bucket import Bucket
from sweeps.keep.objects import Objects
from sweeps.keep.storage import StorageError
from sweeps.keep.workspace import CHECKPOINT, ENDING, JOURNAL
from sweeps.run.events import Done, Event, Failed, Failure, Progress, Task
from sweeps.run.worker import run_task
from sweeps.track.deliver import deliver_all
from sweeps.track.lease import Claimed, Leases
from sweeps.track.store import Store

pytest_plugins = ["machines"]
CONFIG = preset("toy", {"data.budget": 200})
FAILS_ONCE = {"training.lr": 0.444}  # at step 5


@pytest.fixture
def kept(store: Store, bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store whose unfinished runs are kept in a bucket."""
    monkeypatch.setenv("FAKE_TRAINING", str(tmp_path))
    monkeypatch.setenv("FAKE_STEP_SECONDS", "0")
    return Store(store.folder, store.uri, bucket)


def claimed(store: Store, changes: dict[str, float] | None = None) -> Task:
    config = CONFIG.replace(changes or {})
    lease = Leases(store).claim(store.experiment_id("attention"), "cell", config, {})
    assert isinstance(lease, Claimed)
    return Task(
        "cell",
        config.to_params(),
        lease.run_id,
        lease.epoch,
        store.uri,
        store.storage.of(config.key()),
        lease.logged_step,
        lease.seconds,
        train="fake_training:train",
    )


def trained(task: Task) -> Event:
    """The event with which an attempt ends."""
    events: list[Event] = []

    def tell(event: Event) -> bool:
        events.append(event)
        return False

    run_task(task, tell)
    assert all(isinstance(event, Progress) for event in events[:-1])
    return events[-1]


def trained_while_the_store_is_away(task: Task, monkeypatch: pytest.MonkeyPatch) -> Event:
    monkeypatch.setenv("SEMIDAVIL_PATIENCE", "0")
    with monkeypatch.context() as outage:
        for name in ("log_batch", "log_artifact", "log_artifacts", "set_terminated", "get_run"):
            outage.setattr(MlflowClient, name, raising(away))
        return trained(task)


def test_a_finished_run_leaves_nothing(kept: Store) -> None:
    assert isinstance(trained(claimed(kept)), Done)
    assert_undisturbed(kept, 1)
    assert kept.storage.keys() == set()
    assert not list(kept.storage.folder.iterdir())


def test_a_failed_run_goes_on_on_another_machine_and_logs_no_step_twice(
    kept: Store, bucket: Bucket, on_machine: Machines
) -> None:
    assert isinstance(trained(claimed(kept, FAILS_ONCE)), Failed)
    (key,) = bucket.keys()
    # As if it had not been pushed yet: the store knows which steps it has.
    bucket.objects.delete(f"{key}/{JOURNAL}")
    on_machine("second")
    assert isinstance(trained(claimed(kept, FAILS_ONCE)), Done)
    events = Path(os.environ["FAKE_TRAINING"], "events.txt").read_text().split()
    starts = [event for event in events if event.startswith("train-from")]
    assert starts == ["train-from-0", "train-from-4"]
    assert_undisturbed(kept, 1)


def test_a_run_that_ended_while_the_store_was_away_is_delivered_from_another_machine(
    kept: Store,
    on_machine: Machines,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    done = trained_while_the_store_is_away(claimed(kept), monkeypatch)
    assert isinstance(done, Done)
    assert not done.delivered
    shutil.rmtree(kept.storage.folder)
    on_machine("second")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", kept.uri)
    assert main(["deliver", "--storage", kept.storage.uri]) == 0
    assert "delivered 1 runs" in capsys.readouterr().out
    assert_undisturbed(kept, 1)
    assert kept.storage.keys() == set()


def test_a_failure_that_was_kept_is_delivered_and_its_checkpoint_stays(
    kept: Store, bucket: Bucket, on_machine: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained_while_the_store_is_away(claimed(kept, FAILS_ONCE), monkeypatch)
    on_machine("second")
    assert [deliver_all(kept, print) for _ in range(2)] == [1, 0]
    (failed,) = kept.runs()
    assert failed.status == "FAILED"
    assert failed.tags["reason"] == "ValueError: the network drive is away"
    (key,) = bucket.keys()
    assert bucket.objects.read(f"{key}/{CHECKPOINT}") == "4"


def test_a_run_of_whose_end_neither_store_nor_bucket_knows_is_found_on_its_machine(
    kept: Store, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as outage:
        outage.setattr(Objects, "put", raising(lambda: StorageError("away")))
        trained_while_the_store_is_away(claimed(kept), monkeypatch)
    assert not any(name.endswith(ENDING) for name in bucket.objects.names())
    assert deliver_all(kept, print) == 1
    assert_undisturbed(kept, 1)
    assert kept.storage.undelivered() == []


def test_a_bucket_that_goes_away_before_a_run_fails_it_with_its_reason(
    kept: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Objects, "read", raising(lambda: StorageError("no answer")))
    failed = trained(claimed(kept))
    assert isinstance(failed, Failed)
    assert failed.failure == Failure.OTHER  # may pass: it is tried again
    (run,) = kept.runs()
    assert (run.status, run.tags["reason"]) == ("FAILED", "StorageError: no answer")


@pytest.mark.slow
@pytest.mark.parametrize("command", [["run", "--grid", "attention"], ["deliver"]])
def test_a_bucket_that_is_not_there_is_an_error_before_anything_runs(
    store: Store,
    on_machine: Machines,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: list[str],
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)
    nowhere = "s3://bucket/runs?scheme=http&endpoint_override=127.0.0.1:9&region=x"
    assert main([*command, "--storage", nowhere]) == 1
    shown = capsys.readouterr().err
    assert f"the storage {nowhere} cannot be used" in shown
    assert "AWS_ACCESS_KEY_ID" in shown
    assert store.runs() == []


@pytest.mark.slow
def test_a_sweep_that_is_killed_goes_on_from_the_bucket_on_another_machine(
    sweeps: Sweeps, bucket: Bucket, on_machine: Machines
) -> None:
    def move_to(machine: str) -> None:
        on_machine(machine)
        sweeps.environment["SEMIDAVIL_COPIES"] = os.environ["SEMIDAVIL_COPIES"]

    def has_checkpoints() -> bool:
        return sum(name.endswith(CHECKPOINT) for name in bucket.objects.names()) == 2

    sweeps.environment["SEMIDAVIL_STORAGE"] = bucket.uri
    move_to("first")
    process = sweeps.start(*FOUR, step_seconds=0.4)
    sweeps.wait_until(has_checkpoints)
    process.kill()
    process.wait()
    move_to("second")
    code, output = sweeps.run(*FOUR)
    assert code == 0, output
    starts = Counter(event.split()[0] for event in sweeps.trainings())
    assert starts.pop("train-from-0") == 4
    assert starts.total() == 2  # both went on from a checkpoint
    assert_undisturbed(sweeps.store, 4)
    assert bucket.keys() == set()
