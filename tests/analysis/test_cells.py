"""One run for each cell: nothing that differs is averaged, and what is left out is said."""

import itertools
from typing import Any

import pandas as pd
import pytest
from made_up_runs import Writer, settings

from analysis.cells import by_seed, over_budgets, select
from analysis.figures import FIGURES
from analysis.report import report
from analysis.runs import AnalysisError, load_runs
from analysis.tables import TABLES
from analysis.tables.entries import Shown, shown
from semidavil.config import RESULTS_VERSION

VERSION = "semidavil.results_version"


def add(store: Writer, grid: str, seed: int, miou: float, **more: Any) -> str:
    """A run at 100 labels, unless `budget` says otherwise; `tags` are its tags, the rest settings."""
    tags, budget = more.pop("tags", None), more.pop("budget", 100)
    cell = settings("gta5-cityscapes", budget, seed, **more)
    return store.run(grid, cell, {"miou": miou, "seconds": 60.0}, tags=tags, key=repr((cell, tags)))


def test_versions_of_results_are_never_pooled(store: Writer) -> None:
    """Three seeds under two versions were six seeds."""
    for version, miou in (("2", 30.0), (str(RESULTS_VERSION), 40.0)):
        for seed in range(3):
            add(store, "attention", seed, miou + seed, tags={VERSION: version})
    add(store, "attention", 0, 10.0, tags=None)
    chosen = select(load_runs(store.uri), "attention", "fusion")
    (row,) = over_budgets(chosen.runs).to_dict("records")
    assert (row["mean"], row["n"]) == (41.0, 3)
    assert chosen.left_out == {"of results version unknown": 1, "of results version 2": 3}
    assert "Runs left out: 1 of results version unknown; 3 of results version 2." in chosen.note()
    assert "Results version" not in chosen.note()
    table = shown(TABLES["attention"](load_runs(store.uri)), Shown())
    assert table.blocks[0].rows[0][1][1].words == "41.0 ± 1.0"


def test_versions_of_a_plugin_are_never_pooled_and_stand_beside_the_packages_own(
    store: Writer,
) -> None:
    for plugins, miou in (('["my.py@a"]', 30.0), ('["my.py@b"]', 40.0)):
        for seed in range(2):
            add(store, "attention", seed, miou, model__fusion="mine", plugins=plugins)
    add(store, "attention", 0, 35.0)
    chosen = select(load_runs(store.uri), "attention", "fusion")
    means = {
        row["variant"]: (row["mean"], row["n"])
        for row in over_budgets(chosen.runs).to_dict("records")
    }
    assert means == {"dlg": (35.0, 1), "mine": (40.0, 2)}
    assert chosen.left_out == {"of another version of a plugin (my.py@a)": 2}


def test_runs_of_an_older_version_alone_are_said_to_be_so(store: Writer) -> None:
    add(store, "attention", 0, 40.0, tags={VERSION: "1"})
    note = select(load_runs(store.uri), "attention", "fusion").note()
    assert f"Results version 1; the present code's is {RESULTS_VERSION}." in note


@pytest.mark.parametrize("name", ["methods", "cost", "learning_curves"])
def test_label_budgets_are_never_pooled(name: str, store: Writer) -> None:
    """The mean of runs with 100 and 500 labels stood in six figures."""
    for budget, miou in ((100, 30.0), (500, 50.0)):
        for seed in range(2):
            for method in ("semidavil", "supervised"):
                cell = settings("gta5-cityscapes", budget, seed, training__method=method)
                curve = {"val/miou": [(75, miou / 2), (150, miou)]}
                store.run("methods", cell, {"miou": miou, "seconds": 60.0}, history=curve)
    add(store, "methods", 0, 20.0, budget=0, training__method="source_only")
    drawn = FIGURES[name](load_runs(store.uri))
    numbers = drawn.numbers[drawn.numbers["variant"] == "semidavil"]
    assert numbers["mean"].max() == 30.0
    assert numbers["n"].max() == 2
    assert "Runs left out: 4 at other label budgets (500)." in drawn.caption


