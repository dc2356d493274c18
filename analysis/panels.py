"""The frame of every figure: exact widths, rows of two panels, one legend outside. No figure decides these.

frame = panels(benchmarks, rows=2, heights=(1, 2))
for benchmark, (above, below) in frame:
    points(above, x, y, look, yerr=whiskers(y, low, high))
legend(frame.figure)
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from analysis.style import COLUMN, PAGE, Look

ACROSS = 2  # panels side by side: three are too narrow for their names
SMALL = 6.5  # points: no text is smaller after printing


@dataclass(frozen=True)
class Frame:
    """A figure of panels, each of one or more axes below one another."""

    figure: Figure
    names: tuple[str, ...]
    axes: tuple[tuple[Axes, ...], ...]
    across: int

    def __iter__(self) -> Iterator[tuple[str, tuple[Axes, ...]]]:
        return iter(zip(self.names, self.axes, strict=True))

    def name_rows(self, labels: Sequence[str]) -> None:
        """Names what is on the left, once for each row of axes."""
        for i, axes in enumerate(self.axes):
            if i % self.across == 0:
                for ax, text in zip(axes, labels, strict=True):
                    ax.set_ylabel(text)


def panels(
    names: Sequence[str],
    rows: int = 1,
    height: float = 2.0,
    heights: Sequence[float] = (),
    wide: bool = False,
    across: int = ACROSS,
    share: bool = True,
) -> Frame:
    """A panel for each name: one column of a page for a single panel, the page's width for more.

    Args:
        rows: axes of a panel, below one another with one x axis.
        height: of a panel in inches, without the legend.
        heights: of its axes, relative to one another.
        wide: a single panel takes the page's width as well.
        share: whether the panels of a figure have one y axis for each row of axes.
    """
    across = min(across, len(names))
    down = -(-len(names) // across)
    width = PAGE if wide or across > 1 else COLUMN
    figure = plt.figure(figsize=(width, height * down + 0.4), layout="constrained")
    grid = figure.add_gridspec(
        down * rows, across, height_ratios=list(heights or (1,) * rows) * down
    )
    found: list[tuple[Axes, ...]] = []
    for i in range(len(names)):
        own: list[Axes] = []
        for row in range(rows):
            same = found[0][row] if share and found else None
            place = grid[(i // across) * rows + row, i % across]
            own.append(figure.add_subplot(place, sharey=same, sharex=own[0] if own else None))
            if row < rows - 1:
                own[-1].tick_params(labelbottom=False)
        found.append(tuple(own))
    return Frame(figure, tuple(names), tuple(found), across)


def points(ax: Axes, x: Any, y: Any, look: Look, **how: Any) -> None:
    """Values and their spread in a variant's colour and marker, joined by nothing unless `how` says so."""
    usual = {"color": look.colour, "marker": look.marker, "linestyle": "none"}
    ax.errorbar(x, y, **{**usual, "capsize": 2, "elinewidth": 0.8, **how})


def whiskers(value: Any, low: Any, high: Any) -> np.ndarray | None:
    """(2, N), what an interval reaches below and above; of length 0 where it is unknown, None if all are."""
    ends = np.abs(
        np.array([low, high], dtype=float).reshape(2, -1) - np.asarray(value, dtype=float)
    )
    return None if np.isnan(ends).all() else np.nan_to_num(ends)


def heat_map(
    ax: Axes, values: Any, columns: Sequence[str], rows: Sequence[str], **how: Any
) -> AxesImage:
    """A heat map whose rows and columns are named."""
    image = ax.imshow(values, **how)
    ax.set_xticks(range(len(columns)), columns, rotation=90, fontsize=SMALL)
    ax.set_yticks(range(len(rows)), rows, fontsize=SMALL)
    ax.grid(False)
    return image


def legend(figure: Figure) -> None:
    """One legend below all panels, of every entry that some panel has, in as many columns as fit."""
    entries = {
        label: handle
        for panel in figure.axes
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    if not entries:
        return
    for columns in range(min(4, len(entries)), 0, -1):
        made = figure.legend(
            list(entries.values()), list(entries), loc="outside lower center", ncols=columns
        )
        if columns == 1 or made.get_window_extent().width < figure.bbox.width:
            return
        made.remove()
