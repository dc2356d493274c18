"""The SQLite file of a tracking store: where it is, and whether it can be used.

MLflow itself would try a file that it cannot open for two minutes, in silence, and two processes that create
one at the same moment break each other's tables.
"""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote

from filelock import FileLock, Timeout
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from sweeps.track.credentials import redact, without_credentials
from sweeps.track.retry import LOCKED, StoreAway, TrackingError

CREATION_SECONDS = 120.0  # that another process may take to create the tables
BUSY_SECONDS = 5.0  # that another program may hold the file before it counts as locked


def store_uri(text: str, root: Path) -> tuple[str, Path | None]:
    """The address that MLflow takes for `text`, without credentials; and the SQLite file, if it is one.

    Args:
        text: MLFLOW_TRACKING_URI; empty for `mlflow.db` below `root`.

    Raises:
        TrackingError: it is a folder, or no address that this program can use.
    """
    if not text:
        return _sqlite_uri(root / "mlflow.db"), root / "mlflow.db"
    text = without_credentials(text)
    if text.startswith(("http://", "https://")):
        return text, None
    if "://" not in text or text.startswith("file:"):
        what = "is a folder, where MLflow no longer tracks runs"
        if text.startswith(("databricks", "uc")):
            what = "is Databricks, whose store this program has never been tried on"
        raise TrackingError(
            f"MLFLOW_TRACKING_URI={redact(text)} {what}: use a database (sqlite:///PATH.db), a server "
            "(http://HOST:PORT), or unset it"
        )
    try:
        url = make_url(text)
    except ArgumentError:
        raise TrackingError(f"MLFLOW_TRACKING_URI={redact(text)} is no address") from None
    if not url.drivername.startswith("sqlite"):
        return text, None
    if not url.database or url.database == ":memory:":
        raise TrackingError(f"MLFLOW_TRACKING_URI={text} names no file: write sqlite:///PATH.db")
    path = Path(url.database).absolute()
    return _sqlite_uri(path, url), path


def _sqlite_uri(path: Path, url: URL | None = None) -> str:
    # SQLAlchemy knows how its own version wants characters such as % and ? written.
    url = url or URL.create("sqlite")
    return url.set(database=str(path)).render_as_string(hide_password=False)


@contextmanager
def created_once(path: Path) -> Iterator[None]:
    """What is done within finds the file whole, or is the only process that creates it.

    Raises:
        TrackingError: the file, or its folder, cannot be used; found out within seconds.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        require_usable(path)
        with FileLock(f"{path}.lock", timeout=CREATION_SECONDS):
            yield
    except Timeout:
        raise StoreAway(
            f"another process has been creating {path} for {CREATION_SECONDS:.0f} s: if there is none, "
            f"remove {path}.lock"
        ) from None
    except OSError as error:
        raise TrackingError(
            f"the tracking store {path} cannot be used: {error.strerror or error}. Name another place with "
            "MLFLOW_TRACKING_URI=sqlite:///PATH.db"
        ) from error


def require_usable(path: Path) -> None:
    """Raises TrackingError unless the file is a database that can be written, or can be created."""
    if not path.exists():
        if not os.access(path.parent, os.W_OK):
            raise TrackingError(
                f"the tracking store {path} cannot be created: {path.parent} cannot be written. Name another "
                "place with MLFLOW_TRACKING_URI=sqlite:///PATH.db"
            )
        return
    try:
        with closing(
            sqlite3.connect(f"file:{quote(str(path))}?mode=rw", uri=True, timeout=BUSY_SECONDS)
        ) as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.rollback()
    except sqlite3.Error as error:
        if LOCKED in str(error):
            raise StoreAway(f"another program holds {path} locked: close it there") from None
        raise TrackingError(
            f"the tracking store {path} cannot be used: {error}. Restore it or name another one with "
            "MLFLOW_TRACKING_URI=sqlite:///PATH.db"
        ) from None
