"""What is made, as bytes that depend on the runs alone; and files that are whole or not there."""

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from analysis.drawn import Drawn, Table
from analysis.style import paper_style
from analysis.tables.entries import Shown, shown
from analysis.tables.picture import picture
from analysis.tables.write import latex, markdown

FORMATS = ("pdf", "png", "svg")
DEFAULT_FORMATS = ("pdf", "png")
# No dates, so that the same runs give the same bytes.
_METADATA: dict[str, dict[str, str | None]] = {
    "pdf": {"CreationDate": None, "ModDate": None},
    "png": {"Software": None},
    "svg": {"Date": None},
}


def figure_files(name: str, drawn: Drawn, formats: Sequence[str]) -> dict[str, bytes]:
    """The picture in each format and its numbers, by file name."""
    files = {f"{name}.{kind}": figure_bytes(drawn.figure, kind) for kind in formats}
    return files | {f"{name}.csv": csv_bytes(drawn.numbers)} | _tests(name, drawn.tests)


def table_files(name: str, table: Table, formats: Sequence[str], how: Shown) -> dict[str, bytes]:
    """The table as Markdown, LaTeX, CSV and as a picture in each format, by file name."""
    with paper_style():
        figure = picture(shown(table, how))
    files = {f"{name}_table.{kind}": figure_bytes(figure, kind) for kind in formats}
    plt.close(figure)
    return files | {
        f"{name}_table.md": markdown(table, how).encode(),
        f"{name}_table.tex": latex(table, how).encode(),
        f"{name}_table.csv": csv_bytes(table.numbers),
        **_tests(name, table.tests),
    }


def _tests(name: str, tests: pd.DataFrame) -> dict[str, bytes]:
    return {f"{name}_tests.csv": csv_bytes(tests)} if len(tests) else {}


def figure_bytes(figure: Figure, kind: str, dpi: float | None = None) -> bytes:
    """A figure as one of `FORMATS`, exactly as large as it was made."""
    buffer = io.BytesIO()
    with paper_style():
        _lay_out(figure)
        dpi = dpi or matplotlib.rcParams["savefig.dpi"]
        figure.savefig(buffer, format=kind, metadata=_METADATA[kind], dpi=dpi)
    return buffer.getvalue()


def _lay_out(figure: Figure) -> None:
    """Once, for all formats: matplotlib would lay out, and draw for that, before it draws each."""
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
        figure.set_layout_engine(None)


def csv_bytes(numbers: pd.DataFrame) -> bytes:
    return numbers.to_csv(index=False, float_format="%.6g", lineterminator="\n").encode()


def write(folder: Path, files: Mapping[str, bytes]) -> None:
    """Writes files, each replaced in one step: an old one stays whole until the new one is."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        part = folder / f".{name}.{os.getpid()}"
        try:
            part.write_bytes(content)
            os.replace(part, folder / name)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
