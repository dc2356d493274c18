"""Copies of a run that is kept in a bucket: which is ahead, and which may push."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from buckets import (
    FAILED,
    FINISHED,
    KEY,
    BucketServer,
    Machines,
    fetched,
    in_bucket,
    step_of,
    write,
)
from servers import raising

from sweeps.keep import bucket as bucket_module
from sweeps.keep.bucket import Bucket
from sweeps.keep.objects import Objects
from sweeps.keep.storage import StorageError
from sweeps.keep.workspace import ARTIFACTS, CHECKPOINT, ENDING, JOURNAL, Workspace

pytest_plugins = ["machines"]
WAIT_SECONDS = 60


def test_a_run_goes_on_from_what_was_pushed_last(bucket: Bucket, on_machine: Machines) -> None:
    write(first := fetched(bucket, epoch=1), 2)
    for name in ("last.pt.77.tmp", "previous.pt"):
        (first.folder / name).write_text("only for the machine that has written it")
    first.push()
    write(first, 4)  # and its machine is gone
    on_machine("second")
    second = fetched(bucket, epoch=2)
    assert step_of(second) == 2
    assert {path.name for path in second.folder.iterdir()} == {CHECKPOINT, "stamp"}
    write(second, 6)
    second.push()
    on_machine("first")  # whose copy is behind, although it was ahead when it stopped
    assert step_of(fetched(bucket, epoch=3)) == 6


@pytest.mark.parametrize("dies_before", [JOURNAL, CHECKPOINT])
def test_a_push_that_is_cut_short_loses_nothing_here_or_elsewhere(
    bucket: Bucket, on_machine: Machines, monkeypatch: pytest.MonkeyPatch, dies_before: str
) -> None:
    put = Objects.put

    def put_or_die(objects: Objects, path: Path, name: str) -> None:
        if name == f"{KEY}/{dies_before}":
            raise KeyboardInterrupt
        put(objects, path, name)

    write(first := fetched(bucket, epoch=1), 2)
    first.push()
    write(first, 4, JOURNAL)
    write(first, 4)
    with monkeypatch.context() as dying:
        dying.setattr(Objects, "put", put_or_die)
        with pytest.raises(KeyboardInterrupt):
            first.push()
    assert in_bucket(bucket, CHECKPOINT) == "step 2"
    again = fetched(bucket, epoch=2)
    assert step_of(again) == 4
    again.push()
    on_machine("second")
    assert step_of(fetched(bucket, epoch=3)) == 4


def overtaken(bucket: Bucket, on_machine: Machines) -> tuple[Workspace, Workspace]:
    """A copy at step 4, and that of another machine, which has gone on to step 800."""
    write(first := fetched(bucket, epoch=1), 2)
    first.push()
    on_machine("second")
    write(second := fetched(bucket, epoch=2), 800)
    second.push()
    on_machine("first")
    write(first, 4)
    return first, second


def test_a_copy_that_wakes_up_late_pushes_nothing(bucket: Bucket, on_machine: Machines) -> None:
    first, second = overtaken(bucket, on_machine)
    with pytest.raises(StorageError, match="another machine has been at"):
        first.push()
    assert in_bucket(bucket, CHECKPOINT) == "step 800"
    second.remove()
    with pytest.raises(StorageError, match="another machine has been at"):
        first.push()
    assert bucket.keys() == set()


@pytest.mark.parametrize("bucket_is_away", [True, False])
def test_who_could_not_fetch_or_was_overtaken_before_pushes_nothing(
    bucket: Bucket, on_machine: Machines, monkeypatch: pytest.MonkeyPatch, bucket_is_away: bool
) -> None:
    first, _ = overtaken(bucket, on_machine)
    with monkeypatch.context() as away:
        if bucket_is_away:
            away.setattr(Objects, "read", raising(lambda: StorageError("away")))
            with pytest.raises(StorageError):
                first.fetch(3, "run")
        else:
            first.fetch(1, "run")
    assert step_of(first) == 4  # the lease is another's: its worker will be told so
    first.push()
    assert in_bucket(bucket, CHECKPOINT) == "step 800"


@pytest.mark.parametrize("stamp", ['{"epoch": 7, "run_id": "deleted"}', "3f2a of an older version"])
def test_epochs_of_another_run_are_not_compared(bucket: Bucket, stamp: str) -> None:
    """The tracking store was begun anew, or the run was deleted in it: epochs start at 1 again."""
    bucket.objects.write(f"{KEY}/{CHECKPOINT}", "step 2")
    bucket.objects.write(f"{KEY}/stamp", stamp)
    found = fetched(bucket, epoch=1)
    assert step_of(found) == 2
    write(found, 4)
    found.push()
    assert in_bucket(bucket, CHECKPOINT) == "step 4"


def test_a_download_that_was_killed_is_done_again(
    bucket: Bucket, on_machine: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(first := fetched(bucket, epoch=1), 800)
    (first.folder / ENDING).write_text(FAILED)
    first.push()
    on_machine("second")
    get_folder = Objects.get_folder

    def killed(objects: Objects, name: str, folder: Path) -> None:
        get_folder(objects, name, folder)
        (folder / CHECKPOINT).write_text("half of it")
        raise KeyboardInterrupt

    with monkeypatch.context() as dying:
        dying.setattr(Objects, "get_folder", killed)
        with pytest.raises(KeyboardInterrupt):
            fetched(bucket, epoch=2)
    assert bucket.undelivered() == [(bucket.of(KEY), FAILED)]
    again = fetched(bucket, epoch=3)
    assert step_of(again) == 800
    assert [path.name for path in again.folder.parent.iterdir()] == [KEY]


# Runs that have ended


def test_a_run_that_ended_elsewhere_is_not_brought_back_by_an_old_copy(
    bucket: Bucket, on_machine: Machines
) -> None:
    write(first := fetched(bucket, epoch=1), 2)
    first.push()
    on_machine("second")
    second = fetched(bucket, epoch=2)
    assert step_of(second) == 2
    bucket.workspace(KEY).remove()
    for machine in ("second", "first"):
        on_machine(machine)
        assert step_of(fetched(bucket, epoch=3)) == 0


@pytest.mark.parametrize("status", ["FINISHED", "FAILED"])
@pytest.mark.parametrize("removed", [True, False])
def test_a_result_that_nobody_else_has_is_not_lost(
    bucket: Bucket, on_machine: Machines, removed: bool, status: str
) -> None:
    """It could not be pushed, and another machine went on. A failure is not worth what that did."""
    first, second = overtaken(bucket, on_machine)
    if removed:
        second.remove()
    (first.folder / ENDING).write_text(json.dumps({"status": status}))
    assert len(bucket.undelivered()) == 1
    assert not bucket.remove(KEY)
    assert (fetched(bucket, 3).folder / ENDING).exists() == (status == "FINISHED")


def test_a_result_that_was_pushed_is_delivered_once(bucket: Bucket, on_machine: Machines) -> None:
    first = fetched(bucket, epoch=1)
    (first.folder / ENDING).write_text(FINISHED)
    (first.folder / ARTIFACTS).mkdir()
    write(first, 800, f"{ARTIFACTS}/weights")
    first.push()
    for machine in ("first", "second", "second"):
        on_machine(machine)
        found = fetched(bucket, epoch=1)
        assert step_of(found, f"{ARTIFACTS}/weights") == 800
        (found.folder / ENDING).unlink()  # the store has it, and the delivery is killed
    found.remove()
    for machine in ("first", "second"):
        on_machine(machine)
        assert bucket.undelivered() == []
        assert [path.name for path in fetched(bucket, epoch=1).folder.iterdir()] == ["stamp"]


# While a run trains


def test_the_journal_in_the_bucket_is_never_behind_the_checkpoint(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training goes on during a push: its next checkpoints wait for the next one."""
    run = fetched(bucket, epoch=1)
    put, link = Objects.put, os.link

    def train_to(step: int) -> None:
        write(run, step, JOURNAL)
        write(run, step)

    def link_and_train_on(source: Path, target: Path) -> None:
        link(source, target)
        train_to(4)

    def put_and_train_on(objects: Objects, path: Path, name: str) -> None:
        put(objects, path, name)
        train_to(6)

    train_to(2)
    with monkeypatch.context() as training:
        training.setattr(os, "link", link_and_train_on)
        training.setattr(Objects, "put", put_and_train_on)
        run.push()
    assert (in_bucket(bucket, JOURNAL), in_bucket(bucket, CHECKPOINT)) == ("step 4", "step 2")
    run.push()
    assert (in_bucket(bucket, JOURNAL), in_bucket(bucket, CHECKPOINT)) == ("step 6", "step 6")
    monkeypatch.setattr(Objects, "put", raising(AssertionError))
    run.push()  # the bucket has everything


