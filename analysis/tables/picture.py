"""A table as a picture in the manner of a paper's, for slides and for those without LaTeX."""

from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath

from analysis.drawn import Row, Table
from analysis.style import GREY

LINE, GAP, SIZE = 0.155, 0.14, 7  # inches between lines and between columns; points


def picture(table: Table) -> Figure:
    """Blocks with rules above, between and below; published values in grey under the measured.

    Args:
        table: as it is shown. The picture is as wide as its text: no column runs into another.
    """
    names = [table.stub, *(name for block in table.blocks for name, _ in block.rows)]
    ends = [max(map(_inches, names)) + GAP]  # of each column, in inches
    for i in range(max(len(block.columns) for block in table.blocks)):
        texts = [block.columns[i] for block in table.blocks if i < len(block.columns)]
        entries = [entry for block in table.blocks for entry in block.column(i)]
        texts += [entry.under for entry in entries]
        wide = max([*map(_inches, texts), *(_inches(e.words, e.mark) for e in entries)])
        ends.append(ends[-1] + wide + GAP)
    total = sum(2.6 + sum(map(_height, block.rows)) for block in table.blocks) + 0.5
    width = max(ends[-1], *(_inches(block.title) for block in table.blocks))
    figure = plt.figure(figsize=(width, total * LINE))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(-0.02, width + 0.04), ylim=(total, 0))  # letters reach past their place
    axes.set_axis_off()

    def text(x: float, y: float, words: str, **how: Any) -> None:
        axes.text(x, y, words, va="center", fontsize=SIZE, **how)

    def rule(y: float, weight: float) -> None:
        axes.plot([0, width], [y, y], color="black", linewidth=weight, clip_on=False)

    y = 0.2
    for i, block in enumerate(table.blocks):
        rule(y, 0.5 if i else 1.0)
        text(0, y + 0.75, block.title, style="italic")
        text(0, y + 1.75, table.stub)
        for end, column in zip(ends[1:], block.columns, strict=False):
            text(end, y + 1.75, column, ha="right")
        y += 2.4
        rule(y, 0.5)
        for name, row in block.rows:
            text(0, y + 0.65, name)
            for end, entry in zip(ends[1:], row, strict=False):
                text(
                    end,
                    y + 0.65,
                    entry.words,
                    ha="right",
                    weight="bold" if entry.mark else "normal",
                )
                text(end, y + 1.5, entry.under, ha="right", style="italic", color=GREY)
            y += _height((name, row))
        y += 0.2
    rule(y, 1.0)
    return figure


def _inches(text: str, bold: bool = False) -> float:
    """How wide a text is set."""
    font = FontProperties(weight="bold" if bold else "normal", size=SIZE)
    return TextPath((0, 0), text, prop=font).get_extents().width / 72 if text.strip() else 0.0


def _height(row: Row) -> float:
    return 2.0 if any(entry.under for entry in row[1]) else 1.1
