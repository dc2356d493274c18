"""Figures from a tracking store with runs whose numbers are known."""

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from mlflow.tracking import MlflowClient
from scipy import stats

from analysis import paper
from analysis.figures import FIGURES
from analysis.make_figures import one_scale
from analysis.runs import KEY, AnalysisError, load_runs
from analysis.stats import over_seeds, paired_difference

ROOT = Path(__file__).resolve().parents[2]
Cell = tuple[str, int, int, float]  # attention, budget, seed, mIoU

CELLS: list[Cell] = [
    ("dlg", 0, 0, 20.0), ("dlg", 0, 1, 24.0), ("dlg", 100, 0, 31.0), ("dlg", 100, 1, 35.0),
    ("wpct", 0, 0, 18.0), ("wpct", 0, 1, 20.0), ("wpct", 100, 0, 33.0),
]  # fmt: skip


def write_runs(
    uri: str, cells: Iterable[Cell], *, status: str = "FINISHED", toy: bool = True, **changes: str
) -> None:
    client = MlflowClient(uri)
    found = client.get_experiment_by_name("attention")
    experiment = found.experiment_id if found else client.create_experiment("attention")
    for fusion, budget, seed, miou in cells:
        key = f"{fusion}-{budget}-{seed}-{toy}-{changes}"
        run = client.create_run(experiment, tags={KEY: key}).info.run_id
        params = {
            "data.benchmark": "gta5-cityscapes", "data.budget": str(budget),
            "data.toy": str(toy).lower(), "model.fusion": fusion, "model.captions": "positions",
            "loss.name": "dyce", "training.method": "semidavil", "training.steps": "150",
            "seed": str(seed),
        } | changes  # fmt: skip
        for name, value in params.items():
            client.log_param(run, name, value)
        client.log_metric(run, "final/miou", miou)
        client.log_metric(run, "final/iou/road", 80.0)
        client.set_terminated(run, status)


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"
    write_runs(uri, CELLS)
    write_runs(uri, [("vlga", 0, 0, 99.0)], status="FAILED")
    return uri


def test_finished_runs_become_one_tidy_table(uri: str) -> None:
    runs = load_runs(uri)
    assert len(runs) == len(CELLS)
    assert set(runs["fusion"]) == {"dlg", "wpct"}
    assert runs["toy"].all()
    assert runs["budget"].dtype.kind == "i"
    assert (runs["iou/road"] == 80).all()
    assert load_runs(uri, ["attention"]).equals(runs)


