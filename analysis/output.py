"""What is made, as bytes that depend on the runs alone; and files that are whole or not there."""

import io
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from analysis.figures.drawing import Drawing
from analysis.style import paper_style
from analysis.tables.table import Table, latex, markdown

FORMATS = ("pdf", "png")
# No dates, so that the same runs give the same bytes.
_METADATA: dict[str, dict[str, str | None]] = {
    "pdf": {"CreationDate": None, "ModDate": None},
    "png": {"Software": None},
}


def figure_files(
    name: str, drawing: Drawing, formats: tuple[str, ...] = FORMATS
) -> dict[str, bytes]:
    """The picture in each format, its numbers and its caption, by file name."""
    files = {}
    with paper_style():
        for kind in formats:
            buffer = io.BytesIO()
            drawing.figure.savefig(buffer, format=kind, metadata=_METADATA[kind])
            files[f"{name}.{kind}"] = buffer.getvalue()
    files[f"{name}.csv"] = csv_bytes(drawing.numbers)
    files[f"{name}_caption.txt"] = f"{drawing.caption}\n".encode()
    return files


def table_files(name: str, table: Table) -> dict[str, bytes]:
    """The table as Markdown, LaTeX and CSV, by file name."""
    return {
        f"{name}_table.md": markdown(table).encode(),
        f"{name}_table.tex": latex(table).encode(),
        f"{name}_table.csv": csv_bytes(table.numbers),
    }


def csv_bytes(numbers: pd.DataFrame) -> bytes:
    return numbers.to_csv(index=False, float_format="%.6g", lineterminator="\n").encode()


def write(folder: Path, files: Mapping[str, bytes]) -> list[Path]:
    """Writes files, each replaced in one step: an old one stays whole until the new one is."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, content in files.items():
        handle, temporary = tempfile.mkstemp(prefix=f".{name}.", dir=folder)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            os.chmod(temporary, 0o666 & ~_umask())  # a temporary file is for its owner alone
            os.replace(temporary, folder / name)
        except BaseException:
            os.unlink(temporary)
            raise
        written.append(folder / name)
    return written


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
