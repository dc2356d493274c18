"""The folder in which a run works, and what every storage of such folders promises.

A storage keeps the folders of runs until these have ended. `sweeps.keep.storage` opens one by its URI: a
folder that all machines share, or a bucket.
"""

import contextlib
import shutil
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path

from semidavil.disk import on_disk

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

    Attributes:
        folder: on this machine.
        uri: where the run is kept: a path, or an address that any machine can open.
    """

    def __init__(self, folder: Path, uri: str) -> None:
        self.folder, self.uri = folder, uri

    @property
    def travels(self) -> bool:
        """Whether another machine works on the run in another folder, which may be ahead of this one."""
        return False

    def fetch(self, epoch: int, run_id: str = "") -> None:
        """Makes the folder, with what the run has so far.

        Args:
            epoch: of the lease under which the run is trained or delivered; see `sweeps.track.lease`. If a
                later one has been at the run, the folder stays as it is, and nothing of it is pushed.
            run_id: the run in the tracking store whose epochs these are. Epochs of different runs (one was
                deleted, or there is another store) are not compared: the later fetch goes on.

        Raises:
            StorageError: the folder cannot be made.
            DiskFull: of this machine.
        """
        try:
            with on_disk(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            why = error.strerror or error
            raise StorageError(f"{self.folder} cannot be made: {why}; check --storage") from error

    def push(self) -> None:
        """Keeps what the run needs to go on elsewhere, and its ending while that is undelivered.

        Raises:
            StorageError: it could not; everything stays in the folder.
        """

    @contextlib.contextmanager
    def pushing(self, log: Callable[[str], None]) -> Iterator[None]:
        """Keeps each checkpoint soon after it is written, while the run trains."""
        yield

    def is_undelivered(self) -> bool:
        """Whether an ended run waits here for the tracking store.

        Raises:
            StorageError: the bucket is away.
        """
        return (self.folder / ENDING).exists()

    def remove(self) -> None:
        """Forgets the run, with whatever waits here.

        A network file system keeps a file that is still open as `.nfs...`, and the folder with it, until the
        file is closed.

        Raises:
            StorageError: the bucket is away.
        """
        shutil.rmtree(self.folder, ignore_errors=True)


class Storage(ABC):
    """Keeps the folders of runs that have not ended. It travels to other machines, pickled.

    Attributes:
        uri: what `--storage` takes, without its trailing slash.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri

    @property
    @abstractmethod
    def folder(self) -> Path:
        """Where runs work on this machine."""

    @abstractmethod
    def of(self, key: str) -> str:
        """The URI of a run's workspace, which any machine can open."""

    @abstractmethod
    def workspace(self, key: str) -> Workspace:
        """The workspace of a run."""

    @abstractmethod
    def keys(self) -> set[str]:
        """The keys of all runs of which something is kept."""

    @abstractmethod
    def undelivered(self) -> list[tuple[str, str]]:
        """The workspace's URI and the contents of `ending.json` of each ended run that waits."""

    def remove(self, key: str, undelivered: bool = False) -> bool:
        """Forgets a run that nobody will continue; returns False if an ended run waits there and stays.

        Another process may remove the same run at the same time.

        Args:
            undelivered: removes an ended run that waits for the tracking store, too.

        Raises:
            StorageError: the bucket is away.
        """
        if not key.isalnum():  # it may come from the tracking store, where people can edit it
            raise ValueError(f"{key!r} is not the key of a run")
        workspace = self.workspace(key)
        if not undelivered and workspace.is_undelivered():
            return False
        workspace.remove()
        return True

    def require(self) -> None:
        """Tries that runs can be kept there from this machine.

        Raises:
            StorageError: they cannot.
        """
        with self.marked() as mark:
            if problem := self.lacks(mark):
                raise StorageError(problem)

    @contextlib.contextmanager
    def marked(self) -> Iterator[str]:
        """Leaves a mark there meanwhile, and yields its name for `lacks` of other machines.

        Raises:
            StorageError: nothing can be written there.
        """
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

    @abstractmethod
    def _write(self, name: str) -> None:
        """Writes a small file durably."""

    @abstractmethod
    def _has(self, name: str) -> bool:
        """Whether that file is there."""

    @abstractmethod
    def _delete(self, name: str) -> None:
        """Removes it, if it is there."""
