"""Tracking stores with made-up runs."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from made_up_runs import CELLS, Writer, settings, write_everything

from analysis.runs import Tracked, load_runs


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Hundreds of made-up runs take seconds to write."""
    for item in items:
        if "everything" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def _figures_are_let_go() -> Iterator[None]:
    yield
    plt.close("all")


@pytest.fixture(scope="session")
def everything(made_once: Callable[[str, Callable[[Path], None]], Path], empty_store: Path) -> str:
    """The address of a store with runs of every grid."""

    def make(folder: Path) -> None:
        shutil.copyfile(empty_store, folder / empty_store.name)
        write_everything(folder)

    return f"sqlite:///{made_once('everything', make) / empty_store.name}"


@pytest.fixture
def store(tmp_path: Path, empty_store: Path) -> Writer:
    shutil.copyfile(empty_store, tmp_path / empty_store.name)
    return Writer(tmp_path)


@pytest.fixture(scope="session")
def tracked(everything: str) -> Tracked:
    """Read once: no figure changes what it is given, and the command too has one for all of them."""
    return load_runs(everything)


@pytest.fixture
def attention(store: Writer) -> Tracked:
    """Finished runs of `CELLS`, and a failed one."""
    for fusion, budget, seed, miou in CELLS:
        cell = settings("gta5-cityscapes", budget, seed, model__fusion=fusion)
        store.run("attention", cell, {"miou": miou, "iou/road": 80.0})
    failed = settings("gta5-cityscapes", 0, 0, model__fusion="vlga")
    store.run("attention", failed, {"miou": 99.0}, status="FAILED")
    return load_runs(store.uri)
