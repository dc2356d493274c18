"""What a figure or table module returns."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.runs import Tracked


@dataclass(frozen=True, kw_only=True)
class Shows:
    """What figures and tables both say.

    Attributes:
        title: a few words.
        caption: what is shown, spread, seeds, tests, what is left out; the verdicts are told before it.
        numbers: all that is drawn and the published values beside it, one row each.
        run_ids: the runs behind the numbers.
        grid: the grid whose runs it shows.
        missing: in one line, which cells have no run yet; empty if all have one.
        verdicts: which variant is best, a sentence for each benchmark.
        tests: what the verdicts rest on, one row each.
    """

    title: str
    caption: str
    numbers: pd.DataFrame
    run_ids: tuple[str, ...]
    grid: str
    missing: str = ""
    verdicts: tuple[str, ...] = ()
    tests: pd.DataFrame = field(default_factory=pd.DataFrame)


@dataclass(frozen=True, kw_only=True)
class Drawn(Shows):
    """A figure and what is in it; `alt` is for those who cannot see it."""

    figure: Figure
    alt: str


@dataclass(frozen=True)
class Entry:
    """One cell of a table.

    Attributes:
        text: what stands there; of a number, all but its spread.
        tail: spread and number of seeds, set smaller.
        under: what was published, shown below it; empty for nothing.
        mark: whether it is set bold.
        value, std, n: the number itself, of which `text` and `tail` are made; NaN and 0 for others.
    """

    text: str = ""
    tail: str = ""
    under: str = ""
    mark: bool = False
    value: float = np.nan
    std: float = np.nan
    n: int = 0

    @property
    def words(self) -> str:
        """`22.0 ± 2.8 (2)`."""
        return f"{self.text} {self.tail}".strip()


Row = tuple[str, tuple[Entry, ...]]


@dataclass(frozen=True)
class Block:
    """Rows under one heading: each a name and as many entries as there are columns."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]

    def column(self, place: int) -> list[Entry]:
        return [entries[place] for _, entries in self.rows if place < len(entries)]


@dataclass(frozen=True, kw_only=True)
class Table(Shows):
    """Blocks below one another.

    Attributes:
        name: the last part of the LaTeX label.
        about: the caption's first words: what the numbers are, in at most 25 words.
        stub: heading of the column of names.
    """

    name: str
    about: str
    stub: str
    blocks: tuple[Block, ...]

    @property
    def entries(self) -> list[Entry]:
        return [entry for block in self.blocks for _, row in block.rows for entry in row]


DrawFigure = Callable[[Tracked], Drawn]
MakeTable = Callable[[Tracked], Table]
