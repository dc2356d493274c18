"""Figures, tables and report from a tracking store with runs whose numbers are known."""

import itertools
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_up_runs import Writer, gallery_of, settings
from PIL import Image
from scipy import stats as reference

from analysis import paper, style
from analysis.cells import select
from analysis.comparisons import COMPARISONS
from analysis.figures import FIGURES, components, cost, qualitative, sensitivity
from analysis.figures.synapse import organ_table, relative_to
from analysis.make_figures import make_all
from analysis.output import write
from analysis.reproduce import commands
from analysis.runs import OVERVIEW, AnalysisError, Tracked, load_runs
from analysis.tables import TABLES
from analysis.tables.entries import Shown, shown
from sweeps.plan.grids import PARTS, RELEASED, SENSITIVITY

ROOT = Path(__file__).resolve().parents[2]


def test_the_numbers_drawn(attention: Tracked) -> None:
    drawn = FIGURES["attention"](attention)
    published, measured, gaps = drawn.figure.axes
    lines = {c.get_label(): c for c in measured.containers}
    dlg, wpct = lines["DLG (SemiDAViL)"], lines["WPCT (LSeg)"]
    assert dlg.lines[0].get_ydata().tolist() == [22.0, 33.0]
    assert wpct.lines[0].get_ydata().tolist() == [19.0, 33.0]
    (bars,) = dlg.lines[2]
    heights = [np.ptp(segment[:, 1]) / 2 for segment in bars.get_segments()]
    assert heights == pytest.approx([np.std([20, 24], ddof=1), np.std([31, 35], ddof=1)])
    assert [t.get_text() for t in gaps.get_xticklabels()] == ["0", "100", "all"]
    (wpct,) = (
        gaps.containers
    )  # minus DLG at budget 0 (seeds 0 and 1), at 100 (seed 0), and over both
    assert wpct.lines[0].get_ydata().tolist() == [-3.0, -3.0, 2.0]
    assert measured.get_title(loc="left") == "toy, 1 to 2 seeds"
    points = {tuple(line.get_ydata()) for line in published.lines}
    assert (67.7, 71.1) in points  # supplement, Table 1
    assert (round(67.7 - 2.6, 1),) in points  # Figure 1 in words
    assert all(line.get_markerfacecolor() == "white" for line in published.lines)
    table = drawn.numbers.set_index(["variant", "budget"])
    assert table.loc[("dlg", 100), "published"] == 71.1
    assert table.loc[("wpct", 100), "n"] == 1
    assert table.loc[("wpct", 2975), "kind"] == "bound"
    assert table.loc[("dlg", 0), "kind"] == "exact"
    sizes = {
        line.get_ydata()[0]: line.get_markersize() for line in published.lines if line.get_label()
    }
    assert sizes[67.7] > sizes[65.1]  # stated, and read off a difference
    assert "vlga, cross_attention at 0, 100" in drawn.missing
    assert "\n" not in drawn.missing


def test_markers_and_colours_are_distinct(tracked: Tracked) -> None:
    for name in ("attention", "losses"):
        panel = FIGURES[name](tracked).figure.axes[1]
        lines = [container.lines[0] for container in panel.containers]
        assert len({line.get_color() for line in lines}) == len(lines)
        assert len({line.get_marker() for line in lines}) == len(lines)


def test_budget_0_of_the_baselines_is_no_cell() -> None:
    baselines = COMPARISONS["baselines"]
    assert baselines.expected("gta5-cityscapes", "target_only")[0] == 100
    assert baselines.expected("gta5-cityscapes", "source_only") == [0]
    assert baselines.expected("cityscapes-cityscapes", "source_only") == []
    assert 0 not in COMPARISONS["attention"].expected("cityscapes-cityscapes", "dlg")


