"""What a grid's cells are up to: done, failed, still to do; and how long they will take."""

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from semidavil.config import Config
from sweeps.grids import Grid
from sweeps.provenance import owner_tags
from sweeps.tracking import TrackedRun


class State(StrEnum):
    DONE = "done"
    TODO = "to do"
    INTERRUPTED = "interrupted"
    FAILED = "failed"
    HOPELESS = "failed for good"  # it would fail again in the same way
    ELSEWHERE = "running elsewhere"


@dataclass(frozen=True, slots=True)
class Cell:
    """One Config of a grid with what the store knows about it.

    Attributes:
        run: the run that is done, failed or to be continued; of any grid.
        estimate: seconds that it takes from its start, judged by earlier runs; NaN if none is alike.
    """

    config: Config
    name: str
    state: State
    run: TrackedRun | None
    estimate: float

    @property
    def seconds_left(self) -> float:
        """What of `estimate` is left for a run that goes on from its checkpoint."""
        if self.run is None or self.state is State.TODO:
            return self.estimate
        return self.estimate * (1 - self.run.share)


@dataclass(frozen=True)
class Plan:
    grid_name: str
    grid: Grid
    cells: list[Cell]
    retry_hopeless: bool = False

    @property
    def waiting(self) -> list[Cell]:
        """The cells that a sweep would run now."""
        states = {State.TODO, State.INTERRUPTED, State.FAILED}
        if self.retry_hopeless:
            states.add(State.HOPELESS)
        return [cell for cell in self.cells if cell.state in states]

    def counts(self) -> Counter[State]:
        return Counter(cell.state for cell in self.cells)

    def foreign(self) -> list[TrackedRun]:
        """Finished runs of this grid's cells that another grid has made."""
        return [
            cell.run
            for cell in self.cells
            if cell.state is State.DONE
            and cell.run is not None
            and cell.run.experiment != self.grid_name
        ]

    def seconds_left(self, concurrency: int) -> float:
        """Wall-clock seconds for the cells that wait; NaN while nothing like them has run."""
        return self._seconds() / max(1, min(concurrency, len(self.waiting)))

    def gpu_hours(self, gpus: float) -> float:
        """What the cells that wait take of GPUs, with so many each; NaN as `seconds_left`."""
        return self._seconds() * gpus / 3600

    def _seconds(self) -> float:
        """Of all cells that wait, one after the other."""
        waiting = [cell.seconds_left for cell in self.waiting]
        known = [seconds for seconds in waiting if not math.isnan(seconds)]
        if waiting and not known:
            return math.nan
        # Cells without a match take the others' mean.
        return sum(known) / max(1, len(known)) * len(waiting)


def make_plan(
    grid_name: str,
    grid: Grid,
    configs: Sequence[Config],
    runs: Iterable[TrackedRun],
    retry_hopeless: bool = False,
) -> Plan:
    """Matches Configs with tracked runs by key, whichever grid has made them."""
    by_key: dict[str, list[TrackedRun]] = defaultdict(list)
    finished = []
    for run in runs:
        by_key[run.key].append(run)
        if run.status == "FINISHED":
            finished.append(run)
    pace = measured_pace(finished)
    cells = []
    for config in configs:
        state, known = _state(by_key.get(config.key(), []))
        steps = config.training.steps
        estimate = pace.get(_kind(config.to_params()), math.nan) * steps
        cells.append(Cell(config, grid.name(config), state, known, estimate))
    return Plan(grid_name, grid, cells, retry_hopeless)


def _state(runs: Sequence[TrackedRun]) -> tuple[State, TrackedRun | None]:
    """The state of a cell with these runs, oldest first, and the run that tells it."""
    for run in runs:
        if run.status == "FINISHED":
            return State.DONE, run
    for run in reversed(runs):
        if run.status in ("RUNNING", "SCHEDULED") and not run.is_dead():
            return State.ELSEWHERE, run
    if not runs:
        return State.TODO, None
    last = runs[-1]
    if last.status != "FAILED":
        return State.INTERRUPTED, last
    return State.HOPELESS if last.tags.get("retry") == "false" else State.FAILED, last


def measured_pace(finished: Iterable[TrackedRun]) -> dict[tuple[str, ...], float]:
    """Median seconds per step of this machine's runs, for each kind of run."""
    host = owner_tags()["host"]
    seconds = defaultdict(list)
    for run in finished:
        steps = run.metrics.get("final/steps", 0)
        if run.tags.get("host") == host and steps and "final/seconds" in run.metrics:
            seconds[_kind(run.params)].append(run.metrics["final/seconds"] / steps)
    return {kind: statistics.median(values) for kind, values in seconds.items()}


def _kind(params: Mapping[str, str]) -> tuple[str, ...]:
    """Runs that agree in these take about the same time per step."""
    names = (
        "model.vlm", "data.benchmark", "data.crop", "data.target_size",
        "training.batch_size", "training.steps", "training.method",
    )  # fmt: skip
    return tuple(params.get(name, "") for name in names)
