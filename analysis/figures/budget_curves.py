"""mIoU against the number of labelled target images: a line per variant, a panel per benchmark."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.paper import Published
from analysis.stats import over_seeds
from semidavil.data.benchmarks import BENCHMARKS

COLUMN, PAGE = 3.4, 6.9  # inches: one and two columns of a paper
# Okabe and Ito's palette, with a marker and a dash for readers who see no colour.
STYLES = (
    ("#0072B2", "o", "-"),
    ("#D55E00", "s", "--"),
    ("#009E73", "^", "-."),
    ("#CC79A7", "D", ":"),
    ("#E69F00", "v", "-"),
    ("#56B4E9", "P", "--"),
)


@dataclass(frozen=True)
class Drawn:
    """A figure, the numbers in it, and what could not be drawn."""

    figure: Figure
    table: pd.DataFrame
    missing: list[str] = field(default_factory=list)


Draw = Callable[[pd.DataFrame], Drawn]


def budget_curves(
    runs: pd.DataFrame,
    field_name: str,
    variants: Mapping[str, str],
    published: Sequence[Published] = (),
    constant: Sequence[str] = (),
) -> Drawn:
    """Draws finished runs.

    Args:
        runs: the tidy table, already cut down to the runs that belong together.
        field_name: the column that tells variants apart.
        variants: label of each variant to draw, in order.
        published: the paper's values, as hollow markers on an axis of their own above the measured
            curves: measured toy or small-scale values are never to be read as the paper's.
        constant: variants without a budget, drawn as one horizontal line.
    """
    benchmarks = sorted(runs["benchmark"].unique())
    shown = [p for p in published if p.benchmark in benchmarks and p.kind != "bound"]
    table = over_seeds(runs, ["benchmark", field_name, "budget"])
    table = table.rename(columns={field_name: "variant"})
    table["toy"] = table["benchmark"].map(runs.groupby("benchmark")["toy"].all())
    rows = 2 if shown else 1
    width = COLUMN if len(benchmarks) == 1 else PAGE
    figure, axes = plt.subplots(
        rows, len(benchmarks), squeeze=False, sharex="col",
        figsize=(width, 2.3 + (1.2 if shown else 0)),
        gridspec_kw={"height_ratios": [1, 2] if shown else [1], "hspace": 0.28},
    )  # fmt: skip
    missing: list[str] = []
    for column, benchmark in enumerate(benchmarks):
        here = table[table["benchmark"] == benchmark]
        budgets = sorted(set(here["budget"]))
        known = [p for p in shown if p.benchmark == benchmark and p.budget in budgets]
        below = axes[-1, column]
        for (variant, label), style in zip(variants.items(), STYLES, strict=False):
            curve = here[here["variant"] == variant].sort_values("budget")
            _line(below, curve, budgets, label, style, horizontal=variant in constant)
            if variant not in constant:
                absent = sorted(set(BENCHMARKS[benchmark].budgets) - set(curve["budget"]))
                missing += [f"{benchmark}, {variant}, budget {b}" for b in absent]
            if shown:
                points = [p for p in known if p.variant == variant]
                _published(axes[0, column], points, budgets, style)
        below.set_xticks(range(len(budgets)), [str(b) for b in budgets])
        below.set_xlabel("labelled target images")
        seeds = (
            f"{here['n'].min()}-{here['n'].max()}" if here["n"].nunique() > 1 else here["n"].max()
        )
        scale = "toy benchmark" if bool(here["toy"].all()) else "measured"
        below.set_title(
            f"{scale}, n = {seeds} seed{'s' if here['n'].max() > 1 else ''}", loc="left"
        )
        if shown and not known:
            axes[0, column].set_axis_off()
        of_paper = (
            "published (paper, real images)" if known else "nothing published at these budgets"
        )
        axes[0, column].set_title(
            f"{benchmark}\n{of_paper}" if shown
            else f"{benchmark}\n{below.get_title(loc='left')}", loc="left",
        )  # fmt: skip
    for row in range(rows):
        axes[row, 0].set_ylabel("mIoU (%)")
        for each in axes[row]:
            each.margins(0.06, 0.12)  # no marker is cut by the frame
    # A partial sweep may have a variant in one panel alone.
    entries = {
        label: handle
        for panel in axes[-1]
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    labels = [label for label in variants.values() if label in entries]
    figure.legend(
        [entries[label] for label in labels], labels,
        loc="upper center", ncols=min(4, len(labels)),
        bbox_to_anchor=(0.5, -0.15 / figure.get_figheight()),  # inches below the axis labels
    )  # fmt: skip
    values = pd.DataFrame(
        [{"benchmark": p.benchmark, "variant": p.variant, "budget": p.budget, "published": p.miou,
          "kind": p.kind, "source": p.source} for p in published if p.benchmark in benchmarks],
        columns=["benchmark", "variant", "budget", "published", "kind", "source"],
    )  # fmt: skip
    table = table.merge(values, how="outer", on=["benchmark", "variant", "budget"])
    table = table.sort_values(["benchmark", "variant", "budget"], ignore_index=True)
    return Drawn(figure, table, missing)


def _line(
    axes: Axes,
    curve: pd.DataFrame,
    budgets: Sequence[int],
    label: str,
    style: tuple[str, str, str],
    *,
    horizontal: bool,
) -> None:
    colour, marker, dash = style
    if curve.empty:
        return
    if horizontal:
        axes.axhline(float(curve["mean"].iloc[0]), color=colour, linestyle=dash, label=label)
        return
    # A budget without a run breaks the line; a cell with one seed has no error bar.
    curve = curve.set_index("budget").reindex(list(budgets))
    axes.errorbar(
        list(range(len(budgets))), curve["mean"], yerr=curve["std"] if (curve["n"] > 1).any() else None,
        color=colour, marker=marker, linestyle=dash, label=label, capsize=2, elinewidth=0.8,
    )  # fmt: skip


def _published(
    axes: Axes, points: Sequence[Published], budgets: Sequence[int], style: tuple[str, str, str]
) -> None:
    colour, marker, dash = style
    axes.plot(
        [budgets.index(p.budget) for p in points], [p.miou for p in points],
        color=colour, marker=marker, linestyle=dash, linewidth=0.7, markerfacecolor="white",
    )  # fmt: skip
