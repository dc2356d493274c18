"""What a sweep's parts have in common: how its cells are to be run, where, and what became of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from sweeps.plan.cells import FailedCell
from sweeps.plan.data import NOT_COMPARED, PresentData
from sweeps.run.events import Task
from sweeps.run.resources import Resources
from sweeps.show.notify import Notify, quiet
from sweeps.track.store import Store
from sweeps.track.wishes import NOTHING, Wishes


@dataclass(frozen=True)
class SweepOptions:
    """How a command wants its cells run."""

    tags: Mapping[str, str]  # of all runs: commit, versions, preset
    train: str  # the training function as `module:function`
    retries: int = 1  # of a cell that fails, unless it would fail in the same way
    retry_diverged: bool = False  # cells that have failed for good are run again
    refresh: bool = False  # so are cells of which runs saw other data than are here now
    data: PresentData = NOT_COMPARED  # what is here now
    wait: bool = False  # for cells that other sweeps train, and take over what these leave
    command: str = ""  # that goes on with the sweep, for people
    notify: Notify = quiet


@dataclass(frozen=True)
class SweepContext:
    """What all cells of a sweep have in common."""

    store: Store
    resources: Resources
    options: SweepOptions
    grid: str  # the experiment's name
    experiment_id: str
    # The run that theirs are shown below, whose tags have wishes; empty if there is none.
    parent: str
    before: Wishes = NOTHING  # that are not to be heeded: of earlier sweeps, or honoured already


@dataclass
class Outcome:
    """What became of the cells that ran."""

    failed: list[FailedCell] = field(default_factory=list)
    taken: set[str] = field(default_factory=set)  # keys of cells that other sweeps have
    undelivered: list[Task] = field(default_factory=list)  # ended, and the store does not have them
