"""A disk that is full, said in words: what libraries make of it is not always readable.

PyTorch reports a full disk as "unexpected pos 576 vs 534". Imports nothing heavy.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT)
WORDS = ("No space left on device", "database or disk is full")  # of Rust and of SQLite


class DiskFull(RuntimeError):  # noqa: N818 - a state that passes
    """The disk of a run's folder takes no more; the message names the folder."""


@contextmanager
def on_disk(folder: Path) -> Iterator[None]:
    """Names the folder of a run whose disk is full.

    Raises:
        DiskFull: in place of whatever error that has led to.
    """
    try:
        yield
    except Exception as error:
        if not is_full(error):
            raise
        raise DiskFull(
            f"the disk is full: {folder} takes no more. What was logged so far is kept; free space, then "
            "give the same command again: it goes on from the last checkpoint"
        ) from error


def is_full(error: BaseException | None) -> bool:
    """Whether a full disk is at the root of an error."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return True
        if any(words in str(error) for words in WORDS):
            return True
        error = error.__cause__ or error.__context__
    return False