@pytest.mark.parametrize(
    ("budgets", "expected"),
    [
        ({100: 2, 500: 2}, 100),  # the wanted one, of equals
        ({200: 2, 500: 2}, 200),
        ({100: 1, 500: 2}, 500),  # that most variants have
        ({0: 2, 500: 2}, 500),
        ({0: 2}, 0),
    ],
)
def test_one_budget_is_chosen_by_one_rule(
    budgets: dict[int, int], expected: int, store: Writer
) -> None:
    for budget, variants in budgets.items():
        for loss in ("ce", "dyce")[:variants]:
            add(store, "losses", 0, 30.0, budget=budget, loss__name=loss)
    chosen = select(load_runs(store.uri), "losses", "loss").at_one_budget(100)
    assert set(chosen.runs["budget"]) == {expected}


def test_each_benchmark_is_compared_at_its_own_budget(store: Writer) -> None:
    """Runs at 100 labels were told to be at 186, the largest budget of any benchmark."""
    for benchmark, budget in (("gta5-cityscapes", 100), ("cityscapes-cityscapes", 186)):
        for seed, method in itertools.product((0, 1), ("semidavil", "supervised")):
            cell = settings(benchmark, budget, seed, training__method=method)
            store.run("methods", cell, {"miou": 30.0 + seed * (method == "semidavil")})
    first, second, both = FIGURES["methods"](load_runs(store.uri)).verdicts
    assert "GTA5 → Cityscapes (toy): none is shown to be best at 100 labels" in first
    assert "Cityscapes (toy): none is shown to be best at 186 labels" in second
    assert "none is shown to be best over 2 conditions" in both


def test_many_variants_of_other_code_are_counted_and_not_named(store: Writer) -> None:
    """The settings of 23 variants, joined by plus signs, filled a caption."""
    for place, loss in enumerate(("ce", "wce", "dce", "focal", "dfl", "dyce")):
        tags = {"semidavil.commit": ("b" if place == 5 else "a") * 40}
        add(store, "losses", 0, 30.0, loss__name=loss, tags=tags)
        run = settings("gta5-cityscapes", 200, 0, loss__name=loss)
        store.run("losses", run, {}, status="FAILED")
    note = select(load_runs(store.uri), "losses", "loss").note()
    assert "same code: 5 variants: aaaaaaaa; DyCE: bbbbbbbb." in note
    assert "Without a result: 6 failed." in note


def test_two_runs_of_one_cell_are_an_error_that_says_how_they_differ(store: Writer) -> None:
    """With and without DLG, `semidavil` was 35.0 ± 17.3 with four seeds."""
    ids = [
        add(store, "semivl", 0, 20.0 + i, model__fusion=f) for i, f in enumerate(("dlg", "none"))
    ]
    with pytest.raises(AnalysisError, match="seed 0 has several runs") as refused:
        TABLES["semivl"](load_runs(store.uri))
    assert "model.fusion is" in str(refused.value)
    assert all(run in str(refused.value) for run in ids)


def test_a_seed_counts_once() -> None:
    runs = pd.DataFrame({"seed": [0, 0, 1], "miou": [1.0, 2.0, 3.0]})
    with pytest.raises(ValueError, match="seed 0"):
        by_seed(runs)
    assert by_seed(runs[1:]).to_dict() == {0: 2.0, 1: 3.0}


def test_a_captioner_and_a_preset_are_settings(store: Writer) -> None:
    for seed in range(3):
        add(store, "attention", seed, 30.0)
        add(store, "attention", seed, 50.0, model__captions="class_names", training__lr=0.5)
    add(store, "attention", 3, 30.0)
    chosen = select(load_runs(store.uri), "attention", "fusion")
    assert set(chosen.runs["miou"]) == {30.0}
    assert chosen.left_out == {"with model.captions=class_names, training.lr=0.5": 3}


