"""How the sweeps are doing, from any machine that reaches the tracking store.

Each overview says which cells were asked for; they are counted with the same `make_plan` as by the sweep
itself. A sweep is running while its process lives or somebody is at work on one of its cells.
"""

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import NoReturn

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from semidavil.benchmarks import BENCHMARKS
from semidavil.config import Config, ConfigError
from semidavil.marks import BUNDLED
from semidavil.place import command
from semidavil.plugins import missing
from sweeps.keep.storage import StorageError
from sweeps.plan.cells import ON_OTHER, Cell, State, make_plan, runs_by_key, state_of
from sweeps.plan.data import NOT_COMPARED, PresentData
from sweeps.plan.grids import GRIDS, SEARCH
from sweeps.plan.pace import Pace, kind_of, time_left
from sweeps.plan.spec import Spec
from sweeps.show.overview import PREPARES
from sweeps.show.tables import duration, mark_of
from sweeps.track.credentials import redact
from sweeps.track.deliver import deliver_command, undelivered
from sweeps.track.lease import has_died
from sweeps.track.provenance import owner_tags
from sweeps.track.retry import StoreAway, TrackingError
from sweeps.track.runs import TrackedRun
from sweeps.track.store import Store
from sweeps.track.wishes import Wishes

COLUMNS = {
    "done": [State.DONE],
    "failed": [State.FAILED, State.DIVERGED],
    "running": [State.ELSEWHERE],
    "waiting": [State.TODO, State.INTERRUPTED],
    "other data": list(ON_OTHER),
}
# Others are yellow.
STATE_COLOURS = {"preparing": "cyan", "running": "cyan", "finished": "green", "failed": "red"}
UNFINISHED = COLUMNS["running"] + COLUMNS["waiting"]
DELIVERY_SECONDS = 60.0  # that a worker may take to deliver a run that has just ended


@dataclass(frozen=True)
class Status:
    """One grid with its settings, or one search; its trials that were stopped early are done."""

    grid: str
    settings: str  # what tells it apart from others of the same grid
    # preparing, running, waiting for its turn, paused, stopped, finished, or what is in the way: failed,
    # other data
    state: str
    counts: Counter[State] = field(default_factory=Counter)  # of cells
    running: list[TrackedRun] = field(default_factory=list)  # that somebody is at work on
    best: dict[str, TrackedRun] = field(default_factory=dict)  # of these settings, by benchmark
    seconds_left: float = math.nan
    changed: tuple[str, ...] = ()  # the parts of the data that are not as some runs saw them
    prepares: str = ""  # what, while it is preparing
    needs: str = ""  # plugins without which nobody can say what its cells are
    overview: TrackedRun | None = None
    keys: frozenset[str] = frozenset()  # of the cells that have a run
    process_lives: bool = False  # of a sweep of another version, of which no more is known

    @property
    def is_live(self) -> bool:
        """Whether a sweep is at work, or would be if it were not paused."""
        return self.process_lives or self.state in ("preparing", "running", "waiting", "paused")

    @property
    def command(self) -> str:
        """What the last sweep was started with; empty where an older version has started it."""
        return self.overview.tags.get("command", "") if self.overview else ""


def status_of(
    overview: TrackedRun, runs: Sequence[TrackedRun], now: float, data: PresentData = NOT_COMPARED
) -> Status:
    """How the sweep of an overview is doing, by all runs of the store, oldest first, and the data here."""
    grid = overview.tags["overview"]
    try:
        spec = Spec.from_json(overview.tags["spec"])
        pace = Pace(runs, overview.tags.get("host"))
        if needs := missing(spec.plugins):
            kept = overview.tags["cells"].split()
            base, cells = Config(), _cells_by_key(kept, runs, pace, now)
            needs = "" if kept else needs  # there were too many for a tag
        else:
            if spec.key() != overview.tags["settings"]:
                raise ConfigError("the same settings gave other results then")
            base = spec.base()
            cells = _trials(spec, runs, pace) if grid == SEARCH else _cells(spec, runs, pace, data)
    except (ConfigError, KeyError):
        return Status(
            grid,
            overview.name.removeprefix(f"{grid}: "),
            "of another version",
            needs="the same settings give others in this version",
            overview=overview,
            process_lives=not has_died(overview.tags, overview.last_seen, now),
        )
    counts = Counter(cell.state for cell in cells)
    running = [cell.run for cell in cells if cell.run and cell.state is State.ELSEWHERE]
    work = [(cell.estimate, cell.left) for cell in cells if cell.state in UNFINISHED]
    if not work and not needs:
        state = "finished" if counts[State.DONE] == len(cells) else "failed"
        if state == "failed" and not sum(counts[one] for one in COLUMNS["failed"]):
            state = "other data"
    elif running or not has_died(overview.tags, overview.last_seen, now):
        state = "running"
        if not running and overview.tags.get(PREPARES):
            state = "preparing"
        if not running and Wishes.of(overview.tags).paused:
            state = "paused"
    else:
        state = "stopped"
    best = _best(cell.run for cell in cells if cell.run and cell.state is State.DONE)
    concurrency = max(len(running), int(overview.tags.get("concurrency", "1")))
    left = time_left(work, concurrency)
    changed = tuple(sorted({name for cell in cells for name in cell.changed}))
    # Toy presets are called so.
    label = f"{spec.label} ({BUNDLED})" if mark_of(base) == BUNDLED else spec.label
    keys = frozenset(cell.run.key for cell in cells if cell.run)
    prepares = overview.tags[PREPARES] if state == "preparing" else ""
    return Status(
        grid, label, state, counts, running, best, left, changed, prepares, needs, overview, keys
    )


