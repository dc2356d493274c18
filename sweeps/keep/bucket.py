"""Runs that are kept in a bucket, of which each machine has copies.

A machine works on a copy. What a run needs to go on elsewhere, its journal, log and checkpoint, follows to
the bucket within seconds of each checkpoint. Objects are replaced whole, so that a machine that dies leaves
the one before.

The epoch of the lease says whose a run is. The bucket's object `stamp` holds the epoch that pushed last, the
copy's file `stamp` the epoch that works in it. An older epoch pushes nothing over a later one: its machine
was silent for so long that another took the run, and it wakes up.
"""

import contextlib
import hashlib
import json
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from semidavil.disk import on_disk
from sweeps.keep.copies import copies_folder, is_own, make_own, remove_old_copies, temporary_copies
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
)

STAMP = "stamp"
LOOK_SECONDS = 0.5  # between two looks for a new checkpoint
JOURNAL_SECONDS = 15.0  # between two copies of journal and log, without a new checkpoint
AWAY_SECONDS = 15.0  # before a bucket that is away is tried again


@dataclass(frozen=True)
class Stamp:
    """Who works in a copy, or has pushed to the bucket.

    Attributes:
        epoch, run_id: of the lease; see `Workspace.fetch`.
        pushed: of a copy: the bucket has had the run. If it has nothing now, the run has ended elsewhere.
        ending: of a copy: digest of the `ending.json` that the bucket has had. If it has none now, another
            machine has delivered it.
    """

    epoch: int
    run_id: str = ""
    pushed: bool = False
    ending: str = ""

    @classmethod
    def parse(cls, text: str) -> "Stamp":
        """The stamp in a file or an object; that of an older version comes before all others."""
        try:
            return cls(**json.loads(text))
        except (TypeError, ValueError):
            return cls(0)

    @classmethod
    def read(cls, folder: Path) -> "Stamp":
        """The stamp of a copy; a new copy comes before whatever the bucket has."""
        try:
            return cls.parse((folder / STAMP).read_text())
        except FileNotFoundError:
            return cls(-1)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    def is_of_same_run(self, other: "Stamp") -> bool:
        """Whether both epochs can be compared; an unknown run is any run."""
        return self.run_id == other.run_id or not self.run_id or not other.run_id

    def is_after(self, other: "Stamp") -> bool:
        return self.is_of_same_run(other) and self.epoch > other.epoch


