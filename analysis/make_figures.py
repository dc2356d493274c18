"""Draws every figure from the tracked runs.

    python analysis/make_figures.py
    python analysis/make_figures.py --only attention --format pdf --out DIR

Each figure comes as PDF and PNG with the numbers in it as CSV, beside the published ones.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import matplotlib
import matplotlib.pyplot as plt
import pandas as pd
import typer
from rich.console import Console

from analysis.figures import FIGURES, Drawn
from analysis.runs import ROOT, AnalysisError, load_runs

console = Console()
FORMATS = ("pdf", "png")
# What figures compare; runs that differ in any other setting are not drawn together.
AXES = ("data.benchmark", "data.budget", "model.fusion", "loss.name", "training.method")


def main(
    only: Annotated[
        list[str] | None, typer.Option(help=f"Of {', '.join(FIGURES)}. [default: all]")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder to write.")] = ROOT / "figures",
    formats: Annotated[
        list[str] | None, typer.Option("--format", help="pdf or png. [default: both]")
    ] = None,
    experiment: Annotated[
        list[str] | None, typer.Option(help="Only runs of this grid. [default: all]")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Only runs of this many steps. [default: the longest]")
    ] = None,
    tracking_uri: Annotated[
        str | None, typer.Option(envvar="MLFLOW_TRACKING_URI", help="The MLflow store.")
    ] = None,
) -> None:
    """Reads the tracked runs and draws the figures that they allow."""
    matplotlib.use("Agg")
    try:
        for name in only or ():
            if name not in FIGURES:
                raise AnalysisError(f"unknown figure {name!r}: choose from {', '.join(FIGURES)}")
        for name in formats or ():
            if name not in FORMATS:
                raise AnalysisError(f"unknown format {name!r}: choose from {', '.join(FORMATS)}")
        runs = load_runs(tracking_uri, experiment or ())
        if steps is not None:
            runs = runs[runs["steps"] == steps]
            if runs.empty:
                raise AnalysisError(f"no finished run has {steps} steps")
        drawn = draw_all(one_scale(runs), only or list(FIGURES), required=bool(only))
    except AnalysisError as error:
        console.print(f"[bold red]error:[/] {error}", soft_wrap=True, highlight=False)
        raise typer.Exit(1) from error
    out.mkdir(parents=True, exist_ok=True)
    for name, one in drawn.items():
        files = save(one, out / name, formats or FORMATS)
        console.print(f"{name}: {', '.join(map(str, files))}", soft_wrap=True, highlight=False)
        for line in one.missing:
            console.print(f"  [yellow]not run yet:[/] {line}", highlight=False)


def one_scale(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs of one setting per benchmark: runs that differ in anything else do not mix.

    Real data before generated, then the longest training, then the most runs; what is left out is
    said.
    """
    settings = [c for c in runs.columns if "." in c and c not in AXES]
    kept = []
    for benchmark, here in runs.groupby("benchmark"):
        groups = [group for _, group in here.groupby(settings, dropna=False)]
        chosen = min(groups, key=lambda g: (g["toy"].iloc[0], -g["steps"].iloc[0], -len(g)))
        if len(chosen) < len(here):
            data = "toy" if chosen["toy"].iloc[0] else "real"
            console.print(
                f"[yellow]{benchmark}: {len(here) - len(chosen)} runs with other settings are left "
                f"out[/] (drawn: {chosen['steps'].iloc[0]} steps, {data} data)"
            )
        kept.append(chosen)
    return pd.concat(kept, ignore_index=True)


def draw_all(runs: pd.DataFrame, names: Sequence[str], *, required: bool) -> dict[str, Drawn]:
    """Every named figure; one without runs is an error if it was asked for, else it is named."""
    drawn = {}
    with plt.style.context(Path(__file__).with_name("semidavil.mplstyle")):
        for name in names:
            try:
                drawn[name] = FIGURES[name](runs)
            except AnalysisError as error:
                if required:
                    raise
                console.print(f"[yellow]{name} is left out:[/] {error}", soft_wrap=True)
    return drawn


def save(drawn: Drawn, stem: Path, formats: Sequence[str]) -> list[Path]:
    """Writes the figure and its numbers; a file is replaced only by a whole one."""
    # No dates inside: the same runs give the same bytes.
    metadata: dict[str, dict[str, str | None]] = {
        "pdf": {"CreationDate": None},
        "png": {"Software": None},
    }
    files = [stem.with_suffix(f".{kind}") for kind in (*formats, "csv")]
    for target in files:
        kind = target.suffix.removeprefix(".")
        temporary = target.with_name(f".{target.name}.{os.getpid()}")
        if kind == "csv":
            drawn.table.to_csv(temporary, index=False, float_format="%.4f")
        else:
            with plt.style.context(Path(__file__).with_name("semidavil.mplstyle")):
                drawn.figure.savefig(temporary, format=kind, metadata=metadata[kind])
        temporary.replace(target)
    return files


if __name__ == "__main__":
    typer.run(main)
