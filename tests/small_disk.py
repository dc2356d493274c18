"""A disk that can be filled without harm."""

import contextlib
from pathlib import Path

CHUNK = 4096


class SmallDisk:
    """A file system of its own, of a few megabytes, at `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ballast = folder / "ballast"

    def fill(self) -> None:
        """Until not one more byte fits."""
        with contextlib.suppress(OSError), self._ballast.open("ab", buffering=0) as file:
            while True:
                file.write(bytes(CHUNK))

    def free(self) -> None:
        self._ballast.unlink()
