"""What nobody needs any more: checkpoints, models of deleted runs, decoded images, what killed sweeps left.

What an unfinished run needs is never among it: a run that was stopped, has failed or is running keeps its
checkpoint, and one that has ended keeps its results until the tracking store has them.
"""

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sweeps.track.lease import is_held
from sweeps.track.retry import RunGone, StoreRefused
from sweeps.track.runs import TrackedRun
from sweeps.track.store import Store

SCRATCH = "semidavil-tune-*"  # what Ray Tune writes while a sweep runs, below the folder for temporary files
SCRATCH_DAYS = 1.0  # without a change: its sweep was killed


@dataclass(frozen=True)
class Leftover:
    """Something that may go."""

    what: str  # for people
    place: str
    size: int  # bytes; 0 where nobody knows, in a bucket
    remove: Callable[[], bool]  # returns whether it is gone
    known: bool = True  # the tracking store knows that nobody needs it


def leftovers(store: Store, cache: Path, days: float) -> list[Leftover]:
    """All that may go now; decoded images of `cache` count when nobody has read them for so many days."""
    runs = store.runs(deleted=True)
    return [*_checkpoints(store, runs), *_models(store, runs), *_decoded(cache, days), *_scratch()]


def _checkpoints(store: Store, runs: Sequence[TrackedRun]) -> Iterator[Leftover]:
    for key in sorted(store.storage.keys()):
        mine = [run for run in runs if run.key == key]
        if (why := why_unneeded(mine, time.time())) is None:
            continue
        workspace = store.storage.workspace(key)
        if not workspace.is_undelivered():
            # Stores that share the storage share a cell's folder: its checkpoint may be of another one's run.
            last = workspace.last_run()
            known = bool(mine) and (not last or last in {run.run_id for run in mine})
            if mine and not known:
                why = "of a run that this MLflow does not know; another one may"
            name = f" of {mine[-1].name}" if mine else ""
            size = size_of(workspace.folder)
            remove = partial(_forget, store, key)
            yield Leftover(f"checkpoint{name}: {why}", workspace.uri, size, remove, known)


def _forget(store: Store, key: str) -> bool:
    # A sweep may have begun with it meanwhile.
    mine = store.runs(key, deleted=True)
    return why_unneeded(mine, time.time()) is not None and store.storage.remove(key)


def _models(store: Store, runs: Sequence[TrackedRun]) -> Iterator[Leftover]:
    """Models of MLflow whose run somebody has deleted there, and with it the weights that they name."""
    here = {run.run_id for run in runs if not run.deleted}
    names = {run.run_id: run.name for run in runs}
    for model in store.models():
        if model.source_run_id not in here:
            name = names.get(model.source_run_id, "a run that is gone")
            what = f"model of {name} in MLflow: its run was deleted"
            remove = partial(_delete_model, store, model.model_id)
            yield Leftover(what, f"models:/{model.model_id}", 0, remove)


def _delete_model(store: Store, model_id: str) -> bool:
    try:
        with suppress(RunGone):  # another process was faster
            store.delete_model(model_id)
    except StoreRefused:
        return False
    return True


def why_unneeded(runs: Sequence[TrackedRun], now: float) -> str | None:
    """Why nobody needs the checkpoint of a cell with these runs, deleted ones too; None: it is needed."""
    here = [run for run in runs if not run.deleted]
    if any(is_held(run, now) for run in here):
        return None
    if not runs:
        return "this MLflow does not know its run; another one may"
    if not here:
        return "its run was deleted in MLflow"
    if any(run.status == "FINISHED" for run in here):
        return "its run has finished"
    return "a search has ended it early" if all(run.stopped_early for run in here) else None


def _decoded(cache: Path, days: float) -> Iterator[Leftover]:
    """Files of `semidavil.data.store`, which are made again from the images where they are needed."""
    oldest = time.time() - 86400 * days
    for folder in sorted((cache / "store").glob("*/")):
        files = [path for path in folder.rglob("*") if path.is_file()]
        used = max((max(_times(path)) for path in files), default=0.0)
        if files and used < oldest:
            text = (
                f"decoded images that nobody has read for {(time.time() - used) / 86400:.0f} days"
            )
            yield Leftover(text, str(folder), size_of(folder), partial(_gone, folder))


def _times(path: Path) -> tuple[float, float]:
    found = path.stat()
    return found.st_mtime, found.st_atime


def _scratch() -> Iterator[Leftover]:
    oldest = time.time() - 86400 * SCRATCH_DAYS
    for folder in sorted(Path(tempfile.gettempdir()).glob(SCRATCH)):
        try:
            newest = max(path.stat().st_mtime for path in (folder, *folder.rglob("*")))
        except OSError:  # another user's, or gone
            continue
        if newest < oldest:
            text = "left by a sweep that was killed"
            yield Leftover(text, str(folder), size_of(folder), partial(_gone, folder))


def _gone(folder: Path) -> bool:
    shutil.rmtree(folder, ignore_errors=True)
    return not folder.exists()


def size_of(folder: Path) -> int:
    """Bytes of all files in a folder."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:  # removed meanwhile
            continue
    return total
