"""What a grid's cells are up to: done, failed, still to do; and how long they will take.

A sweep, its `--list`, its overview in MLflow and `status.py` all count with `make_plan`.
"""

import math
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from types import MappingProxyType

from semidavil.config import Config
from semidavil.data.fingerprint import differences
from sweeps.plan.data import NOT_COMPARED, PresentData
from sweeps.plan.grid import Grid
from sweeps.plan.needs import Lack, Lacking
from sweeps.plan.pace import Pace, kind_of, time_left
from sweeps.plan.spec import Job
from sweeps.track.lease import is_held
from sweeps.track.runs import TrackedRun
from sweeps.track.wishes import ASKED


class State(StrEnum):
    DONE = "done"
    DONE_ON_OTHER = "done on other data"  # than are here now
    TODO = "to do"
    INTERRUPTED = "interrupted"
    BEGUN_ON_OTHER = "begun on other data"
    FAILED = "failed"
    # Its loss became infinite, its score is undefined, or a plugin is wrong, and would be so again.
    DIVERGED = "failed for good"
    ELSEWHERE = "running elsewhere"
    LACKING = "cannot run here"  # for want of a model, say; see `needs`


ON_OTHER = (State.DONE_ON_OTHER, State.BEGUN_ON_OTHER)  # run only if that is asked for


@dataclass(frozen=True, slots=True)
class Cell:
    """One Config of a grid with what the store knows about it."""

    config: Config
    name: str
    state: State
    run: TrackedRun | None  # that is done, failed, running or to be continued; of any grid
    estimate: float  # seconds of a whole run, judged by others; NaN if none is alike
    changed: tuple[str, ...] = ()  # the parts of the data that are not as its run saw them
    replaced: tuple[str, ...] = ()  # ids of runs that a new one takes the place of
    lacks: tuple[Lack, ...] = ()  # what it would need to run

    @property
    def left(self) -> float:
        """The share of its training that is still to be done, from 0 to 1."""
        return 1.0 - self.run.share if self.run and not self.replaced else 1.0


@dataclass(frozen=True)
class FailedCell:
    """A cell that a sweep has given up."""

    name: str
    reason: str
    log: str = ""  # where the output of its training is
    key: str = ""  # its Config's; empty where no run was begun


@dataclass(frozen=True)
class Plan:
    """The cells of a grid as they are now."""

    grid_name: str
    grid: Grid
    cells: list[Cell]
    retry_diverged: bool = False  # cells that have failed for good are run again
    refresh: bool = False  # so are cells of which runs saw other data than are here now

    @property
    def waiting(self) -> list[Cell]:
        """The cells that a sweep would run now."""
        return [cell for cell in self._to_run if not cell.lacks]

    @property
    def left_out(self) -> list[Cell]:
        """The cells that a sweep would run if what they need were here."""
        return [cell for cell in self._to_run if cell.lacks]

    @property
    def _to_run(self) -> list[Cell]:
        states = {State.TODO, State.INTERRUPTED, State.FAILED, State.LACKING}
        if self.retry_diverged:
            states.add(State.DIVERGED)
        if self.refresh:
            states.update(ON_OTHER)
        return [cell for cell in self.cells if cell.state in states]

    @property
    def elsewhere(self) -> list[Cell]:
        """The cells that another sweep is training now."""
        return [cell for cell in self.cells if cell.state is State.ELSEWHERE]

    @property
    def on_other(self) -> list[Cell]:
        """The cells of which runs saw other data than are here now, and that are left as they are."""
        return [] if self.refresh else [cell for cell in self.cells if cell.state in ON_OTHER]

    def counts(self) -> Counter[State]:
        return Counter(cell.state for cell in self.cells)

    def foreign(self) -> list[TrackedRun]:
        """Finished runs of this grid's cells that another grid has made and that do not say so yet."""
        return [
            cell.run
            for cell in self.cells
            if cell.state is State.DONE
            and cell.run is not None
            and cell.run.made_by != self.grid_name
            and self.grid_name not in cell.run.tags.get("grids", "").split()
        ]

    def seconds_left(self, concurrency: int) -> float:
        """Wall-clock seconds for the cells that wait; NaN while nothing like them has run."""
        return time_left([(cell.estimate, cell.left) for cell in self.waiting], concurrency)


