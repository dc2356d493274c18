"""The first second of a command: which code runs, and what a Ctrl-C does while modules are imported.

Imports nothing that takes time.
"""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# What a terminal that closes, a batch system or an administrator sends to end a process.
SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


class Stopped(KeyboardInterrupt):
    """A signal other than Ctrl-C's asks this process to stop.

    Attributes:
        number: the signal's.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def exit_code(stop: KeyboardInterrupt) -> int:
    """By convention: 130 after Ctrl-C, 128 and the number after another signal."""
    return 128 + (stop.number if isinstance(stop, Stopped) else signal.SIGINT)


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """Raises `Stopped` in the main thread for each of `SIGNALS` that is not ignored, as under nohup."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, _stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stopped(number)


def run(command: str) -> int:
    """Runs one of `sweeps.cli`'s commands with this process's arguments; returns the exit code."""
    # Processes that this one starts run the same checkout's code, whichever is installed.
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    try:
        with stop_on_signals():
            from sweeps.cli import main

            return main([command, *sys.argv[1:]])
    except KeyboardInterrupt as stop:
        print("stopped before anything had begun", file=sys.stderr)
        return exit_code(stop)
