from pathlib import Path

import pytest
from sweep_process import Sweeps

from sweeps.tracking import Store


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


@pytest.fixture
def sweeps(store: Store) -> Sweeps:
    return Sweeps(store)
