"""Accuracy against what an encoder costs, milliseconds for an image and parameters, with the Pareto front."""

from typing import Any

import matplotlib.pyplot as plt
import pandas as pd

from analysis import style
from analysis.cells import Cells, select
from analysis.drawn import Drawn
from analysis.figures.cost import costs_of
from analysis.runs import AnalysisError, Tracked
from sweeps.plan.encoders import SETTINGS, encoder_name
from sweeps.plan.grids import GRIDS

GRID, WANTED = "encoders", 100  # label budget
COSTS = {"latency_ms": "ms for one image", "millions": "million parameters"}
FUSIONS = {"dlg": ("with DLG", style.BLUE, "o"), "none": ("without language", style.GREY, "X")}


def draw(tracked: Tracked) -> Drawn:
    """mIoU of each encoder with and without DLG; an arrow leads from one to the other.

    Raises:
        AnalysisError: no run of the grid, or none with a cost.
    """
    chosen = select(tracked, GRID, list(GRIDS[GRID].baseline)).at_one_budget(WANTED)
    device = str(chosen.runs["env/device"].mode().iloc[0])  # times of two devices do not compare
    runs = chosen.runs[chosen.runs["env/device"] == device].copy()
    runs["encoder"] = [encoder_name(row) for row in _params(runs)]
    runs["method"] = runs["encoder"] + "+" + runs["fusion"]
    runs["latency_ms"] = runs["latency_ms"] if "latency_ms" in runs else float("nan")
    runs["millions"] = runs["parameters"] / 1e6 if "parameters" in runs else float("nan")
    costs = [cost for cost in COSTS if runs[cost].notna().any()]
    if not costs:
        raise AnalysisError("no run has a latency or a number of parameters")
    benchmarks = [b for b in chosen.benchmarks if b in set(runs["benchmark"])]
    figure, axes = plt.subplots(
        len(benchmarks), len(costs), squeeze=False, sharey="row", figsize=(style.PAGE, 2.7 * len(benchmarks)),
        gridspec_kw={"hspace": 0.45, "wspace": 0.1},
    )  # fmt: skip
    parts = []
    for row, benchmark in enumerate(benchmarks):
        for column, cost in enumerate(costs):
            here = runs[runs["benchmark"] == benchmark]
            table = costs_of(here, cost)
            table[["encoder", "fusion"]] = table["variant"].str.rsplit("+", n=1, expand=True).values
            _panel(axes[row, column], table)
            axes[row, column].set_xlabel(COSTS[cost])
            parts.append(table.assign(benchmark=benchmark, of=cost))
        axes[row, 0].set_ylabel("mIoU (%)")
        axes[row, 0].set_title(chosen.heading(benchmark), loc="left")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="upper center", ncols=2,
        bbox_to_anchor=(0.5, -0.05 / figure.get_figheight()),
    )  # fmt: skip
    numbers = pd.concat(parts, ignore_index=True)
    told = "; ".join(
        f"by {COSTS[str(cost)]}: {', '.join(dict.fromkeys(group['variant']))}"
        for cost, group in numbers[numbers["pareto"]].groupby("of", sort=False)
    )
    return Drawn(
        figure=figure,
        title="Encoders",
        caption="mIoU of each encoder, with DLG and without language, against what it costs to run: mean "
        "and standard deviation over seeds, at the same steps, batches and crops; grey line: the Pareto "
        f"front of the means. Parameters are those of the whole network. {_starts(runs)} All runs on: "
        f"{device or 'unknown device'}. On the front {told}. {chosen.note()}",
        alt=f"Scatter plots of mIoU against cost for {runs['encoder'].nunique()} encoders. On the Pareto "
        f"front {told}.",
        numbers=numbers,
        run_ids=tuple(sorted(runs["run_id"])),
        grid=GRID,
        missing=_missing(chosen, runs, device),
    )


def _params(runs: pd.DataFrame) -> list[dict[str, str]]:
    return [dict(zip(SETTINGS, map(str, row), strict=True)) for row in runs[list(SETTINGS)].values]


def _panel(ax: Any, table: pd.DataFrame) -> None:
    front = table[table["pareto"]].sort_values("cost")
    ax.step(front["cost"], front["mean"], where="post", color="#b0b0b0", linewidth=1, zorder=1)
    for fusion, (label, colour, marker) in FUSIONS.items():
        mine = table[table["fusion"] == fusion]
        ax.errorbar(
            mine["cost"], mine["mean"], xerr=mine["cost_std"], yerr=mine["std"], color=colour,
            marker=marker, label=label, elinewidth=0.7, linestyle="none",
        )  # fmt: skip
    middle = (table["cost"].min() + table["cost"].max()) / 2
    for number, (encoder, pair) in enumerate(
        table.sort_values("cost").groupby("encoder", sort=False)
    ):
        by_fusion = pair.set_index("fusion")
        named = by_fusion.loc["dlg" if "dlg" in by_fusion.index else by_fusion.index[0]]
        left = named["cost"] > middle  # towards the middle, in turn above and below the point
        ax.annotate(
            str(encoder), (named["cost"], named["mean"]), xytext=(-4 if left else 4, 4 if number % 2 else -9),
            textcoords="offset points", ha="right" if left else "left", fontsize=5.5,
        )  # fmt: skip
        if len(pair) == 2:
            ax.plot(pair["cost"], pair["mean"], color="#d0d0d0", linewidth=0.7, zorder=0)
    ax.margins(0.15)


def _starts(runs: pd.DataFrame) -> str:
    """Which encoders start at random: what they score says nothing of pre-training."""
    names = [name for name in dict.fromkeys(runs["encoder"]) if name.endswith("(random)")]
    return (
        f"Random: not pre-trained ({len(names)} of {runs['encoder'].nunique()})." if names else ""
    )


def _missing(chosen: Cells, runs: pd.DataFrame, device: str) -> str:
    lacking = len(set(chosen.runs["variant"])) - len(set(runs["variant"]))
    where = device or "an unknown device"
    return f"not run on {where}, as the others are: {lacking} of the variants" if lacking else ""
