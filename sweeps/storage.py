"""Where runs that have not ended are kept: a folder, or a bucket such as s3://bucket/runs.

In a folder that all machines share, a run works right where it is kept. Of a bucket, each machine has a
copy of what it works on, and what a run needs to go on elsewhere follows to the bucket within seconds of
each checkpoint. Objects are replaced whole, so that a machine that dies leaves the one before.

PyArrow, which knows the buckets, is imported by those who use one.
"""

import contextlib
import hashlib
import os
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit
from urllib.request import url2pathname

from semidavil.config import ConfigError
from semidavil.disk import DiskFull, is_full, on_disk

# A run's folder.
CHECKPOINT = "last.pt"  # semidavil.checkpoint's
JOURNAL = "metrics.jsonl"
LOG = "train.log"
ENDING = "ending.json"  # only while the tracking store does not have all of an ended run
ARTIFACTS = "artifacts"  # what an ended run leaves

SCHEMES = ("s3", "gs", "abfs")
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

    The stamp tells who is ahead. The bucket's is new with each push; the copy has the last that it has
    seen there and the one that it was about to write. If the bucket's is one of these, nobody else has
    been at the run, and the copy is as new as the bucket or newer: its machine may have died before the
    latest checkpoint was pushed.
    """

    def __init__(self, folder: Path, place: str, objects: "Objects") -> None:
        super().__init__(folder, place)
        self.objects = objects
        self._pushed: dict[str, tuple[int, int]] = {}  # by file: of what state
        self._stamps: list[str] = []

    @property
    def travels(self) -> bool:
        return True

    def fetch(self) -> None:
        remove_old_copies(self.folder.parent)
        super().fetch()
        stamp = self.objects.read(STAMP)
        mine = self.folder / STAMP
        self._stamps = mine.read_text().split() if mine.exists() else []
        if stamp is None or stamp in self._stamps:
            os.utime(self.folder)
            return
        with on_disk(self.folder):
            shutil.rmtree(self.folder)
            self.folder.mkdir()
            self.objects.get_all(self.folder)  # the stamp among them

    def push(self) -> None:
        with self._new_stamp():
            self._push_changed()
            if (self.folder / ENDING).exists():
                for path in sorted(self.folder.glob(f"{ARTIFACTS}/*")):
                    self.objects.put(path, f"{ARTIFACTS}/{path.name}")
                self.objects.put(self.folder / ENDING, ENDING)
            else:
                self.objects.delete(ENDING)

    def _push_changed(self) -> None:
        # The journal first: it may be ahead of the checkpoint, not behind it.
        for name, state in self._changed(JOURNAL, LOG, CHECKPOINT).items():
            self.objects.put(self.folder / name, name)
            self._pushed[name] = state

    @contextlib.contextmanager
    def _new_stamp(self) -> Iterator[None]:
        """The bucket gets it last, the copy knows it first."""
        stamp = uuid.uuid4().hex
        self._write_stamps(*self._stamps, stamp)
        yield
        self.objects.write(STAMP, stamp)
        self._write_stamps(stamp)

    def _write_stamps(self, *stamps: str) -> None:
        with on_disk(self.folder):
            (self.folder / STAMP).write_text(" ".join(stamps))
        self._stamps = list(stamps)

    def _changed(self, *names: str) -> dict[str, tuple[int, int]]:
        """Of these files, those that the bucket does not have as they are now, with their state."""
        states = {}
        for name in names:
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
            if not due and (away or not self._changed(CHECKPOINT)):
                continue
            try:
                with self._new_stamp():
                    self._push_changed()
            except (StorageError, DiskFull) as error:
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
        super().__init__(place, _private_folder() / name)
        self.objects = Objects(place)

    def of(self, key: str) -> str:
        return _joined(self.place, key)

    def keys(self) -> set[str]:
        return {Path(name).parts[0] for name in self.objects.names() if "/" in name}

    def endings(self) -> list[tuple[str, str]]:
        names = [name for name in self.objects.names() if Path(name).name == ENDING]
        texts = {str(Path(name).parent): self.objects.read(name) for name in sorted(names)}
        return [(self.of(key), text) for key, text in texts.items() if text is not None]

    @contextlib.contextmanager
    def marked(self) -> Iterator[str]:
        mark = f".seen-from-every-node-{uuid.uuid4().hex}"
        self.objects.write(mark, "")
        try:
            yield mark
        finally:
            self.objects.delete(mark)

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
            return [str(Path(info.path).relative_to(base)) for info in found if info.is_file]

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

        with self._usable() as (system, base):
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
            StorageError: it does not answer, or refuses. A full disk of this machine stays an OSError.
        """
        try:
            yield _file_system(self.place)
        except (OSError, ValueError) as error:
            if is_full(error):
                raise
            raise StorageError(
                f"the storage {self.place} cannot be used: {str(error).splitlines()[0]}. Check that the "
                "bucket exists, that this machine reaches it, and its keys (AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, or whatever the provider's own command uses)"
            ) from error


@cache
def _file_system(place: str) -> tuple[Any, str]:
    from pyarrow.fs import FileSystem

    system, base = FileSystem.from_uri(place)
    return system, base.rstrip("/")


def _private_folder() -> Path:
    """This user's copies: a folder that nobody else may have made or write to.

    Raises:
        StorageError: somebody else has made it.
    """
    folder = Path(tempfile.gettempdir()) / f"semidavil-{os.getuid()}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_uid != os.getuid() or folder.is_symlink():
        raise StorageError(f"{folder} is not this user's own: remove it, or set TMPDIR to another")
    return folder


def remove_old_copies(folder: Path, days: float = COPY_DAYS) -> None:
    """Of runs that went on elsewhere; they may be large."""
    oldest = time.time() - days * 86400
    for path in folder.glob("*"):
        with contextlib.suppress(OSError):  # another process is faster
            newest = max(item.stat().st_mtime for item in (path, *path.iterdir()))
            if newest < oldest:
                shutil.rmtree(path, ignore_errors=True)
