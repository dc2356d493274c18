"""How the sweeps are doing, from any machine that reaches the tracking store.

Each overview says which cells were asked for; they are counted with the same `make_plan` as by the sweep
itself. A sweep is running while its process lives or somebody is at work on one of its cells.
"""

import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from semidavil.config import ConfigError
from semidavil.data.benchmarks import BENCHMARKS
from sweeps.keep.storage import StorageError
from sweeps.plan.cells import State, make_plan, state_of
from sweeps.plan.grids import SEARCH
from sweeps.plan.pace import Pace, kind_of, time_left
from sweeps.plan.spec import Spec
from sweeps.show.tables import duration
from sweeps.track.credentials import redact
from sweeps.track.deliver import deliver_command, undelivered
from sweeps.track.lease import has_died
from sweeps.track.retry import StoreAway, TrackingError
from sweeps.track.runs import TrackedRun
from sweeps.track.store import Store

UNFINISHED = (State.TODO, State.INTERRUPTED, State.ELSEWHERE)
DELIVERY_SECONDS = 60.0  # that a worker may take to deliver a run that has just ended


@dataclass(frozen=True)
class Status:
    """One grid with its settings, or one search.

    Attributes:
        settings: what tells it apart from others of the same grid.
        state: running, stopped, failed (some cells have, and none is left to run) or finished.
        done, failed, waiting: cells; trials that a search stopped early are done.
        undelivered: cells that have ended, which the store does not know yet.
        running: runs that somebody is at work on.
        best: the best finished run of these settings on each benchmark.
        seconds_left: NaN while nothing like these cells has run.
    """

    grid: str
    settings: str
    state: str
    done: int = 0
    failed: int = 0
    waiting: int = 0
    undelivered: int = 0
    running: list[TrackedRun] = field(default_factory=list)
    best: dict[str, TrackedRun] = field(default_factory=dict)
    seconds_left: float = math.nan


@dataclass(frozen=True)
class _Counted:
    """A cell or a trial: its state, its run, seconds of a whole run like it and the share that is left."""

    state: State
    run: TrackedRun | None
    seconds: float
    left: float


def status_of(
    overview: TrackedRun,
    runs: Sequence[TrackedRun],
    now: float,
    waiting_runs: frozenset[str] = frozenset(),
) -> Status:
    """How the sweep of an overview is doing.

    Args:
        runs: all of the store, oldest first.
        now: seconds since 1970.
        waiting_runs: ids of runs that have ended, which the store does not know yet.
    """
    grid = overview.tags["overview"]
    try:
        spec = Spec.from_json(overview.tags["spec"])
        if spec.key() != overview.tags["settings"]:
            raise ConfigError("the same settings gave other results then")
        pace = Pace(runs, overview.tags.get("host"))
        counted = (_trials if grid == SEARCH else _cells)(spec, runs, pace, now)
    except (ConfigError, KeyError):
        return Status(grid, overview.name, "of another version")
    is_kept = [
        cell.run is not None and cell.run.run_id in waiting_runs and cell.state is not State.DONE
        for cell in counted
    ]
    counted = [cell for cell, kept in zip(counted, is_kept, strict=True) if not kept]
    counts = Counter(cell.state for cell in counted)
    work = [(cell.seconds, cell.left) for cell in counted if cell.state in UNFINISHED]
    running = [cell.run for cell in counted if cell.run and cell.state is State.ELSEWHERE]
    failed = counts[State.FAILED] + counts[State.DIVERGED]
    if not work:
        state = "failed" if failed else "finished"
    elif running or not has_died(overview.tags, overview.last_seen, now):
        state = "running"
    else:
        state = "stopped"
    concurrency = max(len(running), int(overview.tags.get("concurrency", "1")))
    return Status(
        grid=grid,
        settings=spec.label,
        state=state,
        done=counts[State.DONE],
        failed=failed,
        waiting=counts[State.TODO] + counts[State.INTERRUPTED],
        undelivered=sum(is_kept),
        running=running,
        best=_best(cell.run for cell in counted if cell.run and cell.state is State.DONE),
        seconds_left=time_left(work, concurrency),
    )


def _best(finished: Iterable[TrackedRun]) -> dict[str, TrackedRun]:
    """The run with the highest score on each benchmark."""
    best: dict[str, TrackedRun] = {}
    for run in finished:
        benchmark = run.params.get("data.benchmark", "")
        if not math.isnan(run.score) and (
            benchmark not in best or run.score > best[benchmark].score
        ):
            best[benchmark] = run
    return best


def _cells(spec: Spec, runs: Sequence[TrackedRun], pace: Pace, now: float) -> list[_Counted]:
    base = spec.base()
    plan = make_plan(spec.grid, spec.around(base), spec.cells(base), runs, pace=pace)
    return [_Counted(cell.state, cell.run, cell.estimate, cell.left) for cell in plan.cells]