def plan_of(
    job: Job,
    runs: Iterable[TrackedRun],
    retry_diverged: bool = False,
    data: PresentData = NOT_COMPARED,
    refresh: bool = False,
) -> Plan:
    """The plan of what a command asks for; see `make_plan`."""
    return make_plan(
        job.name, job.grid, job.configs, runs, retry_diverged, None, data, refresh, job.lacking
    )


def make_plan(
    grid_name: str,
    grid: Grid,
    configs: Sequence[Config],
    runs: Iterable[TrackedRun],
    retry_diverged: bool = False,
    pace: Pace | None = None,
    data: PresentData = NOT_COMPARED,
    refresh: bool = False,
    lacking: Lacking = MappingProxyType({}),
) -> Plan:
    """Matches Configs with tracked runs, oldest first, by key, whichever grid has made them.

    Cells are timed by `pace`, or else by the runs of this machine's sweeps. What runs saw is compared with
    `data`.

    Args:
        lacking: what Configs need that is not here.
    """
    runs = list(runs)
    pace = pace or Pace(runs)
    now, by_key, cells = time.time(), runs_by_key(runs), []
    for config in configs:
        cell = Cell(config, grid.name(config), State.TODO, None, math.nan)
        cell = with_runs(cell, by_key[config.key()], now, data)
        lacks = lacking.get(config.key(), ())
        if lacks and cell.state in (State.TODO, State.INTERRUPTED, State.FAILED):
            cell = replace(cell, state=State.LACKING)
        estimate = pace.seconds(kind_of(config.to_params()))
        cells.append(replace(cell, estimate=estimate, lacks=lacks))
    return Plan(grid_name, grid, cells, retry_diverged, refresh)


def runs_by_key(runs: Iterable[TrackedRun]) -> dict[str, list[TrackedRun]]:
    by_key: dict[str, list[TrackedRun]] = defaultdict(list)
    for run in runs:
        by_key[run.key].append(run)
    return by_key


def with_runs(
    cell: Cell, runs: Sequence[TrackedRun], now: float, data: PresentData = NOT_COMPARED
) -> Cell:
    """The cell as these runs, oldest first, leave it."""
    present = data.of(cell.config) if any(run.data for run in runs) else ""
    state, run = state_of(runs, now, present)
    if state is State.DONE or state is State.ELSEWHERE or run is None:
        return replace(cell, state=state, run=run)
    gone = [one for one in runs if one.status == "FINISHED" or _saw_other(one, present)]
    replaced = tuple(one.run_id for one in gone) if run in gone else ()  # else `run` goes on
    changed = tuple(differences(run.data, present)) if state in ON_OTHER else ()
    return replace(cell, state=state, run=run, changed=changed, replaced=replaced)


def _saw_other(run: TrackedRun, data: str) -> bool:
    """Whether a run saw other data than those of the fingerprint `data`, where both are known."""
    return bool(run.data and data) and run.data != data


def state_of(
    runs: Sequence[TrackedRun], now: float, data: str = ""
) -> tuple[State, TrackedRun | None]:
    """The state of the cell that has these runs, oldest first, and the run that it follows from.

    Args:
        data: the fingerprint of what the cell would see now, where it is known.
    """
    finished = [run for run in runs if run.status == "FINISHED"]
    for run in finished:
        if not (run.is_undefined or _saw_other(run, data)):
            return State.DONE, run
    for run in reversed(runs):
        if is_held(run, now):
            return State.ELSEWHERE, run
    if finished:
        run = finished[-1]
        if _saw_other(run, data):
            return State.DONE_ON_OTHER, run
        return State.FAILED if run.tags.get("retry") == ASKED else State.DIVERGED, run
    if not runs:
        return State.TODO, None
    # The run that was trained last; of older versions, which gave no epochs, the one that has come farthest.
    last = max(runs, key=lambda run: (run.epoch, run.progress.step))
    if _saw_other(last, data):
        return State.BEGUN_ON_OTHER, last
    if last.status != "FAILED":
        return State.INTERRUPTED, last
    return State.DIVERGED if last.tags.get("retry") == "false" else State.FAILED, last
