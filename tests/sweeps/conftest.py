import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from filelock import FileLock

if TYPE_CHECKING:  # MLflow and the like, which few tests wait for in vain
    from buckets import BucketServer
    from sweep_process import Sweeps

    from sweeps.track.store import Store


@pytest.fixture(autouse=True)
def _own_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of runs that are kept in a bucket: not beside the user's."""
    monkeypatch.setenv("SEMIDAVIL_COPIES", str(tmp_path / "copies"))


@pytest.fixture
def store(empty_store: Path, tmp_path: Path) -> "Store":
    """A store whose database exists: making one takes MLflow seconds, copying one does not."""
    from sweeps.track.store import Store

    shutil.copyfile(empty_store, tmp_path / "mlflow.db")
    return Store(tmp_path)


@pytest.fixture(scope="session")
def empty_store(made_once: Callable[[str, Callable[[Path], None]], Path]) -> Path:
    def make(folder: Path) -> None:
        from sweeps.track.store import Store

        store = Store(folder)
        store.runs()  # nothing there: does not create it
        assert store.is_new()
        store.client.search_experiments()
        assert store.database == folder / "mlflow.db"

    return made_once("empty", make) / "mlflow.db"


@pytest.fixture(scope="session")
def few_images(made_once: Callable[[str, Callable[[Path], None]], Path]) -> Path:
    """A data root for real trainings, of a few generated images."""

    def make(folder: Path) -> None:
        from semidavil.toy.write import ensure_toy_data

        counts = {"train": 8, "val": 4, "gta5": 6}
        names = ("cityscapes", "gta5")
        ensure_toy_data(folder / "data", names, counts=counts, progress=False)

    (root,) = (made_once("images", make) / "data").iterdir()
    return root


@pytest.fixture(scope="session")
def made_once(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str, Callable[[Path], None]], Path]:
    """Makes a folder that all processes of the tests share, and that none may change."""
    shared = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        shared = shared.parent

    def make_once(name: str, make: Callable[[Path], None]) -> Path:
        folder, done = shared / f"shared-{name}", shared / f"shared-{name}.done"
        with FileLock(shared / f"shared-{name}.lock"):
            if not done.exists():
                folder.mkdir(exist_ok=True)
                make(folder)
                done.touch()
        return folder

    return make_once


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
def sweeps(store: "Store") -> Iterator["Sweeps"]:
    from sweep_process import Sweeps

    sweeps = Sweeps(store)
    yield sweeps
    sweeps.close()
