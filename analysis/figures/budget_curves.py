"""mIoU against the number of labelled target images: a line per variant, a panel per benchmark."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes

from analysis import style
from analysis.cells import Cells, over_budgets, seeds_of, select
from analysis.comparisons import COMPARISONS, Comparison
from analysis.drawn import Drawn
from analysis.paper import Published
from analysis.runs import Tracked
from analysis.style import COLUMN, PAGE, Look

SPREAD = 0.05  # sideways distance of two variants' markers, in budgets: error bars stay apart


def draw(tracked: Tracked, name: str) -> Drawn:
    """The figure of a comparison.

    The paper's values stand as hollow markers on an axis of their own above the measured curves:
    toy or small-scale values are never to be read as the paper's.

    Raises:
        AnalysisError: no run of its grid.
    """
    comparison = COMPARISONS[name]
    chosen = select(tracked, comparison.grid, comparison.field)
    benchmarks = chosen.benchmarks
    known = [p for p in comparison.published() if p.benchmark in benchmarks]
    numbers = _numbers(chosen, comparison, known)
    shown = [p for p in known if p.kind != "bound"]
    rows = 2 if shown else 1
    figure, axes = plt.subplots(
        rows, len(benchmarks), squeeze=False, sharex="col",
        figsize=(COLUMN if len(benchmarks) == 1 else PAGE, 2.3 + (1.2 if shown else 0)),
        gridspec_kw={"height_ratios": [1, 2] if shown else [1], "hspace": 0.3},
    )  # fmt: skip
    looks = style.looks(comparison.present(chosen.runs))
    for column, benchmark in enumerate(benchmarks):
        here = numbers[(numbers["benchmark"] == benchmark) & numbers["mean"].notna()]
        budgets = [int(b) for b in sorted(here["budget"].unique())]
        _measured(axes[-1, column], here, budgets, looks, comparison)
        seeds = seeds_of([int(n) for n in here["n"]])
        told = chosen.mark(benchmark) or "measured"
        axes[-1, column].set_title(f"{told}, {seeds}", loc="left")
        top = axes[0, column]
        if shown:
            points = [p for p in shown if p.benchmark == benchmark and p.budget in budgets]
            _published(top, points, budgets, looks)
            told = "published (paper, real images)" if points else "nothing published here"
        else:
            told = top.get_title(loc="left")
        top.set_title(f"{style.benchmark_name(benchmark)}\n{told}", loc="left")
    for row in axes:
        row[0].set_ylabel("mIoU (%)")
        for each in row:
            each.margins(0.06, 0.12)  # no marker is cut by the frame
    _legend(figure, axes[-1], looks)
    return Drawn(
        figure=figure,
        title=f"{comparison.title}: mIoU against label budget",
        caption=f"{comparison.title}: mean IoU on the target's validation images against the number "
        "of labelled target images. Filled markers: measured, mean and sample standard deviation "
        "over seeds (a cell with one seed has no bar). "
        + ("Hollow markers: published values, on an axis of their own. " if shown else "")
        + chosen.note(),
        alt=_alt(numbers, looks),
        numbers=numbers,
        run_ids=chosen.run_ids,
        grid=comparison.grid,
        missing=comparison.missing(chosen.runs, benchmarks),
    )


def _numbers(chosen: Cells, comparison: Comparison, known: Sequence[Published]) -> pd.DataFrame:
    parts = []
    for benchmark in chosen.benchmarks:
        part = over_budgets(chosen.of(benchmark))
        part.insert(0, "benchmark", benchmark)
        parts.append(part.assign(caveat=chosen.mark(benchmark)))
    columns = ["benchmark", "variant", "budget", "published", "kind", "source"]
    values = pd.DataFrame(
        [(p.benchmark, p.variant, p.budget, p.miou, p.kind, p.source) for p in known],
        columns=columns,
    )
    table = pd.concat(parts).merge(values, how="outer", on=columns[:3])
    return table.sort_values(columns[:3], ignore_index=True)


def _measured(
    axes: Axes,
    here: pd.DataFrame,
    budgets: Sequence[int],
    looks: dict[str, Look],
    comparison: Comparison,
) -> None:
    for i, (variant, look) in enumerate(looks.items()):
        curve = here[here["variant"] == variant].set_index("budget")
        if curve.empty:
            continue
        if variant in comparison.unlabelled:
            value = float(curve["mean"].iloc[0])
            axes.axhline(value, color=look.colour, linestyle=look.dash, label=look.label)
            continue
        curve = curve.reindex(list(budgets))  # a budget without a run breaks the line
        shift = SPREAD * (i - (len(looks) - 1) / 2)
        axes.errorbar(
            [place + shift for place in range(len(budgets))], curve["mean"],
            yerr=curve["std"] if (curve["n"] > 1).any() else None,
            color=look.colour, marker=look.marker, linestyle=look.dash, label=look.label,
            capsize=2, elinewidth=0.8,
        )  # fmt: skip
    axes.set_xticks(range(len(budgets)), [f"{b:,}" for b in budgets])
    axes.set_xlabel("labelled target images")


def _published(
    axes: Axes, points: Sequence[Published], budgets: Sequence[int], looks: dict[str, Look]
) -> None:
    if not points:
        axes.set_axis_off()
    for variant, look in looks.items():
        mine = [p for p in points if p.variant == variant]
        axes.plot(
            [budgets.index(p.budget) for p in mine], [p.miou for p in mine],
            color=look.colour, marker=look.marker, linestyle=look.dash, linewidth=0.7,
            markerfacecolor="white",
        )  # fmt: skip


def _legend(figure: plt.Figure, panels: Sequence[Axes], looks: dict[str, Look]) -> None:
    # A partial sweep may have a variant in one panel alone.
    entries = {
        label: handle
        for panel in panels
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    labels = [look.label for look in looks.values() if look.label in entries]
    wide = figure.get_figwidth() > COLUMN
    figure.legend(
        [entries[label] for label in labels], labels, loc="upper center",
        ncols=min(4 if wide else 2, len(labels)),
        bbox_to_anchor=(0.5, -0.15 / figure.get_figheight()),  # inches below the axis labels
    )  # fmt: skip


def _alt(numbers: pd.DataFrame, looks: dict[str, Look]) -> str:
    told = []
    measured = numbers[numbers["mean"].notna()]
    for benchmark, here in measured.groupby("benchmark", sort=False):
        largest = here[here["budget"] == here["budget"].max()].sort_values("mean", ascending=False)
        order = ", ".join(
            f"{looks[v].label} {m:.1f}"
            for v, m in zip(largest["variant"], largest["mean"], strict=True)
        )
        told.append(
            f"{style.benchmark_name(str(benchmark))}, at {int(largest['budget'].iloc[0])} labelled "
            f"images: {order}"
        )
    return "Line chart of mIoU against label budget. " + ". ".join(told) + "."
