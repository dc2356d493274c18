"""Average ranks of variants with their critical difference (Demsar, JMLR 2006)."""

import pandas as pd
from matplotlib.axes import Axes

from analysis import style
from analysis.cells import select
from analysis.comparisons import COMPARISONS
from analysis.drawn import Drawn
from analysis.panels import SMALL, panels
from analysis.runs import AnalysisError, Tracked
from analysis.stats import ALPHA, RANK_BLOCKS, RANK_VARIANTS, Ranks, ranks

NAMES = ("attention", "losses", "methods")


def draw(tracked: Tracked) -> Drawn:
    """A panel for each comparison, its blocks the pairs of benchmark and seed, toy and real apart.

    Raises:
        AnalysisError: no comparison has enough variants and blocks.
    """
    found: dict[str, Ranks] = {}
    ids: set[str] = set()
    for name in NAMES:
        comparison = COMPARISONS[name]
        try:
            chosen = select(tracked, comparison.grid, comparison.field)
        except AnalysisError:
            continue
        runs = chosen.runs[~chosen.runs["variant"].isin(comparison.unlabelled)]
        for mark, here in runs.groupby(runs["benchmark"].map(chosen.mark)):
            one = ranks(over_all_budgets(here))
            if one.critical == one.critical:
                found[f"{comparison.title}{f' ({mark})' if mark else ''}"] = one
                ids |= set(here["run_id"])
    if not found:
        raise AnalysisError(
            f"ranks are compared from {RANK_VARIANTS} variants and {RANK_BLOCKS} pairs of benchmark and "
            "seed on, each with all label budgets: give the sweep more --seeds or --benchmark"
        )
    most = max(len(one.mean) for one in found.values())
    frame = panels(list(found), 1, 0.7 + 0.2 * most, share=False)
    told, rows = [], []
    for title, (ax,) in frame:
        one = found[title]
        _panel(ax, one)
        ax.set_title(f"{title}\n{one.blocks} blocks", loc="left")
        told.append(
            f"{title}: {one.blocks} blocks, Friedman's p = {one.p:.2g}, "
            f"critical difference {one.critical:.2f}"
        )
        rows += [
            {"comparison": title, "variant": v, "rank": rank, "blocks": one.blocks, "p": one.p,
             "critical_difference": one.critical}
            for v, rank in one.mean.items()
        ]  # fmt: skip
    return Drawn(
        figure=frame.figure,
        title="Average ranks and their critical difference",
        caption="Average rank, 1 is best, over blocks: pairs of benchmark and seed, of which each is the "
        "mean over the label budgets that all have, since nested budgets are no independent conditions. "
        f"A bar joins variants that Nemenyi's test does not tell apart (p ≥ {ALPHA}). {'; '.join(told)}.",
        alt=f"Average ranks of variants. {'; '.join(told)}.",
        numbers=pd.DataFrame(rows),
        run_ids=tuple(sorted(ids)),
        grid=NAMES[0],
    )


def over_all_budgets(runs: pd.DataFrame) -> pd.DataFrame:
    """A row per benchmark and seed, a column per variant: means over the budgets that all have."""
    table = runs.pivot(
        index=["benchmark", "seed", "budget"], columns="variant", values="miou"
    ).dropna()
    counts = table.groupby(["benchmark", "seed"]).size()
    most = counts.groupby("benchmark").transform("max")
    return table.groupby(["benchmark", "seed"]).mean()[counts == most]


def _panel(ax: Axes, one: Ranks) -> None:
    order = one.mean.sort_values()
    looks = style.looks([str(v) for v in order.index])
    for row, (variant, rank) in enumerate(order.items()):
        look = looks[str(variant)]
        ax.plot(rank, row, marker=look.marker, color=look.colour)
        ax.annotate(look.label, (rank, row), xytext=(6, 0), textcoords="offset points", va="center",
                    fontsize=SMALL)  # fmt: skip
    values, reached = list(order), -1
    for i, rank in enumerate(values):
        last = max(j for j, other in enumerate(values) if other - rank < one.critical)
        if last > i and last > reached:  # not within the bar before
            ax.plot(
                [rank, values[last]], [i - 0.35, i - 0.35], color=style.GREY, linewidth=3, alpha=0.6
            )
            reached = last
    ax.set_ylim(len(values) - 0.4, -0.9)
    ax.set_yticks([])
    ax.set_xlim(0.8, len(values) + 1.5)
    ax.set_xlabel("average rank")