def test_published_numbers_are_the_papers() -> None:
    points = {(p.benchmark, p.variant, p.budget): p for p in paper.attention()}
    assert points["gta5-cityscapes", "dlg", 2975].miou == 75.2
    assert points["synthia-cityscapes", "wpct", 0].miou == 65.8
    assert points["gta5-cityscapes", "vlga", 2975].kind == "bound"
    assert ("gta5-cityscapes", "cross_attention", 0) not in points  # never published
    assert (len(paper.losses()), len(paper.semivl())) == (72, 24)
    for table in (paper.LOSS_TABLE, paper.SEMIVL_TABLE):
        assert len({len(row) for rows in table.values() for row in rows.values()}) == 1


def test_a_table_shows_measured_over_published(attention: Tracked) -> None:
    table = shown(TABLES["attention"](attention), Shown())
    (block,) = table.blocks
    rows = dict(block.rows)
    dlg = rows["DLG (SemiDAViL)"][0]
    assert (dlg.text, dlg.tail, dlg.under) == ("22.0", "± 2.8", "67.7")
    assert rows["WPCT (LSeg)"][1].words == "33.0 (1)"
    assert rows["VLGA (SemiVL)"][5].under == "≥ 72.6"
    numbers = table.numbers.set_index(["variant", "budget"])
    assert numbers.loc[("dlg", 0), "minus_published"] == pytest.approx(22 - 67.7)
    assert np.isnan(numbers.loc[("vlga", 2975), "minus_published"]), "of a bound"
    assert numbers.loc[("vlga", 0), "without_result"] == "1 failed"
    assert "Without a result: VLGA (SemiVL): 1 failed." in table.caption


def test_bold_is_earned_by_a_test(store: Writer) -> None:
    rng = np.random.default_rng(0)
    for seed in range(5):
        for name, level in (("semidavil", 50.0), ("semivl", 40.0)):
            cell = settings("gta5-cityscapes", 100, seed, training__method=name)
            store.run("semivl", cell, {"miou": level + rng.normal(0, 0.3)})
            cell = settings("gta5-cityscapes", 200, seed, training__method=name)
            store.run("semivl", cell, {"miou": 45 + rng.normal(0, 3)})
    (block,) = TABLES["semivl"](load_runs(store.uri)).blocks
    rows = dict(block.rows)
    assert [e.mark for e in rows["SemiDAViL"][:2]] == [True, False]
    assert [e.mark for e in rows["SemiVL"][:2]] == [False, False]


def test_class_gains_are_sorted_and_paired(tracked: Tracked) -> None:
    drawn = FIGURES["class_gains"](tracked)
    numbers = drawn.numbers
    assert set(numbers["budget"]) == {500}
    gta5 = numbers[numbers["benchmark"] == "gta5-cityscapes"]
    assert gta5["share"].is_monotonic_decreasing
    assert gta5["share"].sum() == pytest.approx(100)
    runs = select(tracked, "losses", "loss").runs
    here = runs[(runs["benchmark"] == "gta5-cityscapes") & (runs["budget"] == 500)]
    means = here.groupby("loss")["iou/car"].mean()
    car = gta5.set_index("class").loc["car", "gain"]
    assert car == pytest.approx(means["dyce"] - means["ce"])
    above, published, below = drawn.figure.axes[:3]
    assert above.get_yscale() == "log"
    heights = {round(bar.get_x() + 0.35): bar.get_height() for bar in below.patches}
    assert [heights[i] for i in range(len(gta5))] == pytest.approx(list(gta5["gain"]))
    assert {tuple(m.lines[0].get_ydata()) for m in published.containers} == {
        tuple(gta5.dropna(subset="published_low")[["published_low", "published_high"]].mean(axis=1))
    }
    assert "Spearman" in drawn.caption


def test_effects_of_the_components(tracked: Tracked) -> None:
    parts = [setting for setting, _ in PARTS.values()]
    runs = components.with_parts(select(tracked, "components", ["method", *parts]).runs)
    runs = runs[runs["method"] != RELEASED]
    on, off = (runs[runs["VL"] == state]["miou"].mean() for state in (True, False))
    drawn = FIGURES["components"](tracked)
    found = drawn.numbers.set_index("what").loc["effect of VL"]
    assert found["mean"] == pytest.approx(on - off)  # every combination has all seeds
    assert found["n"] == 3
    assert {f"effect of {a} x {b}" for a, b in itertools.combinations(PARTS, 2)} <= set(
        drawn.numbers["what"]
    )
    assert len(drawn.figure.axes) == 3
    assert "p = 0.001 or less" in drawn.caption  # and not 0.000


