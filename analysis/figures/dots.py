"""Variants on one budget as dots with spread, one panel per benchmark: captions, methods."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd

from analysis import style
from analysis.cells import by_seed, seeds_of, select
from analysis.drawn import Drawn
from analysis.panels import panels, points, whiskers
from analysis.runs import Tracked
from analysis.stats import bootstrap_images, holm, over_seeds, paired
from analysis.verdicts import verdicts

WANTED = 100  # label budget


def draw(
    tracked: Tracked,
    grid: str,
    field: str,
    baseline: Callable[[list[str]], str],
    title: str,
    details: Callable[[pd.DataFrame, pd.DataFrame], pd.DataFrame] = lambda numbers, _: numbers,
    told: Callable[[pd.DataFrame, Callable[[str], str]], str] = lambda *_: "",
    is_bound: Callable[[str], bool] = lambda _: False,
) -> Drawn:
    """mIoU per variant, best first, and beside it the paired difference of each to the baseline.

    Args:
        baseline: which of a panel's variants the others are compared to.
        details: adds columns of the runs to the numbers.
        told: what the caption says of the numbers besides, given what variants are called.
        is_bound: whether a variant is no rival but a bound, which cannot be best.

    Raises:
        AnalysisError: no run of the grid.
    """
    chosen = select(tracked, grid, field).at_one_budget(WANTED)
    bases = {b: baseline(sorted(set(chosen.of(b)[field]))) for b in chosen.benchmarks}
    parts = {b: _rows(tracked, chosen.of(b), field, base) for b, base in bases.items()}
    numbers = pd.concat([part.assign(benchmark=b) for b, part in parts.items()], ignore_index=True)
    numbers = details(numbers[["benchmark", *numbers.columns.drop("benchmark")]], chosen.runs)
    names = [f"{name}/{what}" for name in parts for what in ("score", "difference")]
    frame = panels(names, 1, 0.6 + 0.19 * max(map(len, parts.values())), share=False)
    axes, orders = [own[0] for _, own in frame], []
    for i, (benchmark, part) in enumerate(parts.items()):
        left, right = axes[2 * i], axes[2 * i + 1]
        here = chosen.of(benchmark)
        looks = style.looks(list(part["variant"]))
        for row, cell in enumerate(part.to_dict("records")):
            look, gap = looks[cell["variant"]], cell["minus_baseline"]
            values = by_seed(here[here[field] == cell["variant"]])
            left.plot(values, [row] * len(values), "|", color=look.colour, alpha=0.6, markersize=8)
            points(left, cell["mean"], row, look, xerr=cell["std"] if cell["n"] > 1 else None)
            if np.isfinite(gap):
                points(right, gap, row, look, xerr=whiskers(gap, cell["gap_low"], cell["gap_high"]))
        left.set_yticks(range(len(part)), [looks[v].label for v in part["variant"]])
        right.set_yticks(range(len(part)), [])
        for ax in (left, right):
            ax.set_ylim(len(part) - 0.5, -0.5)
        left.set_xlabel("mIoU (%)")
        right.set_xlabel(f"minus {style.label(bases[benchmark])} (points)")
        right.axvline(0, color="black", linewidth=0.7)
        right.set_visible(bool(part["minus_baseline"].notna().any()))
        heading = (
            f"{chosen.heading(benchmark)}\n{here['budget'].max():,} labels, {seeds_of(part['n'])}"
        )
        left.set_title(heading, loc="left")
        order = (
            f"{looks[v].label} {m:.1f}" for v, m in zip(part["variant"], part["mean"], strict=True)
        )
        orders.append(f"{style.benchmark_name(benchmark)}: {'; '.join(order)}")
    # What draws no label is compared at its benchmark's budget.
    budgets = chosen.runs.groupby("benchmark")["budget"].transform("max")
    verdict, tests = verdicts(
        replace(chosen, runs=chosen.runs.assign(budget=budgets)),
        without=[v for v in chosen.runs["variant"].unique() if is_bound(v)],
    )
    compared_to = " or ".join(dict.fromkeys(map(style.label, bases.values())))
    return Drawn(
        figure=frame.figure,
        title=title,
        caption=f"{title}: mIoU per seed (ticks), mean and standard deviation (marker "
        f"and bar); right: paired difference to {compared_to} with its 95% t interval, "
        "uncorrected; the CSV has p after Holm's correction over the panel and, where runs keep them, 95% "
        "bootstrap intervals over validation images given these networks. "
        f"{told(numbers, style.label)}{chosen.note()}",
        alt=f"Dot plot of mIoU. {', '.join(orders)}.",
        numbers=numbers,
        run_ids=chosen.run_ids,
        grid=grid,
        verdicts=verdict,
        tests=tests,
    )


def _rows(tracked: Tracked, runs: pd.DataFrame, field: str, baseline: str) -> pd.DataFrame:
    table = over_seeds(runs, [field]).rename(columns={field: "variant"})
    table = table.sort_values("mean", ascending=False, ignore_index=True)
    of = {v: runs[runs[field] == v] for v in table["variant"]}
    base = by_seed(runs[runs[field] == baseline])
    tests = [
        paired(by_seed(one), base if v != baseline else base.iloc[:0]) for v, one in of.items()
    ]
    table["minus_baseline"] = [t.difference for t in tests]
    table["gap_low"], table["gap_high"] = [t.low for t in tests], [t.high for t in tests]
    table["p"] = [t.p for t in tests]
    table["p_holm"] = holm(list(table["p"]))
    table[["images_low", "images_high"]] = [_image_interval(tracked, one) for one in of.values()]
    return table


def _image_interval(tracked: Tracked, runs: pd.DataFrame) -> tuple[float, float]:
    found = [tracked.evaluation(run_id) for run_id in runs["run_id"]]
    kept = [one.per_image for one in found if one is not None]
    if len(kept) < len(found) or len({len(one) for one in kept}) != 1:
        return np.nan, np.nan
    return bootstrap_images(kept)
