"""A sweep that nobody sits beside: submitted to SLURM, and telling somebody how it goes."""

import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial

from rich.console import Console
from rich.markup import escape

from semidavil.config import ConfigError
from semidavil.place import command
from semidavil.plugin_files import PluginError
from sweeps import slurm
from sweeps.plan.grids import SEARCH
from sweeps.request import Options, open_store, requested, searched
from sweeps.run_options import without_option
from sweeps.show.notify import Notifier, Notify, quiet
from sweeps.stopping import DONE, ELSEWHERE, WRONG, exit_code
from sweeps.track.credentials import redact


def submit(options: Options, console: Console) -> int:
    """The same command as jobs of SLURM; with --list, their script alone."""
    if options.address:
        raise ConfigError("--slurm starts a Ray in each job: leave --address out")
    store = open_store(options)
    if options.grid == SEARCH:
        spec, _ = searched(options)
        waiting = spec.trials
    else:
        from sweeps.plan.cells import plan_of
        from sweeps.show.tables import lacking_lines

        request, runs = requested(options), store.runs()
        print_left_out(console, request.left_out)
        print_notes(console, request.notes)
        retry, refresh = options.retry_failed, options.refresh
        plans = [plan_of(job, runs, retry, refresh=refresh) for job in request.jobs]
        print_left_out(console, lacking_lines(plans))
        waiting = len({cell.config.key() for plan in plans for cell in plan.waiting})
    given = without_option(options.given, "--slurm")
    logs = store.folder / "slurm"
    text = slurm.script(
        options.grid, [one for one in given if one != "--list"], min(waiting, slurm.JOBS), logs
    )
    if options.list_only:
        console.print(text, markup=False, end="")
        return DONE
    if not waiting:
        console.print("nothing to run: no job was submitted")
        return DONE
    number = slurm.submit(text, options.slurm, logs)
    console.print(
        f"submitted job {number} for {waiting} runs; their output is in {escape(str(logs))}\n"
        f"look: squeue --me    {command('status')} --watch\n"
        f"end it: scancel {number}    or, with checkpoints: python -m sweeps stop, then scancel {number} "
        "for jobs that have not begun"
    )
    if store.database:
        console.print(
            f"[yellow]note:[/] runs are tracked in {escape(str(store.database))}: all machines must see "
            "this file, on a file system that locks. A server does without: deploy/README.md, "
            "MLFLOW_TRACKING_URI"
        )
    return DONE


HOW = {
    DONE: "every run is done",
    WRONG: "something failed or could not run",
    ELSEWHERE: "other sweeps are at work on the rest",
}


@contextmanager
def notifying(options: Options, console: Console) -> Iterator[tuple[Notify, Callable[[int], None]]]:
    """What tells `--notify`, and what tells it the exit code; how a sweep is stopped is told as well."""
    if not options.notify:
        yield quiet, lambda code: None
        return
    about: dict[str, str | int | float] = {"grid": options.grid or "", "job": slurm.job()}
    notify = Notifier(options.notify, about, partial(console.print, markup=False))
    name = f"sweep of {options.grid} on {socket.gethostname()}"

    def ended(code: int) -> None:
        notify("finished", f"{name}: {HOW[code]}", exit_code=code)

    try:
        yield notify, ended
    except KeyboardInterrupt as stop:
        notify("stopped", f"{name}: stopped by {str(stop) or 'Ctrl-C'}", exit_code=exit_code(stop))
        raise
    except (ConfigError, PluginError):  # a wrong command: whoever has typed it sees why
        raise
    except Exception as error:
        notify("failed", f"{name} has ended: {redact(str(error))}", exit_code=WRONG)
        raise
    finally:
        notify.close()


def print_left_out(console: Console, lines: Iterable[str]) -> None:
    for line in lines:
        console.print(f"[red]left out:[/] {escape(line)}")


def print_notes(console: Console, lines: Iterable[str]) -> None:
    for line in lines:
        console.print(f"[yellow]note:[/] {escape(line)}")
