"""Tracking stores with made-up runs."""

from pathlib import Path

import pytest
from made_up_runs import Writer, write_everything

from analysis.runs import Tracked, load_runs


@pytest.fixture(scope="session")
def everything(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of a store with runs of every grid."""
    return write_everything(tmp_path_factory.mktemp("store"))


@pytest.fixture
def store(tmp_path: Path) -> Writer:
    return Writer(tmp_path)


@pytest.fixture
def tracked(everything: str) -> Tracked:
    return load_runs(everything)
