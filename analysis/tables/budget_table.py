"""Variant x label budget: measured over published, one block per benchmark.

Bold and underline are earned by a test, never by a higher mean alone.
"""

from typing import Any

import numpy as np
import pandas as pd

from analysis import style
from analysis.cells import Cells, by_seed, over_budgets, seeds_of, select
from analysis.comparisons import COMPARISONS, Comparison
from analysis.drawn import Block, Entry, Table
from analysis.paper import Published
from analysis.recipes import recipe_sentence
from analysis.runs import Tracked
from analysis.stats import ALPHA, Winners, average_ranks, winners
from analysis.tables.entries import DASH, SIZES, score_text, size_entries, sizes_of

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
    over_all = _ranks(table.set_index(["benchmark", "budget", "variant"])["mean"], comparison)
    table["rank_overall"] = table["variant"].map(over_all)
    return Table(
        name=name,
        title=f"{comparison.title}: mIoU by label budget",
        caption=_caption(chosen, comparison, table),
        stub=comparison.subject,
        blocks=tuple(blocks),
        numbers=table,
        run_ids=chosen.run_ids,
        grid=comparison.grid,
        missing=comparison.missing(chosen.runs, chosen.benchmarks),
    )


def _block(
    chosen: Cells, benchmark: str, comparison: Comparison, known: Known
) -> tuple[Block, list[dict[str, Any]]]:
    runs = chosen.of(benchmark)
    present = set(runs[comparison.field])
    variants = [v for v in comparison.variants if v in present or any(k[0] == v for k in known)]
    variants += sorted(present - set(variants))
    expected = {b for v in comparison.variants for b in comparison.expected(benchmark, v)}
    budgets = sorted(expected | set(runs["budget"]))
    measured = over_budgets(runs).set_index(["variant", "budget"])
    scores = {
        budget: {
            variant: by_seed(runs[(runs["variant"] == variant) & (runs["budget"] == budget)])
            for variant in variants
            if (variant, budget) in measured.index
        }
        for budget in budgets
    }
    ahead = winners(scores)
    ranks = _ranks(measured["mean"], comparison)
    rows = []
    for variant in variants:
        entries = [
            _entry(measured, known, ahead[budget], variant, budget) for budget in budgets
        ]  # fmt: skip
        rank = ranks.get(variant, np.nan)
        entries.append(Entry(DASH if np.isnan(rank) else f"{rank:.1f}"))
        if comparison.sized:
            entries += size_entries(runs[runs["variant"] == variant])
        rows.append((style.label(variant), tuple(entries)))
    columns = (*(f"{b:,}" for b in budgets), "rank", *(SIZES if comparison.sized else ()))
    numbers = [
        _numbers(measured, known, ahead[b], variant, b)
        | sizes_of(runs[runs["variant"] == variant])
        | {"benchmark": benchmark, "caveat": chosen.mark(benchmark), "rank": ranks.get(variant)}
        for variant in variants
        for b in budgets
        if (variant, b) in measured.index or (variant, b) in known
    ]
    return Block(chosen.heading(benchmark), columns, tuple(rows)), numbers


def _ranks(means: pd.Series, comparison: Comparison) -> pd.Series:
    """Average rank by variant over the conditions that all have.

    Args:
        means: indexed by condition and, last, `variant`.
    """
    table = means.unstack("variant").dropna(axis=1, how="all")
    return average_ranks(table.drop(columns=list(comparison.unlabelled), errors="ignore"))


def _entry(
    measured: pd.DataFrame, known: Known, ahead: Winners, variant: str, budget: int
) -> Entry:
    """Measured over published."""
    published = known.get((variant, budget))
    under = ""
    if published:
        under = f"{'≥ ' if published.kind == 'bound' else ''}{published.miou:.1f}"
    if (variant, budget) not in measured.index:
        return Entry(DASH, under)
    mean, std, n = (measured[name][(variant, budget)] for name in ("mean", "std", "n"))
    mark = "best" if variant == ahead.best else "second" if variant == ahead.second else ""
    return Entry(score_text(mean, std, n), under, mark)


def _numbers(
    measured: pd.DataFrame, known: Known, ahead: Winners, variant: str, budget: int
) -> dict[str, Any]:
    row: dict[str, Any] = {"benchmark": "", "variant": variant, "budget": budget}
    for name in ("mean", "std", "n", "low", "high"):
        there = (variant, budget) in measured.index
        row[name] = (
            measured.loc[(variant, budget), name] if there else (0 if name == "n" else np.nan)
        )
    published = known.get((variant, budget))
    row |= {
        "published": published.miou if published else np.nan,
        "kind": published.kind if published else "",
        "source": published.source if published else "",
    }
    row["minus_published"] = row["mean"] - row["published"]
    tests = ahead.tests[ahead.tests["ours"] == variant]
    row["p_holm_largest"] = tests["p_holm"].max() if len(tests) else np.nan
    row["mark"] = "best" if variant == ahead.best else "second" if variant == ahead.second else ""
    return row


def _caption(chosen: Cells, comparison: Comparison, table: pd.DataFrame) -> str:
    measured = table[table["n"] > 0]
    counts = [int(n) for n in measured["n"]]
    parts = [
        "Mean IoU (%) on the target's validation images by number of labelled target images. "
        "Upper line of a cell: measured, mean ± sample "
        f"standard deviation (number of seeds: {seeds_of(counts)})."
    ]
    if table["published"].notna().any():
        parts.append("Lower line: published.")
        if (table["kind"] == "bound").any():
            parts.append("≥: the paper's text bounds the value only.")
    if max(counts) > 1:
        parts.append(
            "Bold: above every other row of its column; underlined: the second, above every row below "
            f"it; both by two-sided paired t-tests over seeds, p < {ALPHA} after Holm's correction over "
            "all tests of the benchmark."
        )
    else:
        parts.append("One seed per cell: no test is possible, and nothing is marked.")
    parts.append("Rank: average over the budgets that every row has, 1 is best.")
    over_all = measured.drop_duplicates("variant").set_index("variant")["rank_overall"].dropna()
    if measured["benchmark"].nunique() > 1 and len(over_all):
        told = ", ".join(f"{style.label(str(v))} {rank:.1f}" for v, rank in over_all.items())
        parts.append(f"Average rank over budgets and benchmarks: {told}.")
    if comparison.sized:
        parts.append("M par.: million parameters of the network; ms: for one image.")
    if comparison.field == "method":
        parts.append(recipe_sentence(chosen.runs))
    return " ".join([*parts, chosen.note()])
