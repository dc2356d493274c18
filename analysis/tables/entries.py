"""What several tables write into their cells, and what of it a reader has asked for."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from analysis.drawn import Block, Entry, Table
from analysis.stats import ALPHA, MARK_SEEDS

DASH = "\N{EN DASH}"  # nothing was measured
RANK = "rank"  # the column that can be left out
SIZES = ("M par.", "ms")  # columns: million parameters of the network, milliseconds for one image
# What else a machine does slows a measurement, and a sweep fills the machine with runs.
LATENCY = "median time of one image, measured in each run beside whatever else its machine ran"
SIZES_WORDS = f"M par.: million parameters; ms: {LATENCY}."


@dataclass(frozen=True)
class Shown:
    """What of a table is shown.

    Attributes:
        published: a row of published values below each measured one.
        rank: the column of average ranks.
        decimals: of scores.
        columns: of the page that the LaTeX table spans, 1 or 2.
    """

    published: bool = True
    rank: bool = True
    decimals: int = 1
    columns: int = 2


def shown(table: Table, how: Shown) -> Table:
    """The table with the text of its numbers, and without what is not asked for."""
    usual = usual_seeds(table)
    blocks = []
    for block in table.blocks:
        keep = [i for i, name in enumerate(block.columns) if how.rank or not name.startswith(RANK)]
        rows = [
            (name, tuple(_worded(row[i], how, usual) for i in keep)) for name, row in block.rows
        ]
        blocks.append(Block(block.title, tuple(block.columns[i] for i in keep), tuple(rows)))
    return replace(table, blocks=tuple(blocks))


def usual_seeds(table: Table) -> int:
    """The number of seeds that most cells have; the others say theirs."""
    counts = Counter(entry.n for entry in table.entries if entry.n)
    return max(counts, key=lambda n: (counts[n], n), default=0)


def _worded(entry: Entry, how: Shown, usual: int) -> Entry:
    under = entry.under if how.published else ""
    if not entry.n:
        return replace(entry, under=under)
    spread = f"± {entry.std:.{how.decimals}f}" if entry.n > 1 and np.isfinite(entry.std) else ""
    seeds = f"({entry.n})" if entry.n != usual else ""
    text = f"{entry.value:.{how.decimals}f}" if abs(entry.value) < 1e6 else f"{entry.value:.3g}"
    return replace(entry, text=text, tail=f"{spread} {seeds}".strip(), under=under)


def short_caption(table: Table) -> str:
    """What a paper needs to say of the table as it is shown, in at most 70 words."""
    usual = usual_seeds(table)
    told = [table.about]
    if usual:
        spread = "Mean ± standard deviation" if usual > 1 else "Values"
        other = ", unless in brackets" if any(e.n not in (0, usual) for e in table.entries) else ""
        told.append(f"{spread} over {usual} seed{'' if usual == 1 else 's'}{other}.")
    if any(entry.under for entry in table.entries):
        told.append("Below: published.")
    if any("†" in entry.under for entry in table.entries):
        told.append("†: read off other numbers.")
    if any(entry.mark for entry in table.entries):
        told.append(f"Bold: not shown to be below the best (paired t-tests, p < {ALPHA}, Holm).")
    elif 0 < usual < MARK_SEEDS:
        told.append(f"No marks below {MARK_SEEDS} seeds.")
    columns = [name for block in table.blocks for name in block.columns]
    if any(name.startswith(RANK) for name in columns):
        told.append("Rank: mean over n pairs of budget and seed.")
    if SIZES[-1] in columns:
        told.append(SIZES_WORDS)
    return " ".join(told)


def measured(row: Mapping[Any, Any] | None, under: str = "", mark: bool = False) -> Entry:
    """Mean, spread and seeds of `row` (`mean`, `std`, `n`), a dash where nothing was measured."""
    if not row or not row["n"]:
        return Entry(DASH, under=under)
    return Entry(under=under, mark=mark, value=row["mean"], std=row["std"], n=int(row["n"]))


def sizes_of(runs: pd.DataFrame) -> dict[str, float]:
    """Means of the number of parameters of the whole network and of milliseconds for one image.

    NaN where no run has logged them.
    """
    names = ("parameters", "latency_ms")
    return {name: float(runs[name].mean()) if name in runs else np.nan for name in names}


def size_entries(runs: pd.DataFrame) -> list[Entry]:
    """What stands below `SIZES`."""
    sizes = sizes_of(runs)
    texts = f"{sizes['parameters'] / 1e6:.2f}", f"{sizes['latency_ms']:.1f}"
    return [Entry(DASH if text == "nan" else text) for text in texts]
