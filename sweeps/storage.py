"""Where runs that have not ended are kept: a folder, or a bucket such as s3://bucket/runs.

In a folder that all machines share, a run works right where it is kept. Of a bucket, each machine has a
copy of what it works on, and what a run needs to go on elsewhere follows to the bucket within seconds of
each checkpoint. Objects are replaced whole, so that a machine that dies leaves the one before.

PyArrow, which knows the buckets, is imported by those who use one.
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit, urlunsplit
from urllib.request import url2pathname

from semidavil.config import ConfigError
from semidavil.disk import on_disk
from sweeps.credentials import redact

# A run's folder.
CHECKPOINT = "last.pt"  # semidavil.checkpoint's
JOURNAL = "metrics.jsonl"
LOG = "train.log"
ENDING = "ending.json"  # only while the tracking store does not have all of an ended run
ARTIFACTS = "artifacts"  # what an ended run leaves

SCHEMES = ("s3", "gs", "abfs")
# What an address may say besides; anything else may be a key, which would be logged.
OPTIONS = {"scheme", "region", "endpoint_override", "allow_bucket_creation", "retry_limit_seconds"}
STAMP = "stamp"  # which state of a run a copy or the bucket holds
LOOK_SECONDS = 0.5  # between two looks for a new checkpoint
JOURNAL_SECONDS = 15.0  # between two copies of journal and log, without a new checkpoint
AWAY_SECONDS = 15.0  # before a bucket that is away is tried again
COPY_DAYS = 7.0  # after which a copy that no run has touched is removed

Note = Callable[[str], None]


class StorageError(RuntimeError):
    """The bucket cannot be used; the message names it and says what to do."""


class Workspace:
    """The folder in which a run works, here the one in which it is kept.

    Attributes:
        folder: on this machine.
        place: the same for people: a path, or an address.
    """

    def __init__(self, folder: Path, place: str) -> None:
        self.folder, self.place = folder, place

    @property
    def travels(self) -> bool:
        """What this machine knows of the run may be older than what another has done."""
        return False

    def fetch(self) -> None:
        """Makes the folder, with what the run has so far."""
        with on_disk(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)

    def push(self) -> None:
        """Keeps what is in the folder; what the run needs to go on, and its ending if it waits.

        Raises:
            StorageError: it could not; the folder stays.
        """

    @contextlib.contextmanager
    def pushing(self, note: Note) -> Iterator[None]:
        """Keeps each checkpoint soon after it is written, while the run trains."""
        yield

    def remove(self) -> None:
        """Forgets the run."""
        shutil.rmtree(self.folder, ignore_errors=True)


class Copy(Workspace):
    """A folder of this machine whose run is kept in a bucket.

    Stamps tell who is ahead. The bucket's is new with each push; the copy knows the last that it has seen
    there, and those that it was about to write. If the bucket's is one of these, nobody else has been at
    the run, and the copy is as new as the bucket or newer: its machine may have died before the latest
    checkpoint was pushed.
    """

    def __init__(self, folder: Path, place: str, objects: "Objects") -> None:
        super().__init__(folder, place)
        self.objects = objects
        self._pushed: dict[str, tuple[int, int]] = {}  # by file: of what state
        self._fetched = False  # until then, what is here may be older than what is there
        # A stamp that the copy knows and the bucket cannot have yet.
        self._unused: str | None = None

    @property
    def travels(self) -> bool:
        return True

    def fetch(self) -> None:
        """As `Workspace.fetch`.

        Raises:
            StorageError: the bucket is away, or the folder for copies is not ours.
            DiskFull: of this machine.
        """
        own_folder(self.folder.parent)
        super().fetch()  # first: what fails below is logged there
        remove_old_copies(self.folder.parent, spare=self.folder)
        theirs = self.objects.read(STAMP)
        if self._knows(theirs):
            if theirs is not None:
                self._write_stamps(theirs)
        elif theirs is not None:
            self._download(theirs)
        else:
            shutil.rmtree(self.folder)  # removed by another machine, where it has ended
            super().fetch()
        self._fetched = True

    def _download(self, stamp: str) -> None:
        for path in self.folder.parent.glob(f"{self.folder.name}.*"):
            shutil.rmtree(path)  # of a download that was killed
        draft = self.folder.with_name(f"{self.folder.name}.{uuid.uuid4().hex}")
        draft.mkdir()
        self.objects.get_all(draft)
        shutil.rmtree(self.folder, ignore_errors=True)
        draft.rename(self.folder)
        self._write_stamps(stamp)
        self._pushed = self._changed()

    def push(self) -> None:
        if not self._fetched:
            return
        with self._new_stamp():
            self._push_changed()
            if (self.folder / ENDING).exists():
                for path in sorted(self.folder.glob(f"{ARTIFACTS}/*")):
                    self.objects.put(path, f"{ARTIFACTS}/{path.name}")
                self.objects.put(self.folder / ENDING, ENDING)
            else:
                self.objects.delete(ENDING)

    def _push_changed(self) -> None:
        changed = self._changed()
        # A journal may be ahead of its checkpoint, not behind it: the checkpoint is held as it is, then
        # the journal is put, and last the checkpoint.
        with self._held(CHECKPOINT) as checkpoint:
            for name, state in changed.items():
                self.objects.put(checkpoint if name == CHECKPOINT else self.folder / name, name)
                self._pushed[name] = state

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
    def _new_stamp(self) -> Iterator[None]:
        """The bucket gets it last, the copy knows it first.

        Raises:
            StorageError: another machine has been at the run, as one does that has taken it for dead.
        """
        if not self._knows(self.objects.read(STAMP)):
            raise StorageError(f"another machine has been at {self.place}, and goes on from there")
        seen, coming = self._stamps()
        if self._unused is None:
            self._unused = uuid.uuid4().hex
            self._write_stamps(seen, [*coming, self._unused])
        yield
        stamp, self._unused = self._unused, None  # from here on the bucket may have it
        self.objects.write(STAMP, stamp)
        self._write_stamps(stamp)

    def _knows(self, theirs: str | None) -> bool:
        """Whether the bucket, with this stamp or none, is as this copy has left it."""
        seen, coming = self._stamps()
        return theirs == seen or theirs in coming

    def _stamps(self) -> tuple[str | None, list[str]]:
        """The last that was seen in the bucket, and those that may have been written there since."""
        try:
            seen, *coming = json.loads((self.folder / STAMP).read_text())
        except FileNotFoundError:
            return None, []
        return seen, coming

    def _write_stamps(self, seen: str | None, coming: Sequence[str] = ()) -> None:
        draft = self.folder / f"{STAMP}.part"
        with on_disk(self.folder):
            draft.write_text(json.dumps([seen, *coming]))
            draft.replace(self.folder / STAMP)

    def _changed(self) -> dict[str, tuple[int, int]]:
        """Of what a run needs to go on, the files that the bucket does not have, with their state."""
        states = {}
        for name in (JOURNAL, LOG, CHECKPOINT):
            with contextlib.suppress(FileNotFoundError):
                found = (self.folder / name).stat()
                states[name] = found.st_mtime_ns, found.st_size
        return {name: state for name, state in states.items() if self._pushed.get(name) != state}

    @contextlib.contextmanager
    def pushing(self, note: Note) -> Iterator[None]:
        ended = threading.Event()
        thread = threading.Thread(target=self._push_until, args=(ended, note), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _push_until(self, ended: threading.Event, note: Note) -> None:
        next_time, away = time.monotonic() + JOURNAL_SECONDS, False
        while not ended.wait(LOOK_SECONDS):
            due = time.monotonic() >= next_time
            if not due and (away or CHECKPOINT not in self._changed()):
                continue
            try:
                with self._new_stamp():
                    self._push_changed()
            except Exception as error:  # whatever it is: training goes on, and this thread too
                if not away:
                    note(f"{error}; training goes on, checkpoints wait in {self.folder}")
                away, next_time = True, time.monotonic() + AWAY_SECONDS
            else:
                if away:
                    note(f"{self.place} answers again and has the last checkpoint")
                away, next_time = False, time.monotonic() + JOURNAL_SECONDS

    def remove(self) -> None:
        self.objects.delete_all()
        super().remove()


class Storage:
    """A folder, shared by all machines that train.

    Attributes:
        place: a path or an address; what `--storage` takes.
        folder: where runs work on this machine.
    """

    def __init__(self, place: str, folder: Path) -> None:
        self.place, self.folder = place, folder

    def of(self, key: str) -> str:
        """The place of a run, from which any machine gets its `workspace`."""
        return str(self.folder / key)

    def keys(self) -> set[str]:
        """Of all runs of which something is kept."""
        return {path.name for path in self.folder.glob("*") if path.is_dir()}

    def endings(self) -> list[tuple[str, str]]:
        """Place and `ending.json` of all runs that have ended and are not delivered."""
        found = []
        for path in sorted(self.folder.glob(f"*/{ENDING}")):
            with contextlib.suppress(FileNotFoundError):  # delivered at this moment
                found.append((str(path.parent), path.read_text()))
        return found

    @contextlib.contextmanager
    def marked(self) -> Iterator[str]:
        """Leaves a mark there meanwhile, and gives its name to `lacks` of other machines."""
        self.folder.mkdir(parents=True, exist_ok=True)
        # A name that no machine can have cached as missing, as network file systems do.
        mark = self.folder / f".seen-from-every-node-{uuid.uuid4().hex}"
        mark.touch()
        try:
            yield mark.name
        finally:
            mark.unlink()

    def require(self) -> None:
        """Raises StorageError if this machine cannot keep runs there."""

    def lacks(self, mark: str) -> str:
        """Why this machine cannot keep runs where `mark` was left; empty if it can."""
        if (self.folder / mark).exists() and os.access(self.folder, os.W_OK):
            return ""
        return (
            f"the folder {self.place} is not the sweep's, or cannot be written: name one that all "
            "machines share with --storage, or a bucket (s3://BUCKET/FOLDER)"
        )


class Bucket(Storage):
    """An object store that PyArrow knows by its address, and copies in this machine's temporary folder."""

    def __init__(self, place: str) -> None:
        name = hashlib.sha256(place.encode()).hexdigest()[:12]
        super().__init__(place, Path(tempfile.gettempdir()) / f"semidavil-{os.getuid()}" / name)
        self.objects = Objects(place)

    def of(self, key: str) -> str:
        return _joined(self.place, key)

    def keys(self) -> set[str]:
        return {Path(name).parts[0] for name in self.objects.names() if "/" in name}

    def endings(self) -> list[tuple[str, str]]:
        # Also those that this machine could not push.
        here = {Path(place).name: text for place, text in super().endings()}
        for name in self.objects.names():
            key, _, file = name.partition("/")
            if file == ENDING and key not in here and (text := self.objects.read(name)) is not None:
                here[key] = text
        return [(self.of(key), here[key]) for key in sorted(here)]

    @contextlib.contextmanager
    def marked(self) -> Iterator[str]:
        mark = f".seen-from-every-node-{uuid.uuid4().hex}"
        self.objects.write(mark, "")
        try:
            yield mark
        finally:
            self.objects.delete(mark)

    def require(self) -> None:
        with self.marked() as mark:
            if problem := self.lacks(mark):
                raise StorageError(problem)

    def lacks(self, mark: str) -> str:
        mine = f"{mark}-{uuid.uuid4().hex}"
        try:
            if self.objects.read(mark) is None:
                return f"{self.place} is another bucket here: check its address and region"
            self.objects.write(mine, "")
            self.objects.delete(mine)
        except StorageError as error:
            return str(error)
        return ""


