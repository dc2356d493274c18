"""What a sweep shows while it runs.

On a terminal, bars; elsewhere, a line for each run that ends and now and then one of those that go on.
"""

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
from rich.table import Column

from semidavil.benchmarks import BENCHMARKS
from sweeps.plan.pace import Kind, Pace, kind_of, time_left
from sweeps.run.events import STARTING, TRAINING, Progress
from sweeps.show.notify import Notify, quiet
from sweeps.show.tables import duration

REFRESH_SECONDS = 1.0  # between two estimates of the time left
BEAT_SECONDS = 600.0  # between two lines of what goes on, where there is no terminal
# A run counts as stalled when it has told nothing for so long, for so many times the longest silence of any
# run before, and for such a share of the time that a whole run like it takes.
STALL_SECONDS, STALL_TIMES, STALL_SHARE = 600.0, 10.0, 0.1


BEGUN = Progress(0, 0, STARTING)


class Counted(Protocol):
    """Knows how many cells a sweep has in all, without those that are left to other sweeps."""

    @property
    def total(self) -> int: ...


@dataclass
class _Running:
    kind: Kind
    bar: TaskID  # its line on the terminal
    score_name: str
    heard: float  # when it last told something, by the monotonic clock as all times here
    last: Progress = BEGUN
    loss: float | None = None
    score: float | None = None  # so far
    share: float = 0.0  # of its steps that are done
    first_share: float = 0.0  # when this sweep first heard of it
    since: float | None = None  # when that was
    stalled: bool = False

    def note(self) -> str:
        """`evaluation, loss 0.512, mIoU 31.20`."""
        parts = [] if self.last.phase in ("", TRAINING) else [self.last.phase]
        parts += [] if self.loss is None else [f"loss {self.loss:.3f}"]
        parts += [] if self.score is None else [f"{self.score_name} {self.score:.2f}"]
        return ", ".join(parts)


class SweepProgress:
    """Done of total, each running cell's steps, phase, loss and score, failures, time left, time of the end.

    Args:
        source: of the cells; it knows how many there are.
        to_come: kind and share left of each cell that waits when the sweep begins; of a search, whose
            cells are not known yet, those of one that is like them.
        pace: what earlier runs took; learns what this sweep's runs take.
        notify: hears of cells that have failed or stalled.
    """

    def __init__(
        self,
        console: Console,
        source: Counted,
        to_come: Sequence[tuple[Kind, float]],
        concurrency: int,
        pace: Pace,
        notify: Notify = quiet,
    ) -> None:
        self.console, self.source, self.to_come = console, source, to_come
        self.concurrency, self.pace, self.notify = concurrency, pace, notify
        self.done = self.failed = 0
        self.paused = self.got_on = False  # the latter once a run has made a step
        self._running: dict[str, _Running] = {}  # by name
        self._estimated = -math.inf
        self._beat = time.monotonic()
        self._longest = 0.0  # silence of a run that went on afterwards, in seconds
        self.bars = Bars(
            TextColumn(
                "{task.description}",
                table_column=Column(ratio=3, no_wrap=True, overflow="ellipsis"),
            ),
            BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=6)),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}", table_column=Column(ratio=3, no_wrap=True)),
            console=console,
            disable=not console.is_terminal,
            transient=True,
            expand=True,
        )
        self.whole = self.bars.add_task("[bold]all runs", total=source.total, note="")

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
        known = BENCHMARKS.get(params.get("data.benchmark", ""))
        score = known.score if known else "score"
        self._running[name] = _Running(kind_of(params), bar, score, time.monotonic())

    def update(self, name: str, event: Progress) -> None:
        """A running cell tells where it is."""
        cell = self._running.get(name)
        if cell is None:
            return
        now = time.monotonic()
        self._longest = max(self._longest, now - cell.heard)
        self.got_on = self.got_on or (cell.last is not BEGUN and event.step > cell.last.step)
        cell.heard, cell.stalled, cell.last = now, False, event
        cell.loss = cell.loss if event.loss is None else event.loss
        cell.score = cell.score if event.score is None else event.score
        if event.total:
            cell.share = event.step / event.total
            if cell.since is None:
                cell.since, cell.first_share = now, cell.share
            self.pace.running(cell.kind, name, cell.share - cell.first_share, now - cell.since)
        note = escape(cell.note())
        self.bars.update(cell.bar, completed=event.step, total=event.total or None, note=note)
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
            reason = error.splitlines()[0]
            outcome = f"[red]failed:[/] {escape(reason)}"
            counts = {"done": self.done, "failed": self.failed, "total": self.source.total}
            self.notify("failed", f"{name} has failed: {reason}", cell=name, reason=error, **counts)
        else:
            self.done += 1
            outcome = escape(summary)
            if seconds is not None:
                outcome += f"  {duration(seconds)}"
                if cell is not None:
                    self.pace.finished(cell.kind, seconds)
        ended, total = self.done + self.failed, self.source.total
        left = f"  ({self._time_left()})" if ended < total else ""
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

    def breathe(self) -> None:
        """Called several times a second: says what goes on where no bars do, and what has stalled."""
        now = time.monotonic()
        for name, cell in self._running.items():
            silence = now - cell.heard
            if not cell.stalled and silence > self.stall_seconds(cell.kind):
                cell.stalled = True
                text = f"no progress for {duration(silence)}, in {cell.last.phase or TRAINING}"
                self.say(name, f"{text}; its log: python -m sweeps logs {name}")
                self.notify("stalled", f"{name}: {text}", cell=name, seconds=round(silence))
        if not self.console.is_terminal and now - self._beat > BEAT_SECONDS:
            self._beat = now
            self.print(escape(self.beat()))

    def stall_seconds(self, kind: Kind) -> float:
        """After how long a silence a run of this kind counts as stalled."""
        whole = self.pace.seconds(kind)
        share = 0.0 if math.isnan(whole) else STALL_SHARE * whole
        return max(STALL_SECONDS, STALL_TIMES * self._longest, share)

    def beat(self) -> str:
        """`12:05  3/24, 1 failed; running: a 40/160 loss 1.234, b starting; 12 min left, until Fri 14:05`."""
        ended, total = self.done + self.failed, self.source.total
        failed = f", {self.failed} failed" if self.failed else ""
        running = [
            f"{name} {cell.last.step}/{cell.last.total or '?'} {cell.note()}".rstrip()
            for name, cell in self._running.items()
        ]
        now = "; ".join(running) or ("paused" if self.paused else "nothing runs")
        return f"{time.strftime('%H:%M')}  {ended}/{total}{failed}; {now}; {self._time_left()}"

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

    def _time_left(self) -> str:
        seconds = self.seconds_left()
        return f"{duration(seconds)} left{clock_time(seconds, datetime.now())}"

    def _refresh(self) -> None:
        self._estimated = time.monotonic()
        note = "paused" if self.paused else self._time_left()
        note += f", [red]{self.failed} failed" if self.failed else ""
        ended = self.done + self.failed
        self.bars.update(self.whole, completed=ended, total=self.source.total, note=note)


def clock_time(seconds: float, now: datetime) -> str:
    """`, until Fri 14:05`; empty if it is not known."""
    return "" if math.isnan(seconds) else f", until {now + timedelta(seconds=seconds):%a %H:%M}"
