import gc
import os
import signal
import subprocess
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from quick_stores import make_stores_quick
from small_disk import SmallDisk

from semidavil.benchmarks import BENCHMARKS, LABEL_IDS
from semidavil.machine import available_cpus
from semidavil.registry import DATASETS, TEXTS

ROOT = Path(__file__).parents[1]

# Small tensors gain nothing from threads, and several processes would each have as many as there are cores
# (some tests took ten times as long). Read when PyTorch is loaded.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Until the tests are collected: looking for garbage in what is imported takes each process a second.
gc.disable()


def pytest_configure(config: pytest.Config) -> None:
    # A shell ignores it for what it starts in the background, and so would all that the tests start.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Of `-n auto`: quick tests compute; many of the others wait, and one process more computes meanwhile."""
    waiting = 0 if config.option.markexpr == "not slow" else 1
    return min(4, available_cpus() + waiting)


def pytest_collection_finish() -> None:
    # What is imported and collected by now stays: no garbage collection of a test looks at it again.
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With several processes, files of which most is slow come first: none of them is left for the end.

    Folder by folder in turn, since those of the sweeps mostly wait and others mostly compute.
    """
    if os.environ.get("PYTEST_XDIST_WORKER"):
        slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
        turns: defaultdict[Path, Iterator[int]] = defaultdict(count)  # of each folder
        files = sorted({item.path for item in items}, key=lambda path: (-slow[path], path))
        turn = {path: next(turns[path.parent]) for path in files}
        items.sort(key=lambda item: (turn[item.path], item.path))


@pytest.fixture(autouse=True)
def _forget_described_benchmarks() -> Iterator[None]:
    """What a test has described is no benchmark of the next one in its process."""
    tables: list[dict[str, Any]] = [BENCHMARKS, LABEL_IDS, DATASETS, TEXTS]
    before = [dict(table) for table in tables]
    yield
    for table, entries in zip(tables, before, strict=True):
        for name in table.keys() - entries.keys():
            del table[name]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    if os.getuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("only root may mount a small file system to fill")
    yield SmallDisk(folder)
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


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
def empty_store(made_once: Callable[[str, Callable[[Path], None]], Path]) -> Path:
    make_stores_quick()

    def make(folder: Path) -> None:
        from sweeps.track.store import Store

        store = Store(folder)
        store.runs()  # nothing there: does not create it
        assert store.is_new()
        store.client.search_experiments()
        assert store.database == folder / "mlflow.db"

    return made_once("empty", make) / "mlflow.db"


@pytest.fixture
def without_torch(tmp_path: Path) -> dict[str, str]:
    """The environment of a process in which nothing can import torch."""
    blocker = tmp_path / "torch" / "__init__.py"
    blocker.parent.mkdir()
    blocker.write_text("raise ImportError('torch was imported')\n")
    return os.environ | {
        "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}",
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'mlflow.db'}",
        "CUDA_VISIBLE_DEVICES": "",  # GPUs are counted by torch, where there is a driver
    }
