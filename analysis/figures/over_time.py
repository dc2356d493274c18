"""Validation during training: learning curves and the reliability of pseudo-labels."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from analysis import style
from analysis.cells import Cells, seeds_of, select
from analysis.comparisons import COMPARISONS
from analysis.drawn import Drawn
from analysis.panels import legend, panels
from analysis.runs import AnalysisError, NoRunError, Tracked, command

GRIDS = ("methods", "baselines")
WANTED = 100  # label budget
# Methods that learn from pseudo-labels.
TEACHERS = ("semidavil", "semivl", "unimatch", "unimatch_v2", "sdepth")


def draw(
    tracked: Tracked,
    metrics: Mapping[str, str],
    title: str,
    about: str,
    only: tuple[str, ...] | None = None,
) -> Drawn:
    """Metrics of each method over training steps, those of `only` if it is given.

    Args:
        metrics: what the axis of each is called.

    Raises:
        AnalysisError: no run was evaluated more than once.
    """
    grid, chosen, numbers = evaluated_on_the_way(tracked, list(metrics), only)
    budgets = sorted(set(chosen.runs["budget"]) - {0})
    labelled = f"{' or '.join(str(n) for n in budgets)} labels; " if budgets else ""
    frame = panels(chosen.benchmarks, len(metrics), 0.7 + 1.3 * len(metrics))
    present = list(numbers["variant"].unique())
    known = [name for name in COMPARISONS["methods"].variants[::-1] if name in present]
    looks = style.looks(list(dict.fromkeys(known + present)))
    for benchmark, axes in frame:
        mine = numbers[numbers["benchmark"] == benchmark]
        for metric, ax in zip(metrics, axes, strict=True):
            for variant, look in looks.items():
                here = mine[(mine["metric"] == metric) & (mine["variant"] == variant)]
                if here.empty:
                    continue
                ax.plot(here["step"], here["mean"], color=look.colour, linestyle=look.dash,
                        marker=look.marker, markersize=3, label=look.label)  # fmt: skip
                low, high = (here["mean"] + sign * here["std"].fillna(0) for sign in (-1, 1))
                ax.fill_between(here["step"], low, high, color=look.colour, alpha=0.15, linewidth=0)
        axes[0].set_title(f"{chosen.heading(benchmark)}, {seeds_of(mine['n'])}", loc="left")
        axes[-1].set_xlabel("training steps")
        axes[-1].xaxis.set_major_locator(MaxNLocator(6, integer=True))
    frame.name_rows(list(metrics.values()))
    legend(frame.figure)
    last = numbers.loc[numbers.groupby(["metric", "benchmark", "variant"])["step"].idxmax()]
    told = "; ".join(
        f"{looks[str(r.variant)].label} {r.mean:.1f} ({str(r.metric).rpartition('/')[2]}, "
        f"{style.benchmark_name(str(r.benchmark))})"
        for r in last.itertuples()
    )
    return Drawn(
        figure=frame.figure,
        title=title,
        caption=f"{about}, by training step; {labelled}mean over seeds that were all "
        "evaluated at the step, band: standard deviation. "
        f"{chosen.note()}",
        alt=f"Line chart over training steps. At the end: {told}.",
        numbers=numbers,
        run_ids=chosen.run_ids,
        grid=grid,
    )


def evaluated_on_the_way(
    tracked: Tracked, metrics: list[str], only: tuple[str, ...] | None
) -> tuple[str, Cells, pd.DataFrame]:
    """Of `GRIDS` the one whose runs were evaluated most often, those runs, and their histories.

    A benchmark whose runs were evaluated at their end only has no curve, and is left out.
    """
    found: list[tuple[str, Cells, pd.DataFrame]] = []
    missing: list[AnalysisError] = []
    for grid in GRIDS:
        try:
            chosen = select(tracked, grid, "method").at_one_budget(WANTED)
        except AnalysisError as error:
            missing.append(error)
            continue
        if only is not None:
            chosen = chosen.only(only)
        if chosen.runs.empty:
            missing.append(
                NoRunError(f"no finished run of {' or '.join(only or ())}: {command(grid)}")
            )
            continue
        numbers = histories(tracked, chosen.runs, metrics)
        curves = numbers.groupby("benchmark")["step"].transform("nunique") > 1
        there = set(numbers["benchmark"][curves])
        runs = chosen.runs[chosen.runs["benchmark"].isin(there)]
        found.append((grid, replace(chosen, runs=runs), numbers[curves].reset_index(drop=True)))
    if not any(len(numbers) for _, _, numbers in found):
        if not found:
            raise missing[0]
        runs = tracked.of_grid(grid := found[0][0])
        raise AnalysisError(
            "runs are evaluated at their end only, and what has finished is not run again; make others: "
            f"{command(grid)} --seeds {int(runs['seed'].max()) + 1} "
            f"--set runtime.eval_every={-(-int(runs['steps'].min()) // 4)}"
        )
    return max(found, key=lambda one: one[2]["step"].nunique())


def histories(tracked: Tracked, runs: pd.DataFrame, metrics: list[str]) -> pd.DataFrame:
    """Rows metric, benchmark, variant, step with `mean`, `std` and `n` over seeds.

    Only steps that as many seeds have as any: a curve whose seeds change would fall and rise with them. Runs
    that were evaluated once have no curve, and take no part.
    """
    rows = []
    for run in runs.itertuples():
        mine = [
            (metric, run.benchmark, run.method, step, value)
            for metric in metrics
            for step, value in tracked.history(str(run.run_id), metric).items()
            if np.isfinite(value)
        ]
        rows += mine if len({step for _, _, _, step, _ in mine}) > 1 else []
    by = ["metric", "benchmark", "variant", "step"]
    table = pd.DataFrame(rows, columns=[*by, "value"])
    found = table.groupby(by)["value"].agg(mean="mean", std="std", n="count").reset_index()
    most = found.groupby(by[:3])["n"].transform("max")
    return found[found["n"] == most].reset_index(drop=True)
