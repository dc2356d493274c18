"""Variant x label budget: measured over published, one block per benchmark.

Bold is earned by a test, never by a higher mean alone.
"""

from collections.abc import Hashable
from typing import Any

import numpy as np
import pandas as pd

from analysis import style
from analysis.cells import Cells, over_budgets, select
from analysis.comparisons import COMPARISONS, Comparison
from analysis.drawn import Block, Entry, Table
from analysis.paper import READ_OFF, Published
from analysis.recipes import recipe_sentence
from analysis.runs import Tracked
from analysis.stats import ALPHA, MARK_SEEDS, best_sets, ranks
from analysis.tables.entries import DASH, RANK, SIZES, measured, size_entries, sizes_of
from analysis.verdicts import verdicts


def make(tracked: Tracked, name: str) -> Table:
    """The table of a comparison.

    Raises:
        AnalysisError: no run of its grid.
    """
    comparison = COMPARISONS[name]
    chosen = select(tracked, comparison.grid, comparison.field)
    rows: list[dict[Any, Any]] = []
    blocks = [_block(chosen, benchmark, comparison, rows) for benchmark in chosen.benchmarks]
    table = pd.DataFrame(rows)
    told, tests = verdicts(chosen, without=comparison.unlabelled)
    return Table(
        name=name,
        title=f"{comparison.title}: mIoU by label budget",
        about=f"{comparison.title}: mean IoU (%) by number of labelled target images.",
        caption=_caption(chosen, comparison, table),
        stub=comparison.subject,
        blocks=tuple(blocks),
        numbers=table,
        run_ids=chosen.run_ids,
        grid=comparison.grid,
        missing=comparison.missing(chosen.runs, chosen.benchmarks),
        verdicts=told,
        tests=tests,
    )


def _block(
    chosen: Cells, benchmark: str, comparison: Comparison, numbers: list[dict[Any, Any]]
) -> Block:
    """One benchmark's; adds a row of `numbers` for each cell that was measured or published."""
    runs = chosen.of(benchmark)
    known = {(p.variant, p.budget): p for p in comparison.published() if p.benchmark == benchmark}
    present = comparison.present(runs)
    variants = [v for v in comparison.variants if v in present or any(k[0] == v for k in known)]
    variants += [v for v in present if v not in variants]
    expected = {b for v in comparison.variants for b in comparison.expected(benchmark, v)}
    budgets = sorted(expected | set(runs["budget"]))
    cells = over_budgets(runs).set_index(["variant", "budget"]).to_dict("index")
    by_budget: dict[Hashable, pd.DataFrame] = {b: here for b, here in runs.groupby("budget")}
    best = best_sets(by_budget)
    ranked = ranks(  # over pairs of budget and seed that all variants have, but for those without labels
        runs[~runs["variant"].isin(comparison.unlabelled)]
        .pivot(index=["budget", "seed"], columns="variant", values="miou")
    )  # fmt: skip
    rows = []
    for variant in variants:
        mine = runs[runs["variant"] == variant]
        rank = ranked.mean.get(variant, np.nan)
        entries = []
        for budget in budgets:
            members, p = best.get(budget, (set(), np.nan))
            marked = variant in members and members != set(by_budget[budget]["variant"])
            row, published = cells.get((variant, budget)), known.get((variant, budget))
            entries.append(measured(row, published.text if published else "", marked))
            if row or published:
                numbers.append(
                    {"benchmark": benchmark, "caveat": chosen.mark(benchmark), "variant": variant,
                     "budget": budget, **(row or {"mean": np.nan, "n": 0}), **_published(row, published),
                     "best": marked, "p_best": p, "rank": rank, "rank_blocks": ranked.blocks,
                     **sizes_of(mine), "without_result": chosen.without_result(variant)}
                )  # fmt: skip
        entries.append(Entry(DASH if np.isnan(rank) else f"{rank:.1f}"))
        entries += size_entries(mine) if comparison.sized else []
        rows.append((style.label(variant), tuple(entries)))
    sizes = SIZES if comparison.sized else ()
    columns = (*(f"{b:,}" for b in budgets), f"{RANK} (n={ranked.blocks})", *sizes)
    return Block(chosen.heading(benchmark), columns, tuple(rows))


def _published(row: dict[Any, Any] | None, published: Published | None) -> dict[str, Any]:
    """A bound is a value that nothing is subtracted from."""
    if published is None:
        return {"published": np.nan, "kind": "", "source": "", "minus_published": np.nan}
    gap = row["mean"] - published.miou if row and published.kind != "bound" else np.nan
    return {"published": published.miou, "kind": published.kind, "source": published.source,
            "minus_published": gap}  # fmt: skip


def _caption(chosen: Cells, comparison: Comparison, table: pd.DataFrame) -> str:
    parts = ["Mean IoU (%) on the target's validation images by number of labelled target images."]
    if (table["kind"] == "bound").any():
        parts.append("≥: the paper's text bounds the value only.")
    if table["kind"].isin(READ_OFF).any():
        parts.append("†: read off another number of the paper.")
    if table["n"].max() >= MARK_SEEDS:
        parts.append(
            "Bold: the rows of a column that are not shown to be below its best, where some are; two-sided "
            f"paired t-tests over seeds, p < {ALPHA}, the largest of a column after Holm's correction over "
            "the columns of the benchmark."
        )
    parts.append("Rank: average over the n pairs of budget and seed that every row has, 1 is best.")
    if comparison.field == "method":
        parts.append(recipe_sentence(chosen.runs))
    return " ".join([*parts, chosen.note()])
