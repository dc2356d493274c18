"""What asks a process to stop, and its exit code then. Imports nothing that takes time."""

import signal

# What a terminal that closes, a batch system or an administrator sends to end a process; and this process's
# own clock, at the end of `--time-limit`.
SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGALRM)
TIME_IS_OVER = (signal.SIGUSR1, signal.SIGALRM)  # batch systems announce their limit with the first
NOTICE_SECONDS = 180.0  # before the end of a job's time, when it is told so
# Exit codes. 2 is a wrong command's.
DONE, WRONG, ELSEWHERE = 0, 1, 3
LEFT = 4  # it was told to stop by `sweeps stop`, or its time is over; something is left


class Stopped(KeyboardInterrupt):
    """A signal other than Ctrl-C's, of this number, asks this process to stop."""

    def __init__(self, number: int) -> None:
        name = signal.Signals(number).name
        super().__init__("its time limit" if number == signal.SIGALRM else name)
        self.number = number
        self.got_on = True  # False where runs were under way and none has made a step


class AskedToStop(KeyboardInterrupt):
    """Somebody has told the sweep to stop, from another terminal or machine."""


def exit_code(stop: KeyboardInterrupt) -> int:
    """`LEFT`, or by convention 130 after Ctrl-C, 128 and the number after another signal."""
    if isinstance(stop, AskedToStop) or (
        isinstance(stop, Stopped) and stop.number == signal.SIGALRM
    ):
        return LEFT
    return 128 + (stop.number if isinstance(stop, Stopped) else signal.SIGINT)
