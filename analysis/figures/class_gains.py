"""How rare each class is, and what DyCE gains on it over cross-entropy (Figure 3 of the paper)."""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analysis import style
from analysis.cells import Cells, by_seed, select
from analysis.drawn import Drawn
from analysis.paper import CLASS_GAINS, CLASS_GAINS_SOURCE
from analysis.runs import AnalysisError, Tracked, command
from analysis.stats import ALPHA, holm, paired, rank_correlation
from semidavil.benchmarks import BENCHMARKS

PALE = "#9ec5e3"  # a difference that may be chance
GRID, WANTED = "losses", 500  # label budget of the paper's figure


def draw(tracked: Tracked) -> Drawn:
    """Pixel shares above, gains of class IoU below, classes sorted by frequency.

    Raises:
        AnalysisError: no budget at which both losses were run and evaluated per image.
    """
    chosen = select(tracked, GRID, "loss").only(("ce", "dyce")).at_one_budget(WANTED)
    parts, notes = [], []
    for benchmark in chosen.benchmarks:
        here = chosen.of(benchmark)
        part = gains(tracked, here, benchmark) if here["variant"].nunique() == 2 else None
        if part is None:
            continue
        budget = int(here["budget"].iloc[0])
        rho, low, high = rank_correlation(list(-part["share"]), list(part["gain"]))
        parts.append(part.assign(budget=budget, rho=rho, rho_low=low, rho_high=high))
        instead = "" if budget == WANTED else f" ({WANTED} is not run)"
        notes.append(
            f"{style.benchmark_name(benchmark)}: {budget} labels{instead}, {int(part['n'].max())} "
            f"seeds, Spearman's rho of rarity and gain {rho:.2f} [{low:.2f}, {high:.2f}]."
        )
    if not parts:
        raise AnalysisError(
            "no budget has finished runs of both ce and dyce with an evaluation; make them: "
            + command(GRID)
        )
    numbers = pd.concat(parts, ignore_index=True)
    names = list(numbers["benchmark"].unique())
    figure, axes = plt.subplots(
        2, len(names), squeeze=False, sharex="col", figsize=(style.PAGE, 3.6),
        gridspec_kw={"height_ratios": [1, 1.4], "hspace": 0.12, "wspace": 0.22,
                     "width_ratios": [int((numbers["benchmark"] == n).sum()) for n in names]},
    )  # fmt: skip
    for column, name in enumerate(names):
        here = numbers[numbers["benchmark"] == name]
        _panel(axes[0, column], axes[1, column], here, chosen)
    axes[0, 0].set_ylabel("share of pixels (%)")
    axes[1, 0].set_ylabel("IoU, DyCE minus CE (points)")
    handles, labels = axes[1, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", ncols=3, bbox_to_anchor=(0.5, -0.16))
    return Drawn(
        figure=figure,
        title="Class frequency and what DyCE gains over cross-entropy",
        caption="Share of the validation pixels (log scale) and gain in class IoU of DyCE over CE on "
        "the same seeds, classes from frequent to rare. Bars: mean; whiskers: 95% t interval of the "
        f"paired difference; dark: paired t-test p < {ALPHA} after Holm's correction over the "
        "benchmark's classes. Hollow markers: published in words (a line is a range). Interval of "
        "rho: 95% bootstrap over classes. " + " ".join(notes) + " " + chosen.note(),
        alt="Two rows of bars per benchmark: pixel share by class, and DyCE's gain by class. "
        + " ".join(notes),
        numbers=numbers,
        run_ids=chosen.run_ids,
        grid=GRID,
    )


def gains(tracked: Tracked, runs: pd.DataFrame, benchmark: str) -> pd.DataFrame | None:
    """One row per class that occurs, frequent first; None without an evaluation."""
    found = (tracked.evaluation(run_id) for run_id in runs["run_id"])
    evaluation = next((one for one in found if one is not None), None)
    if evaluation is None:
        return None
    pixels = evaluation.confusion.sum(1)
    rows: list[dict[str, Any]] = []
    for name, count in zip(BENCHMARKS[benchmark].classes, pixels, strict=True):
        metric = f"iou/{name}"
        if count == 0 or metric not in runs:
            continue
        ours, theirs = (by_seed(runs[runs["loss"] == loss], metric) for loss in ("dyce", "ce"))
        test = paired(ours, theirs)
        low, high = CLASS_GAINS.get(benchmark, {}).get(name, (np.nan, np.nan))
        rows.append(
            {"benchmark": benchmark, "class": name, "share": 100 * count / pixels.sum(),
             "gain": test.difference, "low": test.low, "high": test.high, "p": test.p, "n": test.n,
             "published_low": low, "published_high": high,
             "source": CLASS_GAINS_SOURCE if low == low else ""}
        )  # fmt: skip
    table = pd.DataFrame(rows).dropna(subset=["gain"])
    table["p_holm"] = holm([float(p) for p in table["p"]])
    return table.sort_values("share", ascending=False, ignore_index=True)


def _panel(above: Axes, below: Axes, here: pd.DataFrame, chosen: Cells) -> None:
    places = np.arange(len(here))
    above.bar(places, here["share"], color=style.GREY, width=0.7)
    above.set_yscale("log")
    above.set_title(chosen.heading(str(here["benchmark"].iloc[0])), loc="left")
    sure = here["p_holm"] < ALPHA
    colours = [style.BLUE if one else PALE for one in sure]
    below.bar(places, here["gain"], color=colours, width=0.7)
    whiskers = np.abs(here[["low", "high"]].to_numpy().T - here["gain"].to_numpy())
    below.errorbar(
        places, here["gain"], yerr=whiskers, fmt="none", ecolor="black", elinewidth=0.7, capsize=1.5
    )
    known = here["published_low"].notna()
    middle = (here["published_low"] + here["published_high"]) / 2
    below.errorbar(
        places[known], middle[known], yerr=(here["published_high"] - middle)[known], fmt="D",
        markerfacecolor="white", markersize=4, color=style.VERMILION, label="published (in words)",
    )  # fmt: skip
    below.bar([0], [0], color=style.BLUE, label=f"measured, p < {ALPHA}")
    below.bar([0], [0], color=PALE, label=f"measured, p ≥ {ALPHA} or one seed")
    below.axhline(0, color="black", linewidth=0.7)
    below.set_xticks(places, here["class"], rotation=90)
    for axes in (above, below):
        axes.grid(False, axis="x")
        axes.set_xlim(-0.6, len(here) - 0.4)
