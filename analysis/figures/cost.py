"""Accuracy against cost, with the Pareto front: the methods that no other one beats in both."""

import matplotlib.pyplot as plt
import pandas as pd

from analysis import style
from analysis.cells import select
from analysis.drawn import Drawn
from analysis.runs import AnalysisError, Tracked
from analysis.stats import over_seeds, pareto_front

GRID, WANTED = "methods", 100  # label budget
COSTS = {"minutes": "training time (min)", "peak_memory_gb": "peak memory (GB)"}


def draw(tracked: Tracked) -> Drawn:
    """mIoU against training time and, where it is logged, peak memory.

    Raises:
        AnalysisError: no run has a cost.
    """
    chosen = select(tracked, GRID, "method").at_one_budget(WANTED)
    device = str(chosen.runs["env/device"].mode().iloc[0])  # times of two devices do not compare
    runs = chosen.runs[chosen.runs["env/device"] == device].copy()
    runs["minutes"] = runs["seconds"] / 60 if "seconds" in runs else float("nan")
    runs["peak_memory_gb"] = runs["peak_memory_mb"] / 1024
    costs = [cost for cost in COSTS if runs[cost].notna().any()]
    if not costs:
        raise AnalysisError("no run has a training time")
    benchmarks = [b for b in chosen.benchmarks if b in set(runs["benchmark"])]
    figure, axes = plt.subplots(
        len(costs), len(benchmarks), squeeze=False, sharey="col",
        figsize=(style.COLUMN if len(benchmarks) == 1 else style.PAGE, 0.6 + 1.9 * len(costs)),
        gridspec_kw={"hspace": 0.4, "wspace": 0.2},
    )  # fmt: skip
    parts = []
    for column, benchmark in enumerate(benchmarks):
        here = runs[runs["benchmark"] == benchmark]
        for row, cost in enumerate(costs):
            table = costs_of(here, cost)
            ax = axes[row, column]
            front = table[table["pareto"]].sort_values("cost")
            ax.step(
                front["cost"], front["mean"], where="post", color="#b0b0b0", linewidth=1, zorder=1
            )
            for variant, look in style.looks(list(table["variant"])).items():
                one = table[table["variant"] == variant].iloc[0]
                ax.errorbar(
                    one["cost"], one["mean"], xerr=one["cost_std"], yerr=one["std"],
                    color=look.colour, marker=look.marker, label=look.label, elinewidth=0.7,
                    linestyle="none",
                )  # fmt: skip
            ax.set_xlabel(COSTS[cost])
            ax.margins(0.12)
            if column == 0:
                ax.set_ylabel("mIoU (%)")
            if row == 0:
                ax.set_title(chosen.heading(benchmark), loc="left")
            parts.append(table.assign(benchmark=benchmark, of=cost))
    entries = {
        label: handle
        for panel in axes.flat
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        list(entries.values()), list(entries), loc="upper center",
        ncols=4 if len(benchmarks) > 1 else 2, bbox_to_anchor=(0.5, -0.05 / figure.get_figheight()),
    )  # fmt: skip
    numbers = pd.concat(parts, ignore_index=True)
    front = numbers[numbers["pareto"] & (numbers["of"] == costs[0])]
    told = "; ".join(
        f"{style.benchmark_name(str(b))}: {', '.join(style.label(v) for v in g['variant'])}"
        for b, g in front.groupby("benchmark", sort=False)
    )
    return Drawn(
        figure=figure,
        title="Accuracy against cost",
        caption="mIoU against the cost of training, mean and standard deviation over seeds; grey: the "
        f"Pareto front of the means. All runs on: {device or 'unknown device'}. On the front by "
        f"{COSTS[costs[0]]}: {told}. {chosen.note()}",
        alt=f"Scatter plot of mIoU against training cost. On the Pareto front: {told}.",
        numbers=numbers,
        run_ids=tuple(sorted(runs["run_id"])),
        grid=GRID,
        missing=_missing(chosen.runs, runs, device),
    )


def _missing(all_runs: pd.DataFrame, runs: pd.DataFrame, device: str) -> str:
    """Methods that have runs, and none on the device of most."""
    lacking = [name for name in all_runs["variant"].unique() if name not in set(runs["variant"])]
    names = ", ".join(map(style.label, lacking))
    return (
        f"not run on {device or 'an unknown device'}, as the others are: {names}" if names else ""
    )


def costs_of(runs: pd.DataFrame, cost: str) -> pd.DataFrame:
    """Rows `variant`, `mean`, `std`, `n`, `cost`, `cost_std`, `pareto`, for methods with a cost."""
    known = runs[runs[cost].notna()]
    table = over_seeds(known, ["method"]).rename(columns={"method": "variant"})
    spent = over_seeds(known, ["method"], cost)
    table["cost"], table["cost_std"] = spent["mean"], spent["std"]
    table["pareto"] = pareto_front(table["mean"], table["cost"])
    return table