def test_sensitivity_changes_one_setting_at_a_time(tracked: Tracked) -> None:
    rows = pd.DataFrame(sensitivity.curves(select(tracked, "sensitivity", list(SENSITIVITY)).runs))
    omega = rows[rows["setting"] == "loss.omega"]
    assert omega["value"].tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert omega[omega["default"]]["value"].tolist() == [0.5]
    assert rows[rows["default"]].groupby("setting").size().eq(1).all()
    omega = omega.set_index("value")
    assert np.isnan(omega.loc[0.5, "minus_default"])
    gap = omega.loc[1.0, "mean"] - omega.loc[0.5, "mean"]
    assert omega.loc[1.0, "minus_default"] == pytest.approx(gap)


def test_the_ring_is_the_presets_value_and_not_the_most_frequent(store: Writer) -> None:
    """Of a sweep that has only begun, it was the smallest value."""
    for seed, value in itertools.product((0, 1), ("0.1", "0.5")):
        params = settings("gta5-cityscapes", 100, seed) | {"loss.hard_fraction": value}
        store.run("sensitivity", params, {"miou": 30.0 + seed}, tags={"semidavil.preset": "toy"})
    rows = FIGURES["sensitivity"](load_runs(store.uri)).numbers
    assert rows[rows["default"]]["value"].tolist() == [0.5]


def test_images_are_chosen_by_rule() -> None:
    truth = [np.full((4, 10), 0, np.uint8) for _ in range(5)]
    truth[3][0, :3] = 18  # the rarest class, bicycle
    truth[1][0, :1] = 18
    truth[0][0, :] = 255

    def painted(*wrong: int) -> list[np.ndarray]:
        labels = [t % 255 for t in truth]
        for one, rows in zip(labels, wrong, strict=True):
            one[4 - rows :] = 1
        return labels

    gallery = qualitative.Gallery(
        list("abcde"), [], truth, truth,
        {"supervised": painted(0, 1, 1, 1, 1), "source_only": painted(3, 3, 3, 3, 3),
         "semidavil": painted(0, 0, 3, 1, 2)}, {},
    )  # fmt: skip
    scores = qualitative.scores(gallery, "gta5-cityscapes")
    assert scores["supervised"].tolist() == pytest.approx([100, 87.18, 75, 86.49, 75], abs=0.01)
    assert qualitative.rival(scores) == "supervised"
    chosen = qualitative.choose(gallery, scores, "gta5-cityscapes")
    assert [(gallery.names[pick.index], pick.reason) for pick in chosen] == [
        ("b", "best margin"), ("a", "median margin"), ("c", "worst margin"), ("d", "rare: bicycle"),
    ]  # fmt: skip


def test_qualitative_shows_each_method_on_the_same_images(tracked: Tracked) -> None:
    drawn = FIGURES["qualitative"](tracked)
    numbers = drawn.numbers
    assert set(numbers["method"]) == set(qualitative.SHOWN)
    per_image = numbers.groupby(["benchmark", "image"])["method"].nunique()
    assert (per_image == len(qualitative.SHOWN)).all()
    assert (per_image.groupby("benchmark").size() >= 3).all()
    first = tracked.table.set_index("run_id").loc[list(drawn.run_ids)]
    assert set(first["seed"]) == {0}
    stored = gallery_of(0.06, 0)
    image = int(numbers["image"].iloc[0].removeprefix("image"))
    wrong = stored[f"labels/{image}"] != stored[f"truth/{image}"]
    wrong &= stored[f"truth/{image}"] < 19
    panel = drawn.figure.subfigs[0].axes[len(qualitative.SHOWN) + 2 :][len(qualitative.SHOWN) + 1]
    errors = np.asarray(panel.images[0].get_array())
    np.testing.assert_array_equal((errors == qualitative.ERROR).all(-1), wrong)


