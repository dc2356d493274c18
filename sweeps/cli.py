"""The command line of the sweeps: one parser, and one place where errors become messages and exit codes.

    python sweeps/run.py --grid attention        # main(["run", "--grid", "attention"])
    python sweeps/status.py                      # main(["status"])
    python sweeps/deliver.py                     # main(["deliver"])
    python -m sweeps stop                        # main(["stop"]); so are all others

Exit codes: 0 every cell is done; 1 something failed or could not run; 2 the command is wrong; 3 others are
at work on the rest; 4 `stop` or `--time-limit` has ended it; 130, or 128 and the number of a signal, it was
stopped.
"""

import argparse
import io
import math
import os
import sys
import tempfile
import textwrap
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from rich.console import Console
from rich.markup import escape

from semidavil import __version__
from semidavil.benchmarks import BENCHMARKS
from semidavil.config import PRESETS, ConfigError
from semidavil.place import command
from semidavil.plugin_files import PluginError
from semidavil.plugins import use
from sweeps import slurm
from sweeps.given import plugins_given
from sweeps.plan.grids import ALL, GRIDS, OBJECTIVES, SEARCH
from sweeps.request import Options
from sweeps.run_options import (
    Help,
    Parser,
    add_batch_options,
    attach_value,
    some_grid,
    whole,
)
from sweeps.steer_options import add_steering
from sweeps.stopping import WRONG, AskedToStop, Stopped, exit_code
from sweeps.track.credentials import redact

OURS = ("semidavil.", "sweeps.")  # modules whose exceptions say what to do


