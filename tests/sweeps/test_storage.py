"""Where runs are kept: a folder, or a bucket of a real S3 server."""

import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from buckets import BucketServer
from mlflow import MlflowClient
from servers import assert_undisturbed, away, raising
from sweep_process import FOUR, Sweeps

from semidavil import checkpoint
from semidavil.config import ConfigError, preset
from sweeps import deliver, storage
from sweeps.run import main
from sweeps.storage import (
    CHECKPOINT,
    ENDING,
    JOURNAL,
    LOG,
    Copy,
    Objects,
    Storage,
    StorageError,
    file_of,
    open_storage,
    remove_old_copies,
    workspace,
)
from sweeps.tracking import Store
from sweeps.trial import Task, run_trial

CONFIG = preset("toy", {"data.budget": 200})
Machines = Callable[[str], None]


@pytest.fixture
def place(bucket_server: BucketServer) -> str:
    return bucket_server.place(f"bucket/{uuid4().hex}")


@pytest.fixture
def on_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machines:
    """Moves to the machine of that name: another temporary folder, hence other copies."""

    def move(name: str) -> None:
        (tmp_path / name).mkdir(exist_ok=True)
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / name))

    move("first")
    return move


def run_of(place: str) -> Copy:
    """The workspace of a run there, fetched."""
    here = workspace(open_storage(place).of("0123456789abcdef"))
    here.fetch()
    assert isinstance(here, Copy)
    return here


def in_bucket(place: str, name: str) -> str | None:
    return Objects(open_storage(place).of("0123456789abcdef")).read(name)


def write(here: Copy, **files: str) -> None:
    for name, text in files.items():
        path = here.folder / {"checkpoint": CHECKPOINT, "journal": JOURNAL, "log": LOG}[name]
        draft = path.with_suffix(".tmp")
        draft.write_text(text)
        draft.replace(path)


def text_of(here: Copy, name: str) -> str:
    return (here.folder / name).read_text()


# What a place is


def test_a_folder_and_its_address_are_the_same_storage(tmp_path: Path) -> None:
    for text in (str(tmp_path), tmp_path.as_uri()):
        found = open_storage(text)
        assert type(found) is Storage
        assert found.place == found.of("key").removesuffix("/key") == str(tmp_path)
        assert workspace(found.of("key")).folder == tmp_path / "key"
    assert open_storage("file:///a%20b").place == "/a b"


def test_a_runs_place_keeps_the_options_of_its_bucket() -> None:
    found = open_storage("s3://bucket/team/runs/?region=eu-west-1")
    assert found.place == "s3://bucket/team/runs?region=eu-west-1"
    assert found.of("key") == "s3://bucket/team/runs/key?region=eu-west-1"
    assert file_of(found.of("key"), LOG) == "s3://bucket/team/runs/key/train.log?region=eu-west-1"
    assert workspace(found.of("key")).folder == found.folder / "key"
    other = open_storage("s3://bucket/others?region=eu-west-1")
    assert other.folder != found.folder


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ftp://host/runs", "s3://, gs://, abfs://"),
        ("s3://AKIA:verysecret@bucket/runs", "no keys in the address"),
        ("s3://AKIA@bucket/runs", "no keys in the address"),
        ("s3://bucket/runs?secret_key=verysecret", "unknown option secret_key"),
        ("s3://bucket", "name a folder"),
    ],
)
def test_an_address_that_cannot_serve_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        open_storage(text)
    assert "verysecret" not in str(error.value)


def test_files_are_called_as_the_training_calls_them() -> None:
    assert CHECKPOINT == checkpoint.CHECKPOINT


def test_a_folder_that_somebody_else_has_made_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "theirs").mkdir()
    (tmp_path / f"semidavil-{os.getuid()}").symlink_to(tmp_path / "theirs")
    with pytest.raises(StorageError, match="not this user's own"):
        workspace(open_storage("s3://bucket/runs").of("key")).fetch()


# A run and its copies


def test_a_run_goes_on_on_another_machine_from_what_was_pushed(
    place: str, on_machine: Machines
) -> None:
    first = run_of(place)
    write(first, checkpoint="step 2", journal="1\n2\n", log="...")
    (first.folder / "last.pt.77.tmp").write_text("half a checkpoint")
    first.push()
    write(first, checkpoint="step 4")  # and its machine is gone

    on_machine("second")
    second = run_of(place)
    assert text_of(second, CHECKPOINT) == "step 2"
    assert text_of(second, JOURNAL) == "1\n2\n"
    assert not list(second.folder.glob("*.tmp"))
    write(second, checkpoint="step 6")
    second.push()

    on_machine("first")  # whose copy is behind, although it was ahead when it stopped
    assert text_of(run_of(place), CHECKPOINT) == "step 6"


