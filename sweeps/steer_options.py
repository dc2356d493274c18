"""The command line of what steers sweeps from another terminal: `python -m sweeps stop --help`."""

import argparse
from typing import Any

from sweeps.run_options import some_grid, whole

DAYS = 30


# fmt: off
# An option in two lines; the formatter would spread it over six.
def add_steering(commands: Any, storage: argparse.ArgumentParser) -> None:
    """Adds the parsers of the commands in `sweeps.steer` to those of `sweeps.cli`."""
    which = argparse.ArgumentParser(add_help=False, parents=[storage])
    which.add_argument("--grid", metavar="NAME", type=some_grid, help="of one grid only [default: all]")

    def add(name: str, about: str, *parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = commands.add_parser(
            name, prog=f"python -m sweeps {name}", parents=list(parents), description=about,
            help=about.partition(". ")[0].rstrip("."))
        return parser

    elsewhere = "From any machine, with the sweep's MLFLOW_TRACKING_URI."
    add("stop", "Ends running sweeps in order: each run writes a checkpoint, and the same command goes on "
        f"from there. {elsewhere}", which)
    add("pause", "Pauses running sweeps: each run writes a checkpoint and makes room, and none begins "
        f"before `resume`. {elsewhere}", which)
    add("resume", f"Lets paused sweeps go on. {elsewhere}", which)
    run = "its name, as `status` and the sweep show it, or the first letters of its id in MLflow"
    retry = add("retry", "Has a run that failed tried again by the sweep that is running, also one that has "
        f"failed for good. {elsewhere}", which)
    retry.add_argument("run", metavar="RUN", help=run)
    logs = add("logs", "Prints what the training of a run has printed.", which)
    logs.add_argument("run", metavar="RUN", help=run)
    logs.add_argument("--follow", action="store_true", help="and what it goes on to print, to its end")
    clean = add("clean", "Says what nobody needs any more, and how large it is: checkpoints of runs that "
        "have finished or were deleted in MLflow, models of deleted runs, old decoded images, leftovers of "
        "sweeps that were killed. Removes it with --delete. Never touches what an unfinished run needs.",
        storage)
    clean.add_argument("--delete", action="store_true", help="remove it [default: only say so]")
    clean.add_argument("--unknown", action="store_true",
        help="also checkpoints of runs that this MLflow does not know: another one may")
    clean.add_argument("--days", metavar="N", type=whole(0), default=DAYS,
        help=f"decoded images count as old when nobody has read them for so long [default: {DAYS}]")
    clean.add_argument("--cache", metavar="DIR", default="",
        help="where they are [default: data/ beside the code, as without --set runtime.cache_dir]")
    export = add("export", "Writes a table with a row for each run: ids, all settings, all results. "
        f"{elsewhere}", which)
    export.add_argument("what", choices=["runs"], metavar="runs")
    form = export.add_mutually_exclusive_group(required=True)
    form.add_argument("--csv", metavar="FILE", nargs="?", const="-", help="[default: standard output]")
    form.add_argument("--json", metavar="FILE", nargs="?", const="-", dest="json_file",
        help="[default: standard output]")
# fmt: on
