"""A table as a picture in the manner of a paper's, for slides and for those without LaTeX."""

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.drawn import Entry, Table
from analysis.style import GREY, PAGE

LINE = 0.155  # inches between two lines of text
MARK = {"best": "bold", "second": "normal", "": "normal"}


def picture(table: Table) -> Figure:
    """Blocks with rules above, between and below; published values in grey under the measured."""
    columns = max(len(block.columns) for block in table.blocks)
    total = sum(2.6 + sum(_height(row) for _, row in b.rows) for b in table.blocks) + 0.5
    width = min(PAGE, 1.7 + 0.95 * columns)
    figure = plt.figure(figsize=(width, total * LINE))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 1), ylim=(total, 0))
    axes.set_axis_off()
    first = 1.5 / width  # the names' share
    places = [first + (1 - first) * (i + 1) / columns for i in range(columns)]
    y = 0.2
    for i, block in enumerate(table.blocks):
        _rule(axes, y, 0.5 if i else 1.0)
        axes.text(0, y + 0.75, block.title, style="italic", va="center")
        axes.text(0, y + 1.75, table.stub, va="center")
        for place, name in zip(places, block.columns, strict=False):
            axes.text(place, y + 1.75, name, ha="right", va="center")
        y += 2.4
        _rule(axes, y, 0.5)
        for name, entries in block.rows:
            axes.text(0, y + 0.65, name, va="center")
            for place, entry in zip(places, entries, strict=False):
                _entry(axes, place, y + 0.65, entry)
            y += _height(entries)
        y += 0.2
    _rule(axes, y, 1.0)
    return figure


def _height(entries: tuple[Entry, ...]) -> float:
    return 2.0 if any(entry.under for entry in entries) else 1.1


def _entry(axes: Axes, x: float, y: float, entry: Entry) -> None:
    text = axes.text(
        x, y, entry.text, ha="right", va="center", weight=MARK[entry.mark], fontsize=7
    )  # fmt: skip
    if entry.mark == "second":
        box = text.get_window_extent().transformed(axes.transData.inverted())
        axes.plot([box.x0, box.x1], [y + 0.45] * 2, color="black", linewidth=0.6)
    if entry.under:
        axes.text(
            x,
            y + 0.85,
            entry.under,
            ha="right",
            va="center",
            style="italic",
            color=GREY,
            fontsize=7,
        )


def _rule(axes: Axes, y: float, weight: float) -> None:
    axes.plot([0, 1], [y, y], color="black", linewidth=weight, clip_on=False)