class BucketWorkspace(Workspace):
    """A copy on this machine of a run that is kept in a bucket.

    Attributes:
        objects: of the whole bucket; those of the run are in the folder `key`.
    """

    def __init__(self, folder: Path, uri: str, objects: Objects, key: str) -> None:
        super().__init__(folder, uri)
        self.objects, self.key = objects, key
        self._stamp: Stamp | None = None  # None until it is fetched: the bucket may be ahead
        self._fetched: Stamp | None = None  # what the bucket had then
        self._pushed: dict[str, tuple[int, int] | None] = {}  # by file: its state, see `_state`

    @property
    def travels(self) -> bool:
        return True

    def fetch(self, epoch: int, run_id: str = "") -> None:
        self._stamp = None
        make_own(self.folder.parent)
        super().fetch(epoch, run_id)  # first: whoever fails below leaves a log in it
        remove_old_copies(self.folder.parent, spare=self.folder)
        mine, copy, bucket = Stamp(epoch, run_id), Stamp.read(self.folder), self._stamp_in_bucket()
        if copy.is_after(mine) or (bucket and bucket.is_after(mine)):
            return  # the lease is lost: nothing is ours to replace, here or in the bucket
        if copy.ending and self._read(ENDING) is None and self._ending() == copy.ending:
            (self.folder / ENDING).unlink()  # another machine has delivered it
        ending = copy.ending
        if not self._is_ahead(copy, bucket):
            if bucket is None:  # the run has ended elsewhere
                shutil.rmtree(self.folder)
                super().fetch(epoch, run_id)
            else:
                self._download()
            ending = self._ending()
        self._write_stamp(replace(mine, pushed=bucket is not None, ending=ending))
        self._fetched = bucket

    def _is_ahead(self, copy: Stamp, bucket: Stamp | None) -> bool:
        """Whether the copy is as new as the bucket or newer: a machine may die before it pushes."""
        if self._holds_result() and self._ending() != copy.ending:
            return True  # neither store nor bucket knows of it
        if bucket is None:
            return not copy.pushed
        return copy.is_of_same_run(bucket) and not bucket.is_after(copy)

    def _holds_result(self) -> bool:
        """Whether a training has ended well here and waits for the tracking store."""
        try:
            return bool(json.loads((self.folder / ENDING).read_text())["status"] != "FAILED")
        except FileNotFoundError:
            return False
        except (KeyError, TypeError, ValueError):  # a person has to look at it
            return True

    def _ending(self) -> str:
        """Digest of `ending.json`; empty if there is none."""
        return _digest(self.folder / ENDING)

    def _download(self) -> None:
        for path in self.folder.parent.glob(f"{self.folder.name}.*"):
            shutil.rmtree(path)  # of a download that was killed
        draft = self.folder.with_name(f"{self.folder.name}.{uuid.uuid4().hex}")
        draft.mkdir()
        self.objects.get_folder(self.key, draft)
        shutil.rmtree(self.folder, ignore_errors=True)
        draft.rename(self.folder)
        self._pushed = {name: self._state(name) for name in (JOURNAL, LOG, CHECKPOINT)}

    def push(self) -> None:
        if self._stamp is None:
            return
        self._hold_bucket()
        self._push_changed()
        ending = self._ending()
        if ending:
            for path in sorted(self.folder.glob(f"{ARTIFACTS}/*")):
                self._put(path, f"{ARTIFACTS}/{path.name}")
            self._put(self.folder / ENDING, ENDING)
        else:
            self.objects.delete(f"{self.key}/{ENDING}")
        self._write_stamp(replace(self._stamp, ending=ending))

    def _hold_bucket(self) -> None:
        """Makes the bucket this epoch's, before anything else of it is there.

        Raises:
            StorageError: a later epoch has been there, or the run has ended elsewhere.
        """
        bucket, stamp = self._stamp_in_bucket(), self._stamp
        if stamp is None or not self._may_replace(bucket):
            raise StorageError(f"another machine has been at {self.uri}, and goes on from there")
        if bucket != (held := Stamp(stamp.epoch, stamp.run_id)):
            self.objects.write(f"{self.key}/{STAMP}", held.to_json())
        if not stamp.pushed:
            self._write_stamp(replace(stamp, pushed=True))

    def _may_replace(self, bucket: Stamp | None) -> bool:
        """Whether what the bucket has, with this stamp or none, is no newer than the copy."""
        if self._stamp is None or bucket is None:
            return self._stamp is None or not self._stamp.pushed
        if bucket.is_of_same_run(self._stamp):
            return not bucket.is_after(self._stamp)
        return bucket == self._fetched  # this run goes on from another one

    def _stamp_in_bucket(self) -> Stamp | None:
        text = self._read(STAMP)
        return None if text is None else Stamp.parse(text)

    def _write_stamp(self, stamp: Stamp) -> None:
        draft = self.folder / f"{STAMP}.part"
        with on_disk(self.folder):
            draft.write_text(stamp.to_json())
            draft.replace(self.folder / STAMP)
        self._stamp = stamp

    def _read(self, name: str) -> str | None:
        return self.objects.read(f"{self.key}/{name}")

    def _put(self, path: Path, name: str) -> None:
        self.objects.put(path, f"{self.key}/{name}")

    def _push_changed(self) -> None:
        # The bucket's journal may be ahead of its checkpoint, not behind it: the checkpoint is held as it is
        # now, the journal is put, and then the checkpoint. A file's state is taken before the file is read,
        # so that one that changes meanwhile is put again.
        state = self._state(CHECKPOINT)
        with self._held(CHECKPOINT) as checkpoint:
            for name in (JOURNAL, LOG):
                self._put_changed(self.folder / name, name, self._state(name))
            self._put_changed(checkpoint, CHECKPOINT, state)

    def _put_changed(self, path: Path, name: str, state: tuple[int, int] | None) -> None:
        if state and state != self._pushed.get(name):
            self._put(path, name)
            self._pushed[name] = state

    def _state(self, name: str) -> tuple[int, int] | None:
        """Modification time in ns and bytes of a file; None if it is not there."""
        try:
            found = (self.folder / name).stat()
        except FileNotFoundError:
            return None
        return found.st_mtime_ns, found.st_size

    @contextlib.contextmanager
    def _held(self, name: str) -> Iterator[Path]:
        """A file as it is now, which the training replaces meanwhile."""
        file, held = self.folder / name, self.folder / f"{name}.held"
        held.unlink(missing_ok=True)
        if file.exists():
            try:
                os.link(file, held)
            except OSError:  # not every file system can
                shutil.copyfile(file, held)
        try:
            yield held
        finally:
            held.unlink(missing_ok=True)

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
        next_time, away = time.monotonic() + JOURNAL_SECONDS, False
        while not ended.wait(LOOK_SECONDS):
            is_new = self._state(CHECKPOINT) not in (None, self._pushed.get(CHECKPOINT))
            if time.monotonic() < next_time and (away or not is_new):
                continue
            try:
                self._hold_bucket()
                self._push_changed()
            except Exception as error:  # whatever it is: training goes on, and this thread too
                if not away:
                    log(f"{error}; training goes on, checkpoints wait in {self.folder}")
                away, next_time = True, time.monotonic() + AWAY_SECONDS
            else:
                if away:
                    log(f"{self.uri} answers again and has the last checkpoint")
                away, next_time = False, time.monotonic() + JOURNAL_SECONDS

    def is_undelivered(self) -> bool:
        return super().is_undelivered() or self._read(ENDING) is not None

    def remove(self) -> None:
        self.objects.delete_folder(self.key)
        super().remove()


