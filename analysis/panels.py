"""The frame of every figure: exact widths, rows of two panels, one legend outside. No figure decides these.

frame = panels(benchmarks, rows=2, heights=(1, 2))
for benchmark, (above, below) in frame:
    ...
legend(frame.figure)
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.style import COLUMN, PAGE

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

    @property
    def first(self) -> tuple[Axes, ...]:
        """The axes of the panels that begin a row: those that name what is on the left."""
        across = min(self.across, len(self.names))
        return tuple(ax for i, column in enumerate(self.axes) if i % across == 0 for ax in column)


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
