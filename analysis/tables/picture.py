"""A table as a picture in the manner of a paper's, for slides and for those without LaTeX."""

from collections.abc import Iterable

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath

from analysis.drawn import Entry, Table
from analysis.style import GREY

LINE, GAP, SIZE = 0.155, 0.14, 7  # inches between lines and between columns; points


def picture(table: Table) -> Figure:
    """Blocks with rules above, between and below; published values in grey under the measured.

    Args:
        table: as it is shown. The picture is as wide as its text: no column runs into another.
    """
    count = max(len(block.columns) for block in table.blocks)
    names = [table.stub, *(name for block in table.blocks for name, _ in block.rows)]
    widths = [max(map(_inches, names)) + GAP]
    for i in range(count):
        texts = [block.columns[i] for block in table.blocks if i < len(block.columns)]
        entries = [row[i] for block in table.blocks for _, row in block.rows if i < len(row)]
        widths.append(max([*map(_inches, texts), *(_inches(e.words, e.mark) for e in entries),
                           *(_inches(e.under) for e in entries)]) + GAP)  # fmt: skip
    total = sum(2.6 + sum(map(_height, block.rows)) for block in table.blocks) + 0.5
    width = max(sum(widths), *(_inches(block.title) for block in table.blocks))
    figure = plt.figure(figsize=(width, total * LINE))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(-0.02, width + 0.04), ylim=(total, 0))  # letters reach past their place
    axes.set_axis_off()
    places = [sum(widths[: i + 2]) for i in range(count)]
    y = 0.2
    for i, block in enumerate(table.blocks):
        _rule(axes, width, y, 0.5 if i else 1.0)
        axes.text(0, y + 0.75, block.title, style="italic", va="center", fontsize=SIZE)
        _row(axes, y + 1.75, table.stub, zip(places, block.columns, strict=False))
        y += 2.4
        _rule(axes, width, y, 0.5)
        for line in block.rows:
            _row(axes, y + 0.65, line[0], ())
            for place, entry in zip(places, line[1], strict=False):
                weight = "bold" if entry.mark else "normal"
                axes.text(
                    place,
                    y + 0.65,
                    entry.words,
                    ha="right",
                    va="center",
                    weight=weight,
                    fontsize=SIZE,
                )
                axes.text(place, y + 1.5, entry.under, ha="right", va="center", style="italic", color=GREY,
                          fontsize=SIZE)  # fmt: skip
            y += _height(line)
        y += 0.2
    _rule(axes, width, y, 1.0)
    return figure


def _inches(text: str, bold: bool = False) -> float:
    """How wide a text is set."""
    font = FontProperties(weight="bold" if bold else "normal", size=SIZE)
    return TextPath((0, 0), text, prop=font).get_extents().width / 72 if text.strip() else 0.0


def _height(row: tuple[str, tuple[Entry, ...]]) -> float:
    return 2.0 if any(entry.under for entry in row[1]) else 1.1


def _row(axes: Axes, y: float, name: str, columns: Iterable[tuple[float, str]]) -> None:
    axes.text(0, y, name, va="center", fontsize=SIZE)
    for place, text in columns:
        axes.text(place, y, text, ha="right", va="center", fontsize=SIZE)


def _rule(axes: Axes, width: float, y: float, weight: float) -> None:
    axes.plot([0, width], [y, y], color="black", linewidth=weight, clip_on=False)
