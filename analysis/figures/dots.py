"""Variants on one budget as dots with spread, one panel per benchmark: captions, methods."""

from collections.abc import Callable

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from analysis import style
from analysis.cells import by_seed, seeds_of, select
from analysis.drawn import Drawn
from analysis.runs import Tracked
from analysis.stats import ALPHA, bootstrap_images, holm, over_seeds, paired

WANTED = 100  # label budget


def draw(
    tracked: Tracked,
    grid: str,
    field: str,
    baseline: Callable[[list[str]], str],
    title: str,
    details: Callable[[pd.DataFrame, pd.DataFrame], pd.DataFrame] = lambda numbers, _: numbers,
    told: Callable[[pd.DataFrame, Callable[[str], str]], str] = lambda *_: "",
) -> Drawn:
    """mIoU per variant, best first, with a paired test of each against the baseline.

    Args:
        baseline: which of a panel's variants the others are compared to.
        details: adds columns of the runs to the numbers.
        told: what the caption says of the numbers besides, given what variants are called.

    Raises:
        AnalysisError: no run of the grid.
    """
    chosen = select(tracked, grid, field).at_one_budget(WANTED)
    benchmarks = chosen.benchmarks
    parts, baselines = [], dict[str, None]()
    for benchmark in benchmarks:
        runs = chosen.of(benchmark)
        against = baseline(sorted(set(runs[field])))
        baselines[style.label(against)] = None
        part = _rows(tracked, runs, field, against)
        part.insert(0, "benchmark", benchmark)
        parts.append(part)
    numbers = pd.concat(parts, ignore_index=True)
    numbers = details(numbers, chosen.runs)
    most = max(len(part) for part in parts)
    figure, axes = plt.subplots(
        1, len(benchmarks), squeeze=False,
        figsize=(style.COLUMN if len(benchmarks) == 1 else style.PAGE, 0.7 + 0.24 * most),
        gridspec_kw={"wspace": 0.75},
    )  # fmt: skip
    for ax, benchmark, part in zip(axes[0], benchmarks, parts, strict=True):
        here = chosen.of(benchmark)
        looks = style.looks(list(part["variant"]))
        for row, cell in enumerate(part.to_dict("records")):
            look = looks[cell["variant"]]
            values = by_seed(here[here[field] == cell["variant"]])
            ax.plot(values, [row] * len(values), "|", color=look.colour, alpha=0.6, markersize=8)
            ax.errorbar(
                cell["mean"], row, xerr=cell["std"] if cell["n"] > 1 else None, color=look.colour,
                marker=look.marker, capsize=2, elinewidth=0.8,
            )  # fmt: skip
        names = [
            looks[v].label + (" *" if p < ALPHA else "")
            for v, p in zip(part["variant"], part["p_holm"], strict=True)
        ]
        ax.set_yticks(range(len(part)), names)
        ax.set_ylim(len(part) - 0.5, -0.5)
        ax.set_xlabel("mIoU (%)")
        budgets = ", ".join(str(b) for b in sorted(set(here["budget"]) - {0}))
        ax.set_title(
            f"{chosen.heading(benchmark)}\n{budgets} labels, {seeds_of(list(part['n']))}",
            loc="left",
        )
    best = ", ".join(
        f"{style.benchmark_name(b)}: "
        + "; ".join(
            f"{style.label(v)} {m:.1f}" for v, m in zip(p["variant"], p["mean"], strict=True)
        )
        for b, p in zip(benchmarks, parts, strict=True)
    )
    return Drawn(
        figure=figure,
        title=title,
        caption=f"{title}: mIoU per seed (ticks), mean and standard deviation (marker and bar). An "
        f"asterisk: differs from {' or '.join(baselines)} by a paired t-test over seeds, p < {ALPHA} "
        "after Holm's correction over the panel. The CSV has 95% bootstrap intervals over validation "
        f"images where runs keep them. {told(numbers, style.label)}{chosen.note()}",
        alt=f"Dot plot of mIoU. {best}.",
        numbers=numbers,
        run_ids=chosen.run_ids,
        grid=grid,
    )


def _rows(tracked: Tracked, runs: pd.DataFrame, field: str, baseline: str) -> pd.DataFrame:
    table = over_seeds(runs, [field]).rename(columns={field: "variant"})
    table = table.sort_values("mean", ascending=False, ignore_index=True)
    base = by_seed(runs[runs[field] == baseline])
    tests = [
        paired(by_seed(runs[runs[field] == v]), base if v != baseline else base.iloc[:0])
        for v in table["variant"]
    ]
    table["minus_baseline"] = [t.difference for t in tests]
    table["p"] = [t.p for t in tests]
    table["p_holm"] = holm([t.p for t in tests])
    intervals = [_image_interval(tracked, runs[runs[field] == v]) for v in table["variant"]]
    table["images_low"], table["images_high"] = [i[0] for i in intervals], [i[1] for i in intervals]
    return table


def _image_interval(tracked: Tracked, runs: pd.DataFrame) -> tuple[float, float]:
    found = [tracked.evaluation(run_id) for run_id in runs["run_id"]]
    kept = [one.per_image for one in found if one is not None]
    if len(kept) < len(found) or len({len(one) for one in kept}) != 1:
        return np.nan, np.nan
    return bootstrap_images(kept)
