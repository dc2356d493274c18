"""mIoU against the number of labelled target images: a line per variant, a panel per benchmark."""

import textwrap
from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.transforms import ScaledTranslation

from analysis import style
from analysis.cells import Cells, over_budgets, seeds_of, select
from analysis.comparisons import COMPARISONS, Comparison
from analysis.drawn import Drawn
from analysis.panels import legend, panels, points, whiskers
from analysis.paper import READ_OFF, Published
from analysis.runs import Tracked
from analysis.stats import paired
from analysis.style import Look
from analysis.verdicts import verdicts

APART = 3.0  # points between two variants' markers at one budget: error bars stay apart
OVERALL = "all"  # the last place of the row of differences
TITLE_WIDTH = 42  # letters, which a column is wide enough for
CELL = ["benchmark", "variant", "budget"]


def draw(tracked: Tracked, name: str) -> Drawn:
    """The figure of a comparison: published, measured, and differences to the variant in question.

    The paper's values stand as hollow markers on an axis of their own above the measured curves:
    toy or small-scale values are never to be read as the paper's.

    Raises:
        AnalysisError: no run of its grid.
    """
    comparison = COMPARISONS[name]
    chosen = select(tracked, comparison.grid, comparison.field)
    known = [p for p in comparison.published() if p.benchmark in chosen.benchmarks]
    printed = [p for p in known if p.kind != "bound"]
    numbers = _numbers(chosen, known)
    gaps = differences(chosen, comparison.reference)
    heights = {"published": 1.0 * bool(printed), "measured": 1.6, "gaps": 1.1 * bool(len(gaps))}
    shown = [row for row, height in heights.items() if height]
    tall = sum(heights.values())
    frame = panels(chosen.benchmarks, len(shown), 1.25 * tall, [heights[row] for row in shown])
    looks = style.looks(comparison.present(chosen.runs))
    for benchmark, axes in frame:
        rows = dict(zip(shown, axes, strict=True))
        here = numbers[(numbers["benchmark"] == benchmark) & numbers["mean"].notna()]
        budgets = [int(b) for b in sorted(here["budget"].unique())]
        places = [*budgets, OVERALL] if len(gaps) else budgets
        _measured(rows["measured"], here, budgets, looks, comparison)
        heading = chosen.heading(benchmark)
        if printed:
            some = [p for p in printed if p.benchmark == benchmark]
            _published(rows["published"], some, budgets, looks)
            which = "published (paper, real images)" if some else "nothing published here"
            rows["published"].set_title(f"{style.benchmark_name(benchmark)}\n{which}", loc="left")
            heading = chosen.mark(benchmark) or "measured"
        text = textwrap.fill(f"{heading}, {seeds_of(here['n'])}", TITLE_WIDTH)
        rows["measured"].set_title(text, loc="left")
        if len(gaps):
            _gaps(rows["gaps"], gaps[gaps["benchmark"] == benchmark], places, looks)
        axes[-1].set_xticks(range(len(places)), [b if b == OVERALL else f"{b:,}" for b in places])
        axes[-1].set_xlabel("labelled target images (not to scale)")
    minus = f"minus\n{style.label(comparison.reference)}"
    frame.name_rows([minus if row == "gaps" else "mIoU (%)" for row in shown])
    legend(frame.figure)
    told, tests = verdicts(chosen, without=comparison.unlabelled)
    caption = _caption(comparison, bool(printed), bool(len(gaps)))
    return Drawn(
        figure=frame.figure,
        title=f"{comparison.title}: mIoU against label budget",
        caption=" ".join([*caption, chosen.note()]),
        alt=_alt(numbers, looks, told),
        numbers=_with_differences(numbers, gaps),
        run_ids=chosen.run_ids,
        grid=comparison.grid,
        missing=comparison.missing(chosen.runs, chosen.benchmarks),
        verdicts=told,
        tests=tests,
    )


def _caption(comparison: Comparison, published: bool, gaps: bool) -> list[str]:
    told = [
        f"{comparison.title}: mean IoU on the target's validation images against the number of labelled "
        "target images. Filled markers: measured, mean and sample standard deviation over seeds (a cell "
        "with one seed has no bar)."
    ]
    if published:
        told.append(
            "Hollow markers: published values, on an axis of their own; small ones are read off other "
            "numbers of the paper."
        )
    if gaps:
        told.append(
            f"Lowest row: difference to {style.label(comparison.reference)} on the same seeds with its 95% "
            f"t interval; “{OVERALL}”: averaged over the label budgets."
        )
    return told


def _numbers(chosen: Cells, known: Sequence[Published]) -> pd.DataFrame:
    measured = [over_budgets(chosen.of(name)).assign(benchmark=name, caveat=chosen.mark(name))
                for name in chosen.benchmarks]  # fmt: skip
    values = pd.DataFrame(
        [(p.benchmark, p.variant, p.budget, p.miou, p.kind, p.source) for p in known],
        columns=[*CELL, "published", "kind", "source"],
    )
    table = pd.concat(measured).merge(values, how="outer", on=CELL)
    return table[[*CELL, *table.columns.drop(CELL)]].sort_values(CELL, ignore_index=True)


