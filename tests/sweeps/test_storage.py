"""Where runs are kept: what a folder and a bucket both promise, and where copies of a bucket are."""

import os
import pickle
from pathlib import Path

import pytest
from buckets import FAILED, KEY, Machines, fetched, step_of, write

from semidavil import checkpoint
from semidavil.config import ConfigError
from sweeps.keep import bucket as bucket_module
from sweeps.keep import objects
from sweeps.keep.bucket import Bucket
from sweeps.keep.storage import Storage, StorageError, file_of, open_storage, workspace
from sweeps.keep.workspace import CHECKPOINT, ENDING, JOURNAL, LOG

pytest_plugins = ["machines"]


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
        assert type(found) is Storage
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


def test_machines_find_each_others_marks(storage: Storage, on_machine: Machines) -> None:
    with storage.marked() as mark:
        on_machine("second")
        assert storage.lacks(mark) == ""
    assert "--storage" in storage.lacks(mark)
    assert storage.keys() == set()


# What is refused before anything runs


def test_a_folder_that_cannot_be_written_is_refused_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    folder = open_storage(str(tmp_path / "file" / "runs"))
    with pytest.raises(StorageError, match=r"file/runs cannot be written: .*with --storage"):
        folder.require()
    with pytest.raises(StorageError, match="cannot be made"):
        fetched(folder, epoch=1)


def test_copies_without_a_place_are_refused(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    for place in (str(tmp_path / "file"), "relative"):
        monkeypatch.setenv("SEMIDAVIL_COPIES", place)
        for use in (bucket.require, lambda: fetched(bucket, epoch=1)):
            with pytest.raises(StorageError, match=r"cannot be .* with SEMIDAVIL_COPIES"):
                use()


# Copies of a bucket


def test_copies_outlive_a_job_and_its_temporary_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("SEMIDAVIL_COPIES", ""), ("HOME", "/home/me"), ("XDG_CACHE_HOME", "")):
        monkeypatch.setenv(name, value)
    folder = open_storage("s3://bucket/runs").folder
    assert folder.parent == Path("/home/me/.cache/semidavil/copies")


def test_only_old_copies_without_an_ending_are_removed(bucket: Bucket) -> None:
    for name, seconds in (("old", 10), ("young", -10), ("ended", 10), (KEY, 10)):
        folder = bucket.folder / name
        folder.mkdir(parents=True)
        (folder / (ENDING if name == "ended" else CHECKPOINT)).touch()
        then = folder.stat().st_mtime - bucket_module.COPY_SECONDS - seconds
        os.utime(folder, (then, then))
    fetched(bucket, epoch=1)
    assert {path.name for path in bucket.folder.iterdir()} == {"young", "ended", KEY}


def test_all_runs_of_a_bucket_share_one_client(bucket: Bucket) -> None:
    clients = objects._file_system.cache_info().misses
    for number in range(3):
        workspace(bucket.of(f"{KEY}{number}")).fetch(1, "run")
    assert len(bucket.keys()) == 3
    assert objects._file_system.cache_info().misses == clients + 1
