"""Accuracy against cost, with the Pareto front: the variants that no other one beats in both."""

from collections.abc import Iterable, Mapping

import pandas as pd
from matplotlib.axes import Axes

from analysis import style
from analysis.cells import Cells, seeds_of, select
from analysis.drawn import Drawn
from analysis.panels import Frame, legend, panels, points
from analysis.runs import AnalysisError, Tracked
from analysis.stats import over_seeds, pareto_front
from analysis.style import Look

GRID, WANTED = "methods", 100  # label budget
COSTS = {"minutes": "training time (min)", "peak_memory_gib": "peak memory (GiB)"}


def draw(tracked: Tracked) -> Drawn:
    """mIoU against training time and, where it is logged, peak memory.

    Raises:
        AnalysisError: no run has a cost.
    """
    chosen = select(tracked, GRID, "method").at_one_budget(WANTED)
    runs = chosen.runs.reindex(columns=list(dict.fromkeys([*chosen.runs, "seconds"])))
    runs = runs.assign(minutes=runs["seconds"] / 60, peak_memory_gib=runs["peak_memory_mb"] / 1024)
    frame, numbers = against_cost(chosen, runs, COSTS)
    for ax, table in places(frame, numbers):
        looks = style.looks(list(table["variant"].unique()))
        draw_points(ax, table, [(look, table["variant"] == v) for v, look in looks.items()])
        ax.set_xlim(left=max(0.0, ax.get_xlim()[0]))
    legend(frame.figure)
    front = numbers[numbers["pareto"] & (numbers["of"] == numbers["of"].iloc[0])]
    told = "; ".join(
        f"{style.benchmark_name(str(b))}: {', '.join(map(style.label, g['variant']))}"
        for b, g in front.groupby("benchmark", sort=False)
    )
    return Drawn(
        figure=frame.figure,
        title="Accuracy against cost",
        caption="mIoU against the cost of training, mean and standard deviation over "
        f"{seeds_of(numbers['n'])}; times with whatever else the machine ran; grey: the Pareto front of the "
        f"means. {devices(numbers)} "
        f"On the front by {COSTS[str(numbers['of'].iloc[0])]}: {told}. {chosen.note()}",
        alt=f"Scatter plot of mIoU against training cost. On the Pareto front: {told}.",
        numbers=numbers,
        run_ids=chosen.run_ids,
        grid=GRID,
    )


def against_cost(
    chosen: Cells, runs: pd.DataFrame, costs: Mapping[str, str]
) -> tuple[Frame, pd.DataFrame]:
    """A panel for each benchmark and cost with its front, and the numbers to draw.

    Args:
        runs: those of `chosen` with a column for each cost.

    Returns:
        The frame, its panels named `BENCHMARK/COST`; rows of `costs_of` with `benchmark` and `of`, the cost.

    Raises:
        AnalysisError: no run has a cost.
    """
    known = [cost for cost in costs if runs[cost].notna().any()]
    if not known:
        raise AnalysisError("no run has a training time, latency or number of parameters")
    pairs = [(benchmark, cost) for benchmark in chosen.benchmarks for cost in known]
    frame, parts = panels([f"{b}/{cost}" for b, cost in pairs], 1, 2.1, share=False), []
    for (benchmark, cost), (_, (ax,)) in zip(pairs, frame, strict=True):
        table = costs_of(runs[runs["benchmark"] == benchmark], cost)
        parts.append(table.assign(benchmark=benchmark, of=cost))
        front = table[table["pareto"]].sort_values("cost")
        ax.step(front["cost"], front["mean"], where="post", color="#b0b0b0", linewidth=1, zorder=1)
        ax.set_xlabel(costs[cost])
        ax.margins(0.15)
        ax.set_ylabel("mIoU (%)")
        ax.set_title(chosen.heading(benchmark), loc="left")
    return frame, pd.concat(parts, ignore_index=True)


def places(frame: Frame, numbers: pd.DataFrame) -> list[tuple[Axes, pd.DataFrame]]:
    """Each panel with its numbers."""
    named = numbers["benchmark"] + "/" + numbers["of"]
    return [(ax, numbers[named == name]) for name, (ax,) in frame]


def draw_points(ax: Axes, table: pd.DataFrame, groups: Iterable[tuple[Look, pd.Series]]) -> None:
    """Points of each look; what is not compared is hollow."""
    for look, those in groups:
        for compared, mine in table[those].groupby("compared"):
            points(ax, mine["cost"], mine["mean"], look, xerr=mine["cost_std"], yerr=mine["std"], capsize=0,
                   elinewidth=0.7, label=look.label,
                   markerfacecolor=look.colour if compared else "white")  # fmt: skip


def devices(numbers: pd.DataFrame) -> str:
    """On what the runs were made; what is not comparable is hollow, and in no front."""
    usual = ", ".join(dict.fromkeys(numbers["device"][numbers["compared"]]))
    others = numbers[~numbers["compared"]][["variant", "device"]].drop_duplicates()
    if others.empty:
        return f"All runs on: {usual}."
    told = ", ".join(f"{style.label(str(v))} on {d}" for v, d in others.values)
    return f"Compared on: {usual}. Hollow, and in no front: {told}."


def costs_of(runs: pd.DataFrame, cost: str) -> pd.DataFrame:
    """Rows `variant`, `device`, `mean`, `std`, `n`, `cost`, `cost_std`, `compared`, `pareto`.

    Costs of two devices do not compare: the front is that of the device with most of the runs.
    """
    known = runs[runs[cost].notna()].assign(device=runs["env/device"].replace("", "unknown device"))
    by = ["variant", "device"]
    table = over_seeds(known, by).drop(columns=["low", "high"])
    table[["cost", "cost_std"]] = over_seeds(known, by, cost)[["mean", "std"]]
    table["compared"] = table["device"] == known["device"].mode().get(0, "")
    here = table[table["compared"]]
    front = pareto_front(here["mean"], here["cost"])
    return table.assign(pareto=front.reindex(table.index, fill_value=False))
