"""Signals that ask a process to stop, and its exit code then. Imports nothing that takes time."""

import signal

# What a terminal that closes, a batch system or an administrator sends to end a process.
SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


class Stopped(KeyboardInterrupt):
    """A signal other than Ctrl-C's, of this number, asks this process to stop."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def exit_code(stop: KeyboardInterrupt) -> int:
    """By convention: 130 after Ctrl-C, 128 and the number after another signal."""
    return 128 + (stop.number if isinstance(stop, Stopped) else signal.SIGINT)
