"""The command line of the analysis.

    python analysis/make_figures.py                       # all that there are runs for
    python analysis/make_figures.py --only attention --format pdf --out figures

Reads the tracked runs and writes each figure as PDF, PNG and CSV with its caption, each table as
Markdown, LaTeX and CSV. The same runs give the same bytes.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from analysis.figures import FIGURES
from analysis.output import FORMATS, figure_files, table_files, write
from analysis.runs import AnalysisError, NoRunsError, load_runs
from analysis.tables import TABLES

FIRST_COMMAND = "python sweeps/run.py --grid attention"


def parser() -> argparse.ArgumentParser:
    names = list(dict.fromkeys([*FIGURES, *TABLES]))
    command = argparse.ArgumentParser(
        prog="python analysis/make_figures.py",
        description="Draws figures and tables from the tracked runs, beside the published numbers.",
        epilog=f"figures: {', '.join(FIGURES)}\ntables:  {', '.join(TABLES)}\n\n"
        f"The runs come from, for example: {FIRST_COMMAND}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument(
        "--only",
        metavar="NAME",
        nargs="+",
        action="extend",
        choices=names,
        help="figures and tables of this name [default: all that there are runs for]",
    )
    command.add_argument(
        "--out", metavar="DIR", type=Path, default=Path("figures"), help="[default: figures]"
    )
    command.add_argument(
        "--format",
        metavar="KIND",
        nargs="+",
        action="extend",
        choices=FORMATS,
        help=f"of the pictures: {', '.join(FORMATS)} [default: both]",
    )
    command.add_argument(
        "--experiment",
        metavar="NAME",
        nargs="+",
        action="extend",
        help="only runs of these MLflow experiments [default: all]",
    )
    command.add_argument(
        "--tracking-uri",
        metavar="URI",
        help="the store [default: $MLFLOW_TRACKING_URI, else mlflow.db in this checkout]",
    )
    return command


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code: 0, or 1 if nothing, or not all of --only, was made."""
    options = parser().parse_args(arguments)
    # A server that is not there is told of in seconds, not after minutes of repeated attempts.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    try:
        runs = load_runs(options.experiment, options.tracking_uri)
        if runs.empty:
            raise NoRunsError("no finished runs")
    except NoRunsError as error:
        return _refuse(f"{error}; make some with: {FIRST_COMMAND}")
    except AnalysisError as error:
        return _refuse(str(error))
    try:
        return _make_all(runs, options.only, tuple(options.format or FORMATS), options.out)
    except OSError as error:
        return _refuse(f"cannot write: {error}")


def _make_all(
    runs: pd.DataFrame, only: Sequence[str] | None, formats: tuple[str, ...], out: Path
) -> int:
    print(f"{len(runs)} finished runs")
    lacking: dict[str, list[str]] = {}  # reason -> what was not made
    made = 0
    missing: dict[str, None] = {}
    for name in only or dict.fromkeys([*FIGURES, *TABLES]):
        for make in _makers(name, runs, formats):
            try:
                files, gaps = make()
            except NoRunsError as error:
                lacking.setdefault(str(error), []).append(name)
                continue
            missing |= dict.fromkeys(gaps)
            for path in write(out, files):
                print(f"  {path}")
            made += 1
    for gap in missing:
        print(f"missing: {gap}")
    for reason, names in lacking.items():
        print(f"not made: {', '.join(dict.fromkeys(names))}: {reason}", file=sys.stderr)
    return 1 if not made or (only and lacking) else 0


Made = tuple[dict[str, bytes], tuple[str, ...]]  # files by name; what is missing in them


def _makers(name: str, runs: pd.DataFrame, formats: tuple[str, ...]) -> list[Callable[[], Made]]:
    def figure() -> Made:
        drawing = FIGURES[name](runs)
        return figure_files(name, drawing, formats), drawing.missing

    def table() -> Made:
        made = TABLES[name](runs)
        return table_files(name, made), made.missing

    return [make for make, known in ((figure, FIGURES), (table, TABLES)) if name in known]


def _refuse(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