def test_a_copy_that_is_ahead_of_the_bucket_stays(place: str, on_machine: Machines) -> None:
    write(here := run_of(place), checkpoint="step 2")
    here.push()
    write(here, checkpoint="step 4")
    assert text_of(run_of(place), CHECKPOINT) == "step 4"


def cut_short(before: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every push dies before it replaces this object."""
    for name in ("put", "write"):
        call = getattr(Objects, name)

        def or_die(objects: Objects, *arguments: Any, call: Any = call) -> None:
            if before in (str(argument) for argument in arguments):
                raise KeyboardInterrupt
            call(objects, *arguments)

        monkeypatch.setattr(Objects, name, or_die)


@pytest.mark.parametrize("dies_before", [JOURNAL, CHECKPOINT, "stamp"])
def test_a_push_that_is_cut_short_loses_nothing_here_or_elsewhere(
    place: str, on_machine: Machines, monkeypatch: pytest.MonkeyPatch, dies_before: str
) -> None:
    write(here := run_of(place), checkpoint="step 2", journal="2")
    here.push()
    write(here, checkpoint="step 4", journal="4")
    with monkeypatch.context() as dying:
        cut_short(dies_before, dying)
        with pytest.raises(KeyboardInterrupt):
            here.push()

    on_machine("second")
    step = {JOURNAL: "2", CHECKPOINT: "2", "stamp": "4"}[dies_before]
    assert text_of(run_of(place), CHECKPOINT) == f"step {step}"
    on_machine("first")  # ahead, or as new
    again = run_of(place)
    assert text_of(again, CHECKPOINT) == "step 4"
    again.push()
    on_machine("second")
    assert text_of(run_of(place), CHECKPOINT) == "step 4"


def push_unheard(here: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    """A push whose last object arrives, before the process that has sent it dies."""
    write_object = Objects.write

    def unheard(*arguments: Any) -> None:
        write_object(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as lossy:
        lossy.setattr(Objects, "write", unheard)
        with pytest.raises(KeyboardInterrupt):
            here.push()


def test_the_answer_to_a_push_may_be_lost(
    place: str, on_machine: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(here := run_of(place), checkpoint="step 2")
    push_unheard(here, monkeypatch)
    write(here, checkpoint="step 4")
    assert text_of(run_of(place), CHECKPOINT) == "step 4"  # it was our own push


def test_a_copy_that_was_fetched_and_could_not_be_pushed_stays(
    place: str, on_machine: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(first := run_of(place), checkpoint="step 2")
    first.push()
    on_machine("second")
    write(second := run_of(place), checkpoint="step 4")
    with monkeypatch.context() as dying:
        cut_short(CHECKPOINT, dying)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                second.push()
    assert text_of(run_of(place), CHECKPOINT) == "step 4"


def test_a_stamp_that_others_may_have_seen_is_not_used_again(
    place: str, on_machine: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(first := run_of(place), checkpoint="step 2")
    push_unheard(first, monkeypatch)
    on_machine("second")
    assert text_of(run_of(place), CHECKPOINT) == "step 2"
    write(first, checkpoint="step 4")
    first.push()
    assert text_of(run_of(place), CHECKPOINT) == "step 4"


def overtaken(place: str, on_machine: Machines) -> tuple[Copy, Copy]:
    """A copy that is at step 2, and that of another machine, which has gone on to step 800."""
    write(first := run_of(place), checkpoint="step 2")
    first.push()
    on_machine("second")
    write(second := run_of(place), checkpoint="step 800")
    second.push()
    return first, second


def test_what_could_not_be_fetched_replaces_nothing_in_the_bucket(
    place: str, on_machine: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = overtaken(place, on_machine)
    on_machine("first")
    behind = workspace(first.place)
    with monkeypatch.context() as away:
        away.setattr(Objects, "read", raising(lambda: StorageError("away")))
        with pytest.raises(StorageError):
            behind.fetch()
    behind.push()
    assert in_bucket(place, CHECKPOINT) == "step 800"


def test_a_copy_that_another_machine_has_overtaken_pushes_nothing(
    place: str, on_machine: Machines
) -> None:
    first, second = overtaken(place, on_machine)
    write(first, checkpoint="step 4")  # its machine was suspended, and wakes up
    with pytest.raises(StorageError, match="another machine has been at"):
        first.push()
    assert in_bucket(place, CHECKPOINT) == "step 800"
    second.remove()
    with pytest.raises(StorageError):
        first.push()
    assert in_bucket(place, CHECKPOINT) is None


def test_a_download_that_was_killed_is_done_again(
    place: str, on_machine: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(first := run_of(place), checkpoint="step 800", journal="800")
    first.push()
    on_machine("second")
    with monkeypatch.context() as dying:
        get_all = Objects.get_all

        def killed(objects: Objects, folder: Path) -> None:
            get_all(objects, folder)
            (folder / CHECKPOINT).write_text("half of it")
            raise KeyboardInterrupt

        dying.setattr(Objects, "get_all", killed)
        with pytest.raises(KeyboardInterrupt):
            run_of(place)
    again = run_of(place)
    assert text_of(again, CHECKPOINT) == "step 800"
    assert [path.name for path in again.folder.parent.iterdir()] == [again.folder.name]


def test_a_run_that_ended_elsewhere_is_not_brought_back_by_an_old_copy(
    place: str, on_machine: Machines
) -> None:
    write(first := run_of(place), checkpoint="step 2")
    first.push()
    on_machine("second")
    run_of(place).remove()
    on_machine("first")
    again = run_of(place)
    assert not (again.folder / CHECKPOINT).exists()
    assert again.folder.is_dir()


def test_the_journal_in_the_bucket_is_never_behind_the_checkpoint(
    place: str, on_machine: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training goes on while the journal is put: its next checkpoint waits for the next push."""
    write(here := run_of(place), checkpoint="step 2", journal="2")
    put = Objects.put

    def and_train_on(objects: Objects, path: Path, name: str) -> None:
        put(objects, path, name)
        if name == JOURNAL:
            write(here, checkpoint="step 4", journal="4")

    with monkeypatch.context() as training:
        training.setattr(Objects, "put", and_train_on)
        here.push()
    assert (in_bucket(place, JOURNAL), in_bucket(place, CHECKPOINT)) == ("2", "step 2")
    here.push()
    assert (in_bucket(place, JOURNAL), in_bucket(place, CHECKPOINT)) == ("4", "step 4")


def test_a_bucket_that_cannot_be_written_is_refused(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = open_storage(place)
    bucket.require()
    assert bucket.objects.names() == []  # type: ignore[attr-defined]
    monkeypatch.setattr(Objects, "write", raising(lambda: StorageError("ACCESS_DENIED")))
    with pytest.raises(StorageError, match="ACCESS_DENIED"):
        bucket.require()


def test_what_is_removed_is_gone_everywhere(
    bucket_server: BucketServer,
    on_machine: Machines,
) -> None:
    place = bucket_server.place("bucket/removed")
    here = run_of(place)
    write(here, checkpoint="step 2")
    here.push()
    assert open_storage(place).keys() == {here.folder.name}
    assert bucket_server.names("bucket/removed")
    here.remove()
    here.remove()
    assert not here.folder.exists()
    assert open_storage(place).keys() == set()
    assert not bucket_server.names("bucket/removed")


def test_checkpoints_follow_while_a_run_trains(
    place: str, on_machine: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "LOOK_SECONDS", 0.01)
    here = run_of(place)
    notes: list[str] = []
    with here.pushing(notes.append):
        for step in ("2", "4"):
            write(here, checkpoint=f"step {step}")
            deadline = time.monotonic() + 20
            while in_bucket(place, CHECKPOINT) != f"step {step}":
                assert time.monotonic() < deadline
                time.sleep(0.02)
        (here.folder / ENDING).write_text("{}")  # is another's to keep, if it has to wait
        write(here, checkpoint="step 6")
        while in_bucket(place, CHECKPOINT) != "step 6":
            assert time.monotonic() < deadline
            time.sleep(0.02)
    assert in_bucket(place, ENDING) is None
    assert notes == []


@pytest.mark.slow
def test_training_goes_on_while_the_bucket_is_away(
    place: str,
    bucket_server: BucketServer,
    on_machine: Machines,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(storage, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(storage, "AWAY_SECONDS", 0.1)
    here = run_of(place)
    notes: list[str] = []
    with here.pushing(notes.append):
        bucket_server.stop()
        write(here, checkpoint="step 2")
        deadline = time.monotonic() + 60
        while not notes:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        bucket_server.start_again()
        while len(notes) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    assert "training goes on, checkpoints wait in" in notes[0]
    assert "has the last checkpoint" in notes[1]
    on_machine("second")
    assert text_of(run_of(place), CHECKPOINT) == "step 2"


def test_copies_that_no_run_has_touched_for_long_are_removed(tmp_path: Path) -> None:
    for name, days in (("old", 8), ("young", 6), ("in-use", 8), ("mine", 8)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / CHECKPOINT).touch()
        then = time.time() - days * 86400
        os.utime(folder / CHECKPOINT, (then, then))
        os.utime(folder, (then, then))
    (tmp_path / "in-use" / JOURNAL).touch()
    remove_old_copies(tmp_path, spare=tmp_path / "mine")
    assert {path.name for path in tmp_path.iterdir()} == {"young", "in-use", "mine"}


# Runs


def task_of(store: Store, changes: dict[str, Any] | None = None) -> Task:
    config = CONFIG.replace(changes or {})
    run_id = store.open_run(store.experiment_id("attention"), "cell", config, {})
    place = store.storage.of(config.key())
    return Task("cell", config.to_params(), run_id, store.uri, place, train="fake_training:train")


@pytest.fixture
def kept_in_bucket(
    store: Store, place: str, on_machine: Machines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Store:
    monkeypatch.setenv("FAKE_TRAINING", str(tmp_path))
    monkeypatch.setenv("FAKE_STEP_SECONDS", "0")
    return Store(store.folder, store.uri, open_storage(place))


def test_a_finished_run_leaves_nothing_in_the_bucket(kept_in_bucket: Store) -> None:
    heard: list[dict[str, Any]] = []
    run_trial(task_of(kept_in_bucket), heard.append)
    assert heard[-1]["state"] == "done"
    assert_undisturbed(kept_in_bucket, 1)
    assert kept_in_bucket.storage.keys() == set()
    assert not list(kept_in_bucket.storage.folder.iterdir())


def test_a_failed_run_goes_on_on_another_machine_and_logs_no_step_twice(
    kept_in_bucket: Store, on_machine: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = task_of(kept_in_bucket, {"training.lr": 0.444})  # fails once, at step 5
    heard: list[dict[str, Any]] = []
    run_trial(task, heard.append)
    assert heard[-1]["state"] == "failed"
    (key,) = kept_in_bucket.storage.keys()
    # As if it had not been pushed yet: the store knows which steps it has.
    Objects(kept_in_bucket.storage.of(key)).delete(JOURNAL)
    kept_in_bucket.client.update_run(task.run_id, status="RUNNING")
    on_machine("second")
    run_trial(task, heard.append)
    assert heard[-1]["state"] == "done"
    events = Path(os.environ["FAKE_TRAINING"], "events.txt").read_text().split()
    assert [event for event in events if event.startswith("train-from")] == [
        "train-from-0",
        "train-from-4",
    ]
    assert_undisturbed(kept_in_bucket, 1)


def test_a_run_that_ended_while_the_store_was_away_is_delivered_from_another_machine(
    kept_in_bucket: Store,
    place: str,
    on_machine: Machines,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    task = task_of(kept_in_bucket)
    monkeypatch.setenv("SEMIDAVIL_PATIENCE", "0")
    with monkeypatch.context() as outage:
        for name in ("log_batch", "log_artifacts", "set_terminated", "get_run"):
            outage.setattr(MlflowClient, name, raising(away))
        heard: list[dict[str, Any]] = []
        run_trial(task, heard.append)
    assert (heard[-1]["state"], heard[-1]["delivered"]) == ("done", False)
    shutil.rmtree(kept_in_bucket.storage.folder)
    on_machine("second")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", kept_in_bucket.uri)
    assert deliver.main(["--storage", place]) == 0
    assert "delivered 1 runs" in capsys.readouterr().out
    assert_undisturbed(kept_in_bucket, 1)
    assert open_storage(place).keys() == set()


def test_a_failure_that_was_kept_is_delivered_and_its_checkpoint_stays(
    kept_in_bucket: Store, on_machine: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = task_of(kept_in_bucket, {"training.lr": 0.444})
    monkeypatch.setenv("SEMIDAVIL_PATIENCE", "0")
    with monkeypatch.context() as outage:
        for name in ("log_batch", "log_artifact", "set_terminated", "get_run"):
            outage.setattr(MlflowClient, name, raising(away))
        run_trial(task, lambda _: None)
    on_machine("second")
    assert deliver.deliver_kept(kept_in_bucket, print) == 1
    assert deliver.deliver_kept(kept_in_bucket, print) == 0
    (failed,) = kept_in_bucket.runs()
    assert (failed.status, failed.tags["reason"]) == (
        "FAILED", "ValueError: the network drive is away"
    )  # fmt: skip
    assert Objects(task.place).read(CHECKPOINT) == "4"


def test_a_run_that_neither_store_nor_bucket_has_heard_the_end_of_is_found_on_its_machine(
    kept_in_bucket: Store, on_machine: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = task_of(kept_in_bucket)
    monkeypatch.setenv("SEMIDAVIL_PATIENCE", "0")
    with monkeypatch.context() as outage:
        for name in ("log_batch", "log_artifacts", "set_terminated", "get_run"):
            outage.setattr(MlflowClient, name, raising(away))
        outage.setattr(Objects, "put", raising(lambda: StorageError("away")))
        run_trial(task, lambda _: None)
    assert Objects(task.place).read(ENDING) is None
    assert deliver.deliver_kept(kept_in_bucket, print) == 1
    assert_undisturbed(kept_in_bucket, 1)
    assert kept_in_bucket.storage.endings() == []


@pytest.mark.slow
def test_a_bucket_that_is_not_there_is_an_error_before_anything_runs(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)
    nowhere = "s3://bucket/runs?scheme=http&endpoint_override=127.0.0.1:9&region=x"
    for command in (
        lambda: main(["--grid", "attention", "--storage", nowhere]),
        lambda: deliver.main(["--storage", nowhere]),
    ):
        assert command() == 1
        shown = capsys.readouterr().err
        assert f"the storage {nowhere} cannot be used" in shown
        assert "AWS_ACCESS_KEY_ID" in shown
    assert store.runs() == []


def test_a_run_whose_copy_has_no_place_fails_with_its_reason(
    kept_in_bucket: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = task_of(kept_in_bucket)
    no_place = StorageError("no copies can be kept in /tmp: Permission denied; set TMPDIR")
    monkeypatch.setattr(storage, "own_folder", raising(lambda: no_place))
    heard: list[dict[str, Any]] = []
    run_trial(task, heard.append)
    assert heard[-1]["state"] == "failed"
    (run,) = kept_in_bucket.runs()
    assert run.status == "FAILED"
    assert "no copies can be kept in" in run.tags["reason"]


@pytest.mark.slow
def test_a_bucket_that_goes_away_before_a_run_fails_it_with_its_reason(
    kept_in_bucket: Store,
) -> None:
    task = task_of(kept_in_bucket)
    nowhere = task.place.replace("127.0.0.1", "127.0.0.1:1/")  # as a wrong address would be
    heard: list[dict[str, Any]] = []
    run_trial(Task(**{**vars(task), "place": nowhere}), heard.append)
    assert heard[-1]["failure"] == "other"  # may pass: it is tried again
    (run,) = kept_in_bucket.runs()
    assert run.status == "FAILED"
    assert "cannot be used" in run.tags["reason"]


@pytest.fixture
def two_machines() -> Iterator[tuple[str, str]]:
    """Their temporary folders; Ray makes sockets there, whose paths must be short."""
    first, second = tempfile.mkdtemp(prefix="a-"), tempfile.mkdtemp(prefix="b-")
    yield first, second
    shutil.rmtree(first)
    shutil.rmtree(second)


@pytest.mark.slow
def test_a_sweep_that_is_killed_goes_on_from_the_bucket_on_another_machine(
    sweeps: Sweeps, place: str, two_machines: tuple[str, str]
) -> None:
    first, second = two_machines
    sweeps.environment |= {"SEMIDAVIL_STORAGE": place, "TMPDIR": first}
    process = sweeps.start(*FOUR, step_seconds=0.4)

    def kept() -> bool:
        names = Objects(place).names()
        return sum(name.endswith(CHECKPOINT) for name in names) == 2

    sweeps.wait_until(kept)
    process.kill()
    process.wait()
    sweeps.environment["TMPDIR"] = second
    code, output = sweeps.run(*FOUR)
    assert code == 0, output
    starts = Counter(event.split()[0] for event in sweeps.trainings())
    assert starts.pop("train-from-0") == 4
    assert starts.total() == 2  # both went on from a checkpoint
    assert_undisturbed(sweeps.store, 4)
    assert open_storage(place).keys() == set()
