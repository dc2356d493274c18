"""What a figure or table module returns."""

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd
from matplotlib.figure import Figure

from analysis.runs import Tracked


@dataclass(frozen=True)
class Drawn:
    """A figure and what is in it.

    Attributes:
        title: a few words.
        caption: for a paper: what is shown, spread, number of seeds, tests, what is left out.
        alt: what the picture shows, for those who cannot see it.
        numbers: all that is drawn and the published values beside it, one row each.
        run_ids: the runs behind the numbers.
        grid: the grid whose runs it shows.
        missing: in one line, which cells have no run yet; empty if all have one.
    """

    figure: Figure
    title: str
    caption: str
    alt: str
    numbers: pd.DataFrame
    run_ids: tuple[str, ...]
    grid: str
    missing: str = ""


@dataclass(frozen=True)
class Entry:
    """One cell of a table.

    Attributes:
        text: what was measured.
        under: what was published, shown below it; empty for nothing.
        mark: `best` is set bold, `second` is underlined.
    """

    text: str
    under: str = ""
    mark: str = ""


@dataclass(frozen=True)
class Block:
    """Rows under one heading: each a name and as many entries as there are columns."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Entry, ...]], ...]


@dataclass(frozen=True)
class Table:
    """Blocks below one another; what is not said here is as of `Drawn`.

    Attributes:
        name: the last part of the LaTeX label.
        stub: heading of the column of names.
    """

    name: str
    title: str
    caption: str
    stub: str
    blocks: tuple[Block, ...]
    numbers: pd.DataFrame
    run_ids: tuple[str, ...]
    grid: str
    missing: str = ""


DrawFigure = Callable[[Tracked], Drawn]
MakeTable = Callable[[Tracked], Table]