def test_the_newest_of_a_key_counts(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    write_runs(uri, [("dlg", 0, 0, 1.0)])
    write_runs(uri, [("dlg", 0, 0, 2.0)])
    assert load_runs(uri)["miou"].tolist() == [2.0]


def test_the_numbers_drawn(uri: str) -> None:
    drawn = FIGURES["attention"](load_runs(uri))
    published, measured = drawn.figure.axes
    lines = {c.get_label(): c for c in measured.containers}
    dlg, wpct = lines["DLG (ours)"], lines["WPCT"]
    assert dlg.lines[0].get_ydata().tolist() == [22.0, 33.0]
    assert wpct.lines[0].get_ydata().tolist() == [19.0, 33.0]
    (bars,) = dlg.lines[2]
    heights = [np.ptp(segment[:, 1]) / 2 for segment in bars.get_segments()]
    assert heights == pytest.approx([np.std([20, 24], ddof=1), np.std([31, 35], ddof=1)])
    assert [t.get_text() for t in measured.get_xticklabels()] == ["0", "100"]
    assert "toy benchmark" in measured.get_title(loc="left")
    points = {tuple(line.get_ydata()) for line in published.lines}
    assert (67.7, 71.1) in points  # supplement, Table 1
    assert (round(67.7 - 2.6, 1),) in points  # Figure 1 in words
    assert all(line.get_markerfacecolor() == "white" for line in published.lines)
    table = drawn.table.set_index(["variant", "budget"])
    assert table.loc[("dlg", 100), "mean"] == 33
    assert table.loc[("dlg", 100), "published"] == 71.1
    assert table.loc[("wpct", 100), "n"] == 1
    assert pd.isna(table.loc[("wpct", 100), "published"])
    assert table.loc[("wpct", 2975), "kind"] == "bound"
    assert "gta5-cityscapes, vlga, budget 0" in drawn.missing


def test_panels_that_differ_share_a_legend_and_none_is_empty(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    write_runs(uri, [("dlg", 0, 0, 1.0)])
    write_runs(uri, [("vlga", 0, 0, 2.0)], **{"data.benchmark": "synthia-cityscapes"})
    write_runs(uri, [("dlg", 50, 0, 3.0)], **{"data.benchmark": "idda-camvid"})
    figure = FIGURES["attention"](load_runs(uri)).figure
    above = {axes.get_title(loc="left"): axes.axison for axes in figure.axes[:3]}
    assert above == {
        "gta5-cityscapes\npublished (paper, real images)": True,
        "idda-camvid\nnothing published at these budgets": False,
        "synthia-cityscapes\npublished (paper, real images)": True,
    }
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["DLG (ours)", "VLGA"]


def test_runs_of_another_scale_do_not_mix(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    write_runs(uri, [("dlg", 0, 0, 1.0)])
    write_runs(uri, [("dlg", 0, 0, 3.0)], **{"training.steps": "900"})
    assert one_scale(load_runs(uri))["miou"].tolist() == [3.0]
    write_runs(uri, [("dlg", 0, 0, 5.0)], toy=False)
    assert one_scale(load_runs(uri))["miou"].tolist() == [5.0]


def test_published_numbers_are_the_papers() -> None:
    points = {(p.benchmark, p.variant, p.budget): p for p in paper.attention()}
    assert points["gta5-cityscapes", "dlg", 2975].miou == 75.2
    assert points["synthia-cityscapes", "wpct", 0].miou == 65.8
    assert points["gta5-cityscapes", "vlga", 2975].kind == "bound"
    assert ("gta5-cityscapes", "cross_attention", 0) not in points  # never published
    for table in (paper.LOSS_TABLE, paper.SEMIVL_TABLE):
        assert len({len(row) for rows in table.values() for row in rows.values()}) == 1


def test_statistics() -> None:
    runs = pd.DataFrame(CELLS, columns=["fusion", "budget", "seed", "miou"])
    table = over_seeds(runs, ["fusion", "budget"]).set_index(["fusion", "budget"])
    assert table.loc[("dlg", 0)].tolist() == pytest.approx([22, np.sqrt(8), 2])
    assert np.isnan(table.loc[("wpct", 100), "std"])
    ours = pd.Series({0: 3.0, 1: 5.0, 2: 6.5, 9: 100.0})
    theirs = pd.Series({0: 2.0, 1: 4.5, 2: 4.0})
    found = paired_difference(ours, theirs)
    expected = stats.ttest_1samp([1.0, 0.5, 2.5], 0)
    assert found["n"] == 3
    assert found["difference"] == pytest.approx(4 / 3)
    assert found["p"] == pytest.approx(expected.pvalue)
    low, high = expected.confidence_interval(0.95)
    assert (found["low"], found["high"]) == pytest.approx((low, high))
    assert np.isnan(paired_difference(ours[:1], theirs)["p"])


def run(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "analysis" / "make_figures.py"), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_command_writes_the_same_bytes_twice(uri: str, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        done = run("--tracking-uri", uri, "--out", str(tmp_path / folder))
        assert done.returncode == 0, done.stdout + done.stderr
        assert "not run yet: gta5-cityscapes, vlga, budget 0" in done.stdout
        assert "baselines is left out" in done.stdout
    names = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert names == ["attention.csv", "attention.pdf", "attention.png"]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_without_runs_it_says_what_to_run(tmp_path: Path) -> None:
    nothing = run("--tracking-uri", f"sqlite:///{tmp_path / 'none.db'}")
    assert nothing.returncode == 1
    assert "python sweeps/run.py --grid attention" in nothing.stdout


def test_unknown_names_are_refused(uri: str) -> None:
    with pytest.raises(AnalysisError, match=r"no experiment 'magic': choose from .*attention"):
        load_runs(uri, ["magic"])
    assert "choose from attention" in run("--only", "magic", "--tracking-uri", uri).stdout


def test_analysis_imports_no_torch() -> None:
    code = "import sys, analysis.make_figures, mlflow.tracking; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
