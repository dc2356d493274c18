"""Variants over many conditions: average ranks with their critical difference, and performance profiles."""

from collections.abc import Callable
from typing import TypeVar

import pandas as pd
from matplotlib.axes import Axes

from analysis import style
from analysis.cells import seeds_of, select
from analysis.comparisons import COMPARISONS
from analysis.drawn import Drawn
from analysis.panels import SMALL, legend, panels
from analysis.runs import AnalysisError, Tracked
from analysis.stats import (
    ALPHA,
    CLAIM_SEEDS,
    PROFILE_CONDITIONS,
    RANK_BLOCKS,
    RANK_VARIANTS,
    Ranks,
    complete_blocks,
    profile,
    ranks,
)  # fmt: skip
from analysis.verdicts import p_text

NAMES = ("attention", "losses", "methods")
T = TypeVar("T")


def draw(tracked: Tracked) -> Drawn:
    """Average ranks: a panel for each comparison, its blocks the pairs of benchmark and seed.

    Raises:
        AnalysisError: no comparison has enough variants and blocks.
    """

    def tested(blocks: pd.DataFrame) -> Ranks | None:
        found = ranks(blocks.groupby(["benchmark", "seed"]).mean())
        return None if found.critical != found.critical else found

    found, run_ids = _of_comparisons(tracked, tested)
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
            f"{title}: {one.blocks} blocks, Friedman's p = {p_text(one.p)}, "
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
        run_ids=run_ids,
        grid=NAMES[0],
    )


def profiles(tracked: Tracked) -> Drawn:
    """Performance profiles: how often each variant is within so many points of the best.

    Raises:
        AnalysisError: no comparison has enough conditions and seeds.
    """
    found, run_ids = _of_comparisons(tracked, profile)
    if not found:
        raise AnalysisError(
            f"profiles take {PROFILE_CONDITIONS} pairs of benchmark and label budget with {CLAIM_SEEDS} "
            "seeds each that all variants have: give the sweep more --benchmark, --budgets or --seeds"
        )
    frame, told = panels(list(found), 1, 2.3, share=False), []
    for title, (ax,) in frame:
        table = found[title]
        looks = style.looks(list(table["variant"].unique()))
        for variant, look in looks.items():
            here = table[table["variant"] == variant]
            ax.step(here["points"], here["share"], where="post", color=look.colour, linestyle=look.dash,
                    label=look.label)  # fmt: skip
            ax.fill_between(here["points"], here["low"], here["high"], step="post", color=look.colour,
                            alpha=0.15, linewidth=0)  # fmt: skip
        conditions, seeds = table["conditions"].iloc[0], seeds_of(table["n"])
        ax.set_title(f"{title}\n{conditions} conditions, {seeds}", loc="left")
        ax.set_xlabel("points below the best")
        ax.set_ylim(0, 102)
        ax.set_xlim(0, table["points"].max())
        first = table[table["points"] == 0].sort_values("share", ascending=False)
        wins = (
            f"{looks[v].label} {s:.0f}%"
            for v, s in zip(first["variant"], first["share"], strict=True)
        )
        told.append(f"{title}: best in {', '.join(wins)} of {conditions} conditions")
    frame.name_rows(["conditions and seeds (%)"])
    legend(frame.figure)
    return Drawn(
        figure=frame.figure,
        title="Performance profiles over benchmarks and label budgets",
        caption="In how many of the conditions (pairs of benchmark and label budget) and seeds a variant is "
        "within so many points of mIoU of the best one of the same condition and seed (Dolan and Moré, "
        "2002): higher is better, and the left edge says how often it is the best. Benchmarks weigh alike. "
        "Band: 95% stratified bootstrap, seeds drawn anew within each benchmark with all of their label "
        f"budgets, which are nested. Of few seeds it is too narrow. {'; '.join(told)}.",
        alt=f"Step curves of performance profiles. {'; '.join(told)}.",
        numbers=pd.concat([t.assign(comparison=title) for title, t in found.items()], ignore_index=True),
        run_ids=run_ids,
        grid=NAMES[0],
    )  # fmt: skip


def _of_comparisons(
    tracked: Tracked, ask: Callable[[pd.DataFrame], T | None]
) -> tuple[dict[str, T], tuple[str, ...]]:
    """What is found of the complete blocks of each comparison, toy and real apart; and the runs behind it."""
    found: dict[str, T] = {}
    ids: set[str] = set()
    for comparison in (COMPARISONS[name] for name in NAMES):
        try:
            chosen = select(tracked, comparison.grid, comparison.field)
        except AnalysisError:
            continue
        runs = chosen.runs[~chosen.runs["variant"].isin(comparison.unlabelled)]
        marks = {name: chosen.mark(name) for name in chosen.benchmarks}
        for mark, here in runs.groupby(runs["benchmark"].map(marks)):
            if (one := ask(complete_blocks(here))) is not None:
                found[f"{comparison.title}{f' ({mark})' if mark else ''}"] = one
                ids |= set(here["run_id"])
    return found, tuple(sorted(ids))


def _panel(ax: Axes, one: Ranks) -> None:
    order = one.mean.sort_values()
    looks = style.looks([str(v) for v in order.index])
    for row, (variant, rank) in enumerate(order.items()):
        look = looks[str(variant)]
        ax.plot(rank, row, marker=look.marker, color=look.colour)
        left = rank > (1 + len(order)) / 2  # towards the middle, where there is room for long names
        ax.annotate(look.label, (rank, row), xytext=(-6 if left else 6, 0), textcoords="offset points",
                    va="center", ha="right" if left else "left", fontsize=SMALL)  # fmt: skip
    values, reached = list(order), -1
    for i, rank in enumerate(values):
        last = max(j for j, other in enumerate(values) if other - rank < one.critical)
        if last > i and last > reached:  # not within the bar before
            ax.plot([rank, values[last]], [i - 0.45] * 2, color=style.GREY, linewidth=3, alpha=0.6)
            reached = last
    ax.set_ylim(len(values) - 0.4, -0.9)
    ax.set_yticks([])
    ax.set_xlim(0.8, len(values) + 0.2)
    ax.set_xlabel("average rank")