# fmt: off
# An option in two lines; the formatter would spread it over six.
def parser() -> argparse.ArgumentParser:
    """Of all commands; the first argument names the command."""
    top = Parser(prog="python -m sweeps",
        description="Runs grids of training runs, and steers them from any terminal.")
    top.add_argument("--version", action="version", version=f"semidavil {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    storage = Parser(add_help=False)
    storage.add_argument("--storage", metavar="PLACE", default=os.environ.get("SEMIDAVIL_STORAGE", ""),
        help="keeps checkpoints and logs of unfinished runs: a folder, or a bucket, s3://BUCKET/FOLDER "
        "[default: $SEMIDAVIL_STORAGE, else checkpoints/ beside mlflow.db]")
    run = commands.add_parser("run", prog=command("run"),
        help="Runs a grid of training runs; again: what is missing",
        usage="%(prog)s --grid NAME [options]",
        description="Runs a grid of training runs and tracks them in MLflow. The same command again\n"
        "runs only what is missing.",
        epilog=_names_of_run(), formatter_class=Help)
    _add_options_of_run(run, storage)
    status = commands.add_parser("status", prog=command("status"), parents=[storage],
        help="Shows what is done, running, failed and left",
        description="How the sweeps are doing. On another machine, set MLFLOW_TRACKING_URI as for the "
        "sweep itself.")
    status.add_argument("--grid", metavar="NAME", type=some_grid,
        help="one grid only [default: all that have run]")
    status.add_argument("--watch", metavar="SECONDS", type=whole(1), nargs="?", const=5,
        help="show it again and again [default: every 5]")
    status.add_argument("--json", action="store_true", help="for programs: one line of JSON each time")
    _add_plugin(status.add_argument)
    commands.add_parser("deliver", prog=command("deliver"), parents=[storage],
        help="Brings results to MLflow that could not reach it when they were there",
        description="Brings the results of runs that ended while MLflow did not answer to "
        "$MLFLOW_TRACKING_URI or, without it, to mlflow.db. A sweep does so too, before it looks for what is "
        "missing. Nothing is trained again.")
    add_steering(commands, storage)
    return top


def _names_of_run() -> str:
    names = {"grids (--list says what each answers)": [*GRIDS, ALL, SEARCH], "benchmarks": [*BENCHMARKS]}
    lists = [
        f"{title}:\n" + textwrap.fill(", ".join(each), 78, initial_indent="  ", subsequent_indent="  ")
        for title, each in names.items()
    ]
    return "\n".join([*lists, "exit codes:",
        "  0 everything is done; 1 something failed or could not run; 2 the command is",
        "  wrong; 3 other sweeps are at work on the rest; 4 `stop` or --time-limit has",
        "  ended it; 130 Ctrl-C, 128 + N signal N"])


def _add_options_of_run(run: argparse.ArgumentParser, storage: argparse.ArgumentParser) -> None:
    run.add_argument("--version", action="version", version=f"semidavil {__version__}",
        help="say which version this is, and stop")
    add = run.add_argument_group("what to run").add_argument
    add("--grid", metavar="NAME", help="one of the grids below, all of which `all` runs; or my.py:NAME")
    add("--benchmark", metavar="NAME", nargs="+", action="extend", default=[],
        help="source and target, by name, or a benchmark.yaml or dataset.yaml of your own, or one of a "
        "--plugin [default: the grid's own; toy: its first]")
    add("--budgets", metavar="N", nargs="+", type=whole(0),
        help="numbers of labelled target images [default: each benchmark's own]")
    add("--seeds", metavar="N", nargs="+", type=whole(0), help="[default: 0]")
    add("--preset", metavar="NAME", help=f"{', '.join(PRESETS)} [default: toy; small with data]")
    add("--data-root", metavar="DIR", default=os.environ.get("SEMIDAVIL_DATA_ROOT", ""),
        help="a folder with one per data set [default: $SEMIDAVIL_DATA_ROOT, else generated]")
    add("--list", action="store_true", dest="list_only",
        help="show each run, its state and time, and what cannot run; without --grid, the grids. Starts "
        "nothing")
    add("--rerun", metavar="RUN",
        help="train a finished run again from what MLflow knows of it, and compare")
    add("--retry-failed", action="store_true",
        help="also try again what failed for good: a loss became infinite, a score was undefined, a plugin's "
        "code was wrong")
    add("--refresh", action="store_true",
        help="also train again what saw other data, weights or captioners than are here; the earlier runs "
        "are deleted in MLflow, which can restore them")

    add = run.add_argument_group("variants and settings").add_argument
    add("--set", metavar="NAME=VALUE", nargs="+", action="extend", default=[], dest="settings",
        help="any other setting: training.lr=3e-4; of several values (1e-4,3e-4), each")
    add("--only", metavar="NAME=VALUES", nargs="+", action="extend", default=[],
        help="of the grid's runs, those with these values: fusion=dlg,vlga")
    _add_plugin(add)
    add("--config", metavar="FILE", default="",
        help="settings from YAML, as --print-config writes it; --set goes before")
    add("--print-config", action="store_true", help="print the settings that all runs share as YAML")
    add("--settings", action="store_true", dest="show_settings",
        help="print every setting with its value and its meaning")

    add = run.add_argument_group(
        f"--grid {SEARCH} (one benchmark, one number of labels, one seed)").add_argument
    add("--trials", metavar="N", type=whole(1), default=20, help="in all [default: 20]")
    add("--objective", choices=OBJECTIVES, default=OBJECTIVES[0],
        help="miou ends hopeless trials early; miou-latency also varies the model, for the best trade-offs "
        "with milliseconds per image")
    add("--confirm-seeds", metavar="N", nargs="+", type=whole(0), default=[],
        help="then train the best trial and the preset with these seeds")

    add = run.add_argument_group("how to run").add_argument
    add("--retries", metavar="N", type=whole(0), default=1,
        help="how often a failed run is tried again at once, unless it would fail likewise [default: 1]")
    add("--wait", action="store_true",
        help="stay until the runs that other sweeps train are done, too")
    add("--concurrency", metavar="N", type=whole(1),
        help="runs at a time [default: as many as there are CPU cores or GPUs for]")
    add("--gpus-per-trial", metavar="X", type=_share,
        help="0.5: two runs share a GPU; 2: each run trains on two; 0: on the CPU [default: 1]")
    add("--cpus-per-trial", metavar="N", type=whole(1), help="[default: this machine's share]")
    add("--address", metavar="ADDRESS", help="a running Ray cluster; auto finds this machine's")
    place = storage._option_string_actions["--storage"]
    add("--storage", metavar=place.metavar, default=place.default, help=place.help)
    add_batch_options(run)


def _add_plugin(add: Callable[..., Any]) -> None:
    add("--plugin", metavar="FILE", nargs="+", action="extend", default=[],
        help="Python files with attentions, losses, methods, captioners, encoders or grids of your own: see "
        "docs/own-variants.md")
# fmt: on


def _share(text: str) -> float:
    value = float(text) if text.replace(".", "", 1).isdigit() else math.nan
    if not (value <= 1 or value.is_integer()):
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither a share of a GPU, such as 0.5, nor a whole number of GPUs"
        )
    return value