def test_qualitative_compares_methods_at_one_number_of_labels(store: Writer) -> None:
    def add(method: str, budget: int, seed: int) -> str:
        cell = settings("gta5-cityscapes", budget, seed, training__method=method)
        return store.run("methods", cell, {"miou": 1.0}, gallery=gallery_of(0.0, seed))

    add("semidavil", 0, 0)
    wanted = {add("source_only", 0, 0), add("supervised", 100, 1), add("semidavil", 100, 0)}
    add("semidavil", 100, 1)
    add("supervised", 500, 0)
    assert set(FIGURES["qualitative"](load_runs(store.uri)).run_ids) == wanted


def test_ranks_are_compared_over_benchmarks_and_seeds_and_not_over_nested_budgets(
    store: Writer, tracked: Tracked
) -> None:
    drawn = FIGURES["ranks"](tracked)
    assert set(drawn.numbers["blocks"]) == {
        6
    }  # two benchmarks with three seeds, whatever the budgets
    assert drawn.numbers.groupby("comparison")["rank"].sum().to_dict() == {
        "Attention mechanisms (toy)": 10, "Losses for imbalanced classes (toy)": 21, "Methods (toy)": 28,
    }  # fmt: skip
    for seed, fusion in itertools.product(range(3), ("dlg", "vlga", "wpct")):
        cell = settings("gta5-cityscapes", 100, seed, model__fusion=fusion)
        store.run("attention", cell, {"miou": 30.0})
    with pytest.raises(AnalysisError, match="more --seeds"):
        FIGURES["ranks"](load_runs(store.uri))


def test_profiles_are_drawn_where_there_are_conditions_enough(
    store: Writer, tracked: Tracked
) -> None:
    drawn = FIGURES["profiles"](tracked)
    (ax,) = drawn.figure.axes  # losses and methods have four and two conditions
    assert ax.get_title(loc="left").startswith("Attention mechanisms (toy)\n8 conditions, 3 seeds")
    numbers = drawn.numbers.set_index("variant")
    assert len(ax.lines) == numbers.index.nunique() == 4
    lines = {line.get_label(): line for line in ax.lines}
    assert numbers.loc["dlg", "share"].tolist() == list(lines["DLG (SemiDAViL)"].get_ydata())
    assert (numbers["low"] <= numbers["share"]).all()
    assert (numbers["share"] <= numbers["high"]).all()
    first = numbers[numbers["points"] == 0]["share"]
    assert first.sum() == pytest.approx(100)  # no ties: one is best under each condition and seed
    assert f"{first['dlg']:.0f}%" in drawn.alt
    store.run("attention", settings("gta5-cityscapes", 100, 0), {"miou": 30.0})
    with pytest.raises(AnalysisError, match="more --benchmark, --budgets or --seeds"):
        FIGURES["profiles"](load_runs(store.uri))


def test_pareto_front() -> None:
    runs = pd.DataFrame(
        {
            "variant": ["a", "b", "c"],
            "miou": [50.0, 60.0, 55.0],
            "minutes": [1.0, 2.0, 3.0],
            "env/device": "x",
        }
    )
    table = cost.costs_of(runs, "minutes").set_index("variant")
    assert table["pareto"].to_dict() == {"a": True, "b": True, "c": False}


def test_encoders_stand_by_what_they_cost(tracked: Tracked) -> None:
    drawn = FIGURES["encoders"](tracked)
    numbers = drawn.numbers.set_index(["of", "variant"])
    assert numbers.loc[("millions", "test_vit (random)+dlg"), "cost"] == pytest.approx(1.2)
    assert numbers.loc[("millions", "test_vit (random)+dlg"), "mean"] == pytest.approx(34.0)
    # By parameters each gain costs something; by time the last is best in both.
    front = drawn.numbers[drawn.numbers["pareto"]].groupby("of")["variant"].apply(set)
    assert front["millions"] == {"toy+dlg", "toy (random)+dlg", "test_vit (random)+dlg"}
    assert front["latency_ms"] == {"test_vit (random)+dlg"}
    assert "2 of 3" in drawn.caption
    by_time, by_size = drawn.figure.axes
    assert {text.get_text() for text in by_size.texts} == {
        "toy",
        "toy (random)",
        "test_vit (random)",
    }
    with_dlg, without = by_time.containers
    assert sorted(with_dlg.lines[0].get_ydata()) == pytest.approx([32.0, 33.0, 34.0])
    assert sorted(without.lines[0].get_ydata()) == pytest.approx([31.0, 32.0, 33.0])


