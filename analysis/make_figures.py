"""Draws every figure and table from the tracked runs, and a report of them all.

    python analysis/make_figures.py
    python analysis/make_figures.py --only attention --format pdf --out DIR
    python analysis/make_figures.py --watch 60

A figure comes as PDF and PNG with its numbers as CSV, a table as Markdown and LaTeX besides, the tests of a
comparison as CSV. `report.html` holds all of them in one page, `runs.html` all runs. The same runs give the
same bytes.
"""

import gc
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import matplotlib
import matplotlib.pyplot as plt
import typer
from rich.console import Console
from rich.markup import escape

from analysis.drawn import Drawn, Table
from analysis.figures import FIGURES, own_grids
from analysis.output import DEFAULT_FORMATS, FORMATS, figure_files, table_files, write
from analysis.report import report
from analysis.run_pages import FOLDER, run_pages
from analysis.runs import AnalysisError, NoRunError, Tracked, load_runs
from analysis.style import paper_style
from analysis.tables import TABLES
from analysis.tables.entries import Shown
from analysis.upload import upload as upload_files
from semidavil.place import home

console = Console()
HOME = home()
NAMES = list(dict.fromkeys([*FIGURES, *TABLES]))


@dataclass
class Made:
    """What the runs allow: figures and tables by name, and why others are left out.

    Attributes:
        broken: of `left_out`, those that an error of ours has cost.
        files: by grid, by file name: what was made in the last pass.
        names: of all files, by figure.
    """

    figures: dict[str, Drawn] = field(default_factory=dict)
    tables: dict[str, Table] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    names: dict[str, list[str]] = field(default_factory=dict)


def main(
    context: typer.Context,
    only: Annotated[
        list[str] | None,
        typer.Option(help=f"Once for each, of {', '.join(NAMES)}. [default: all]"),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder to write.")] = HOME / "figures",
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format", help=f"Once for each: {', '.join(FORMATS)}. [default: pdf and png]"
        ),
    ] = None,
    experiment: Annotated[
        list[str] | None, typer.Option(help="Only runs of this grid. [default: all]")
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(help="Only runs of this many steps. [default: those with most runs]"),
    ] = None,
    published: Annotated[bool, typer.Option(help="Tables show published values.")] = True,
    rank: Annotated[bool, typer.Option(help="Tables show average ranks.")] = True,
    decimals: Annotated[int, typer.Option(min=0, max=4, help="Of scores in tables.")] = 1,
    columns: Annotated[
        int, typer.Option(min=1, max=2, help="Columns of the page that a LaTeX table spans.")
    ] = 2,
    upload: Annotated[
        bool, typer.Option(help="Also put each into MLflow, beside its grid's plan and results.")
    ] = False,
    watch: Annotated[
        float | None, typer.Option(min=1, help="Repeat after so many seconds if runs were added.")
    ] = None,
    tracking_uri: Annotated[
        str | None, typer.Option(envvar="MLFLOW_TRACKING_URI", help="The MLflow store.")
    ] = None,
) -> None:
    """Reads the tracked runs and makes the figures, tables and report that they allow."""
    if extra := context.args:  # --only a b; in the words of sweeps/run.py
        option = "--format" if extra[0] in FORMATS else "--only"
        told = f"{' '.join(extra)}: did you mean {option} {f' {option} '.join(extra)}?"
        _say("[bold red]error:[/]", f"unrecognized arguments: {told}")
        raise typer.Exit(2)
    matplotlib.use("Agg")
    matplotlib.rcParams["figure.max_open_warning"] = 0  # the report needs all of them
    how = Shown(published, rank, decimals, columns)
    read: Tracked | None = None
    drawn: Tracked | None = None
    made = Made()
    while True:
        try:
            _check(formats or (), FORMATS, "format")
            read = load_runs(tracking_uri, experiment or (), read)
            _check(only or (), [*NAMES, *own_grids.own_grids(read)], "figure")
            if drawn is None:
                gc.freeze()  # of 10,000 runs, later collections looked at each row again: 5 s
            tracked = read if steps is None else _of_steps(read, steps)
            if drawn is None or _state(tracked) != _state(drawn):
                grids = None if drawn is None else _changed(drawn, tracked)
                made = make_all(
                    tracked, only or (), out, formats or DEFAULT_FORMATS, how, made, grids
                )
                if upload:
                    _upload(tracked, made)
                drawn = tracked
        except AnalysisError as error:
            if watch is None:
                _say("[bold red]error:[/]", str(error))
                raise typer.Exit(1) from error
            _say("[yellow]waiting:[/]", str(error))
        if watch is None:
            raise typer.Exit(1 if made.broken else 0)
        time.sleep(watch)


def _check(given: Sequence[str], known: Sequence[str], what: str) -> None:
    for name in given:
        if name not in known:
            raise AnalysisError(f"unknown {what} {name!r}: choose from {', '.join(known)}")


