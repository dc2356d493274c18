"""Draws every figure and table from the tracked runs, and a report of them all.

    python analysis/make_figures.py
    python analysis/make_figures.py --only attention --format pdf --out DIR
    python analysis/make_figures.py --watch 60

A figure comes as PDF and PNG with its numbers as CSV, a table as Markdown and LaTeX besides, and
`report.html` holds all of them in one page. The same runs give the same bytes.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import matplotlib
import matplotlib.pyplot as plt
import typer
from rich.console import Console
from rich.markup import escape

from analysis.drawn import Drawn, Table
from analysis.figures import FIGURES
from analysis.output import DEFAULT_FORMATS, FORMATS, figure_files, table_files, write
from analysis.report import report
from analysis.runs import AnalysisError, Tracked, load_runs
from analysis.style import paper_style
from analysis.tables import TABLES
from analysis.upload import upload
from semidavil.place import home

console = Console()
HOME = home()
NAMES = list(dict.fromkeys([*FIGURES, *TABLES]))


@dataclass
class Made:
    """What the runs allow: figures and tables by name, and why others are left out."""

    figures: dict[str, Drawn] = field(default_factory=dict)
    tables: dict[str, Table] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)  # by grid, by file name


def main(
    only: Annotated[
        list[str] | None, typer.Option(help=f"Of {', '.join(NAMES)}. [default: all]")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder to write.")] = HOME / "figures",
    formats: Annotated[
        list[str] | None,
        typer.Option("--format", help=f"{', '.join(FORMATS)}. [default: pdf and png]"),
    ] = None,
    experiment: Annotated[
        list[str] | None, typer.Option(help="Only runs of this grid. [default: all]")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Only runs of this many steps. [default: the longest]")
    ] = None,
    keep: Annotated[
        bool, typer.Option(help="Also put each into MLflow, beside its grid's plan and results.")
    ] = True,
    watch: Annotated[
        float | None, typer.Option(min=1, help="Repeat after so many seconds if runs were added.")
    ] = None,
    tracking_uri: Annotated[
        str | None, typer.Option(envvar="MLFLOW_TRACKING_URI", help="The MLflow store.")
    ] = None,
) -> None:
    """Reads the tracked runs and makes the figures, tables and report that they allow."""
    matplotlib.use("Agg")
    matplotlib.rcParams["figure.max_open_warning"] = 0  # the report needs all of them
    seen: frozenset[str] = frozenset()
    while True:
        try:
            _check(only or (), NAMES, "figure")
            _check(formats or (), FORMATS, "format")
            tracked = load_runs(tracking_uri, experiment or ())
            if steps is not None:
                tracked = _of_steps(tracked, steps)
            found = frozenset(tracked.table["run_id"])
            if found != seen:
                made = make_all(tracked, only or (), out, formats or DEFAULT_FORMATS)
                if keep:
                    _keep(tracked, made)
                seen = found
        except AnalysisError as error:
            if watch is None:
                console.print(f"[bold red]error:[/] {error}", soft_wrap=True, highlight=False)
                raise typer.Exit(1) from error
            console.print(f"[yellow]waiting:[/] {error}", soft_wrap=True, highlight=False)
        if watch is None:
            return
        time.sleep(watch)


def _check(given: Sequence[str], known: Sequence[str], what: str) -> None:
    for name in given:
        if name not in known:
            raise AnalysisError(f"unknown {what} {name!r}: choose from {', '.join(known)}")


def _of_steps(tracked: Tracked, steps: int) -> Tracked:
    kept = tracked.table[tracked.table["steps"] == steps]
    if kept.empty:
        raise AnalysisError(f"no finished run has {steps} steps")
    return Tracked(kept.reset_index(drop=True), tracked.uri)


def make_all(tracked: Tracked, only: Sequence[str], out: Path, formats: Sequence[str]) -> Made:
    """Makes and writes everything that the runs allow; says what was written and what is missing.

    Raises:
        AnalysisError: something that was asked for by name has no runs.
    """
    made = Made()
    for name in only or NAMES:
        try:
            files = _make(tracked, name, formats, made)
        except AnalysisError as error:
            if only:
                raise AnalysisError(f"{name}: {error}") from error
            made.left_out[name] = str(error)
            console.print(
                f"[yellow]{name} is left out:[/] {error}", soft_wrap=True, highlight=False
            )
            continue
        write(out, files)
        _say(out, name, list(files))
        one = made.figures.get(name) or made.tables[name]
        made.files.setdefault(one.grid, {}).update(files)
        if one.missing:
            console.print(f"  [yellow]{one.missing}[/]", soft_wrap=True, highlight=False)
    if not only:
        page = report(tracked, made.figures, made.tables, made.left_out)
        write(out, {"report.html": page})
        _say(out, "report", ["report.html"])
    plt.close("all")
    return made


def _make(tracked: Tracked, name: str, formats: Sequence[str], made: Made) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    with paper_style():
        if name in FIGURES:
            made.figures[name] = FIGURES[name](tracked)
        if name in TABLES:
            made.tables[name] = TABLES[name](tracked)
    if name in made.figures:
        files |= figure_files(name, made.figures[name], formats)
    if name in made.tables:
        files |= table_files(name, made.tables[name], formats)
    return files


def _keep(tracked: Tracked, made: Made) -> None:
    """What cannot be put into MLflow, as on a server that only lets read, is no reason to fail."""
    from mlflow.exceptions import MlflowException

    try:
        grids = upload(tracked, made.files)
    except (AnalysisError, MlflowException, OSError) as error:
        console.print(
            f"[yellow]not put into MLflow (--no-keep does not try):[/] {escape(str(error))}",
            soft_wrap=True,
            highlight=False,
        )
        return
    if grids:
        console.print(f"in MLflow, beside plan and results: {', '.join(grids)}", highlight=False)


def _say(out: Path, name: str, files: Sequence[str]) -> None:
    console.print(f"{name}: {out}/: {', '.join(files)}", soft_wrap=True, highlight=False)


if __name__ == "__main__":
    typer.run(main)
