"""The objects of a bucket, through PyArrow, which is imported by those who use one."""

import contextlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from semidavil.full_disk import on_disk
from sweeps.keep.workspace import StorageError
from sweeps.track.credentials import redact


def joined(uri: str, name: str) -> str:
    """`name` in the folder of an address, whose options stay at its end."""
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(path=f"{parts.path}/{name}"))


class Objects:
    """The objects in a folder of a bucket, by their names there, which may have slashes.

    All methods raise StorageError if the bucket does not answer, or refuses.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri

    def read(self, name: str) -> str | None:
        """The text of an object; None if it is not there."""
        with self._file_system() as system:
            try:
                with system.open_input_stream(name) as stream:
                    return str(stream.read().decode())
            except FileNotFoundError:
                return None

    def write(self, name: str, text: str) -> None:
        with self._file_system() as system, system.open_output_stream(name) as out:
            out.write(text.encode())

    def names(self) -> list[str]:
        from pyarrow.fs import FileSelector

        with self._file_system() as system:
            found = system.get_file_info(FileSelector("", recursive=True, allow_not_found=True))
        return [info.path for info in found if info.is_file and ".." not in Path(info.path).parts]

    def put(self, path: Path, name: str) -> None:
        """Copies a file of this machine; one that is replaced meanwhile as it was."""
        from pyarrow.fs import LocalFileSystem, copy_files

        with self._file_system() as there:
            copy_files(str(path), name, LocalFileSystem(), there)

    def get_folder(self, name: str, folder: Path) -> None:
        """Copies all objects of a folder into one of this machine; raises DiskFull, too."""
        from pyarrow.fs import LocalFileSystem, copy_files

        with self._file_system() as there, on_disk(folder):
            copy_files(name, str(folder), there, LocalFileSystem())

    def delete(self, name: str) -> None:
        """Deletes an object, if it is there."""
        with self._file_system() as system, contextlib.suppress(FileNotFoundError):
            system.delete_file(name)

    def delete_folder(self, name: str) -> None:
        """Deletes all objects of a folder, if there are any."""
        with self._file_system() as system, contextlib.suppress(FileNotFoundError):
            system.delete_dir(name)

    @contextlib.contextmanager
    def _file_system(self) -> Iterator[Any]:
        """PyArrow's file system of the folder; its errors become StorageError."""
        try:
            yield _file_system(self.uri)
        except (OSError, ValueError, NotImplementedError) as error:
            why = (str(error).splitlines() or [type(error).__name__])[0]
            raise StorageError(
                f"the storage {self.uri} cannot be used: {redact(why)}. Check that the bucket exists, that "
                "this machine reaches it, and its keys (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
                "whatever the provider's own command uses)"
            ) from error


@cache
def _file_system(uri: str) -> Any:
    """One client for all runs of a bucket: a client takes 5 MiB and, with its connections, 23 ms."""
    from pyarrow.fs import FileSystem, SubTreeFileSystem

    system, base = FileSystem.from_uri(uri)
    return SubTreeFileSystem(base.rstrip("/"), system)