def _trials(spec: Spec, runs: Sequence[TrackedRun], pace: Pace, now: float) -> list[_Counted]:
    """The trials that have a run, and those that a search has not begun."""
    by_key: dict[str, list[TrackedRun]] = defaultdict(list)
    for run in runs:
        by_key[run.key].append(run)
    trials = []
    for of_trial in by_key.values():
        mine = [run for run in of_trial if _is_trial_of(run, spec.study)]
        if not mine:
            continue
        state, known = state_of(of_trial, now)
        if state is State.INTERRUPTED and any(run.stopped_early for run in mine):
            state = State.DONE
        seconds = pace.seconds(kind_of(mine[-1].params))
        trials.append(_Counted(state, known, seconds, 1 - known.share if known else 1.0))
    to_come = spec.trials - len(trials)
    return [*trials, *[_Counted(State.TODO, None, math.nan, 1.0)] * to_come]


def _is_trial_of(run: TrackedRun, study: str) -> bool:
    """Whether a study has made a run, or has taken it from a grid or another study."""
    return run.tags.get("study") == study or study in run.tags.get("studies", "").split()


def statuses(
    store: Store, now: float, grid: str | None = None, waiting_runs: frozenset[str] = frozenset()
) -> list[Status]:
    """Of every grid and settings that have run, or of one grid's.

    Raises:
        TrackingError: none has; as of every call to the store.
    """
    overviews: dict[tuple[str, str], TrackedRun] = {}
    for run in store.overviews():
        if "settings" in run.tags and grid in (None, run.tags["overview"]):
            # Two sweeps may create one at the same moment; the older one stays.
            overviews.setdefault((run.tags["overview"], run.tags["settings"]), run)
    if not overviews:
        raise TrackingError(
            f"no sweep of {grid or 'any grid'} in {redact(store.uri)}: start one with "
            f"python sweeps/run.py --grid {grid or 'attention'}"
        )
    runs = store.runs()
    return [status_of(run, runs, now, waiting_runs) for run in overviews.values()]


def look(store: Store, grid: str | None = None) -> RenderableType:
    """All that there is to show now, of what the store and this machine know."""
    now = time.time()
    waiting_runs, note = _undelivered(store, now)
    return render(statuses(store, now, grid, waiting_runs), now, note)


def _undelivered(store: Store, now: float) -> tuple[frozenset[str], str]:
    """Ids of the ended runs that wait beside this store, and what to say about them."""
    try:
        waiting = [
            one.ending.run_id
            for one in undelivered(store)
            if now - one.ending.time / 1000 > DELIVERY_SECONDS
        ]
    except StorageError as error:  # the sweeps may be well
        return frozenset(), str(error)
    if not waiting:
        return frozenset(), ""
    return frozenset(waiting), (
        f"ended runs that wait in {store.storage.uri}: {len(waiting)}\n"
        f"the next sweep delivers them, or {deliver_command(store)}"
    )


def render(found: Iterable[Status], now: float, note: str = "") -> RenderableType:
    """Tables of the sweeps and of the running cells, and a note below."""
    found = list(found)
    kept = any(one.undelivered for one in found)
    table = Table("grid", "settings", "state", "done", "failed", "running", "waiting")
    if kept:
        table.add_column("not delivered")
    table.add_column("left")
    table.add_column("best so far", overflow="fold")  # a name cut short is of no use
    for one in found:
        best = [
            f"{run.name} {BENCHMARKS[benchmark].score} {run.score:.2f}"
            for benchmark, run in one.best.items()
        ]
        table.add_row(
            escape(one.grid), escape(one.settings), one.state, str(one.done), str(one.failed),
            str(len(one.running)), str(one.waiting), *([str(one.undelivered)] if kept else []),
            duration(one.seconds_left) if one.state == "running" else "",
            escape("\n".join(best)),
        )  # fmt: skip
    parts: list[RenderableType] = [table]
    if any(one.running for one in found):
        cells = Table("running", "steps", "last seen", "where")
        # A cell that several grids share runs once.
        for grid, run in {r.run_id: (s.grid, r) for s in found for r in s.running}.values():
            cells.add_row(
                escape(f"{grid}: {run.name}"),
                f"{run.progress.step}/{run.params.get('training.steps', '?')}",
                f"{duration(max(0.0, now - run.last_seen))} ago",
                escape(run.tags.get("host", "?")),
            )
        parts.append(cells)
    if note:
        parts.append(Text(note, "yellow", no_wrap=True, overflow="ignore"))
    return Group(*parts)


def watch(console: Console, show: Callable[[], RenderableType], seconds: float) -> NoReturn:
    """Shows it again and again, until Ctrl-C; waits for a store that is away.

    Raises:
        TrackingError: the store answers, and cannot be used.
    """
    shown: RenderableType = Text("")
    with Live(shown, console=console, auto_refresh=False) as live:
        while True:
            try:
                shown = show()
                live.update(shown, refresh=True)
            except StoreAway as error:
                note = f"{time.strftime('%H:%M:%S')}: {error}; trying again"
                live.update(Group(shown, Text(note, "yellow")), refresh=True)
            time.sleep(seconds)