def differences(chosen: Cells, reference: str) -> pd.DataFrame:
    """Each variant minus the reference on the same seeds: per budget, and over all.

    Returns:
        Columns `benchmark`, `variant`, `budget` (a number or `all`), `difference`, `low`, `high`, `p`, `n`;
        empty where no two seeds are shared.
    """
    rows = []
    for benchmark in chosen.benchmarks:
        runs = chosen.of(benchmark)
        for variant in (v for v in runs["variant"].unique() if v != reference):
            two = runs[runs["variant"].isin((variant, reference))]
            by = two.pivot(index=["budget", "seed"], columns="variant", values="miou").dropna()
            if by.empty or {variant, reference} - set(by):
                continue
            each = [(b, one.droplevel("budget")) for b, one in by.groupby(level="budget")]
            for budget, one in [(OVERALL, by.unstack("budget")), *each]:
                t = paired(one[variant], one[reference])
                rows.append([benchmark, variant, budget, t.difference, t.low, t.high, t.p, t.n])
    found = pd.DataFrame(rows, columns=[*CELL, "difference", "low", "high", "p", "n"])
    return found if (found["n"] > 1).any() else found.iloc[:0]


def _with_differences(numbers: pd.DataFrame, gaps: pd.DataFrame) -> pd.DataFrame:
    """Differences beside the means; those over all budgets are rows without a budget."""
    names = {"low": "difference_low", "high": "difference_high", "n": "pairs"}
    budgets = pd.to_numeric(gaps["budget"], errors="coerce")
    return numbers.merge(gaps.rename(columns=names).assign(budget=budgets), how="outer", on=CELL)


def _apart(axes: Axes, place: int, count: int):  # type: ignore[no-untyped-def]
    """Moves a variant's markers by a few points, however many budgets there are."""
    shift = APART * (place - (count - 1) / 2) / 72
    return axes.transData + ScaledTranslation(shift, 0, axes.figure.dpi_scale_trans)


def _fit(axes: Axes, low: pd.Series, high: pd.Series, places: int) -> None:
    """Room for all bars: those that are moved apart are in no data limits, and none is cut by the frame."""
    ends = pd.concat([low, high]).dropna()
    if len(ends):
        axes.update_datalim([(0, ends.min()), (places - 1, ends.max())])
    axes.margins(0.08, 0.12)
    axes.autoscale_view()


def _measured(
    axes: Axes,
    here: pd.DataFrame,
    budgets: Sequence[int],
    looks: dict[str, Look],
    comparison: Comparison,
) -> None:
    for i, (variant, look) in enumerate(looks.items()):
        curve = here[here["variant"] == variant].set_index("budget")
        if len(curve) and variant in comparison.unlabelled:
            value = float(curve["mean"].iloc[0])
            axes.axhline(value, color=look.colour, linestyle=look.dash, label=look.label)
        elif len(curve):
            curve = curve.reindex(list(budgets))  # a budget without a run breaks the line
            points(axes, range(len(budgets)), curve["mean"], look, linestyle=look.dash, label=look.label,
                   yerr=curve["std"] if (curve["n"] > 1).any() else None,
                   transform=_apart(axes, i, len(looks)))  # fmt: skip
    spread = here["std"].fillna(0)
    _fit(axes, here["mean"] - spread, here["mean"] + spread, len(budgets))


def _gaps(axes: Axes, here: pd.DataFrame, places: Sequence[object], looks: dict[str, Look]) -> None:
    axes.axhline(0, color="black", linewidth=0.7)
    axes.axvline(len(places) - 1.5, color=style.GREY, linewidth=0.7, linestyle=":")
    for i, (variant, look) in enumerate(looks.items()):
        mine = here[here["variant"] == variant]
        if len(mine):
            points(axes, [places.index(b) for b in mine["budget"]], mine["difference"], look, markersize=4,
                   yerr=whiskers(mine["difference"], mine["low"], mine["high"]),
                   transform=_apart(axes, i, len(looks)))  # fmt: skip
    low, high = (here[end].fillna(here["difference"]) for end in ("low", "high"))
    _fit(axes, low, high, len(places))


def _published(
    axes: Axes, printed: Sequence[Published], budgets: Sequence[int], looks: dict[str, Look]
) -> None:
    """At the budgets that were run, which share the x axis."""
    if not printed:
        axes.set_axis_off()
    for variant, look in looks.items():
        mine = [p for p in printed if p.variant == variant and p.budget in budgets]
        how: Any = {"color": look.colour, "marker": look.marker, "markerfacecolor": "white"}
        places = [budgets.index(p.budget) for p in mine]
        axes.plot(
            places, [p.miou for p in mine], linestyle=look.dash, linewidth=0.7, markersize=3, **how
        )
        for one in mine:
            if one.kind not in READ_OFF:
                axes.plot(budgets.index(one.budget), one.miou, **how)
    axes.margins(0.08, 0.12)


def _alt(numbers: pd.DataFrame, looks: dict[str, Look], verdicts: Sequence[str]) -> str:
    told = []
    for benchmark, here in numbers[numbers["mean"].notna()].groupby("benchmark", sort=False):
        budget = here["budget"].max()
        best = here[here["budget"] == budget].sort_values("mean", ascending=False)
        order = (
            f"{looks[v].label} {m:.1f}" for v, m in zip(best["variant"], best["mean"], strict=True)
        )
        told.append(
            f"{style.benchmark_name(str(benchmark))}, at {int(budget)} labelled images: {', '.join(order)}"
        )
    return f"Line chart of mIoU against label budget. {'. '.join(told)}. {' '.join(verdicts)}"
