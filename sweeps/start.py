"""The first second of a command: which code runs, and what a Ctrl-C does while modules are imported.

Imports nothing that takes time.
"""

import os
import signal
import sys
from types import FrameType

from sweeps.stopping import SIGNALS, Stopped, exit_code


def run(command: str) -> int:
    """Runs one of `sweeps.cli`'s commands as this process; returns the exit code."""
    # Processes that this one starts run the same checkout's code, whichever is installed.
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    path = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = f"{root}{os.pathsep}{path}" if path else root
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, _stop)
    try:
        from sweeps.cli import main

        return main([command, *sys.argv[1:]])
    except KeyboardInterrupt as stop:
        print("stopped before anything had begun", file=sys.stderr)
        return exit_code(stop)


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stopped(number)