def test_synapse_is_in_points_and_relative_only_where_that_says_something(tracked: Tracked) -> None:
    drawn = FIGURES["synapse"](tracked)
    numbers = drawn.numbers
    assert "LK left kidney" in drawn.caption
    published, ce, dice, _, voxels = drawn.figure.axes
    assert [axes.get_ylabel().rpartition("(")[2] for axes in drawn.figure.axes] == [
        "%)", "%)", "points)", "mm)", "voxels)",
    ]  # fmt: skip
    # The paper's Figure 2 in words, over the Dice that others publish on these scans.
    places = {
        text.get_position()[0]: text.get_text() for text in published.texts if text.get_text()
    }
    assert places == {3: "> 50%", 4: "> 50%", 5: "small", 6: "small", 11: "> 50%", 12: "> 50%"}
    uamt, urpc = published.containers
    assert [round(bar.get_height(), 1) for bar in uamt][:3] == [48.2, 31.7, 22.2]
    assert {bar.get_facecolor() for bar in [*uamt, *urpc]} == {(1, 1, 1, 1)}  # hollow
    assert [bar.get_height() for bar in ce.containers[0]] == pytest.approx(
        list(numbers[numbers["method"] == "uamt"]["dice_ce"])
    )
    assert len(dice.texts) == 2 * 13
    assert re.fullmatch(r"[+-]\d+%", dice.texts[0].get_text())
    assert [label.get_text() for label in voxels.get_xticklabels()][:4] == ["Sp", "RK", "LK", "Ga"]
    assert (relative_to(0, 12), relative_to(5, 1), relative_to(10, 1)) == (
        "from 0",
        "from 5",
        "+10%",
    )
    assert "split seeded" in drawn.caption
    assert "25.68 ± 5.1" in drawn.caption
    row = numbers[(numbers["method"] == "uamt") & (numbers["organ"] == "liver")].iloc[0]
    runs = select(tracked, "synapse", ("method", "loss"), "dice").runs
    by = runs[runs["method"] == "uamt"].set_index(["seed", "loss"])["dice/liver"].unstack()
    gain = by["dyce"].mean() - by["ce"].mean()
    assert row["dice_change"] == pytest.approx(gain)
    low, high = reference.ttest_rel(by["dyce"], by["ce"]).confidence_interval()
    assert (row["dice_change_low"], row["dice_change_high"]) == pytest.approx((low, high))
    assert row["dice_relative"] == pytest.approx(100 * gain / by["ce"].mean())
    assert row["asd_change"] == pytest.approx(-1.0)
    assert row["asd_voxels_change"] == pytest.approx(-0.6)
    assert row["dhc_dice_ce"] == 81.2
    unknown = runs.assign(**{"dice/liver": runs["dice/liver"].where(runs["loss"] == "dyce", 2.0)})
    row = organ_table(tracked, unknown).query("method == 'uamt' and organ == 'liver'").iloc[0]
    assert row["dice_change"] == pytest.approx(by["dyce"].mean() - 2)
    assert np.isnan(row["dice_relative"]), "a ratio to next to nothing"


def test_pseudo_labels_are_told_class_by_class(tracked: Tracked) -> None:
    drawn = FIGURES["pseudo_label_classes"](tracked)
    here = drawn.numbers.query("benchmark == 'gta5-cityscapes'").set_index(
        ["what", "class", "step"]
    )
    assert here.loc[("accuracy", "train", 150), "mean"] == pytest.approx(41.0)  # of 40, 41, 42
    assert here.loc[("accuracy", "train", 150), "n"] == 3
    assert here.loc[("coverage", "road", 15), "mean"] == pytest.approx(90 * (1 - np.exp(-15 / 40)))
    assert "train, 41%" in drawn.alt
    heat_maps = [ax.images[0].get_array() for ax in drawn.figure.axes if ax.images]
    shown = {round(float(value), 4) for part in heat_maps for value in np.ma.compressed(part)}
    assert {round(float(v), 4) for v in drawn.numbers["mean"]} == {
        v for v in shown if np.isfinite(v)
    }


