"""Delivers runs that ended while the tracking store was away: metrics, artifacts, end time.

Nothing is trained again.
"""

import shlex
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

from semidavil.place import command
from sweeps.keep.storage import StorageError, file_of, workspace
from sweeps.keep.workspace import ENDING, Workspace
from sweeps.track.credentials import redact
from sweeps.track.lease import is_held
from sweeps.track.outbox import Ending, LeaseLost, Outbox
from sweeps.track.retry import RunGone, StoreRefused
from sweeps.track.runs import TrackedRun
from sweeps.track.store import Store

COMMAND = command("deliver")

Print = Callable[[str], None]  # text without markup


def undelivered(store: Store) -> list[tuple[str, Ending]]:
    """All endings that wait beside this store, with their runs' workspaces; does not ask the store.

    Raises TrackingError if one cannot be read, StorageError if the bucket where they are is away.
    """
    return [
        (uri, Ending.parse(text, file_of(uri, ENDING))) for uri, text in store.storage.undelivered()
    ]


def deliver_all(store: Store, show: Print) -> int:
    """Delivers what waits beside this store and belongs to it; returns how many runs it has got.

    A cell that another sweep has finished meanwhile keeps that run: ours is closed, so that no cell
    has two. After StoreAway and StorageError (a bucket is away), what is not delivered stays kept.
    """
    waiting = undelivered(store)
    if not waiting:
        return 0
    runs = {run.run_id: run for run in store.runs()}
    delivered = 0
    for uri, ending in waiting:
        run = runs.get(ending.run_id)
        if run is None:
            show(
                f"{uri} holds a run of {ending.store} that is not in {redact(store.uri)}: "
                f"deliver it with MLFLOW_TRACKING_URI={ending.store} {COMMAND}; where its run was "
                "deleted, a sweep of its grid logs it into a new one"
            )
        elif _finished_elsewhere(run, runs.values()):
            store.close(run.run_id, "KILLED", "another sweep has finished this one")
            workspace(uri).remove()
            show(f"{run.name}: another sweep has finished it; its own numbers are kept")
        else:
            delivered += _deliver(store, run, uri, ending, show)
    return delivered


def _deliver(store: Store, run: TrackedRun, uri: str, ending: Ending, show: Print) -> bool:
    here = workspace(uri)
    here.fetch(ending.epoch, run.run_id)
    if Ending.read(here.folder) is None:  # another machine has delivered it
        return False
    outbox = Outbox(store, run.run_id, ending.epoch, here.folder, run.progress.step)
    if run.tags.get("reason"):  # its sweep was stopped while it waited
        outbox.tag({"reason": ""})
    try:
        done = outbox.deliver()
    except (LeaseLost, RunGone) as error:
        show(f"{run.name}: {error}; its own numbers are kept")
        _forget(here, run)
        return False
    except StoreRefused as error:  # such as a proxy that takes no large files
        show(f"{run.name} is refused and stays in {uri}: {error}")
        return False
    if not done:
        show(f"{run.name}: another process delivers it")
        return False
    if ending.status == "FINISHED":
        here.remove()  # all of it is an artifact now
    else:
        here.push()  # its checkpoint stays, without the ending
    return True


def _forget(here: Workspace, run: TrackedRun) -> None:
    """The ending of an attempt after which there was another; while that trains, all stays as it is."""
    if run.status == "FINISHED":
        here.remove()
    elif not is_held(run, time.time()):
        (here.folder / ENDING).unlink(missing_ok=True)
        with suppress(StorageError):  # another machine is at it
            here.push()


def _finished_elsewhere(run: TrackedRun, runs: Iterable[TrackedRun]) -> bool:
    finished = {
        other.run_id for other in runs if (other.key, other.status) == (run.key, "FINISHED")
    }
    return bool(finished - {run.run_id})


def advice(store: Store) -> str:
    """What is kept while the store is away, and how to go on."""
    uri = store.storage.uri
    try:
        count = len(undelivered(store))
    except StorageError:  # both are away
        return f"What is kept in {uri} cannot be looked at either"
    ended = f"{count} ended runs wait in {uri}. " if count else ""
    return (
        f"{ended}Unfinished runs keep their checkpoints and metrics in {uri}. When "
        f"{redact(store.uri)} answers again, the same command delivers and goes on "
        f"({deliver_command(store)} only delivers)"
    )


def deliver_command(store: Store) -> str:
    """What delivers the runs that are kept beside this store."""
    where = "" if store.own_storage else f" --storage {shlex.quote(store.storage.uri)}"
    return COMMAND + where
