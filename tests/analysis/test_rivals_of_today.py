"""What the released code and semi-supervised papers are shown beside, and what they are not compared with."""

import itertools
import re

import pandas as pd
import pytest
from made_up_runs import Writer, settings

from analysis import paper
from analysis.figures import components
from analysis.report import published
from analysis.runs import AnalysisError, NoRunError, load_runs
from analysis.tables import TABLES
from analysis.tables.entries import DASH, Shown, shown
from analysis.tables.write import latex, markdown
from semidavil.benchmarks import BENCHMARKS

HERE = "cityscapes-cityscapes"
OFF = {"model__fusion": "none", "loss__name": "ce"}


def add_methods(store: Writer, budgets: tuple[int, ...], **more: str) -> None:
    scores = {"semidavil": 40.0, "unimatch_v2": 30.0}
    for (method, score), budget, seed in itertools.product(scores.items(), budgets, (0, 1, 2)):
        cell = settings(HERE, budget, seed, training__method=method, **more)
        store.run("methods", cell, {"miou": score + seed + budget / 1000})


def test_semi_supervised_papers_stand_apart_from_what_was_measured(store: Writer) -> None:
    add_methods(store, (1488, 100, 186))
    table = shown(TABLES["ssl"](load_runs(store.uri)), Shown())
    measured, elsewhere = table.blocks
    assert measured.columns == elsewhere.columns == ("encoder", "186", "372", "744", "1,488")
    rows = {name: [entry.words for entry in entries] for name, entries in measured.rows}
    assert list(rows) == ["UniMatch V2", "SemiDAViL"]
    assert rows["SemiDAViL"] == ["ViT-B-16", "41.2 ± 1.0", DASH, DASH, "42.5 ± 1.0"]
    others = {name: [entry.text for entry in entries] for name, entries in elsewhere.rows}
    assert others["UniMatch V2 (TPAMI 2025)"] == ["DINOv2-B", "83.6", "84.3", "84.5", "85.1"]
    entries = [e for block in table.blocks for _, row in block.rows for e in row]
    assert not any(entry.under or entry.mark for entry in entries)
    assert "not compared" in table.caption
    assert "LiheYoung/UniMatch-V2" in table.caption
    assert "Cityscapes (toy)" in measured.title
    assert "elsewhere" in elsewhere.title
    for text in (markdown(table), latex(table)):
        assert "83.6" in text
    # Neither does the report subtract them from anything, or find anything in them.
    assert published({"ssl": table}) == []
    assert table.verdicts == ()
    numbers = table.numbers[table.numbers["elsewhere"].notna()]
    assert len(numbers) == 4 * len(paper.ELSEWHERE)
    assert numbers["mean"].isna().all()


def test_the_encoder_of_measured_rows_is_the_one_that_sees(store: Writer) -> None:
    add_methods(store, (186,), model__encoder="timm:resnet50")
    measured, _ = TABLES["ssl"](load_runs(store.uri)).blocks
    assert {entries[0].text for _, entries in measured.rows} == {"timm:resnet50"}


@pytest.mark.parametrize("grid", ["methods", "attention"])  # which has it, and which has not
def test_without_such_runs_the_table_says_how_to_make_them(grid: str, store: Writer) -> None:
    store.run(grid, settings(HERE, 100, 0), {"miou": 40.0})
    told = f"--grid methods --benchmark {HERE} --budgets 186 372 744 1488$"
    with pytest.raises(NoRunError, match=told):
        TABLES["ssl"](load_runs(store.uri))


def test_values_from_elsewhere_are_in_no_table_of_the_papers() -> None:
    points = [*paper.methods(), *paper.semivl(), *paper.losses(), *paper.attention()]
    assert not {p.budget for p in points} & set(BENCHMARKS[HERE].ssl_budgets)
    assert not {p.variant for p in points} & {"unimatch", "unimatch_v2"}
    for one in paper.ELSEWHERE:
        assert list(one.miou) == sorted(one.miou)  # more labels, higher scores: nothing is mistyped


@pytest.mark.slow
def test_the_released_code_is_a_line_and_in_no_effect(store: Writer) -> None:
    def run(seed: int, miou: float, **changes: str) -> None:
        cell = settings("gta5-cityscapes", 100, seed, **changes)
        store.run("components", cell, {"miou": miou})

    for seed in (0, 1):
        run(seed, 40.0 + seed)
        run(seed, 30.0 + seed, **OFF)
    before = components.draw(load_runs(store.uri))
    assert "the released code" in before.missing
    for seed in (0, 1):
        run(seed, 5.0 + seed, training__method="semidavil_released")
    drawn = components.draw(load_runs(store.uri))
    assert drawn.missing == "not run yet: 14 of 16 combinations"
    (line,) = [x for x in drawn.figure.axes[0].lines if x.get_label() == "released code"]
    assert set(line.get_ydata()) == {5.5}
    rows = drawn.numbers.set_index("what")
    assert rows.loc["released code", "mean"] == 5.5
    assert len(drawn.run_ids) == 6
    assert re.search(
        r"released code would do if it ran, 5\.5 ± 0\.7 \(2 seeds\).*no strong views", drawn.caption
    )
    same = before.numbers["what"] != "released code"
    ours = drawn.numbers[drawn.numbers["what"] != "released code"].reset_index(drop=True)
    pd.testing.assert_frame_equal(
        ours[before.numbers.columns], before.numbers[same], check_dtype=False
    )


def test_the_released_code_alone_is_no_comparison_of_parts(store: Writer) -> None:
    cell = settings("gta5-cityscapes", 100, 0, training__method="semidavil_released")
    store.run("components", cell, {"miou": 5.0})
    with pytest.raises(AnalysisError, match="no combination of parts"):
        components.draw(load_runs(store.uri))


def test_a_rivals_own_settings_set_no_other_methods_runs_apart(store: Writer) -> None:
    def run(method: str, seed: int, miou: float, **changes: str) -> None:
        cell = settings("gta5-cityscapes", 100, seed, training__method=method)
        store.run("methods", {**cell, **changes}, {"miou": miou})

    presets = {"rivals.unimatch_v2_lr": "0.006"}
    for seed in (0, 1):
        run("semidavil", seed, 40.0 + seed)  # from before the setting was there
        run("unimatch_v2", seed, 30.0 + seed, **presets)
        run("unimatch", seed, 20.0 + seed, **presets)
    run("unimatch_v2", 0, 99.0, **{"rivals.unimatch_v2_lr": "0.5"})
    table = shown(TABLES["methods"](load_runs(store.uri)), Shown())
    (block,) = table.blocks
    rows = {name: entries[1].words for name, entries in block.rows}
    assert rows["SemiDAViL"] == "40.5 ± 0.7"
    assert rows["UniMatch V2"] == "30.5 ± 0.7"
    assert rows["UniMatch"] == "20.5 ± 0.7"
    assert "Runs left out: 1 with rivals.unimatch_v2_lr=0.5." in table.caption
    assert "UniMatch V2 learning rate 0.006, of it for the encoder 0.025" in table.caption
