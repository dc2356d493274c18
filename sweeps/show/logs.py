"""The log of one run, wherever it is: in its folder while it is unfinished, in MLflow afterwards."""

import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from sweeps.keep.storage import Storage, StorageError, open_storage
from sweeps.keep.workspace import LOG
from sweeps.track.lease import is_held
from sweeps.track.retry import StoreAway, StoreRefused, TrackingError
from sweeps.track.runs import TrackedRun
from sweeps.track.store import Store

LOOK_SECONDS = 1.0  # between two looks at a log that grows
STATUS_LOOKS = 5  # looks at the log for each one at the run


def log_of(store: Store, run: TrackedRun) -> str:
    """What the run has logged so far.

    Raises TrackingError if nothing of it can be seen from this machine.
    """
    if run.status == "FINISHED":
        return _artifact(store, run)
    for storage in _storages(store):
        try:
            text = storage.workspace(run.key).log_text()
        except StorageError:  # of another sweep, and this machine does not reach it
            continue
        if text is not None:
            return text
    try:
        return _artifact(store, run)  # a failed run leaves its log there, too
    except TrackingError:
        host = run.tags.get("worker_host") or run.tags.get("host", "another machine")
        if host == socket.gethostname() and is_held(run, time.time()):
            raise TrackingError(f"the training of {run.name} has printed nothing yet") from None
        raise TrackingError(
            f"the log of {run.name} is not in {store.storage.uri}: run the same command on {host}, which "
            "trains it, or name the folder or bucket of its sweep with --storage"
        ) from None


def _storages(store: Store) -> Iterator[Storage]:
    """This command's, then those of the sweeps that the store knows."""
    yield store.storage
    for uri in dict.fromkeys(run.tags.get("storage", "") for run in store.overviews()):
        if uri and uri != store.storage.uri:
            yield open_storage(uri)


def _artifact(store: Store, run: TrackedRun) -> str:
    with tempfile.TemporaryDirectory() as folder:
        return Path(store.fetch_file(run.run_id, LOG, folder)).read_text(errors="replace")


def follow(store: Store, run: TrackedRun, show: Callable[[str], None]) -> TrackedRun:
    """Shows the log as it grows, until nobody is at work on the run any more; returns the run at its end."""
    shown, looks = "", 0
    while True:
        try:
            if looks % STATUS_LOOKS == 0:
                run = store.run(run.run_id)
            goes_on = is_held(run, time.time())
            text = log_of(store, run)
        except (StoreAway, StoreRefused):  # it trains on meanwhile
            goes_on, text = True, shown
        except TrackingError:
            if not (goes_on := is_held(run, time.time())):  # else its worker is just beginning
                raise
            text = shown
        if text.startswith(shown):
            show(text[len(shown) :])
        else:  # another attempt has begun a log of its own
            show(text)
        shown = text
        if not goes_on:
            return run
        looks += 1
        time.sleep(LOOK_SECONDS)
