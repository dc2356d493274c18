"""The options of `sweeps/run.py` that say where and for how long it runs, and whom it tells."""

import argparse
import difflib
import os
import re
from collections.abc import Callable, Sequence
from typing import NoReturn

from sweeps.plan.grids import ALL

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
CLOCK = re.compile(r"(?:(\d+)-)?(\d+):(\d\d):(\d\d)")  # SLURM's days-hours:minutes:seconds


class Parser(argparse.ArgumentParser):
    """Of a command; it refuses an unknown option itself, and says which one was meant.

    By default, the parser of all commands refuses it, with the usage of none.
    """

    def error(self, message: str) -> NoReturn:
        # Without the usage, twenty lines in which nobody finds the reason.
        self.exit(2, f"error: {message}\nall options: {self.prog} --help\n")

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            close = difflib.get_close_matches(
                unknown[0].partition("=")[0], self._option_string_actions, n=1
            )
            if not unknown[0].startswith("-") and "--grid" in self._option_string_actions:
                close = [f"--grid {unknown[0]}"]
            hint = f": did you mean {close[0]}?" if close else ""
            self.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        return found, unknown


class Help(argparse.RawDescriptionHelpFormatter):
    """Of a command with many options: two thirds of the lines are theirs."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=21)


# fmt: off
# An option in two lines; the formatter would spread it over six.
def add_batch_options(run: argparse.ArgumentParser) -> None:
    add = run.add_argument_group("on a cluster with a queue, and from afar").add_argument
    add("--slurm", metavar="OPTIONS",
        help="submit this command to SLURM as an array of jobs that share the runs, with these options of "
        'sbatch: "--partition=gpu --time=4:00:00"; with --list: print the script, submit nothing')
    add("--time-limit", metavar="TIME", type=seconds_of,
        help="end in time, with checkpoints: 45m, 8h, 3:50:00, 1-12:00:00")
    add("--notify", metavar="URL|COMMAND", default=os.environ.get("SEMIDAVIL_NOTIFY", ""),
        help="gets JSON, or is run with $SEMIDAVIL_TEXT and more, when a run fails or hangs, and at the end "
        "[default: $SEMIDAVIL_NOTIFY]")
# fmt: on


def whole(least: int) -> Callable[[str], int]:
    """Reads a whole number of `least` or more."""

    def parse(text: str) -> int:
        if not text.isdigit() or int(text) < least:
            several = ": several are separated by spaces" if "," in text else ""
            raise argparse.ArgumentTypeError(
                f"{text!r} is not a whole number of {least} or more{several}"
            )
        return int(text)

    return parse


def some_grid(text: str) -> str | None:
    """A grid's name; None for all of them."""
    return None if text == ALL else text


def seconds_of(text: str) -> float:
    """`1-12:00:00`, `3:50:00`, `45m`, `8h`."""
    if found := CLOCK.fullmatch(text):
        days, hours, minutes, seconds = (int(group or 0) for group in found.groups())
        total = float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)
    elif text[:-1].isdigit() and text[-1:] in UNITS:
        total = float(int(text[:-1]) * UNITS[text[-1]])
    else:
        raise argparse.ArgumentTypeError(f"{text!r} is no time such as 3:50:00, 45m or 8h")
    if not total:
        raise argparse.ArgumentTypeError("no time at all")
    return total


def attach_value(given: Sequence[str], option: str) -> list[str]:
    """Arguments in which an option and its value are one: argparse takes `--time=1` for no value."""
    attached: list[str] = []
    for argument in given:
        if attached and attached[-1] == option:
            attached[-1] = f"{option}={argument}"
        else:
            attached.append(argument)
    return attached


def without_option(given: Sequence[str], option: str) -> list[str]:
    """Arguments without an option that has a value; argparse takes the first letters of a name, too."""
    left, skip = [], False
    for argument in given:
        name, equals, _ = argument.partition("=")
        if skip:
            skip = False
        elif len(name) > 2 and option.startswith(name):
            skip = not equals
        else:
            left.append(argument)
    return left