def in_turn(found: Sequence[Status]) -> list[Status]:
    """A command of several grids runs one after another: the others wait, which their tags do not say."""
    at_work = {_owner(run) for one in found for run in one.running}
    return [
        replace(one, state="waiting")
        if one.state == "running"
        and not one.running
        and one.overview
        and _owner(one.overview) in at_work
        else one
        for one in found
    ]


def _owner(run: TrackedRun) -> tuple[str, ...]:
    return tuple(run.tags.get(name, "") for name in owner_tags())


def _best(finished: Iterable[TrackedRun]) -> dict[str, TrackedRun]:
    """The run with the highest score on each benchmark."""
    scored = [run for run in finished if not math.isnan(run.score)]
    return {run.params["data.benchmark"]: run for run in sorted(scored, key=lambda run: run.score)}


def _cells(spec: Spec, runs: Sequence[TrackedRun], pace: Pace, data: PresentData) -> list[Cell]:
    base = spec.base()
    plan = make_plan(spec.grid, spec.around(base), spec.cells(base), runs, pace=pace, data=data)
    return plan.cells


def _cells_by_key(
    keys: Sequence[str], runs: Sequence[TrackedRun], pace: Pace, now: float
) -> list[Cell]:
    """The cells of these keys, where nobody here can make their Configs."""
    by_key, cells = runs_by_key(runs), []
    for key in keys:
        state, run = state_of(by_key[key], now)
        seconds = pace.seconds(kind_of(run.params)) if run else math.nan
        cells.append(Cell(Config(), run.name if run else key, state, run, seconds))
    return cells


def _trials(spec: Spec, runs: Sequence[TrackedRun], pace: Pace) -> list[Cell]:
    """The trials that have a run, and those that a search has not begun."""
    base, now = spec.base(), time.time()  # the trials' own Configs do not matter here
    trials = []
    for of_trial in runs_by_key(runs).values():
        mine = [run for run in of_trial if _is_trial_of(run, spec.study)]
        if not mine:
            continue
        state, known = state_of(of_trial, now)
        if state is State.INTERRUPTED and any(run.stopped_early for run in mine):
            state = State.DONE
        seconds = pace.seconds(kind_of(mine[-1].params))
        trials.append(Cell(base, mine[-1].name, state, known, seconds))
    to_come = Cell(base, "", State.TODO, None, math.nan)
    return trials + [to_come] * (spec.trials - len(trials))


def _is_trial_of(run: TrackedRun, study: str) -> bool:
    """Whether a study has made a run, or has taken it from a grid or another study."""
    return study in [run.tags.get("study"), *run.tags.get("studies", "").split()]


@dataclass(frozen=True)
class Look:
    """All that there is to show at one moment."""

    sweeps: list[Status]
    notes: list[str]
    time: float  # seconds since 1970
    store: str  # the tracking store's address

    def render(self) -> RenderableType:
        return render(self.sweeps, self.time, "\n".join(self.notes))

    def to_json(self) -> str:
        """One line; times in seconds since 1970, null where something is not known."""
        sweeps = [_as_json(one) for one in self.sweeps]
        return json.dumps(
            {"time": self.time, "store": self.store, "sweeps": sweeps, "notes": self.notes}
        )


def _as_json(one: Status) -> dict[str, object]:
    counts = {name: _count(one, name) for name in COLUMNS}
    running = [
        {
            **_run_as_json(run),
            "step": run.progress.step,
            "steps": int(run.params.get("training.steps", "0")),
            "last_seen": run.last_seen,
            "host": run.tags.get("host"),
        }
        for run in one.running
    ]
    left = None if math.isnan(one.seconds_left) or one.state != "running" else one.seconds_left
    return {
        "grid": one.grid,
        "settings": one.settings,
        "state": one.state,
        "counts": counts,
        "seconds_left": left,
        "prepares": one.prepares,
        "running": running,
        "best": {name: _run_as_json(run) for name, run in one.best.items()},
        "changed_data": list(one.changed),
        "command": one.command,
        "overview": one.overview.run_id if one.overview else None,
    }


