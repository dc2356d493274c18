"""Where a browser shows the runs of a sweep."""

import shlex
from pathlib import Path

from sweeps.track.credentials import redact
from sweeps.track.store import Store

LOCAL = "http://127.0.0.1:5000"  # of `mlflow ui`


def page_of(store: Store, experiment_id: str = "") -> str:
    """The page of an experiment's runs, or of all experiments; MLflow opens on an empty one by itself."""
    root = LOCAL if store.database else redact(store.uri).rstrip("/")
    return f"{root}/#/experiments" + (f"/{experiment_id}/runs" if experiment_id else "")


def ui_command(store: Store) -> str:
    """What serves the page of a store that is a file; empty where a server does."""
    if store.database is None:
        return "" if store.uri.startswith("http") else f"mlflow ui --backend-store-uri {store.uri}"
    here = store.database == Path.cwd() / "mlflow.db"  # which it finds by itself
    return "mlflow ui" if here else f"mlflow ui --backend-store-uri {shlex.quote(store.uri)}"


def where_to_look(store: Store, experiment_id: str = "") -> str:
    """The first line of a sweep: where its runs are to be seen."""
    command = ui_command(store)
    return page_of(store, experiment_id) + (f" (after `{command}`)" if command else "")
