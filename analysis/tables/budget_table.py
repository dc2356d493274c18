"""Variant x label budget: measured over published, one block per benchmark.

Bold is earned by a test, never by a higher mean alone.
"""

from typing import Any

import numpy as np
import pandas as pd

from analysis import style
from analysis.cells import Cells, over_budgets, select
from analysis.comparisons import COMPARISONS, Comparison
from analysis.drawn import Block, Entry, Table
from analysis.paper import Published
from analysis.recipes import recipe_sentence
from analysis.runs import Tracked
from analysis.stats import ALPHA, MARK_SEEDS, Ranks, best_sets, ranks
from analysis.tables.entries import DASH, RANK, SIZES, size_entries, sizes_of
from analysis.verdicts import verdicts

Known = dict[tuple[str, int], Published]


def make(tracked: Tracked, name: str) -> Table:
    """The table of a comparison.

    Raises:
        AnalysisError: no run of its grid.
    """
    comparison = COMPARISONS[name]
    chosen = select(tracked, comparison.grid, comparison.field)
    blocks, rows = [], []
    for benchmark in chosen.benchmarks:
        known = {
            (p.variant, p.budget): p for p in comparison.published() if p.benchmark == benchmark
        }
        block, numbers = _block(chosen, benchmark, comparison, known)
        blocks.append(block)
        rows += numbers
    table = pd.DataFrame(rows)
    told, tests = verdicts(chosen, without=comparison.unlabelled)
    return Table(
        name=name,
        title=f"{comparison.title}: mIoU by label budget",
        about=f"{comparison.title}: mean IoU (%) by number of labelled target images.",
        caption=" ".join([*told, _caption(chosen, comparison, table)]),
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
    chosen: Cells, benchmark: str, comparison: Comparison, known: Known
) -> tuple[Block, list[dict[str, Any]]]:
    runs = chosen.of(benchmark)
    present = comparison.present(runs)
    variants = [v for v in comparison.variants if v in present or any(k[0] == v for k in known)]
    variants += [v for v in present if v not in variants]
    expected = {b for v in comparison.variants for b in comparison.expected(benchmark, v)}
    budgets = sorted(expected | set(runs["budget"]))
    measured = over_budgets(runs).set_index(["variant", "budget"])
    best = best_sets({budget: here for budget, here in runs.groupby("budget")})
    ranked = _ranks(runs, comparison)
    rows, numbers = [], []
    for variant in variants:
        mine = runs[runs["variant"] == variant]
        entries = []
        for budget in budgets:
            members, p = best.get(budget, (set(), np.nan))
            some = members != set(runs[runs["budget"] == budget]["variant"])
            marked = some and variant in members
            published = known.get((variant, budget))
            there = (variant, budget) in measured.index
            row: dict[Any, Any] = (
                measured.loc[[(variant, budget)]].iloc[0].to_dict() if there else {}
            )
            entries.append(_entry(row, published, marked))
            if row or published:
                numbers.append(
                    {"benchmark": benchmark, "caveat": chosen.mark(benchmark), "variant": variant,
                     "budget": budget, **(row or {"mean": np.nan, "n": 0}), **_published(row, published),
                     "best": marked, "p_best": p, "rank": ranked.mean.get(variant, np.nan),
                     "rank_blocks": ranked.blocks, **sizes_of(mine),
                     "without_result": chosen.without_result(variant)}
                )  # fmt: skip
        rank = ranked.mean.get(variant, np.nan)
        entries.append(Entry(DASH if np.isnan(rank) else f"{rank:.1f}"))
        if comparison.sized:
            entries += size_entries(mine)
        rows.append((style.label(variant), tuple(entries)))
    sizes = SIZES if comparison.sized else ()
    columns = (*(f"{b:,}" for b in budgets), f"{RANK} (n={ranked.blocks})", *sizes)
    return Block(chosen.heading(benchmark), columns, tuple(rows)), numbers


def _ranks(runs: pd.DataFrame, comparison: Comparison) -> Ranks:
    """Over pairs of budget and seed that all variants have, but for those without labels."""
    mine = runs[~runs["variant"].isin(comparison.unlabelled)]
    return ranks(mine.pivot(index=["budget", "seed"], columns="variant", values="miou"))


def _entry(row: dict[str, Any], published: Published | None, marked: bool) -> Entry:
    """Measured over published."""
    under = ""
    if published:
        under = f"{'≥ ' if published.kind == 'bound' else ''}{published.miou:.1f}"
    if not row:
        return Entry(DASH, under=under)
    return Entry(under=under, mark=marked, value=row["mean"], std=row["std"], n=int(row["n"]))


def _published(row: dict[str, Any], published: Published | None) -> dict[str, Any]:
    """A bound is a value that nothing is subtracted from."""
    if published is None:
        return {"published": np.nan, "kind": "", "source": "", "minus_published": np.nan}
    compared = row and published.kind != "bound"
    return {
        "published": published.miou, "kind": published.kind, "source": published.source,
        "minus_published": row["mean"] - published.miou if compared else np.nan,
    }  # fmt: skip


def _caption(chosen: Cells, comparison: Comparison, table: pd.DataFrame) -> str:
    parts = ["Mean IoU (%) on the target's validation images by number of labelled target images."]
    if (table["kind"] == "bound").any():
        parts.append("≥: the paper's text bounds the value only.")
    if table["n"].max() >= MARK_SEEDS:
        parts.append(
            "Bold: the rows of a column that are not shown to be below its best, where some are; two-sided "
            f"paired t-tests over seeds, p < {ALPHA}, the largest of a column after Holm's correction over "
            "the columns of the benchmark."
        )
    parts.append("Rank: average over the n pairs of budget and seed that every row has, 1 is best.")
    if comparison.sized:
        parts.append("M par.: million parameters of the network; ms: for one image.")
    if comparison.field == "method":
        parts.append(recipe_sentence(chosen.runs))
    return " ".join([*parts, chosen.note()])
