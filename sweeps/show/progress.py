"""What a sweep shows while it runs: bars on a terminal, one line per finished cell elsewhere."""

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn
from rich.progress import Progress as Bars

from sweeps.plan.pace import Kind, Pace, kind_of, time_left
from sweeps.run.events import Progress
from sweeps.show.tables import duration

REFRESH_SECONDS = 1.0  # between two estimates of the time left


class Counted(Protocol):
    """Knows how many cells a sweep has in all, without those that are left to other sweeps."""

    @property
    def total(self) -> int: ...


@dataclass
class _Running:
    kind: Kind
    bar: TaskID  # its line on the terminal
    share: float = 0.0  # of its steps that are done
    first_share: float = 0.0  # when this sweep first heard of it
    since: float | None = None  # when that was, by the monotonic clock


class SweepProgress:
    """Done of total, each running cell's steps and phase, failures, time left, time of the end.

    Args:
        source: of the cells; it knows how many there are.
        to_come: kind and share left of each cell that waits when the sweep begins; of a search, whose
            cells are not known yet, those of one that is like them.
        pace: what earlier runs took; learns what this sweep's runs take.
    """

    def __init__(
        self,
        console: Console,
        source: Counted,
        to_come: Sequence[tuple[Kind, float]],
        concurrency: int,
        pace: Pace,
    ) -> None:
        self.console, self.source, self.to_come = console, source, to_come
        self.concurrency, self.pace = concurrency, pace
        self.done = self.failed = 0
        self._running: dict[str, _Running] = {}  # by name
        self._estimated = -math.inf  # when, on the monotonic clock
        self.bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self.whole = self.bars.add_task("[bold]all cells", total=source.total, note="")

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bars.stop()

    def start(self, name: str, params: Mapping[str, str]) -> None:
        """A cell, whose Config has these flat params, has a worker."""
        self.pause(name)
        steps = int(params.get("training.steps", "0")) or None
        bar = self.bars.add_task(escape(name), total=steps, note="starting")
        self._running[name] = _Running(kind_of(params), bar)

    def update(self, name: str, event: Progress) -> None:
        """A running cell tells where it is."""
        cell = self._running.get(name)
        if cell is None:
            return
        now = time.monotonic()
        if event.total:
            cell.share = event.step / event.total
            if cell.since is None:
                cell.since, cell.first_share = now, cell.share
            self.pace.running(cell.kind, name, cell.share - cell.first_share, now - cell.since)
        notes = [] if event.phase == "training" else [event.phase]
        if event.loss is not None:
            notes.append(f"loss {event.loss:.3f}")
        self.bars.update(
            cell.bar, completed=event.step, total=event.total or None, note=escape(", ".join(notes))
        )
        if now - self._estimated > REFRESH_SECONDS:
            self._refresh()

    def end(
        self, name: str, *, summary: str = "", seconds: float | None = None, error: str = ""
    ) -> None:
        """A cell is done with `summary`, such as "mIoU 34.20", or is given up with an `error`.

        `seconds` are what its training took; None where that says nothing about the others.
        """
        cell = self.pause(name)
        if error:
            self.failed += 1
            outcome = f"[red]failed:[/] {escape(error.splitlines()[0])}"
        else:
            self.done += 1
            outcome = escape(summary)
            if seconds is not None:
                outcome += f"  {duration(seconds)}"
                if cell is not None:
                    self.pace.finished(cell.kind, seconds)
        ended, total = self.done + self.failed, self.source.total
        left = f"  ({duration(self.seconds_left())} left)" if ended < total else ""
        self.print(f"{ended:{len(str(total))}}/{total}  {escape(name)}  {outcome}{left}")
        self._refresh()

    def taken(self, name: str, reason: str) -> None:
        """A cell is another sweep's, or nobody's any more."""
        self.pause(name)
        self.say(name, reason)
        self._refresh()

    def pause(self, name: str) -> _Running | None:
        """A cell runs no more, if it did; it may start again."""
        cell = self._running.pop(name, None)
        if cell is not None:
            self.bars.remove_task(cell.bar)
        return cell

    def say(self, name: str, text: str) -> None:
        """A line about a cell, above the bars."""
        self.print(f"{escape(name)}: {escape(text)}")

    def print(self, text: str) -> None:
        """A line above the bars, with rich's markup."""
        self.console.print(text)

    def seconds_left(self) -> float:
        """Until all cells have ended; NaN while nothing like them has run."""
        cells = [(self.pace.seconds(one.kind), 1 - one.share) for one in self._running.values()]
        waiting = self.source.total - self.done - self.failed - len(cells)
        if self.to_come and waiting > 0:  # which of them wait is not known: take their average
            known = [s for kind, _ in self.to_come if not math.isnan(s := self.pace.seconds(kind))]
            seconds = statistics.fmean(known) if known else math.nan
            left = statistics.fmean(left for _, left in self.to_come)
            cells += [(seconds, left)] * waiting
        return time_left(cells, self.concurrency)

    def _refresh(self) -> None:
        self._estimated = time.monotonic()
        seconds = self.seconds_left()
        note = f"{duration(seconds)} left{clock_time(seconds, datetime.now())}"
        note += f", [red]{self.failed} failed" if self.failed else ""
        ended = self.done + self.failed
        self.bars.update(self.whole, completed=ended, total=self.source.total, note=note)


def clock_time(seconds: float, now: datetime) -> str:
    """`, until Fri 14:05`; empty if it is not known."""
    return "" if math.isnan(seconds) else f", until {now + timedelta(seconds=seconds):%a %H:%M}"
