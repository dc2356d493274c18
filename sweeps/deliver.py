"""Delivers runs that ended while the tracking store was away: metrics, artifacts, end time.

    python sweeps/deliver.py

`sweeps/run.py` does so too, before it looks for what is missing. Nothing is trained again.
"""

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlflow.exceptions import MlflowException
from rich.console import Console
from rich.markup import escape

from semidavil.config import ConfigError
from semidavil.disk import DiskFull
from sweeps.credentials import redact
from sweeps.run_log import Ending, RunLog, TakenOver
from sweeps.server import StoreAway, TrackingError
from sweeps.storage import ENDING, StorageError, Workspace, file_of, workspace
from sweeps.tracking import Store, TrackedRun, chosen_storage, tracking_uri

ROOT = Path(__file__).resolve().parents[1]
COMMAND = "python sweeps/deliver.py"

Say = Callable[[str], None]  # text without markup


@dataclass(frozen=True)
class Kept:
    """An ending that waits where its run is kept."""

    place: str
    ending: Ending


def kept_endings(store: Store) -> list[Kept]:
    """All that wait beside this store; does not ask it.

    Raises:
        TrackingError: one cannot be read.
    """
    return [
        Kept(place, Ending.parse(text, file_of(place, ENDING)))
        for place, text in store.storage.endings()
    ]


def deliver_kept(store: Store, say: Say) -> int:
    """Delivers what waits beside this store and belongs to it; returns how many runs it has got.

    A cell that another sweep has finished meanwhile keeps that run: ours is closed, so that no cell
    has two.

    Raises:
        StoreAway: all that is not delivered stays kept.
        StorageError: the bucket where it is kept is away.
    """
    waiting = kept_endings(store)
    if not waiting:
        return 0
    runs = {run.run_id: run for run in store.runs()}
    delivered = 0
    for kept in waiting:
        run = runs.get(kept.ending.run_id)
        if run is None:
            say(
                f"{kept.place} holds a run of {kept.ending.store} that is not in "
                f"{redact(store.uri)}: deliver it with MLFLOW_TRACKING_URI={kept.ending.store} "
                f"{COMMAND}; where its run was deleted, a sweep of its grid logs it into a new one"
            )
            continue
        here = workspace(kept.place)
        if _finished_elsewhere(run, runs.values()):
            store.close(run.run_id, "KILLED", "another sweep has finished this cell")
            here.remove()
            say(f"{run.name}: another sweep has finished it; its own numbers are kept")
            continue
        here.fetch()
        if Ending.read(here.folder) is None:  # another machine has delivered it
            continue
        try:
            done = _deliver(store, run, here.folder, kept.ending.owner)
        except TakenOver as error:
            say(f"{run.name}: {error}; its own numbers are kept")
            _forget(here, run)
            continue
        except MlflowException as error:  # such as a proxy that takes no large files
            say(f"{run.name} is refused and stays in {kept.place}: {redact(str(error))}")
            continue
        if not done:
            say(f"{run.name}: another process delivers it")
            continue
        delivered += 1
        if kept.ending.status == "FINISHED":
            here.remove()  # all of it is an artifact now
        else:
            here.push()  # its checkpoint stays, without the ending
    return delivered


def _deliver(store: Store, run: TrackedRun, folder: Path, owner: Mapping[str, str]) -> bool:
    step = int(run.progress["step"])
    log = RunLog(store.uri, run.run_id, folder, step, owner=owner, heard=0.0)
    if run.tags.get("reason"):  # its sweep was stopped while it waited
        log.tags["reason"] = ""
    return log.deliver()


def _forget(here: Workspace, run: TrackedRun) -> None:
    """The ending of an attempt after which there was another; while that trains, all stays as it is."""
    if run.status == "FINISHED":
        here.remove()
    elif not run.is_taken():
        (here.folder / ENDING).unlink()
        here.push()


def _finished_elsewhere(run: TrackedRun, runs: Iterable[TrackedRun]) -> bool:
    return any(
        other.key == run.key and other.run_id != run.run_id and other.status == "FINISHED"
        for other in runs
    )


def advice(store: Store) -> str:
    """What is kept while the store is away, and how to go on."""
    place = store.storage.place
    try:
        count = len(kept_endings(store))
    except StorageError:  # both are away
        return f"What is kept in {place} cannot be looked at either"
    ended = f"{count} ended runs wait in {place}. " if count else ""
    return (
        f"{ended}Unfinished runs keep their checkpoints and metrics in {place}. When "
        f"{redact(store.uri)} answers again, the same command delivers and goes on "
        f"({deliver_command(store)} only delivers)"
    )


def deliver_command(store: Store) -> str:
    """What delivers the runs that are kept beside this store."""
    where = "" if store.own_storage else f" --storage {shlex.quote(store.storage.place)}"
    return COMMAND + where


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code: 0, or 1 if something could not be delivered."""
    command = argparse.ArgumentParser(
        prog=COMMAND,
        description="Delivers runs that ended while the tracking store was away to "
        "$MLFLOW_TRACKING_URI or, without it, to mlflow.db. Nothing is trained again.",
    )
    command.add_argument(
        "--storage",
        metavar="PLACE",
        default=os.environ.get("SEMIDAVIL_STORAGE", ""),
        help="where the sweep kept its checkpoints [default: $SEMIDAVIL_STORAGE, else checkpoints/]",
    )
    options = command.parse_args(arguments)
    console = Console()

    def say(text: str) -> None:
        console.print(escape(text), highlight=False, soft_wrap=True)

    try:
        store = Store(ROOT, tracking_uri(), chosen_storage(options.storage))
        delivered = deliver_kept(store, say)
        say(f"delivered {delivered} runs" if delivered else "nothing to deliver")
        return 1 if kept_endings(store) else 0
    except (ConfigError, TrackingError, StorageError, DiskFull, OSError) as error:
        message = f"[bold red]error:[/] {escape(redact(str(error)))}"
        if isinstance(error, StoreAway):
            message += escape(f". {advice(store)}")
        Console(stderr=True).print(message, soft_wrap=True, highlight=False)
        return 1


if __name__ == "__main__":
    sys.exit(main())