def _of_steps(tracked: Tracked, steps: int) -> Tracked:
    kept = tracked.table[tracked.table["steps"] == steps]
    if kept.empty:
        raise AnalysisError(f"no finished run has {steps} steps")
    return replace(tracked, table=kept.reset_index(drop=True))


def _state(tracked: Tracked) -> dict[str, str]:
    """Each run and whether, and how, it ended."""
    return {run: row["why"] for run, row in tracked.rows.items()}


def _changed(before: Tracked, now: Tracked) -> set[str]:
    """The grids that a new or ended run belongs to."""
    old, new = _state(before), _state(now)
    rows = before.rows | now.rows
    changed = [run for run in old.keys() | new.keys() if old.get(run) != new.get(run)]
    return {grid for run in changed for grid in rows[run]["grids"]}


def make_all(
    tracked: Tracked,
    only: Sequence[str],
    out: Path,
    formats: Sequence[str],
    how: Shown | None = None,
    before: Made | None = None,
    grids: set[str] | None = None,
) -> Made:
    """Makes and writes everything that the runs allow; says what was written and what is missing.

    An error costs the figure in which it happens, and no other.

    Args:
        before: what an earlier pass has made, of which what shows none of `grids` is kept.

    Raises:
        AnalysisError: something that was asked for by name has no runs.
    """
    made, how = before or Made(), how or Shown()
    made.files, made.broken = {}, []
    waiting = []
    for name in only or dict.fromkeys([*NAMES, *own_grids.own_grids(tracked)]):
        old = made.figures.get(name) or made.tables.get(name)
        if grids is not None and old is not None and old.grid not in grids:
            continue
        made.left_out.pop(name, None)
        try:
            files = _make(tracked, name, formats, made, how)
        except Exception as error:
            if only and isinstance(error, AnalysisError):
                raise AnalysisError(f"{name}: {error}") from error
            _leave_out(name, error, made)
            if isinstance(error, NoRunError):
                waiting.append(name)
            else:
                colour = "red" if name in made.broken else "yellow"
                _say(f"[{colour}]{name} is left out:[/]", made.left_out[name])
            continue
        write(out, files)
        made.names[name] = list(files)
        _say(f"{name}:", f"{out}/: {', '.join(files)}")
        one = made.figures.get(name) or made.tables[name]
        made.files.setdefault(one.grid, {}).update(files)
        if one.missing:
            _say(" [yellow]", one.missing)
    if not only:
        write(out / FOLDER, run_pages(tracked, out / FOLDER))
        pages = report(tracked, made.figures, made.tables, made.left_out, made.names, how)
        write(out, pages)
        _say("report:", f"{out}/: {', '.join(pages)}")
    if waiting:
        _say("[yellow]left out, for want of a finished run:[/]", ", ".join(waiting))
    for what, reason in tracked.unreadable.items():
        _say(f"[red]{escape(what)} cannot be read:[/]", reason)
    plt.close("all")
    return made


def _leave_out(name: str, error: Exception, made: Made) -> None:
    made.figures.pop(name, None)
    made.tables.pop(name, None)
    text = str(error)
    if not isinstance(error, AnalysisError):
        place = traceback.extract_tb(error.__traceback__)[-1]
        text = (
            f"an error of the analysis, {type(error).__name__}: {error} ({Path(place.filename).name}:"
            f"{place.lineno}); please report it"
        )
        made.broken.append(name)
    made.left_out[name] = text


def _make(
    tracked: Tracked, name: str, formats: Sequence[str], made: Made, how: Shown
) -> dict[str, bytes]:
    """A comparison's figure and table, whose tests are the same."""
    files: dict[str, bytes] = {}
    with paper_style():
        if name in TABLES:
            made.tables[name] = TABLES[name](tracked)
            files |= table_files(name, made.tables[name], formats, how)
        if name not in TABLES or name in FIGURES:
            draw = FIGURES.get(name) or partial(own_grids.draw, name=name)
            made.figures[name] = draw(tracked)
            files |= figure_files(name, made.figures[name], formats)
    return files


def _upload(tracked: Tracked, made: Made) -> None:
    """What cannot be put into MLflow, as on a server that only lets read, is no reason to fail."""
    from mlflow.exceptions import MlflowException

    try:
        grids = upload_files(tracked, made.files)
    except (AnalysisError, MlflowException, OSError) as error:
        _say("[yellow]not put into MLflow (without --upload it is not tried):[/]", str(error))
        return
    if grids:
        _say("in MLflow, beside plan and results:", ", ".join(grids))


def _say(begin: str, text: str) -> None:
    """A line of rich's markup, and of a text that is none."""
    console.print(f"{begin} {escape(text)}", soft_wrap=True, highlight=False)


app = typer.Typer(rich_markup_mode=None, add_completion=False)
app.command(context_settings={"allow_extra_args": True})(main)

if __name__ == "__main__":
    app()
