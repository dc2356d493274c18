"""Which variant is best, in words and as a table: per benchmark, and over the benchmarks of one kind."""

from collections.abc import Collection
from dataclasses import asdict

import numpy as np
import pandas as pd

from analysis import style
from analysis.cells import Cells
from analysis.stats import ALPHA, CLAIM_SEEDS, Paired, Verdict, interquartile_mean, verdict


def verdicts(cells: Cells, without: Collection[str] = ()) -> tuple[tuple[str, ...], pd.DataFrame]:
    """A sentence for each benchmark, and one over all that are marked alike (toy and real never together).

    Args:
        without: variants that cannot win, as bounds cannot.

    Returns:
        The sentences, and a row for each test behind them.
    """
    cells = cells.only([v for v in cells.runs["variant"].unique() if v not in without])
    kinds: dict[str, list[str]] = {}
    for benchmark in cells.benchmarks:
        kinds.setdefault(cells.mark(benchmark), []).append(benchmark)
    places = [(cells.heading(name), [name]) for names in kinds.values() for name in names]
    places += [
        (f"Over {len(names)} benchmarks" + (f" ({kind})" if kind else ""), names)
        for kind, names in kinds.items()
        if len(names) > 1
    ]
    told, rows = [], []
    for where, names in places:
        runs = cells.runs[cells.runs["benchmark"].isin(names)]
        if (found := verdict(runs)) is None:
            continue
        told.append(f"{where}: {in_words(found, runs)}")
        by_variant = runs.groupby("variant")["miou"]
        iqm = {str(variant): interquartile_mean(list(scores)) for variant, scores in by_variant}
        rows += [
            {"where": where, "leader": found.leader, "other": other, **asdict(test),
             "leader_iqm": iqm[found.leader], "other_iqm": iqm[other],
             "largest_p": found.p, "best": found.sure}
            for other, test in found.tests.items()
        ]  # fmt: skip
    return tuple(told), pd.DataFrame(rows)


def in_words(found: Verdict, runs: pd.DataFrame) -> str:
    """The verdict on `runs` as sentences, with difference, interval, p, n and what n seeds could show."""
    near = found.tests[found.nearest]
    leader, other = style.label(found.leader), style.label(found.nearest)
    over = _over(near, runs)
    gap = f"{difference(near)} on {other}"
    apart = [style.label(v) for v in found.uncompared]
    missed = f" Not compared, for want of a seed in common: {', '.join(apart)}." if apart else ""
    if found.n < 2:
        return f"{leader} leads {over} by {gap}; one seed, so that no test is possible.{missed}"
    how = f"paired over {found.n} seeds, p = {p_text(near.p)}, better in {100 * near.better:.0f}% of pairs"
    if found.sure:
        return f"{leader} is best {over}: {gap}, the nearest ({how})."
    text = f"none is shown to be best {over}. {leader} leads by {gap} ({how}).{missed}"
    if found.n < CLAIM_SEEDS:
        return f"{text} A verdict takes {CLAIM_SEEDS} seeds."
    if below := [style.label(v) for v, test in found.tests.items() if test.p_holm < ALPHA]:
        text += f" It is above {', '.join(below)}."
    if np.isfinite(near.detectable):
        text += f" With {found.n} seeds, differences of {near.detectable:.1f} points or more would show."
    return text


def difference(test: Paired) -> str:
    """`+1.2 [0.4, 2.0]`; without the interval where there is none."""
    interval = "" if np.isnan(test.low) else f" [{test.low:.1f}, {test.high:.1f}]"
    return f"{test.difference:+.1f}{interval}"


def p_text(p: float) -> str:
    return "unknown" if np.isnan(p) else "0.001 or less" if p <= 0.001 else f"{p:.2g}"


def _over(test: Paired, runs: pd.DataFrame) -> str:
    budgets = runs["budget"].unique()
    if len(budgets) == 1:
        return f"at {budgets[0]:,} labels"
    conditions = f"{test.conditions} conditions" if runs["benchmark"].nunique() > 1 else ""
    return f"over {conditions or f'{test.conditions} label budgets'}"