def main(arguments: Sequence[str]) -> int:
    """Runs a command, `arguments` being its name and what follows; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # characters that it does not know are replaced
            stream.reconfigure(errors="replace")
    arguments = attach_value(arguments, "--slurm")
    command = arguments[0] if arguments else ""
    options = Options(command=command, given=arguments[1:], from_file={})
    console = Console(highlight=False, soft_wrap=True)  # text can be copied, paths and all
    try:
        with use(*plugins_given(arguments)):  # before the parser, whose help shows their grids
            code = _run(parser().parse_args(arguments, options), console)
            sys.stdout.flush()
            return code
    except BrokenPipeError:  # as of `| head`: nobody reads what is written; rich exits so, too
        _write_no_more()
        return WRONG
    except (Exception, KeyboardInterrupt) as error:
        if stop := _stop_behind(error):
            return _say_stopped(stop, options, console)
        return _explain(error)


def _run(options: Options, console: Console) -> int:
    # MLflow, Ray and PyTorch take seconds to import: wrong arguments are refused before that.
    from sweeps.commands import COMMANDS

    return COMMANDS[options.command](options, console)


def _write_no_more() -> None:
    """The interpreter writes what is left when it ends, and would complain."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _stop_behind(error: BaseException | None) -> KeyboardInterrupt | None:
    """The Ctrl-C or signal that an error comes from: a module whose import is stopped raises its own."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error


def _say_stopped(stop: KeyboardInterrupt, options: Options, console: Console) -> int:
    why = f"stopped by {stop}" if isinstance(stop, Stopped | AskedToStop) else "stopped"
    read = "list_only" in options  # else it was stopped before
    if options.command == "run" and read and not (options.list_only or options.rerun):
        text = "What has finished is kept; the same command goes on from there:"
        console.print(f"[yellow]{why}.[/] {text}\n    {escape(options.again())}")
        if back := slurm.requeue(stop):
            console.print(escape(back))
    else:
        console.print(f"[yellow]{why}[/]")
    return exit_code(stop)


def _explain(error: BaseException) -> int:
    """Prints an error for people; returns the exit code."""
    text = redact(str(error)).strip()
    if isinstance(error, OSError) and error.filename and error.strerror:
        text = redact(f"{error.filename}: {error.strerror}")
    if not (type(error).__module__.startswith(OURS) or isinstance(error, OSError)):
        # It was not foreseen: whoever reports it needs the traceback.
        handle, path = tempfile.mkstemp(prefix="semidavil-error-", suffix=".txt")
        with os.fdopen(handle, "w") as file:
            file.write(redact("".join(traceback.format_exception(error))))
        first_line = text.partition("\n")[0]
        text = f"{type(error).__name__}: {first_line} (the traceback is in {path})"
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(f"[bold red]error:[/] {escape(text or type(error).__name__)}")
    return 2 if isinstance(error, ConfigError | PluginError) else 1
