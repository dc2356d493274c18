"""Where runs are kept: what a folder and a bucket both promise, and where copies of a bucket are."""

import errno
import json
import os
import pickle
import time
from pathlib import Path

import pyarrow.fs
import pytest
from buckets import KEY, Machines, fetched, step_of, write
from servers import raising

from semidavil import checkpoint
from semidavil.config import ConfigError
from sweeps.keep import copies
from sweeps.keep.bucket import Bucket
from sweeps.keep.objects import Objects
from sweeps.keep.storage import Folder, Storage, StorageError, file_of, open_storage, workspace
from sweeps.keep.workspace import CHECKPOINT, ENDING, JOURNAL, LOG

pytest_plugins = ["machines"]
DAY_SECONDS = 86400
FINISHED, FAILED = '{"status": "FINISHED"}', '{"status": "FAILED"}'


@pytest.fixture(params=["folder", "bucket"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "folder":
        return open_storage(str(tmp_path / "not" / "yet"))
    bucket: Storage = request.getfixturevalue("bucket")
    return bucket


# Addresses


def test_a_folder_and_its_address_are_the_same_storage(tmp_path: Path) -> None:
    for text in (str(tmp_path), tmp_path.as_uri()):
        found = open_storage(text)
        assert type(found) is Folder
        assert found.uri == found.of(KEY).removesuffix(f"/{KEY}") == str(tmp_path)
        assert workspace(found.of(KEY)).folder == tmp_path / KEY
    assert open_storage("file:///a%20b").uri == "/a b"


def test_the_address_of_a_run_keeps_the_options_of_its_bucket(on_machine: Machines) -> None:
    found = open_storage("s3://bucket/team/runs/?region=eu-west-1")
    assert found.uri == "s3://bucket/team/runs?region=eu-west-1"
    assert found.of(KEY) == f"s3://bucket/team/runs/{KEY}?region=eu-west-1"
    assert file_of(found.of(KEY), LOG) == f"s3://bucket/team/runs/{KEY}/{LOG}?region=eu-west-1"
    assert workspace(found.of(KEY)).folder == found.folder / KEY
    assert open_storage("s3://bucket/others?region=eu-west-1").folder != found.folder


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


# What every storage promises


def test_a_run_is_kept_until_it_is_removed(storage: Storage, on_machine: Machines) -> None:
    storage.require()
    assert storage.keys() == set()  # trying leaves nothing
    first = fetched(storage, epoch=1)
    for file in (CHECKPOINT, JOURNAL, LOG):
        write(first, 2, file)
    first.push()
    assert storage.keys() == {KEY}
    on_machine("second")
    second = fetched(pickle.loads(pickle.dumps(storage)), epoch=2)
    assert [step_of(second, file) for file in (CHECKPOINT, JOURNAL, LOG)] == [2, 2, 2]
    assert storage.remove(KEY)
    assert storage.remove(KEY)  # as if another process had been faster
    assert storage.keys() == set()
    assert not second.folder.exists()
    for name in ("..", "", "../precious"):
        with pytest.raises(ValueError, match="not the key of a run"):
            storage.remove(name)


def test_an_ended_run_waits_for_its_delivery(storage: Storage, on_machine: Machines) -> None:
    first = fetched(storage, epoch=1)
    (first.folder / ENDING).write_text(FAILED)
    first.push()
    for machine in ("first", "second"):
        on_machine(machine)
        assert storage.undelivered() == [(storage.of(KEY), FAILED)]
        assert not storage.remove(KEY)
    second = fetched(storage, epoch=1)
    assert (second.folder / ENDING).read_text() == FAILED
    (second.folder / ENDING).unlink()  # it is delivered
    second.push()
    for machine in ("second", "first"):
        on_machine(machine)
        assert storage.undelivered() == []
    assert not (fetched(storage, epoch=2).folder / ENDING).exists()
    (second.folder / ENDING).write_text(FAILED)
    assert storage.remove(KEY, undelivered=True)


def test_machines_find_each_others_marks(storage: Storage, on_machine: Machines) -> None:
    with storage.marked() as mark:
        on_machine("second")
        assert storage.lacks(mark) == ""
    assert "--storage" in storage.lacks(mark)
    assert storage.keys() == set()


# A folder


def test_a_folder_that_cannot_be_written_is_refused_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    folder = open_storage(str(tmp_path / "file" / "runs"))
    with pytest.raises(StorageError, match=r"file/runs cannot be written: .*with --storage"):
        folder.require()
    with pytest.raises(StorageError, match="cannot be made"):
        fetched(folder, epoch=1)
    # A network file system may only say at the end that the disk is full.
    monkeypatch.setattr(os, "fsync", raising(lambda: OSError(errno.EDQUOT, "Disk quota exceeded")))
    with pytest.raises(StorageError, match="cannot be written: Disk quota exceeded"):
        open_storage(str(tmp_path)).require()


def test_a_removed_run_whose_log_is_still_open_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network file system renames a removed file that is open, and keeps its folder."""
    folder = open_storage(str(tmp_path))
    run = fetched(folder, epoch=1)
    (run.folder / LOG).touch()

    def unlink_on_nfs(name: str, *, dir_fd: int | None = None) -> None:
        if name != LOG:
            raise OSError(errno.EBUSY, "Device or resource busy")
        os.rename(name, ".nfs000001", src_dir_fd=dir_fd, dst_dir_fd=dir_fd)

    monkeypatch.setattr(os, "unlink", unlink_on_nfs)
    for _ in range(2):
        assert folder.remove(KEY)
        assert (run.folder / ".nfs000001").exists()
        assert folder.keys() == set()


# A bucket


def test_a_bucket_that_cannot_be_written_is_refused(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Objects, "write", raising(lambda: StorageError("ACCESS_DENIED")))
    with pytest.raises(StorageError, match="ACCESS_DENIED"):
        bucket.require()


def test_all_runs_of_a_bucket_share_one_client(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    clients: list[str] = []
    original = pyarrow.fs.FileSystem

    class Counting:
        @staticmethod
        def from_uri(uri: str) -> tuple[pyarrow.fs.FileSystem, str]:
            clients.append(uri)
            return original.from_uri(uri)

    monkeypatch.setattr(pyarrow.fs, "FileSystem", Counting)
    for number in range(3):
        opened = workspace(bucket.of(f"{KEY}{number}"))
        opened.fetch(1)
        opened.push()
    assert len(bucket.keys()) == 3
    assert len(clients) == 1


# Where copies of a bucket are


def without_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but the temporary folder can be written."""
    for name, value in (("SEMIDAVIL_COPIES", ""), ("XDG_CACHE_HOME", ""), ("HOME", "/dev/null")):
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("xdg", "cache"), [("", ".cache"), ("relative", ".cache"), ("{home}/xdg", "xdg")]
)
def test_copies_outlive_a_job_and_its_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, xdg: str, cache: str
) -> None:
    monkeypatch.setenv("SEMIDAVIL_COPIES", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", xdg.format(home=tmp_path))
    folder = open_storage("s3://bucket/runs").folder
    assert folder.parent == tmp_path / cache / "semidavil" / "copies"
    copies.make_own(folder)
    assert folder.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("has_home", [True, False])
def test_a_home_that_cannot_be_written_is_replaced_with_a_warning(
    on_machine: Machines,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    has_home: bool,
) -> None:
    without_home(monkeypatch)
    if not has_home:  # as the user of a container
        monkeypatch.delenv("HOME")
        monkeypatch.setattr("pwd.getpwuid", raising(KeyError))
    for _ in range(2):
        assert open_storage("s3://bucket/runs").folder.parent == copies.temporary_copies()
    assert caplog.text.count("set SEMIDAVIL_COPIES") == 1


@pytest.mark.parametrize("trap", ["link", "owner", "file"])
def test_a_folder_for_copies_that_is_not_our_own_is_refused_before_anything_runs(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trap: str
) -> None:
    theirs = tmp_path / "theirs"
    theirs.touch() if trap == "file" else theirs.mkdir()
    monkeypatch.setenv("SEMIDAVIL_COPIES", str(theirs))
    if trap == "link":  # in the temporary folder, where anybody can make one
        without_home(monkeypatch)
        copies.temporary_copies().symlink_to(theirs)
    elif trap == "owner":
        nobody = os.getuid() + 1
        monkeypatch.setattr(os, "getuid", lambda: nobody)
    for use in (bucket.require, lambda: fetched(bucket, epoch=1)):
        with pytest.raises(StorageError, match="SEMIDAVIL_COPIES"):
            use()


def test_only_old_copies_without_an_ended_run_are_removed(tmp_path: Path) -> None:
    for name, days in (("old", 8), ("young", 6), ("in-use", 8), ("spared", 8), ("ended", 800)):
        folder = tmp_path / name
        folder.mkdir()
        file = folder / (ENDING if name == "ended" else CHECKPOINT)
        file.touch()
        then = time.time() - days * DAY_SECONDS
        os.utime(file, (then, then))
        os.utime(folder, (then, then))
    (tmp_path / "in-use" / JOURNAL).touch()
    copies.remove_old_copies(tmp_path, spare=tmp_path / "spared")
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"young", "in-use", "spared", "ended"}


def test_an_ended_run_in_the_temporary_folder_of_an_older_version_is_found(bucket: Bucket) -> None:
    old = copies.temporary_copies() / bucket.folder.name / KEY
    old.mkdir(parents=True)
    (old / ENDING).write_text(FINISHED)
    (old / "stamp").write_text(json.dumps([None, "3f2a"]))
    assert bucket.undelivered() == [(bucket.of(KEY), FINISHED)]
    assert not bucket.remove(KEY)
    found = fetched(bucket, epoch=0)
    assert (found.folder / ENDING).read_text() == FINISHED
    found.remove()  # it is delivered
    assert bucket.undelivered() == []
