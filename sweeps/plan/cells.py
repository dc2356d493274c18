"""What a grid's cells are up to: done, failed, still to do; and how long they will take.

A sweep, its `--list`, its overview in MLflow and `status.py` all count with `make_plan`.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from semidavil.config import Config
from sweeps.plan.grids import Grid
from sweeps.plan.pace import Pace, kind_of, time_left
from sweeps.track.lease import is_held
from sweeps.track.runs import TrackedRun


class State(StrEnum):
    DONE = "done"
    TODO = "to do"
    INTERRUPTED = "interrupted"
    FAILED = "failed"
    DIVERGED = "failed for good"  # its loss became infinite, and would do so again
    ELSEWHERE = "running elsewhere"


@dataclass(frozen=True, slots=True)
class Cell:
    """One Config of a grid with what the store knows about it."""

    config: Config
    name: str
    state: State
    run: TrackedRun | None  # that is done, failed, running or to be continued; of any grid
    estimate: float  # seconds of a whole run, judged by others; NaN if none is alike

    @property
    def left(self) -> float:
        """The share of its training that is still to be done, from 0 to 1."""
        return 1.0 - self.run.share if self.run else 1.0


@dataclass(frozen=True)
class FailedCell:
    """A cell that a sweep has given up."""

    name: str
    reason: str
    log: str = ""  # where the output of its training is


@dataclass(frozen=True)
class Plan:
    """The cells of a grid as they are now."""

    grid_name: str
    grid: Grid
    cells: list[Cell]
    retry_diverged: bool = False  # cells whose loss became infinite are run again

    @property
    def waiting(self) -> list[Cell]:
        """The cells that a sweep would run now."""
        states = {State.TODO, State.INTERRUPTED, State.FAILED}
        if self.retry_diverged:
            states.add(State.DIVERGED)
        return [cell for cell in self.cells if cell.state in states]

    @property
    def elsewhere(self) -> list[Cell]:
        """The cells that another sweep is training now."""
        return [cell for cell in self.cells if cell.state is State.ELSEWHERE]

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


def make_plan(
    grid_name: str,
    grid: Grid,
    configs: Sequence[Config],
    runs: Iterable[TrackedRun],
    retry_diverged: bool = False,
    pace: Pace | None = None,
) -> Plan:
    """Matches Configs with tracked runs, oldest first, by key, whichever grid has made them.

    Cells are timed by `pace`, or else by the runs of this machine's sweeps.
    """
    runs = list(runs)
    pace = pace or Pace(runs)
    now, by_key, cells = time.time(), runs_by_key(runs), []
    for config in configs:
        state, known = state_of(by_key[config.key()], now)
        estimate = pace.seconds(kind_of(config.to_params()))
        cells.append(Cell(config, grid.name(config), state, known, estimate))
    return Plan(grid_name, grid, cells, retry_diverged)


def runs_by_key(runs: Iterable[TrackedRun]) -> dict[str, list[TrackedRun]]:
    by_key: dict[str, list[TrackedRun]] = defaultdict(list)
    for run in runs:
        by_key[run.key].append(run)
    return by_key


def state_of(runs: Sequence[TrackedRun], now: float) -> tuple[State, TrackedRun | None]:
    """The state of the cell that has these runs, oldest first, and the run that it follows from."""
    for run in runs:
        if run.status == "FINISHED":
            return State.DONE, run
    for run in reversed(runs):
        if is_held(run, now):
            return State.ELSEWHERE, run
    if not runs:
        return State.TODO, None
    # The run that was trained last; of older versions, which gave no epochs, the one that has come farthest.
    last = max(runs, key=lambda run: (run.epoch, run.progress.step))
    if last.status != "FAILED":
        return State.INTERRUPTED, last
    return State.DIVERGED if last.tags.get("retry") == "false" else State.FAILED, last
