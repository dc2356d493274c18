"""Where runs are kept until they have ended: a folder that all machines share.

Each run works in a folder of its own there, its workspace. `sweeps.keep.bucket` does the same with object
storage; `sweeps.keep.storage` opens either by its address.
"""

import contextlib
import json
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from semidavil.full_disk import on_disk

# The files of a run's folder.
CHECKPOINT = "last.pt"  # semidavil.checkpoint's
JOURNAL = "metrics.jsonl"
LOG = "train.log"
ENDING = "ending.json"  # only while the tracking store does not have all of an ended run
ARTIFACTS = "artifacts"  # the files that an ended run leaves


class StorageError(RuntimeError):
    """The storage cannot be used; the message names it and says what to do."""


class Workspace:
    """The folder in which a run works; here it is also where the run is kept.

    All methods raise StorageError if the storage is away or cannot be used; everything stays as it was.
    """

    # Whether another machine works on the run in another folder, which may be ahead of this one.
    travels = False
    remedy = "name another folder or a bucket with --storage"  # where the folder cannot be made

    def __init__(self, folder: Path, uri: str) -> None:
        self.folder = folder  # on this machine
        self.uri = uri  # where the run is kept: a path, or an address that any machine can open

    def fetch(self, epoch: int, run_id: str) -> None:
        """Makes the folder, with what the run has so far. Raises DiskFull, too.

        Args:
            epoch: of the lease under which the run is trained or delivered. If a later one has been at the
                run, the folder stays as it is, and nothing of it is pushed.
            run_id: the run in the tracking store whose epochs these are. Epochs of different runs (one was
                deleted, or there is another store) are not compared: the later fetch goes on.
        """
        with on_disk(self.folder):
            make_folder(self.folder, self.remedy)

    def push(self) -> None:
        """Keeps what the run needs to go on elsewhere, and its ending while that is undelivered.

        Whoever goes on with the run fetches it again.
        """

    @contextlib.contextmanager
    def pushing(self, log: Callable[[str], None]) -> Iterator[None]:
        """Keeps each checkpoint soon after it is written, while the run trains."""
        yield

    def log_text(self) -> str | None:
        """The log of the run so far; None if there is none."""
        try:
            return (self.folder / LOG).read_text(errors="replace")
        except FileNotFoundError:
            return None

    def last_run(self) -> str:
        """The id of the run that was trained here last; empty where nothing was sent of it yet."""
        sent = ""
        with contextlib.suppress(FileNotFoundError):
            for line in (self.folder / JOURNAL).read_text(errors="replace").splitlines():
                with contextlib.suppress(ValueError):  # cut short by a kill
                    sent = json.loads(line).get("sent_to", sent)
        return sent

    def is_undelivered(self) -> bool:
        """Whether an ended run waits here for the tracking store."""
        return (self.folder / ENDING).exists()

    def remove(self) -> None:
        """Forgets the run, with whatever waits here."""
        shutil.rmtree(self.folder, ignore_errors=True)


class Storage:
    """Keeps the folders of runs that have not ended. It travels to other machines, pickled.

    All methods raise StorageError if the storage is away or cannot be used.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri  # what `--storage` takes, without its trailing slash

    @property
    def folder(self) -> Path:
        """Where runs work on this machine."""
        return Path(self.uri)

    def of(self, key: str) -> str:
        """The URI of a run's workspace, which any machine can open."""
        return str(self.folder / key)

    def workspace(self, key: str) -> Workspace:
        return Workspace(self.folder / key, self.of(key))

    def keys(self) -> set[str]:
        """The keys of all runs of which something is kept."""
        return {path.name for path in self.folder.glob("*") if path.name.isalnum()}

    def undelivered(self) -> list[tuple[str, str]]:
        """The workspace's URI and the contents of `ending.json` of each ended run that waits."""
        found = []
        for path in sorted(self.folder.glob(f"*/{ENDING}")):
            key = path.parent.name
            if key.isalnum():  # else it is not a run's folder, such as half a download
                with contextlib.suppress(FileNotFoundError):  # delivered at this moment
                    found.append((self.of(key), path.read_text()))
        return found

    def remove(self, key: str) -> bool:
        """Forgets a run that nobody will continue; returns False if an ended run waits there and stays.

        Another process may remove the same run at the same time.
        """
        if not key.isalnum():  # it may come from the tracking store, where people can edit it
            raise ValueError(f"{key!r} is not the key of a run")
        workspace = self.workspace(key)
        if workspace.is_undelivered():
            return False
        workspace.remove()
        return True

    def require(self) -> None:
        """Tries that runs can be kept there from this machine."""
        with self.marked() as mark:
            if problem := self.lacks(mark):
                raise StorageError(problem)

    @contextlib.contextmanager
    def marked(self) -> Iterator[str]:
        """Leaves a mark there meanwhile, and yields its name for `lacks` of other machines."""
        # A new name each time: a network file system may have cached that an older one is missing.
        mark = f".seen-from-every-node-{uuid.uuid4().hex}"
        self._write(mark)
        try:
            yield mark
        finally:
            self._delete(mark)

    def lacks(self, mark: str) -> str:
        """Why this machine cannot keep runs where `mark` was left; empty if it can."""
        try:
            if not self._has(mark):
                return (
                    f"{self.uri} is not the sweep's here: name a folder that all machines share with "
                    "--storage, or a bucket (s3://BUCKET/FOLDER) with its region"
                )
            trial = f"{mark}-{uuid.uuid4().hex}"
            self._write(trial)
            self._delete(trial)
        except StorageError as error:
            return str(error)
        return ""

    def _write(self, name: str) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / name).write_text(name)
        except OSError as error:
            raise StorageError(
                f"the storage {self.uri} cannot be written: {error.strerror or error}. Make it writable, or "
                f"{Workspace.remedy}"
            ) from error

    def _has(self, name: str) -> bool:
        return (self.folder / name).exists()

    def _delete(self, name: str) -> None:
        with contextlib.suppress(OSError):
            (self.folder / name).unlink()


def make_folder(folder: Path, remedy: str) -> None:
    """Makes a folder, if it is not there; a StorageError ends with the remedy."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = error.strerror or error
        raise StorageError(f"{folder} cannot be made: {why}; {remedy}") from error
