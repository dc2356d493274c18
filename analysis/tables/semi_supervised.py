"""Methods at the label budgets of semi-supervised papers, apart from what these report."""

from dataclasses import replace
from typing import Any

import pandas as pd

from analysis import style
from analysis.cells import over_budgets, select
from analysis.comparisons import COMPARISONS
from analysis.drawn import Block, Entry, Table
from analysis.paper import ELSEWHERE, ELSEWHERE_SOURCE
from analysis.recipes import recipe_sentence
from analysis.runs import AnalysisError, Tracked, command
from analysis.tables.entries import DASH
from semidavil.benchmarks import BENCHMARKS

GRID, BENCHMARK = "methods", "cityscapes-cityscapes"
BUDGETS = BENCHMARKS[BENCHMARK].ssl_budgets


def make(tracked: Tracked) -> Table:
    """A block of measured values and one of values from elsewhere, which are not compared.

    Raises:
        AnalysisError: no run at one of the budgets.
    """
    chosen = select(tracked, GRID, "method")
    runs = chosen.of(BENCHMARK)
    runs = runs[runs["budget"].isin(BUDGETS)]
    if runs.empty:
        budgets = " ".join(map(str, BUDGETS))
        raise AnalysisError(
            f"no run has the label budgets of semi-supervised papers: run one first, for example "
            f"{command(GRID)} --benchmark {BENCHMARK} --budgets {budgets}"
        )
    here = replace(chosen, runs=runs)
    measured = over_budgets(runs).set_index(["variant", "budget"])
    columns = ("encoder", *(f"{budget:,}" for budget in BUDGETS))
    numbers = measured.reset_index().assign(
        encoder=str(runs["model.encoder"].iloc[0] or runs["model.vlm"].iloc[0])
    )
    variants = COMPARISONS[GRID].present(runs)
    blocks = (
        Block(f"{here.heading(BENCHMARK)}, measured", columns, _measured(numbers, variants)),
        Block("Published elsewhere, real images", columns, _elsewhere()),
    )
    return Table(
        name="ssl",
        title="Semi-supervised learning on Cityscapes",
        about="Mean IoU (%) by number of labelled images; above: measured, below: published elsewhere, "
        "which is not compared.",
        caption="Mean IoU (%) on the validation images by number of labelled images, 1/16 to 1/2 of the "
        "training set. Above: measured. Below: what "
        f"{ELSEWHERE_SOURCE} reports for methods with encoders, decoders, crops, schedules and labelled "
        "images of their own. The two are not compared: no difference is taken, and nothing is ranked. "
        f"{recipe_sentence(runs)} {here.note()}",
        stub="Method",
        blocks=blocks,
        numbers=pd.concat([numbers, pd.DataFrame(_elsewhere_numbers())], ignore_index=True),
        run_ids=here.run_ids,
        grid=GRID,
    )


def _measured(
    numbers: pd.DataFrame, variants: list[str]
) -> tuple[tuple[str, tuple[Entry, ...]], ...]:
    rows = []
    for variant in variants:
        mine = numbers[numbers["variant"] == variant].set_index("budget")
        entries = [Entry(str(mine["encoder"].iloc[0]))]
        for budget in BUDGETS:
            if budget in mine.index:
                mean, std, n = (mine[name][budget] for name in ("mean", "std", "n"))
                entries.append(Entry(value=mean, std=std, n=int(n)))
            else:
                entries.append(Entry(DASH))
        rows.append((style.label(variant), tuple(entries)))
    return tuple(rows)


def _elsewhere() -> tuple[tuple[str, tuple[Entry, ...]], ...]:
    return tuple(
        (one.name, (Entry(one.encoder), *(Entry(f"{value:.1f}") for value in one.miou)))
        for one in ELSEWHERE
    )


def _elsewhere_numbers() -> list[dict[str, Any]]:
    return [
        {"variant": one.name, "budget": budget, "encoder": one.encoder, "elsewhere": value,
         "source": ELSEWHERE_SOURCE}
        for one in ELSEWHERE
        for budget, value in zip(BUDGETS, one.miou, strict=True)
    ]  # fmt: skip
