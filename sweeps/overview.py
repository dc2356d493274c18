"""One run per grid in MLflow that stands for the whole: its plan, its results, its newest figures.

It is the parent of the grid's runs, so that MLflow shows them below it. `analysis/make_figures.py` adds
the figures. It is never RUNNING, so that nothing has to close it when a sweep dies; SCHEDULED says
that cells wait, and the next sweep of the grid goes on with the same run.
"""

import io
import math
from typing import TYPE_CHECKING

from rich.console import Console

from sweeps.grids import SEARCH
from sweeps.plan import Plan, State
from sweeps.tables import csv_text, print_results, summary
from sweeps.tracking import Store

if TYPE_CHECKING:
    from sweeps.study import Study

WIDTH = 120  # characters of the table of results


def write_overview(store: Store, plan: Plan, concurrency: int) -> str:
    """Brings the overview of a plan's grid up to date, creating it if need be; returns its run id."""
    counts = plan.counts()
    failed = counts[State.FAILED] + counts[State.HOPELESS]
    done = counts[State.DONE] == len(plan.cells)
    return store.write_overview(
        plan.grid_name,
        plan.grid.about,
        "FINISHED" if done else "FAILED" if failed else "SCHEDULED",
        {
            "cells/total": len(plan.cells),
            "cells/done": counts[State.DONE],
            "cells/failed": failed,
        },
        {"plan.csv": plan_csv(plan), "results.txt": results_text(plan, concurrency)},
    )


def write_search_overview(store: Store, study: "Study", about: str) -> str:
    """As `write_overview`, of a search: its trials and what mattered, by study.

    Args:
        about: what stands above it.
    """
    waits = study.left() or study.given_out or study.busy
    return store.write_overview(
        SEARCH,
        f"{about}\n\nThe numbers are those of the study {study.name}, the last that was run.",
        "SCHEDULED" if waits else "FINISHED",
        {f"trials/{name}": count for name, count in study.counts().items()},
        {
            f"studies/{study.name}.csv": study.csv(),
            f"studies/{study.name}-importances.csv": study.importances_csv(),
        },
    )


def plan_csv(plan: Plan) -> str:
    """One line a cell: what it is, how it differs from the baseline, its state, run and score."""
    rows: list[tuple[str, ...]] = []
    for cell in plan.cells:
        about = cell.name, plan.grid.difference(cell.config), cell.config.key(), cell.state.value
        run = cell.run
        if run is None:
            rows.append((*about, "", "", "", "", ""))
            continue
        seconds = run.metrics.get("final/seconds", math.nan)
        done = (f"{run.score:.4f}", f"{seconds:.1f}") if cell.state is State.DONE else ("", "")
        rows.append((*about, *done, run.run_id, run.experiment, run.tags.get("reason", "")))
    header = [
        "cell",
        "differs_by",
        "key",
        "state",
        "score",
        "seconds",
        "run_id",
        "made_by",
        "reason",
    ]
    return csv_text(header, rows)


def results_text(plan: Plan, concurrency: int) -> str:
    """What the command prints at the end of a sweep."""
    console = Console(file=io.StringIO(), width=WIDTH, color_system=None, record=True)
    print_results(console, plan)
    console.print(summary(plan, concurrency), highlight=False, soft_wrap=True)
    return console.export_text()
