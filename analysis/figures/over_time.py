"""Validation during training: learning curves and the reliability of pseudo-labels."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from analysis import style
from analysis.cells import Cells, select
from analysis.comparisons import COMPARISONS
from analysis.drawn import Drawn
from analysis.runs import AnalysisError, Tracked

GRIDS = ("methods", "baselines")  # the first whose runs were evaluated more than once
WANTED = 100  # label budget
LEARNING = {"val/miou": "mIoU (%)"}
PSEUDO = {
    "val/pseudo/coverage": "confident pixels (%)",
    "val/pseudo/accuracy": "of these right (%)",
}
# Methods that learn from pseudo-labels.
TEACHERS = ("semidavil", "semivl", "unimatch", "unimatch_v2", "sdepth")


def learning_curves(tracked: Tracked) -> Drawn:
    """mIoU over training steps per method.

    Raises:
        AnalysisError: no run was evaluated more than once.
    """
    return _draw(tracked, LEARNING, None, "Learning curves", "mIoU on the validation images")


def pseudo_labels(tracked: Tracked) -> Drawn:
    """Coverage and accuracy of confident predictions over training steps.

    Raises:
        AnalysisError: no run was evaluated more than once.
    """
    about = (
        "Share of the validation pixels that reach the confidence threshold, and how many are right"
    )
    return _draw(tracked, PSEUDO, TEACHERS, "Reliability of pseudo-labels", about)


def _draw(
    tracked: Tracked,
    metrics: Mapping[str, str],
    only: tuple[str, ...] | None,
    title: str,
    about: str,
) -> Drawn:
    grid, chosen, numbers = evaluated_on_the_way(tracked, list(metrics), only)
    runs = chosen.runs
    budgets = sorted(set(runs["budget"]) - {0})
    labelled = f"{' or '.join(str(n) for n in budgets)} labels; " if budgets else ""
    benchmarks = [b for b in chosen.benchmarks if b in set(numbers["benchmark"])]
    figure, axes = plt.subplots(
        len(metrics), len(benchmarks), squeeze=False, sharex="col", sharey="row",
        figsize=(style.COLUMN if len(benchmarks) == 1 else style.PAGE, 0.7 + 1.6 * len(metrics)),
        gridspec_kw={"hspace": 0.12, "wspace": 0.08},
    )  # fmt: skip
    present = set(numbers["variant"])
    looks = style.looks([m for m in COMPARISONS["methods"].variants[::-1] if m in present])
    for (row, (metric, name)), (column, benchmark) in (
        (r, c) for r in enumerate(metrics.items()) for c in enumerate(benchmarks)
    ):
        ax = axes[row, column]
        for variant, look in looks.items():
            here = numbers[
                (numbers["metric"] == metric)
                & (numbers["benchmark"] == benchmark)
                & (numbers["variant"] == variant)
            ]
            ax.plot(here["step"], here["mean"], color=look.colour, linestyle=look.dash,
                    marker=look.marker, markersize=3, label=look.label)  # fmt: skip
            spread = here["std"].fillna(0)
            ax.fill_between(
                here["step"], here["mean"] - spread, here["mean"] + spread, color=look.colour,
                alpha=0.15, linewidth=0,
            )  # fmt: skip
        if row == 0:
            ax.set_title(chosen.heading(benchmark), loc="left")
        if row == len(metrics) - 1:
            ax.set_xlabel("training steps")
        if column == 0:
            ax.set_ylabel(name)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", ncols=4 if len(benchmarks) > 1 else 2,
                  bbox_to_anchor=(0.5, -0.1 / figure.get_figheight()))  # fmt: skip
    last = numbers.loc[numbers.groupby(["metric", "benchmark", "variant"])["step"].idxmax()]
    told = "; ".join(
        f"{looks[str(r.variant)].label} {r.mean:.1f} ({str(r.metric).rpartition('/')[2]}, "
        f"{style.benchmark_name(str(r.benchmark))})"
        for r in last.itertuples()
    )
    return Drawn(
        figure=figure,
        title=title,
        caption=f"{about}, by training step; {labelled}mean over seeds, band: standard deviation. "
        f"{chosen.note()}",
        alt=f"Line chart over training steps. At the end: {told}.",
        numbers=numbers,
        run_ids=tuple(sorted(runs["run_id"])),
        grid=grid,
    )


def evaluated_on_the_way(
    tracked: Tracked, metrics: list[str], only: tuple[str, ...] | None
) -> tuple[str, Cells, pd.DataFrame]:
    """The first of `GRIDS` with runs that were evaluated on the way, those runs, their histories."""
    missing: AnalysisError | None = None
    for grid in GRIDS:
        try:
            chosen = select(tracked, grid, "method").at_one_budget(WANTED)
        except AnalysisError as error:
            missing = missing or error
            continue
        if only is not None:
            chosen = chosen.only(only)
        numbers = histories(tracked, chosen.runs, metrics)
        if len(numbers) and numbers.groupby("metric")["step"].nunique().max() > 1:
            return grid, chosen, numbers
        missing = AnalysisError(
            "runs are evaluated at their end only; give --set runtime.eval_every=STEPS to the sweep"
        )
    assert missing is not None
    raise missing


def histories(tracked: Tracked, runs: pd.DataFrame, metrics: list[str]) -> pd.DataFrame:
    """Rows metric, benchmark, variant, step with `mean`, `std` and `n` over seeds."""
    rows = []
    for run in runs.itertuples():
        for metric in metrics:
            series = tracked.history(str(run.run_id), metric)
            rows += [
                (metric, run.benchmark, run.method, step, value)
                for step, value in series.items()
                if np.isfinite(value)
            ]
    by = ["metric", "benchmark", "variant", "step"]
    table = pd.DataFrame(rows, columns=[*by, "value"])
    return table.groupby(by)["value"].agg(mean="mean", std="std", n="count").reset_index()