def open_storage(text: str) -> Storage:
    """The storage that `--storage` names: a folder, also as file://..., or a bucket.

    Raises:
        ConfigError: an address of another kind, or one with a password in it.
    """
    parts = urlsplit(text)
    if "://" not in text or parts.scheme == "file":
        path = url2pathname(parts.path) if parts.scheme == "file" else text
        folder = Path(path).expanduser().resolve()
        return Storage(str(folder), folder)
    if parts.scheme not in SCHEMES:
        raise ConfigError(
            f"--storage {text}: checkpoints are kept in a folder, or in a bucket whose address begins "
            f"with {', '.join(f'{scheme}://' for scheme in SCHEMES)}; mount anything else as a folder"
        )
    if parts.password or (parts.username and parts.scheme == "s3"):
        raise ConfigError(
            f"--storage {parts.scheme}://***: no keys in the address, which is logged: set "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY here and on every machine that trains"
        )
    if unknown := parse_qs(parts.query).keys() - OPTIONS:
        raise ConfigError(
            f"--storage {parts.scheme}://{parts.netloc}{parts.path}: unknown option "
            f"{', '.join(sorted(unknown))}; there are {', '.join(sorted(OPTIONS))}. Keys are set in the "
            "environment"
        )
    if not parts.netloc or not parts.path.strip("/"):
        raise ConfigError(f"--storage {text}: name a folder in the bucket, as in s3://BUCKET/runs")
    return Bucket(urlunsplit(parts._replace(path=parts.path.rstrip("/"))))


