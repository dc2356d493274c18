"""Runs that are kept in a bucket, of which each machine has copies.

A machine works on a copy of a run. Its journal, log and checkpoint, which the run needs to go on elsewhere,
follow to the bucket within seconds of each checkpoint. Objects are replaced whole, so that a machine that
dies leaves the one before.

The object `stamp` names the lease under which the run was fetched last, and only its holder pushes. A
machine that was silent for so long that another took the run finds the other's stamp when it wakes up. The
copy has a file `stamp`, too: if both agree, nobody has fetched the run since, and the copy is as new as the
bucket or newer.

A copy loses its `ending.json` when the bucket has it, so that one in a copy is never forgotten.
"""

import contextlib
import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from semidavil.full_disk import on_disk
from sweeps.keep.objects import Objects, joined
from sweeps.keep.workspace import (
    ARTIFACTS,
    CHECKPOINT,
    ENDING,
    JOURNAL,
    LOG,
    Storage,
    StorageError,
    Workspace,
    make_folder,
)

STAMP = "stamp"
VARIABLE = "SEMIDAVIL_COPIES"
LOOK_SECONDS = 0.5  # between two looks for a new checkpoint
PUSH_SECONDS = 15.0  # between two pushes without a new checkpoint, or while the bucket is away
COPY_SECONDS = 7 * 86400.0  # without a push, after which a copy that holds no ending is removed


@dataclass(frozen=True)
class Stamp:
    """The lease under which a run was fetched: its epoch, and the run that it is a lease of."""

    epoch: int
    run_id: str

    @classmethod
    def parse(cls, text: str | None) -> "Stamp | None":
        """The stamp in a file or an object, if it is there; an older version's is of no run."""
        if text is None:
            return None
        try:
            return cls(**json.loads(text))
        except (TypeError, ValueError):
            return cls(0, "")

    def to_json(self) -> str:
        return json.dumps(asdict(self))