def test_a_variant_of_other_code_device_or_data_is_named(store: Writer) -> None:
    here = {
        "semidavil.commit": "a" * 40,
        "semidavil.changes": "none",
        "semidavil.data": "val=1 weights=2",
    }
    there = {
        "semidavil.commit": "b" * 40, "semidavil.changes": "code/1234.diff",
        "semidavil.data": "val=9 weights=2",
    }  # fmt: skip
    for fusion, tags in (("dlg", here), ("vlga", there), ("wpct", here)):
        add(store, "attention", 0, 30.0, model__fusion=fusion, tags=tags)
    tracked = load_runs(store.uri)
    note = select(tracked, "attention", "fusion").note()
    assert (
        "same code: DLG (SemiDAViL), WPCT (LSeg): aaaaaaaa; VLGA (SemiVL): bbbbbbbb with code/1234"
        in note
    )
    assert (
        "Not all runs saw the same val: DLG (SemiDAViL), WPCT (LSeg): 1; VLGA (SemiVL): 9." in note
    )
    assert "device" not in note
    assert "weights" not in note
    assert "bbbbbbbb" in FIGURES["attention"](tracked).caption
    assert "bbbbbbbb" in TABLES["attention"](tracked).caption
    tracked.table["env/device"] = ["A100", "H100", "A100"]
    assert "same device: " in select(tracked, "attention", "fusion").note()
    assert "Not all" not in select(tracked, "attention", "fusion").only(["dlg"]).note()


def test_methods_on_another_device_are_drawn_and_in_no_front(store: Writer) -> None:
    """SemiDAViL vanished where two rivals ran on another device."""
    for method in ("semidavil", "semivl", "supervised"):
        add(store, "methods", 0, 30.0, training__method=method)
    tracked = load_runs(store.uri)
    methods = tracked.table["method"]
    tracked.table["env/device"] = methods.map(lambda m: "A100" if m == "semidavil" else "H100")
    drawn = FIGURES["cost"](tracked)
    assert "Compared on: H100. Hollow, and in no front: SemiDAViL on A100." in drawn.caption
    assert not drawn.numbers.set_index("variant").loc["semidavil", "pareto"]
    hollow = [c for c in drawn.figure.axes[0].containers if c[0].get_markerfacecolor() == "white"]
    assert [c.get_label() for c in hollow] == ["SemiDAViL"]


def test_runs_without_a_score_send_nobody_back_to_the_sweep(store: Writer) -> None:
    add(store, "attention", 0, float("nan"))
    with pytest.raises(AnalysisError, match="--retry-failed") as refused:
        select(load_runs(store.uri), "attention", "fusion")
    assert "make them" not in str(refused.value)
    add(store, "attention", 1, 30.0)
    chosen = select(load_runs(store.uri), "attention", "fusion")
    assert chosen.left_out == {"without a defined miou": 1}


def test_runs_of_the_bundled_clip_are_marked_as_plainly_as_toy_ones(
    store: Writer,
) -> None:
    real = {"data.toy": "false", "model.vlm": "toy"}
    for seed in range(2):
        cell = {**settings("gta5-cityscapes", 100, seed, model__fusion="dlg"), **real}
        store.run("attention", cell, {"miou": 30.0 + seed})
    tracked = load_runs(store.uri)
    drawn, table = FIGURES["attention"](tracked), TABLES["attention"](tracked)
    assert drawn.figure.axes[1].get_title(loc="left") == "bundled CLIP, 2 seeds"
    for caption in (drawn.caption, table.caption):
        assert "Bundled CLIP: the miniature CLIP of this package, of 0.6 million" in caption
    assert table.blocks[0].title == "GTA5 → Cityscapes (bundled CLIP)"
    page = report(tracked, {"attention": drawn}, {"attention": table}, {})["report.html"].decode()
    assert "<strong>2 runs: bundled CLIP</strong>" in page
    assert "GTA5 → Cityscapes (bundled CLIP)</td>" in page
