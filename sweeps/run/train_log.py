"""The log of one run: what its training prints, as long as it can be written."""

import contextlib
import io
import time
from collections.abc import Callable, Iterator
from pathlib import Path


class _Log(io.TextIOBase):
    """A file that is appended to, as far as that is possible.

    What cannot be written, on a full disk for example, is left out: journal and checkpoints, which must not
    be lost, report it. Nothing is buffered, so that nothing is left to fail later.
    """

    def __init__(self, path: Path) -> None:
        self._file: io.FileIO | None = None
        with contextlib.suppress(OSError):
            self._file = io.FileIO(path, "a")

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.write(text.encode(errors="replace"))
        return len(text)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        super().close()


@contextlib.contextmanager
def train_log(path: Path) -> Iterator[Callable[[str], None]]:
    """Appends to a log all that the training prints, and the lines that are given to what is yielded."""
    with _Log(path) as file:

        def log(text: str) -> None:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

        with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
            yield log
