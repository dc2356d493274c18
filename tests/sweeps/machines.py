"""Machines that have copies of the runs of a bucket; a plugin: `pytest_plugins = ["machines"]`."""

from pathlib import Path
from uuid import uuid4

import pytest
from buckets import BucketServer, Machines

from sweeps.keep.bucket import Bucket
from sweeps.keep.storage import open_storage


@pytest.fixture
def on_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machines:
    """Moves to the machine of that name, which has copies of its own."""

    def move(name: str) -> None:
        monkeypatch.setenv("SEMIDAVIL_COPIES", str(tmp_path / name))

    move("first")
    return move


@pytest.fixture
def bucket(bucket_server: BucketServer, on_machine: Machines) -> Bucket:
    opened = open_storage(bucket_server.uri(f"bucket/{uuid4().hex}"))
    assert isinstance(opened, Bucket)
    return opened
