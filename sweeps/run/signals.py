"""Signals while Ray runs: the sweep records them, and Ray's own processes do not hear them.

A batch system that takes a job's machine sends its signal to every process of the job at once. Workers that
died of it could not write a checkpoint any more; so they and the rest of Ray have these signals blocked, and
the sweep tells its workers to stop.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from sweeps.stopping import SIGNALS, Stopped

# In which a second signal is the same request: `timeout` and `srun` send a signal twice.
ONCE_SECONDS = 0.5
WATCH_SECONDS = 0.02  # between two looks at Ray's processes while they are ended
PENDING = "ShdPnd:"  # in /proc/PID/status: signals that wait because the process has blocked them


class StopSignals:
    """The signals that came within `stopping_signals`."""

    def __init__(self) -> None:
        self.first: int | None = None  # the first one's number
        self.since = 0.0  # when it came, by `time.monotonic`
        self.repeated = False  # more came: whoever waits for something does not wait any longer

    def install(self) -> None:
        """Takes the signals, also from a library that has set handlers of its own meanwhile."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, *SIGNALS):
                if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
                    signal.signal(number, self._record)

    def _record(self, number: int, frame: FrameType | None) -> None:
        if self.first is None:
            self.first, self.since = number, time.monotonic()
        elif time.monotonic() > self.since + ONCE_SECONDS:
            self.repeated = True

    def raise_first(self) -> None:
        """Raises Stopped if a signal has come, or KeyboardInterrupt if that was Ctrl-C."""
        if self.first == signal.SIGINT:
            raise KeyboardInterrupt
        if self.first is not None:
            raise Stopped(self.first)


@contextmanager
def stopping_signals() -> Iterator[StopSignals]:
    """Records signals that ask to stop instead of being interrupted by them, in the main thread."""
    in_main = threading.current_thread() is threading.main_thread()
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, *SIGNALS)} if in_main else {}
    signals = StopSignals()
    signals.install()
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


@contextmanager
def deaf_processes() -> Iterator[set[int]]:
    """Processes started within have `SIGNALS` blocked, as have those that they start.

    Yields a set that has their numbers in the end, where /proc tells them.
    """
    started: set[int] = set()
    before = _children()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield started
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        started |= _children() - before


@contextmanager
def killed_when_asked(processes: set[int]) -> Iterator[None]:
    """Kills each of `processes` as soon as somebody sends it a SIGTERM, which it does not hear.

    Ray ends its processes one after the other: a SIGTERM, a second's wait, SIGKILL. Measured: 5.4 s without
    this, 0.5 s with it.
    """
    # One that has a SIGTERM pending already got it from a batch system; Ray still needs it.
    waiting = {pid for pid in processes if not _has_sigterm(pid)}
    ended = threading.Event()

    def watch() -> None:
        while waiting and not ended.wait(WATCH_SECONDS):
            for pid in [pid for pid in waiting if _has_sigterm(pid)]:
                os.kill(pid, signal.SIGKILL)
                waiting.discard(pid)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


def _children() -> set[int]:
    found: set[int] = set()
    for path in Path("/proc/self/task").glob("*/children"):
        try:
            found |= {int(pid) for pid in path.read_text().split()}
        except OSError:  # a thread that has ended meanwhile
            continue
    return found


def _has_sigterm(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    pending = int(status.partition(PENDING)[2].split()[0], 16)
    return bool(pending >> (signal.SIGTERM - 1) & 1)
