"""What a sweep shows while it runs: bars on a terminal, one line per finished cell elsewhere."""

import math
import time
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3.5 h`; `?` if it is not known."""
    if math.isnan(seconds):
        return "?"
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


class _Count(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.completed:.0f}/{task.total:.0f}")


class SweepProgress:
    """Done of total, each running cell's steps, failures, time left.

    Args:
        total: cells that will run.
        estimate: seconds per cell, until some have been measured; may be NaN.
    """

    def __init__(self, console: Console, total: int, concurrency: int, estimate: float) -> None:
        self.console, self.total, self.concurrency = console, total, concurrency
        self.estimate = estimate
        self.done = self.failed = 0
        self.seconds: list[float] = []
        self.started: dict[str, tuple[float, float]] = {}  # first heard of when, at which fraction
        self.fraction: dict[str, float] = {}
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            _Count(),
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self.whole = self.bars.add_task("[bold]all cells", total=total, note="")
        self.rows: dict[str, Any] = {}

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.bars.stop()

    def start(self, name: str) -> None:
        if name not in self.rows:
            self.rows[name] = self.bars.add_task(escape(name), total=1, note="starting")
            self.fraction[name] = 0.0

    def step(self, name: str, step: int, total: int) -> None:
        self.started.setdefault(name, (time.monotonic(), step / total))
        self.fraction[name] = step / total
        self.bars.update(self.rows[name], completed=step, total=total, note="")
        self._refresh()

    def end(self, name: str, *, score: str = "", seconds: float = 0.0, error: str = "") -> None:
        """A cell is done with a `score` such as "mIoU 34.20", or has failed if there is an `error`."""
        self._drop(name)
        if error:
            self.failed += 1
            outcome = f"[red]failed:[/] {escape(error.splitlines()[0])}"
        else:
            self.done += 1
            self.seconds.append(seconds)
            outcome = f"{score}  {duration(seconds)}"
        ended = self.done + self.failed
        left = f"  ({duration(self.seconds_left())} left)" if ended < self.total else ""
        width = len(str(self.total))
        self.console.print(
            f"{ended:{width}}/{self.total}  {escape(name)}  {outcome}{left}",
            highlight=False,
            soft_wrap=True,
        )
        self._refresh()

    def leave(self, name: str, why: str) -> None:
        """A cell that is another sweep's."""
        self.total -= 1
        self.bars.update(self.whole, total=self.total)
        self._drop(name)
        self.say(f"{escape(name)}: {escape(why)}")

    def _drop(self, name: str) -> None:
        """A cell that runs no more, if it did."""
        if name in self.rows:
            self.bars.remove_task(self.rows.pop(name))
        self.fraction.pop(name, None)
        self.started.pop(name, None)

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False, soft_wrap=True)

    def seconds_left(self) -> float:
        """From the cells finished so far, else from the pace of the running ones."""
        open_cells = self.total - self.done - self.failed - sum(self.fraction.values())
        slots = max(1, min(self.concurrency, self.total - self.done - self.failed))
        return open_cells * self._seconds_per_cell() / slots

    def seconds_left_of(self, name: str) -> float:
        """From a running cell's own pace; infinite while it is not known, 0 at its last step."""
        left = 1 - self.fraction[name]
        return left * self._pace(name) if left else 0.0

    def _pace(self, name: str) -> float:
        """Seconds that the whole cell takes."""
        since, at = self.started[name]
        made = self.fraction[name] - at
        return (time.monotonic() - since) / made if made > 0 else math.inf

    def _seconds_per_cell(self) -> float:
        if self.seconds:
            return sum(self.seconds) / len(self.seconds)
        paces = [
            self._pace(name)
            for name, (_, at) in self.started.items()
            if self.fraction[name] - at > 0.1
        ]
        return sum(paces) / len(paces) if paces else self.estimate

    def _refresh(self) -> None:
        note = f"{duration(self.seconds_left())} left"
        note += f", [red]{self.failed} failed" if self.failed else ""
        self.bars.update(self.whole, completed=self.done + self.failed, note=note)
