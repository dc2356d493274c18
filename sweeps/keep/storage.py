"""Where runs that have not ended are kept: a folder that all machines share, or a bucket.

    open_storage("/shared/runs")        a folder; each run works in it
    open_storage("s3://bucket/runs")    a bucket; each machine works on a copy, see sweeps.keep.bucket

`workspace(uri)` opens the folder of one run on any machine.
"""

import contextlib
import os
from pathlib import Path
from urllib.parse import parse_qs, urlsplit, urlunsplit
from urllib.request import url2pathname

from semidavil.config import ConfigError
from sweeps.keep.bucket import Bucket
from sweeps.keep.objects import joined
from sweeps.keep.workspace import ENDING, Storage, StorageError, Workspace

SCHEMES = ("s3", "gs", "abfs")
# The options that an address may have. Anything else may be a key, which would be logged.
OPTIONS = {"scheme", "region", "endpoint_override", "allow_bucket_creation", "retry_limit_seconds"}


class Folder(Storage):
    """A folder that all machines share; runs work in it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder))

    @property
    def folder(self) -> Path:
        return Path(self.uri)

    def of(self, key: str) -> str:
        return str(self.folder / key)

    def workspace(self, key: str) -> Workspace:
        return Workspace(self.folder / key, self.of(key))

    def keys(self) -> set[str]:
        return {path.name for path in self.folder.glob("*") if _keeps_something(path)}

    def undelivered(self) -> list[tuple[str, str]]:
        found = []
        for path in sorted(self.folder.glob(f"*/{ENDING}")):
            with contextlib.suppress(FileNotFoundError):  # delivered at this moment
                found.append((str(path.parent), path.read_text()))
        return found

    def _write(self, name: str) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with (self.folder / name).open("w") as file:
                file.write(name)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise StorageError(
                f"the storage {self.uri} cannot be written: {error.strerror or error}. Make it writable, or "
                "name another folder or a bucket (s3://BUCKET/FOLDER) with --storage"
            ) from error

    def _has(self, name: str) -> bool:
        return (self.folder / name).exists()

    def _delete(self, name: str) -> None:
        with contextlib.suppress(OSError):
            (self.folder / name).unlink()


def _keeps_something(folder: Path) -> bool:
    """Whether it is a run's folder that holds more than what a network file system leaves of open files."""
    try:
        return any(not path.name.startswith(".nfs") for path in folder.iterdir())
    except OSError:  # a file, or a folder that another process has just removed
        return False


def open_storage(text: str) -> Storage:
    """The storage that `--storage` names: a folder, also as file://..., or a bucket.

    Raises:
        ConfigError: an address of another kind, or one with a password in it.
    """
    parts = urlsplit(text)
    if "://" not in text or parts.scheme == "file":
        path = url2pathname(parts.path) if parts.scheme == "file" else text
        return Folder(Path(path).expanduser().resolve())
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


def workspace(uri: str) -> Workspace:
    """The workspace whose URI `Storage.of` has given."""
    if "://" not in uri:
        return Workspace(Path(uri), uri)
    parts = urlsplit(uri)
    above, _, key = parts.path.rpartition("/")
    return Bucket(urlunsplit(parts._replace(path=above))).workspace(key)


def file_of(uri: str, name: str) -> str:
    """The URI of a file in a workspace, for people."""
    return joined(uri, name) if "://" in uri else str(Path(uri) / name)