@pytest.mark.slow
def test_a_user_s_own_grid_has_a_figure_by_the_names_that_it_gives(
    store: Writer, tmp_path: Path
) -> None:
    """Its file is not read: it may be gone. What was run with other settings is left out by name.

    What is not done yet is known from the plan of the sweep that made its runs, and not of another.
    """
    variants = {"soft": ("soft", "none"), "base": ("ce", "none"), "soft + DLG": ("soft", "dlg")}
    for name in ("base", "soft", "soft + DLG"):
        loss, fusion = variants[name]
        for seed in range(3):
            cell = settings("gta5-cityscapes", 100, seed, loss__name=loss, model__fusion=fusion)
            full = f"gta5-cityscapes/{name}/100/s{seed}"
            store.run("ladder", cell, {"miou": 20.0 + len(name) + seed}, name=full, key=full)
    longer = settings("gta5-cityscapes", 100, 0, loss__name="soft", model__fusion="none")
    longer["training.steps"] = 7
    store.run("ladder", longer, {"miou": 99.0}, name="gta5-cityscapes/soft/100/s0")
    done, waiting = "soft + DLG/100/s2", ("soft/half/100/s0", "soft/half/100/s1", "base/500/s0")
    for cells in ((done, *waiting), ("longer/100/s0",)):
        experiment, tags = store.experiments["ladder"], {OVERVIEW: "ladder"}
        overview = store.client.create_run(experiment, tags=tags).info.run_id
        lines = [f"gta5-cityscapes/{cell},gta5-cityscapes/{cell},to do" for cell in cells]
        store.client.log_text(overview, "\n".join(["cell,key,state", *lines]), "plan.csv")
    made = make_all(load_runs(store.uri), (), tmp_path, ("png",))
    drawn = made.figures["ladder"]
    assert list(drawn.numbers["variant"]) == ["soft + DLG", "base", "soft"]
    assert drawn.numbers["minus_baseline"].iloc[0] == pytest.approx(6)  # to what began first
    assert "1 with training.steps=7" in drawn.caption
    assert drawn.missing == "not run yet: 3 runs (gta5-cityscapes: soft/half at 100; base at 500)"
    assert (tmp_path / "ladder.png").exists()
    shown = load_runs(store.uri).of_grid("ladder")
    (command,) = commands(shown[shown["run_id"].isin(drawn.run_ids)], "ladder")
    assert "--grid FILE:ladder" in command
    assert "--only 'variant=soft + DLG,soft,base'" in command
    assert "loss.name" not in command  # the grid's file has it


def test_everything_is_made_whole(
    tracked: Tracked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fine, coarse = style.STYLE.read_text(), tmp_path / "coarse.mplstyle"
    coarse.write_text(fine.replace("savefig.dpi: 300", "savefig.dpi: 60"))  # drawn in half the time
    assert coarse.read_text() != fine
    monkeypatch.setattr(style, "STYLE", coarse)
    made = make_all(tracked, (), tmp_path, ("png",))
    assert set(made.left_out) == {"baselines", "ssl"}, made.left_out
    for name, drawn in made.figures.items():
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert picture.width == int(60 * drawn.figure.get_figwidth())
            shades = picture.convert("L").histogram()
        assert sum(shades[:128]) > 500, f"{name}: hardly any pixel is dark"
        assert (tmp_path / f"{name}.csv").stat().st_size > 0
    for name in made.tables:
        for end in ("png", "csv", "md", "tex"):
            assert (tmp_path / f"{name}_table.{end}").stat().st_size > 0
    assert not made.broken
    assert not list(tmp_path.glob(".*"))


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, {"a.csv": b"old"})
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write(tmp_path, {"a.csv": b"new"})
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("a.csv", b"old")]
