from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sweep_process import Sweeps

from sweeps.track.store import Store

if TYPE_CHECKING:
    from buckets import BucketServer


@pytest.fixture(autouse=True)
def _own_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of runs that are kept in a bucket: not beside the user's."""
    monkeypatch.setenv("SEMIDAVIL_COPIES", str(tmp_path / "copies"))


@pytest.fixture
def store(empty_store: Path, tmp_path: Path) -> Store:
    """A store whose database exists: making one takes MLflow seconds, copying one does not."""
    (tmp_path / "mlflow.db").write_bytes(empty_store.read_bytes())
    return Store(tmp_path)


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = Store(tmp_path_factory.mktemp("empty"))
    store.runs()  # nothing there: does not create it
    assert store.is_new()
    store.client.search_experiments()
    assert store.database is not None
    return store.database


@pytest.fixture(scope="session")
def bucket_server() -> Iterator["BucketServer"]:
    from buckets import KEYS, BucketServer

    with pytest.MonkeyPatch.context() as environment:
        for name, value in KEYS.items():
            environment.setenv(name, value)
        server = BucketServer()
        yield server
        server.stop()


@pytest.fixture
def sweeps(store: Store) -> Sweeps:
    return Sweeps(store)
