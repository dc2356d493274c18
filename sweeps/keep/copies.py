"""The folders of this machine that hold copies of what is kept in a bucket.

An ended run may wait in one for days, so they are in a place that outlives the process and its job.
"""

import contextlib
import logging
import os
import shutil
import tempfile
import time
from functools import cache
from pathlib import Path

from sweeps.keep.workspace import ENDING, StorageError

VARIABLE = "SEMIDAVIL_COPIES"
COPY_DAYS = 7.0  # without a change, after which a copy that holds no ended run is removed
DAY_SECONDS = 86400.0

logger = logging.getLogger(__name__)


def copies_folder() -> Path:
    """Where this user's copies are: $SEMIDAVIL_COPIES, else semidavil/copies in the user's cache.

    Where the cache cannot be written, it is a temporary folder. Nothing is made here.
    """
    if named := os.environ.get(VARIABLE):
        return Path(named).expanduser().resolve()
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not cache.is_absolute():  # the XDG standard says to ignore such a one
        cache = Path(os.path.expanduser("~")) / ".cache"  # stays "~" for a user without a home
    folder = (cache / "semidavil" / "copies").resolve()
    if cache.is_absolute() and _can_be_made(folder):
        return folder
    _warn_once(
        f"{folder} cannot be written: copies of runs are kept in {temporary_copies()}, which may be emptied "
        f"at any time; set {VARIABLE}"
    )
    return temporary_copies()


def temporary_copies() -> Path:
    """Where older versions kept all copies, and this one does where it may not write into the cache."""
    return Path(tempfile.gettempdir()) / f"semidavil-{os.getuid()}"


def _can_be_made(folder: Path) -> bool:
    while not folder.exists():
        folder = folder.parent
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)


@cache
def _warn_once(text: str) -> None:
    logger.warning("%s", text)


def make_own(folder: Path) -> None:
    """Makes a folder in one that nobody else may write.

    Raises:
        StorageError: somebody else has made that one, and could put files into it; or it cannot be made.
    """
    try:
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"no copies can be kept in {folder}: {error.strerror or error}; set {VARIABLE}"
        ) from error
    if not is_own(folder.parent):
        raise StorageError(
            f"{folder.parent} is not this user's own: remove it, or name another with {VARIABLE}"
        )


def is_own(folder: Path) -> bool:
    """Whether this user has made a folder; a link in a shared folder may lead anywhere."""
    try:
        return folder.lstat().st_uid == os.getuid() and not folder.is_symlink()
    except OSError:
        return False


def remove_old_copies(folder: Path, spare: Path) -> None:
    """Removes copies, which may be large, of runs that went on elsewhere; never one with an ended run."""
    oldest = time.time() - COPY_DAYS * DAY_SECONDS
    for path in set(folder.glob("*")) - {spare}:
        with contextlib.suppress(OSError):  # another process has just removed it
            newest = max(item.stat().st_mtime for item in (path, *path.iterdir()))
            if newest < oldest and not (path / ENDING).exists():
                shutil.rmtree(path, ignore_errors=True)
