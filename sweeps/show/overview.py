"""One run in MLflow that stands for a grid with its settings: its plan, its results, its newest figures.

It is the parent of the grid's runs, so that MLflow shows them below it. `analysis/make_figures.py` adds
the figures. Its tag `spec` says which cells were asked for, from which any machine counts them again. It
is never RUNNING, so that nothing has to close it when a sweep dies; SCHEDULED says that cells wait, and the
next sweep of the same settings goes on with the same run.
"""

import io
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from rich.console import Console

from semidavil.config import ConfigError
from sweeps.plan.cells import Plan, State, make_plan
from sweeps.plan.spec import Spec
from sweeps.show.tables import plan_csv, print_results, summary
from sweeps.track.provenance import owner_tags
from sweeps.track.runs import TrackedRun
from sweeps.track.store import Store

WIDTH = 120  # characters of the table of results


@dataclass(frozen=True)
class Overview:
    """The overview of a sweep that is about to run, or runs.

    Attributes:
        run_id: the parent of the sweep's runs.
        spec: with the cells that earlier commands have asked for.
        concurrency: how many of its cells run at a time.
    """

    run_id: str
    spec: Spec
    concurrency: int


def open_overview(store: Store, spec: Spec, about: str, concurrency: int) -> Overview:
    """Creates the overview, or finds it, and says in its tags that this process sweeps its cells now.

    To be called once nothing stands in the way of the first cell.

    Args:
        about: Markdown that stands above a new one.
    """
    settings = spec.key()
    for run in store.overviews():
        if (run.tags["overview"], run.tags.get("settings")) == (spec.grid, settings):
            with suppress(ConfigError):  # another version has written it
                spec = spec.with_earlier(Spec.from_json(run.tags["spec"]))
    name = f"{spec.grid}: {spec.label}"
    now = str(int(time.time()))
    tags = {"spec": spec.to_json(), "concurrency": str(concurrency), "alive": now, **owner_tags()}
    return Overview(store.overview(spec.grid, settings, name, about, tags), spec, concurrency)


def write_overview(store: Store, overview: Overview, runs: Iterable[TrackedRun]) -> None:
    """Brings the overview of a grid up to date: its status, counts, plan and results.

    Args:
        runs: all of the store.
    """
    spec = overview.spec
    base = spec.base()
    plan = make_plan(spec.grid, spec.around(base), spec.cells(base), runs)
    counts = plan.counts()
    failed = counts[State.FAILED] + counts[State.DIVERGED]
    done = counts[State.DONE] == len(plan.cells)
    metrics = {
        "cells/total": len(plan.cells),
        "cells/done": counts[State.DONE],
        "cells/failed": failed,
    }
    status = "FINISHED" if done else "FAILED" if failed else "SCHEDULED"
    texts = {"plan.csv": plan_csv(plan), "results.txt": results_text(plan, overview.concurrency)}
    store.update_overview(overview.run_id, status, metrics, texts)


def write_search_overview(
    store: Store,
    overview: Overview,
    counts: Mapping[str, int],
    texts: Mapping[str, str],
    ended: bool,
) -> None:
    """As `write_overview`, of a search.

    Args:
        counts: its trials by state.
        texts: its artifacts, by file name.
        ended: all of its trials have ended.
    """
    metrics = {f"trials/{name}": count for name, count in counts.items()}
    status = "FINISHED" if ended else "SCHEDULED"
    store.update_overview(overview.run_id, status, metrics, texts)


def results_text(plan: Plan, concurrency: int) -> str:
    """What the command prints at the end of a sweep."""
    console = Console(file=io.StringIO(), width=WIDTH, color_system=None, record=True)
    print_results(console, plan)
    console.print(summary(plan, concurrency), highlight=False, soft_wrap=True)
    return console.export_text()
