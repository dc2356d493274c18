"""Benchmarks from files: planned, tracked, and known to who reads the store without the files."""

import io
import json
from pathlib import Path

import pytest
from harbour import DESCRIPTION, write_harbour
from rich.console import Console
from tracked_runs import finish

from analysis.runs import load_runs
from semidavil.benchmarks import BENCHMARKS
from semidavil.config import preset
from semidavil.data.own import own_benchmark
from semidavil.registry import TEXTS
from sweeps import request
from sweeps.cli import main
from sweeps.plan.grids import GRIDS
from sweeps.plan.spec import Selection, Spec
from sweeps.run.cluster import Common
from sweeps.show.overview import open_overview
from sweeps.show.status import look
from sweeps.track.store import Store

GRID = "losses"


@pytest.fixture
def harbour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("SEMIDAVIL_DATA_ROOT", "SEMIDAVIL_STORAGE", "SEMIDAVIL_TRAIN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'none' / 'mlflow.db'}")
    monkeypatch.setattr(request, "ROOT", tmp_path)
    return write_harbour(tmp_path / "harbour")


def listed(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    code = main(["run", "--grid", GRID, "--list", *map(str, words)])
    out, error = capsys.readouterr()
    return code, out + error


def test_a_file_is_a_benchmark_of_a_grid(harbour: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = listed(capsys, "--benchmark", harbour)
    assert code == 0, text
    name = own_benchmark(str(harbour))["data.benchmark"]
    assert all(f"{name}/dyce/{budget}/s0" in text for budget in (1, 2, 4, 9))
    assert "24 runs" in text
    both = listed(capsys, "--benchmark", harbour, "gta5-cityscapes", "--budgets", 2)
    assert both[0] == 1  # the one that needs --data-root is left out, by name
    assert "cityscapes needs its images: pass --data-root" in both[1]
    assert f"{name}/ce/2/s0" in both[1]


def test_what_is_wrong_with_a_file_is_a_wrong_command(
    harbour: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text = listed(capsys, "--benchmark", harbour, "--budgets", 40)
    assert code == 1
    assert "a budget of 40 labelled images is larger than the training set of harbour, 9" in text
    harbour.write_text(DESCRIPTION.replace("labels:", "label:"))
    code, text = listed(capsys, "--benchmark", harbour)
    assert code == 2
    assert "no entry 'label': did you mean labels?" in text
    code, text = listed(capsys, "--benchmark", harbour.with_name("other.yaml"))
    assert code == 2
    assert "--init FOLDER writes a first one" in text


def test_status_and_figures_know_a_benchmark_from_the_store_alone(
    harbour: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = own_benchmark(str(harbour))
    name = settings.pop("data.benchmark")
    del settings["data.own"], settings["runtime.folders"]
    selection = Selection((name,), (2,), (0,))
    spec = Spec(GRID, "toy", tuple(f"{n}={v}" for n, v in settings.items()), (selection,))
    for number, config in enumerate(spec.cells()):
        finish(store, config, 30 + number, GRID)
    open_overview(store, spec, GRIDS[GRID].about, 1)
    monkeypatch.delitem(BENCHMARKS, name)
    monkeypatch.delitem(TEXTS, name)

    file = io.StringIO()
    Console(file=file, width=200).print(look(store, GRID).render())
    text = file.getvalue()
    assert "finished" in text
    assert "mIoU 35.00" in text
    monkeypatch.delitem(BENCHMARKS, name)
    monkeypatch.delitem(TEXTS, name)
    table = load_runs(store.uri).table
    assert set(table["benchmark"]) == {name}
    assert BENCHMARKS[name].classes == ("sky", "water", "quay")


def test_every_node_must_reach_the_folder_of_a_description(harbour: Path, store: Store) -> None:
    config = preset("small", own_benchmark(str(harbour)))
    common = Common.of("sqlite:///x", None, store.storage, [config])
    assert common.data_roots == {str(harbour.parent)}
    assert json.loads(config.runtime.folders).keys() == {BENCHMARKS[config.data.benchmark].target}