class BucketWorkspace(Workspace):
    """A copy on this machine of a run that is kept in the folder `key` of a bucket."""

    travels = True
    remedy = f"name another folder for copies of runs with {VARIABLE}"

    def __init__(self, folder: Path, uri: str, objects: Objects, key: str) -> None:
        super().__init__(folder, uri)
        self.objects, self.key = objects, key
        self._stamp: Stamp | None = None  # None: not fetched, and nothing of it is pushed
        self._pushed: dict[str, tuple[int, int] | None] = {}  # by file: its state, see `_state`

    def fetch(self, epoch: int, run_id: str) -> None:
        self._stamp = None
        super().fetch(epoch, run_id)  # first: whoever fails below leaves a log in it
        self._remove_old_copies()
        mine, bucket = Stamp(epoch, run_id), Stamp.parse(self._read(STAMP))
        if bucket is not None and bucket.run_id == run_id and bucket.epoch > epoch:
            return  # the lease is lost
        if not self._is_current(bucket):
            self._download(bucket is not None)
        self.objects.write(f"{self.key}/{STAMP}", mine.to_json())
        with on_disk(self.folder):
            (self.folder / STAMP).write_text(mine.to_json())
        self._stamp = mine

    def _is_current(self, bucket: Stamp | None) -> bool:
        """Whether the copy is as new as the bucket, or has what must not be replaced."""
        ending = _text(self.folder / ENDING)
        if ending is None and self._read(ENDING) is not None:
            return False  # `push` has moved it there
        if ending is not None and not _is_failure(ending):
            return True
        return Stamp.parse(_text(self.folder / STAMP)) == bucket

    def _download(self, is_there: bool) -> None:
        """Replaces the copy by what the bucket has, or by nothing: then the run has ended elsewhere."""
        draft = self.folder.with_name(f"{self.key}.draft")
        shutil.rmtree(draft, ignore_errors=True)  # of a download that was killed
        draft.mkdir()
        if is_there:
            self.objects.get_folder(self.key, draft)
        shutil.rmtree(self.folder)
        draft.rename(self.folder)
        self._pushed = {name: self._state(name) for name in (JOURNAL, LOG, CHECKPOINT)}

    def _remove_old_copies(self) -> None:
        """Removes copies, which may be large, of runs that went on elsewhere."""
        oldest = time.time() - COPY_SECONDS
        for copy in set(self.folder.parent.glob("*")) - {self.folder}:
            with contextlib.suppress(OSError):  # another process has just removed it
                if copy.stat().st_mtime < oldest and not (copy / ENDING).exists():
                    shutil.rmtree(copy, ignore_errors=True)

    def push(self) -> None:
        if self._stamp is None:
            return
        self._push_changed()
        if not (self.folder / ENDING).exists():
            self.objects.delete(f"{self.key}/{ENDING}")
            return
        for path in sorted(self.folder.glob(f"{ARTIFACTS}/*")):
            self._put(path, f"{ARTIFACTS}/{path.name}")
        self._put(self.folder / ENDING, ENDING)
        (self.folder / ENDING).unlink(missing_ok=True)  # a delivery may have been faster

    def _push_changed(self) -> None:
        if Stamp.parse(self._read(STAMP)) != self._stamp:
            raise StorageError(f"another machine has been at {self.uri}, and goes on from there")
        # The bucket's journal may be ahead of its checkpoint, not behind it, and training goes on meanwhile:
        # the checkpoint is held as it is now, the journal is put, and then the checkpoint. A file's state is
        # taken before the file is read, so that one that changes meanwhile is put again.
        state, held = self._state(CHECKPOINT), self.folder / f"{CHECKPOINT}.held"
        try:
            if state:
                _hold(self.folder / CHECKPOINT, held)
            for name in (JOURNAL, LOG):
                self._put_changed(self.folder / name, name, self._state(name))
            self._put_changed(held, CHECKPOINT, state)
        finally:
            held.unlink(missing_ok=True)

    def _put_changed(self, path: Path, name: str, state: tuple[int, int] | None) -> None:
        if state and state != self._pushed.get(name):
            self._put(path, name)
            self._pushed[name] = state

    def _read(self, name: str) -> str | None:
        return self.objects.read(f"{self.key}/{name}")

    def _put(self, path: Path, name: str) -> None:
        self.objects.put(path, f"{self.key}/{name}")

    def _state(self, name: str) -> tuple[int, int] | None:
        """Modification time in ns and bytes of a file; None if it is not there."""
        try:
            found = (self.folder / name).stat()
        except FileNotFoundError:
            return None
        return found.st_mtime_ns, found.st_size

    @contextlib.contextmanager
    def pushing(self, log: Callable[[str], None]) -> Iterator[None]:
        ended = threading.Event()
        thread = threading.Thread(target=self._push_until, args=(ended, log), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _push_until(self, ended: threading.Event, log: Callable[[str], None]) -> None:
        next_time, away = 0.0, False
        while not ended.wait(LOOK_SECONDS):
            is_new = self._state(CHECKPOINT) not in (None, self._pushed.get(CHECKPOINT))
            if time.monotonic() < next_time and (away or not is_new):
                continue
            try:
                self._push_changed()
            except Exception as error:  # whatever it is: training goes on, and this thread too
                if not away:
                    log(f"{error}; training goes on, checkpoints wait in {self.folder}")
                away = True
            else:
                if away:
                    log(f"{self.uri} answers again and has the last checkpoint")
                away = False
            next_time = time.monotonic() + PUSH_SECONDS

    def log_text(self) -> str | None:
        pushed = self._read(LOG)  # of whichever machine trains it; a copy here may be an old one
        return super().log_text() if pushed is None else pushed

    def last_run(self) -> str:
        stamp = Stamp.parse(self._read(STAMP))  # of whoever has it fetched last
        return stamp.run_id if stamp else super().last_run()

    def is_undelivered(self) -> bool:
        return super().is_undelivered() or self._read(ENDING) is not None

    def remove(self) -> None:
        self.objects.delete_folder(self.key)
        super().remove()


def _text(file: Path) -> str | None:
    try:
        return file.read_text()
    except FileNotFoundError:
        return None


def _is_failure(ending: str) -> bool:
    """Whether a training has failed, so that another machine's progress is worth more."""
    try:
        return bool(json.loads(ending)["status"] == "FAILED")
    except (KeyError, TypeError, ValueError):  # a person has to look at it
        return False


def _hold(file: Path, held: Path) -> None:
    held.unlink(missing_ok=True)
    try:
        os.link(file, held)
    except OSError:  # not every file system can
        shutil.copyfile(file, held)


class Bucket(Storage):
    """A folder of an object store that PyArrow knows by its address."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self.objects = Objects(uri)

    @property
    def folder(self) -> Path:
        return copies_folder() / hashlib.sha256(self.uri.encode()).hexdigest()[:12]

    def of(self, key: str) -> str:
        return joined(self.uri, key)

    def workspace(self, key: str) -> BucketWorkspace:
        return BucketWorkspace(self.folder / key, self.of(key), self.objects, key)

    def keys(self) -> set[str]:
        return {name.partition("/")[0] for name in self.objects.names() if "/" in name}

    def undelivered(self) -> list[tuple[str, str]]:
        found = dict(super().undelivered())  # of copies on this machine
        for name in self.objects.names():
            key, _, file = name.partition("/")
            if file == ENDING and self.of(key) not in found:
                text = self.objects.read(name)
                if text is not None:  # else it was delivered at this moment
                    found[self.of(key)] = text
        return sorted(found.items())

    def _write(self, name: str) -> None:
        # Without copies, nothing can be kept either.
        make_folder(self.folder, BucketWorkspace.remedy)
        self.objects.write(name, "")

    def _has(self, name: str) -> bool:
        return self.objects.read(name) is not None

    def _delete(self, name: str) -> None:
        self.objects.delete(name)


def copies_folder() -> Path:
    """Where this user's copies are: $SEMIDAVIL_COPIES, else semidavil/copies in the user's cache.

    An ended run may wait in one for days, so this is no temporary folder. Nothing is made here.

    Raises:
        StorageError: the user has no home, and nothing else is named.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = os.environ.get(VARIABLE) or f"{cache}/semidavil/copies"
    path = Path(os.path.expanduser(folder))  # stays "~" for a user without a home
    if not path.is_absolute():
        raise StorageError(f"copies of runs cannot be kept in {path}: {BucketWorkspace.remedy}")
    return path