def wait_until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket_module, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(bucket_module, "PUSH_SECONDS", 0.1)


@pytest.mark.usefixtures("_impatient")
def test_checkpoints_follow_while_a_run_trains(bucket: Bucket) -> None:
    run, lines = fetched(bucket, epoch=1), list[str]()
    with run.pushing(lines.append):
        write(run, 2)
        wait_until(lambda: in_bucket(bucket, CHECKPOINT) == "step 2")
        (run.folder / ENDING).write_text(FINISHED)  # is kept by `push`, if it has to wait
        write(run, 4)
        wait_until(lambda: in_bucket(bucket, CHECKPOINT) == "step 4")
    assert in_bucket(bucket, ENDING) is None
    assert lines == []


@pytest.mark.slow
@pytest.mark.usefixtures("_impatient")
def test_training_goes_on_while_the_bucket_is_away(
    bucket: Bucket, bucket_server: BucketServer
) -> None:
    run, lines = fetched(bucket, epoch=1), list[str]()
    with run.pushing(lines.append):
        bucket_server.stop()
        write(run, 2)
        wait_until(lambda: len(lines) == 1)
        bucket_server.start_again()
        wait_until(lambda: len(lines) == 2)
    assert "training goes on, checkpoints wait in" in lines[0]
    assert "has the last checkpoint" in lines[1]
    assert in_bucket(bucket, CHECKPOINT) == "step 2"
