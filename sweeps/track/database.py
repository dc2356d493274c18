"""A tracking store's address and its connection; where it is an SQLite file, whether that can be used.

MLflow itself would try a file that it cannot open for two minutes, in silence, and two processes that create
one at the same moment break each other's tables.
"""

import logging
import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote

from filelock import FileLock, Timeout
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from sweeps.track.credentials import redact, without_credentials
from sweeps.track.retry import LOCKED, StoreAway, TrackingError, check_server, is_away

CREATION_SECONDS = 120.0  # that another process may take to create the tables
BUSY_SECONDS = 5.0  # that another program may hold the file before it counts as locked


def store_uri(text: str, root: Path) -> tuple[str, Path | None]:
    """The address that MLflow takes for `text`, without credentials; and the SQLite file, if it is one.

    An empty `text` stands for `mlflow.db` below `root`; a folder, and what this program cannot use, raises
    TrackingError.
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

    Raises TrackingError, within seconds, if the file, or its folder, cannot be used.
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


class Connection:
    """MLflow's client, connected on first use and shared by all views of a store."""

    def __init__(self, uri: str, database: Path | None) -> None:
        self.uri, self.database = uri, database
        self._client: MlflowClient | None = None
        self.is_away = False
        self.back_since = 0.0  # seconds since 1970; before, no run could give a sign of life
        self._lock = threading.Lock()

    def client(self) -> MlflowClient:
        with self._lock:
            if self._client is None:
                quiet_logs()
                self._client = self._connect()
            return self._client

    def _connect(self) -> MlflowClient:
        if self.database is None:
            check_server(self.uri)
            return MlflowClient(self.uri)
        with created_once(self.database):
            try:
                client = MlflowClient(self.uri)
                client.search_experiments(max_results=1)  # creates the tables of a new file
            except (MlflowException, SQLAlchemyError) as error:
                if is_away(error):
                    raise
                raise TrackingError(_unusable(self.database, error)) from None
            return client


def _unusable(database: Path, error: Exception) -> str:
    text = redact(str(error))
    if "schema" in text or "revision" in text:
        return (
            f"{database} was written by another version of MLflow than the one that is installed. Of an "
            f"older one: make a copy of the file, then `mlflow db upgrade sqlite:///{database}`. Of a newer "
            "one: install that version"
        )
    why = (text.splitlines() or [type(error).__name__])[0][:300]
    return f"the tracking store {database} cannot be used: {why}"


def quiet_logs() -> None:
    """Only warnings of MLflow and of the library that upgrades its database, and no error twice."""
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # It prints each error that it then raises, with its traceback; whoever catches it says it.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