def _run_as_json(run: TrackedRun) -> dict[str, object]:
    score = None if math.isnan(run.score) else run.score
    return {"run_id": run.run_id, "name": run.name, "score": score}


def look(store: Store, grid: str | None = None) -> Look:
    """How every grid and settings that have run are doing now, or one grid's.

    Raises TrackingError if none has run.
    """
    overviews: dict[tuple[str, str], TrackedRun] = {}
    for run in store.overviews():
        if "settings" in run.tags and grid in (None, run.tags["overview"]):
            # Two sweeps may create one at the same moment; the older one stays.
            overviews.setdefault((run.tags["overview"], run.tags["settings"]), run)
    if not overviews:
        raise TrackingError(_why_none(store, grid))
    now, runs, found, notes = time.time(), store.runs(), [], dict[str, None]()
    for overview in overviews.values():
        data = PresentData.of_overview(overview)
        found.append(status_of(overview, runs, now, data))
        notes |= data.unknown
    told = [f"what runs saw was not compared with the data: {note}" for note in notes]
    return Look(
        in_turn(found), [*filter(None, [_undelivered(store, now)]), *told], now, redact(store.uri)
    )


def _why_none(store: Store, grid: str | None) -> str:
    """Why there is no sweep to show, and what to do."""
    there = sorted({run.tags["overview"] for run in store.overviews()})
    text = f"no sweep of {grid or 'any grid'} in {redact(store.uri)}"
    text += f", only of {', '.join(there)}" if there else ""
    if grid is None or grid in GRIDS or grid == SEARCH:
        return f"{text}: start one with {command('run')} --grid {grid or 'attention'}"
    return text if there else f"{text}. All grids: {command('run')} --list"


def _undelivered(store: Store, now: float) -> str:
    """What to say about ended runs that wait beside this store; the tables do not count them as ended."""
    try:
        ages = [now - ending.time / 1000 for _, ending in undelivered(store)]
    except StorageError as error:  # the sweeps may be well
        return str(error)
    count = sum(age > DELIVERY_SECONDS for age in ages)
    if not count:
        return ""
    return (
        f"{count} ended runs wait in {store.storage.uri} and are not counted as ended above:\n"
        f"the next sweep delivers them, or {deliver_command(store)}"
    )


def render(found: Sequence[Status], now: float, note: str = "") -> RenderableType:
    """A few lines for each sweep, which fit narrow terminals however many settings it has; and a note."""
    # A rare column only where it says something.
    columns = [
        name
        for name, states in COLUMNS.items()
        if name != "other data" or any(one.counts[state] for one in found for state in states)
    ]
    parts: list[RenderableType] = []
    shown: set[str] = set()  # ids of running runs: one that several grids share runs once
    for one in found:
        parts.append(Text(f"{one.grid}, {one.settings}", "bold", overflow="fold"))
        counts = [f"{_count(one, name):>4} {name}" for name in columns]
        known = one.state == "running" and not math.isnan(one.seconds_left)
        left = f"  {duration(one.seconds_left)} left" if known else ""
        colour = STATE_COLOURS.get(one.state, "yellow")
        parts.append(Text.assemble("  ", (f"{one.state:<9}", colour), " ".join(counts), left))
        if one.prepares:
            parts.append(Text(f"  prepares  {one.prepares}"))
        for benchmark, run in one.best.items():
            score = f"{BENCHMARKS[benchmark].score} {run.score:.2f}"
            parts.append(Text(f"  best      {run.name} {score}, run {run.run_id[:8]}"))
        for run in one.running:
            if run.run_id not in shown:
                parts.append(Text(f"  at work   {_at_work(run, now)}"))
        shown |= {run.run_id for run in one.running}
        if one.needs:
            parts.append(Text(f"  its runs are not counted: {one.needs}", "yellow"))
        if one.changed:
            text = f"  not the same data as runs saw: {', '.join(one.changed)}"
            parts.append(Text(f"{text}; the sweep trains these again with --refresh", "yellow"))
    if note:
        parts.append(Text(note, "yellow"))
    return Group(*parts)


def _count(one: Status, name: str) -> int:
    return sum(one.counts[state] for state in COLUMNS[name])


def _at_work(run: TrackedRun, now: float) -> str:
    steps = f"{run.progress.step}/{run.params.get('training.steps', '?')} steps"
    seen = duration(max(0.0, now - run.last_seen))
    return f"{run.name}  {steps}, seen {seen} ago on {run.tags.get('host', '?')}"


def watch(console: Console, show: Callable[[], RenderableType], seconds: float) -> NoReturn:
    """Shows it again and again, until Ctrl-C; waits for a store that is away."""
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
