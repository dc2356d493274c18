import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:  # MLflow and the like, which few tests wait for in vain
    from buckets import BucketServer
    from sweep_process import Sweeps

    from sweeps.track.store import Store


@pytest.fixture(autouse=True)
def _own_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of runs that are kept in a bucket: not beside the user's."""
    monkeypatch.setenv("SEMIDAVIL_COPIES", str(tmp_path / "copies"))


@pytest.fixture(autouse=True)
def _studies_end() -> Iterator[None]:
    yield
    if "studies" in sys.modules:
        sys.modules["studies"].forget_studies()


@pytest.fixture
def store(empty_store: Path, tmp_path: Path) -> "Store":
    """A store whose database exists: making one takes MLflow seconds, copying one does not."""
    from sweeps.track.store import Store

    shutil.copyfile(empty_store, tmp_path / "mlflow.db")
    return Store(tmp_path)


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
