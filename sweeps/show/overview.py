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
from semidavil.registry import registered
from sweeps.plan.cells import ON_OTHER, Plan, State, make_plan
from sweeps.plan.data import NOT_COMPARED, PresentData
from sweeps.plan.spec import Spec
from sweeps.show.tables import plan_csv, print_results, summary
from sweeps.track.provenance import owner_tags
from sweeps.track.runs import DESCRIBED, TrackedRun
from sweeps.track.store import Store
from sweeps.track.wishes import NOTHING, Wishes

WIDTH = 120  # characters of the table of results
PREPARES = "prepares"  # tag: what a sweep prepares now, before its first run
MOST_KEYS = 450  # that MLflow takes as one tag, which may have 8,000 characters


@dataclass(frozen=True)
class Overview:
    """The overview of a sweep that is about to run, or runs."""

    run_id: str  # the parent of the sweep's runs
    spec: Spec  # with the cells that earlier commands have asked for
    concurrency: int  # how many of its cells run at a time
    data: PresentData = NOT_COMPARED  # what is here now
    wishes: Wishes = NOTHING  # what was asked of sweeps before this one


def open_overview(
    store: Store,
    spec: Spec,
    about: str,
    concurrency: int,
    data: PresentData = NOT_COMPARED,
    tags: Mapping[str, str] | None = None,
) -> Overview:
    """Creates the overview, or finds it, once nothing stands in the way of the first cell.

    Its tags, besides `tags`, say that this process sweeps its cells now; `about` is Markdown that stands
    above a new one.
    """
    grid, settings, run_id, wishes = spec.grid, spec.key(), "", Wishes()
    for run in store.overviews():
        if (run.tags["overview"], run.tags.get("settings")) == (grid, settings):
            if not run_id:
                run_id, wishes = run.run_id, Wishes.of(run.tags)
            with suppress(ConfigError):  # another version has written it, or its writer was killed
                spec = spec.with_earlier(Spec.from_json(run.tags.get("spec", "")))
    run_id = run_id or store.create_overview(grid, settings, f"{grid}: {spec.label}", about)
    chosen = {name for selection in spec.selections for name in selection.benchmarks}
    said = {
        f"{DESCRIBED}{name.replace('@', '.')}": registered(name)
        for name in chosen
        if registered(name)
    }
    now = str(int(time.time()))
    mine = {"spec": spec.to_json(), "concurrency": str(concurrency), "alive": now}
    if spec.plugins:  # without these, nobody can say later which cells were asked for
        keys = [cell.key() for cell in spec.cells()]
        mine["cells"] = " ".join(keys) if len(keys) <= MOST_KEYS else ""
    store.log(run_id, tags={**mine, **said, **data.tags, **owner_tags(), **(tags or {})})
    return Overview(run_id, spec, concurrency, data, wishes)


def write_overview(store: Store, overview: Overview, runs: Iterable[TrackedRun]) -> None:
    """Brings the overview of a grid up to date by all runs of the store: status, counts, plan, results."""
    spec = overview.spec
    base = spec.base()
    plan = make_plan(spec.grid, spec.around(base), spec.cells(base), runs, data=overview.data)
    counts = plan.counts()
    total, done = len(plan.cells), counts[State.DONE]
    failed = sum(counts[state] for state in (State.FAILED, State.DIVERGED, *ON_OTHER))
    status = "FINISHED" if done == total else "FAILED" if failed else "SCHEDULED"
    metrics = {"cells/total": total, "cells/done": done, "cells/failed": failed}
    texts = {"plan.csv": plan_csv(plan), "results.txt": results_text(plan, overview.concurrency)}
    store.update_overview(overview.run_id, status, metrics, texts)


def results_text(plan: Plan, concurrency: int) -> str:
    """What the command prints at the end of a sweep."""
    file = io.StringIO()
    console = Console(file=file, width=WIDTH, highlight=False, soft_wrap=True)
    print_results(console, plan)
    console.print(summary(plan, concurrency))
    return file.getvalue()
