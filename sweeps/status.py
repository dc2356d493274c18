"""How the sweeps are doing, from any terminal or machine that reaches the tracking store.

    python sweeps/status.py                # every grid's last sweep
    python sweeps/status.py --watch 10     # again every ten seconds

On another machine, set MLFLOW_TRACKING_URI as for the sweep itself.
"""

import argparse
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from semidavil.config import ConfigError
from semidavil.data.benchmarks import BENCHMARKS
from sweeps.credentials import redact
from sweeps.deliver import deliver_command, kept_endings
from sweeps.progress import duration
from sweeps.storage import StorageError
from sweeps.tracking import (
    OPEN,
    Store,
    TrackedRun,
    TrackingError,
    chosen_storage,
    is_gone,
    tracking_uri,
)

ROOT = Path(__file__).resolve().parents[1]
DELIVERY_SECONDS = 60.0  # a run that has just ended is kept for a moment, too


@dataclass(frozen=True)
class Status:
    """A grid's last sweep.

    Attributes:
        done, failed: cells that ended in it; a search's trials that were stopped early are done.
        waiting: cells that have not begun.
        running: open runs whose process lives.
        best: by benchmark, the best finished run of the grid, of any sweep.
        seconds_left: from finished runs, else from the pace of the running ones; NaN without either.
    """

    grid: str
    state: str  # running, stopped or finished
    done: int
    failed: int
    waiting: int
    seconds_left: float
    running: list[TrackedRun] = field(default_factory=list)
    best: dict[str, TrackedRun] = field(default_factory=dict)


def status_of(
    grid: str, sweep: Mapping[str, Any], runs: Sequence[TrackedRun], now: float
) -> Status:
    """What became of `sweep`, as `Store.announced` has it, by its grid's `runs`."""
    mine = [run for run in runs if run.experiment == grid]
    since = 1000 * float(sweep["started"])
    ended = [run for run in mine if run.ended is not None and run.ended >= since]
    done = [run for run in ended if run.status == "FINISHED"]
    failed = sum(run.status == "FAILED" for run in ended)
    # A run that is continued keeps the end of its earlier attempt: only its status tells.
    running = [run for run in mine if run.status in OPEN and not run.is_dead()]
    stopped = sum(run.was_stopped_early() for run in ended)
    left = int(sweep["cells"]) - len(done) - stopped - failed
    last_word = max([float(sweep["started"]), *(run.last_word for run in mine)])
    gone = is_gone(sweep, last_word, now)
    state = "finished" if left <= 0 else "stopped" if gone else "running"
    seconds = [run.metrics.get("final/seconds", math.nan) for run in done]
    seconds = seconds or [run.progress["seconds"] / run.share for run in running if run.share]
    pace = sum(seconds) / len(seconds) if seconds else math.nan
    begun = sum(run.share for run in running)
    slots = max(1, min(int(sweep["concurrency"]), left))
    return Status(
        grid=grid,
        state=state,
        done=len(done) + stopped,
        failed=failed,
        waiting=max(0, left - len(running)),
        seconds_left=max(0.0, left - begun) * pace / slots if left > 0 else 0.0,
        running=running,
        best=best_runs(mine),
    )


def best_runs(runs: Sequence[TrackedRun]) -> dict[str, TrackedRun]:
    """The finished run with the highest score on each benchmark."""
    best: dict[str, TrackedRun] = {}
    for run in runs:
        benchmark = run.params.get("data.benchmark", "")
        if run.status != "FINISHED" or math.isnan(run.score):
            continue
        if benchmark not in best or run.score > best[benchmark].score:
            best[benchmark] = run
    return best


def kept_here(store: Store, now: float) -> str:
    """What this machine's runs could not tell the store, in words; empty if there is nothing."""
    try:
        endings = kept_endings(store)
    except StorageError as error:  # the sweeps may be well
        return str(error)
    waiting = [kept for kept in endings if now - kept.ending.time / 1000 > DELIVERY_SECONDS]
    if not waiting:
        return ""
    return (
        f"ended runs that wait in {store.storage.place}, not counted above: {len(waiting)}\n"
        f"the next sweep delivers them, or {deliver_command(store)}"
    )


def render(statuses: Sequence[Status], now: float, kept: str = "") -> Group:
    """All of it as tables, and what is `kept_here`."""
    table = Table("grid", "state", "done", "failed", "running", "waiting", "left")
    table.add_column("best so far", overflow="fold")  # a name cut short is of no use
    for one in statuses:
        best = [
            f"{run.name} {BENCHMARKS[benchmark].score} {run.score:.2f}"
            for benchmark, run in one.best.items()
        ]
        table.add_row(
            escape(one.grid), one.state, str(one.done), str(one.failed), str(len(one.running)),
            str(one.waiting), duration(one.seconds_left) if one.state == "running" else "",
            escape("\n".join(best)),
        )  # fmt: skip
    open_runs = [(one.grid, run) for one in statuses for run in one.running]
    notes = [Text(kept, "yellow", no_wrap=True, overflow="ignore")] if kept else []
    if not open_runs:
        return Group(table, *notes)
    cells = Table("running", "steps", "last word", "where")
    for grid, run in open_runs:
        cells.add_row(
            escape(f"{grid}: {run.name}"),
            f"{run.progress['step']:.0f}/{run.params.get('training.steps', '?')}",
            f"{duration(max(0.0, now - run.last_word))} ago",
            escape(run.tags.get("host", "?")),
        )
    return Group(table, cells, *notes)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    command = argparse.ArgumentParser(
        prog="python sweeps/status.py", description="How the sweeps are doing."
    )
    command.add_argument(
        "--grid", metavar="NAME", help="one grid only [default: all that have run]"
    )
    command.add_argument("--watch", metavar="SECONDS", type=float, help="show it again and again")
    options = command.parse_args(arguments)
    console = Console()

    def look() -> Group:
        now, runs = time.time(), store.runs()
        statuses = [
            status_of(grid, sweep, runs, now)
            for grid, sweep in store.announced().items()
            if options.grid in (None, grid)
        ]
        if not statuses:
            raise TrackingError(
                f"no sweep of {options.grid or 'any grid'} in {redact(store.uri)}: start one with "
                f"python sweeps/run.py --grid {options.grid or 'attention'}"
            )
        return render(statuses, now, kept_here(store, now))

    try:
        storage = chosen_storage(os.environ.get("SEMIDAVIL_STORAGE", ""))
        store = Store(ROOT, tracking_uri(), storage)
        if not options.watch:
            console.print(look())
            return 0
        with Live(look(), console=console, auto_refresh=False) as live:
            while True:
                time.sleep(options.watch)
                live.update(look(), refresh=True)
    except KeyboardInterrupt:
        return 0
    except (ConfigError, TrackingError) as error:
        Console(stderr=True).print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)
        return 1


if __name__ == "__main__":
    sys.exit(main())
