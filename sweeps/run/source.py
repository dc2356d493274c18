"""Where the cells of a sweep come from, and who hears what becomes of them."""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Protocol

from sweeps.plan.cells import Cell
from sweeps.run.events import Done, Progress


class CellSource(Protocol):
    """Where a sweep's cells come from: a grid's queue, or an Optuna study.

    `should_stop`, `exhausted` and `total` are asked in Ray Tune's loop and must answer at once; the rest is
    called in the driver's store thread and may ask the tracking store.
    """

    @property
    def total(self) -> int:
        """Cells that have ended, are open, or are left."""

    def exhausted(self) -> bool:
        """Whether `next` will give no cell any more."""

    def should_stop(self, cell: Cell, progress: Progress) -> bool:
        """Whether a running cell, which has told a score, ends here."""

    def next(self) -> Cell | None:
        """The next cell; None if there is none now."""

    def tags(self, cell: Cell) -> Mapping[str, str]:
        """What the cell's run is tagged with besides."""

    def finished(self, cell: Cell, done: Done, run_id: str) -> None:
        """It was trained to its end."""

    def stopped(self, cell: Cell, run_id: str) -> None:
        """It was ended early."""

    def failed(self, cell: Cell, reason: str, run_id: str, diverged: bool) -> None:
        """It is given up; `diverged` if it would fail again in the same way."""

    def taken(self, cell: Cell) -> None:
        """Another sweep has it, or somebody has deleted its run."""

    def retry(self, key: str) -> str:
        """Gives the cell of this key once more if it was given up; returns its name, or an empty text."""


class QueueSource:
    """The waiting cells of a grid's plan, in order."""

    def __init__(self, cells: Sequence[Cell]) -> None:
        self.queue = deque(cells)
        self.total = len(cells)
        self.given_up: dict[str, Cell] = {}  # by key

    def exhausted(self) -> bool:
        return not self.queue

    def should_stop(self, cell: Cell, progress: Progress) -> bool:
        return False

    def next(self) -> Cell | None:
        return self.queue.popleft() if self.queue else None

    def tags(self, cell: Cell) -> Mapping[str, str]:
        return {}

    def finished(self, cell: Cell, done: Done, run_id: str) -> None: ...
    def stopped(self, cell: Cell, run_id: str) -> None: ...
    def failed(self, cell: Cell, reason: str, run_id: str, diverged: bool) -> None:
        self.given_up[cell.config.key()] = cell

    def taken(self, cell: Cell) -> None:
        self.total -= 1

    def retry(self, key: str) -> str:
        if (cell := self.given_up.pop(key, None)) is None:
            return ""
        self.queue.appendleft(cell)
        return cell.name