def workspace(place: str) -> Workspace:
    """Of the run that `Storage.of` has given this place."""
    if "://" not in place:
        return Workspace(Path(place), place)
    parts = urlsplit(place)
    above, _, key = parts.path.rpartition("/")
    folder = Bucket(urlunsplit(parts._replace(path=above))).folder / key
    return Copy(folder, place, Objects(place))


def _joined(place: str, name: str) -> str:
    """`name` in the folder of an address, whose options stay at its end."""
    parts = urlsplit(place)
    return urlunsplit(parts._replace(path=f"{parts.path}/{name}"))


def file_of(place: str, name: str) -> str:
    """A file of a run's place, for people."""
    return _joined(place, name) if "://" in place else str(Path(place) / name)


class Objects:
    """The objects below an address, by their name there."""

    def __init__(self, place: str) -> None:
        self.place = place

    def read(self, name: str) -> str | None:
        with self._usable() as (system, base):
            try:
                with system.open_input_stream(f"{base}/{name}") as stream:
                    return str(stream.read().decode())
            except FileNotFoundError:
                return None

    def write(self, name: str, text: str) -> None:
        with self._usable() as (system, base), system.open_output_stream(f"{base}/{name}") as out:
            out.write(text.encode())

    def names(self) -> list[str]:
        from pyarrow.fs import FileSelector

        with self._usable() as (system, base):
            found = system.get_file_info(FileSelector(base, recursive=True, allow_not_found=True))
            names = [Path(info.path).relative_to(base) for info in found if info.is_file]
            return [str(name) for name in names if ".." not in name.parts]

    def put(self, path: Path, name: str) -> None:
        """From this machine. What is replaced meanwhile is copied as it was."""
        from pyarrow.fs import LocalFileSystem, copy_files

        with self._usable() as (system, base):
            copy_files(
                str(path),
                f"{base}/{name}",
                source_filesystem=LocalFileSystem(),
                destination_filesystem=system,
            )

    def get_all(self, folder: Path) -> None:
        from pyarrow.fs import LocalFileSystem, copy_files

        with self._usable() as (system, base), on_disk(folder):
            copy_files(
                base,
                str(folder),
                source_filesystem=system,
                destination_filesystem=LocalFileSystem(),
            )

    def delete(self, name: str) -> None:
        with self._usable() as (system, base), contextlib.suppress(FileNotFoundError):
            system.delete_file(f"{base}/{name}")

    def delete_all(self) -> None:
        with self._usable() as (system, base), contextlib.suppress(FileNotFoundError):
            system.delete_dir(base)

    @contextlib.contextmanager
    def _usable(self) -> Iterator[tuple[Any, str]]:
        """PyArrow's file system and the folder in it.

        Raises:
            StorageError: it does not answer, or refuses.
        """
        try:
            yield _file_system(self.place)
        except (OSError, ValueError, NotImplementedError) as error:
            why = (str(error).splitlines() or [type(error).__name__])[0]
            raise StorageError(
                f"the storage {self.place} cannot be used: {redact(why)}. Check that the "
                "bucket exists, that this machine reaches it, and its keys (AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, or whatever the provider's own command uses)"
            ) from error


@cache
def _file_system(place: str) -> tuple[Any, str]:
    from pyarrow.fs import FileSystem

    system, base = FileSystem.from_uri(place)
    return system, base.rstrip("/")


def own_folder(folder: Path) -> None:
    """Makes a folder below one of this user's in the temporary folder.

    Raises:
        StorageError: somebody else has made that, and could put files into it; or it cannot be made.
    """
    try:
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        owner = folder.parent.lstat().st_uid
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise StorageError(f"no copies can be kept in {folder}: {error}; set TMPDIR") from error
    if owner != os.getuid() or folder.parent.is_symlink():
        raise StorageError(f"{folder.parent} is not this user's own: remove it, or set TMPDIR")


def remove_old_copies(folder: Path, spare: Path) -> None:
    """Of runs that went on elsewhere; they may be large."""
    oldest = time.time() - COPY_DAYS * 86400
    for path in set(folder.glob("*")) - {spare}:
        with contextlib.suppress(OSError):  # another process is faster
            newest = max(item.stat().st_mtime for item in (path, *path.iterdir()))
            if newest < oldest:
                shutil.rmtree(path, ignore_errors=True)
