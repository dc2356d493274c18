"""Stores of tests need not survive a power cut, and MLflow need not read its migrations for each of them."""

import sqlite3
from functools import cache
from typing import Any


@cache
def make_stores_quick() -> None:
    """In this process and in forks of it, for MLflow's databases and Optuna's."""
    from mlflow.store.db import utils
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    # Reads some sixty modules, which takes as long as the rest of a connection.
    head = utils._get_latest_schema_revision()
    utils._get_latest_schema_revision = lambda: head

    @event.listens_for(Engine, "connect")
    def _no_waiting_for_the_disk(connection: Any, _: object) -> None:
        if isinstance(connection, sqlite3.Connection):
            connection.execute("PRAGMA synchronous = OFF")