def _digest(file: Path) -> str:
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except FileNotFoundError:
        return ""


class Bucket(Storage):
    """A folder of an object store that PyArrow knows by its address."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self.objects = Objects(uri)
        self._name = hashlib.sha256(uri.encode()).hexdigest()[:12]

    @property
    def folder(self) -> Path:
        return copies_folder() / self._name

    def of(self, key: str) -> str:
        return joined(self.uri, key)

    def workspace(self, key: str) -> BucketWorkspace:
        return BucketWorkspace(self._copy(key), self.of(key), self.objects, key)

    def _copy(self, key: str) -> Path:
        """The copy of a run; one with an ended run stays where an older version has left it."""
        copy, temporary = self.folder / key, temporary_copies() / self._name / key
        if (temporary / ENDING).exists() and not copy.exists() and is_own(temporary_copies()):
            return temporary
        return copy

    def keys(self) -> set[str]:
        return {name.partition("/")[0] for name in self.objects.names() if "/" in name}

    def undelivered(self) -> list[tuple[str, str]]:
        in_bucket = self.objects.names()
        found = self._undelivered_here(set(in_bucket))
        for name in in_bucket:
            key, _, file = name.partition("/")
            if file == ENDING and key not in found:
                text = self.objects.read(name)
                if text is not None:  # else it was delivered at this moment
                    found[key] = text
        return [(self.of(key), found[key]) for key in sorted(found)]

    def _undelivered_here(self, in_bucket: set[str]) -> dict[str, str]:
        """`ending.json` by key, of copies on this machine: some could not be pushed."""
        found = {}
        for folder in (temporary_copies() / self._name, self.folder):
            for path in folder.glob(f"*/{ENDING}"):
                copy, key = path.parent, path.parent.name
                if "." in key or copy != self._copy(key):  # half a download, or an older copy
                    continue
                was_pushed = Stamp.read(copy).ending == _digest(path)
                if was_pushed and f"{key}/{ENDING}" not in in_bucket:
                    continue  # another machine has delivered it
                with contextlib.suppress(FileNotFoundError):  # delivered at this moment
                    found[key] = path.read_text()
        return found

    def lacks(self, mark: str) -> str:
        try:
            make_own(self.folder)
        except StorageError as error:
            return str(error)
        return super().lacks(mark)

    def _write(self, name: str) -> None:
        self.objects.write(name, "")

    def _has(self, name: str) -> bool:
        return self.objects.read(name) is not None

    def _delete(self, name: str) -> None:
        self.objects.delete(name)
