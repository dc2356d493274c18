"""Tracked runs as one tidy table. Imports MLflow and pandas, never torch."""

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

ROOT = Path(__file__).resolve().parents[1]
KEY = "semidavil.key"
# Column of the table <- parameter of the run.
FIELDS = {
    "benchmark": "data.benchmark",
    "budget": "data.budget",
    "toy": "data.toy",
    "fusion": "model.fusion",
    "captions": "model.captions",
    "loss": "loss.name",
    "method": "training.method",
    "steps": "training.steps",
    "seed": "seed",
}
NUMBERS = ("budget", "steps", "seed")


class AnalysisError(RuntimeError):
    """Nothing to draw, or a store that cannot be read; the message says what to do."""


def default_uri() -> str:
    """The store that `sweeps/run.py` writes to."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{ROOT / 'mlflow.db'}"


def load_runs(uri: str | None = None, experiments: Sequence[str] = ()) -> pd.DataFrame:
    """One row per finished run, each key once (the newest).

    Columns: `run_id`, `key`, `experiment`, those of `FIELDS`, every parameter by its own name, and the
    final metrics without their prefix (`miou`, `iou/<class>`, `seconds`).

    Args:
        experiments: only these grids; all of ours if empty.

    Raises:
        AnalysisError: an unknown experiment, no store, or no finished run.
    """
    uri = uri or default_uri()
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        raise AnalysisError(
            f"there are no runs yet ({uri} does not exist): run one grid first, for example "
            "python sweeps/run.py --grid attention"
        )
    from mlflow.tracking import MlflowClient

    logging.getLogger("alembic").setLevel(logging.WARNING)
    client = MlflowClient(uri)
    known = {e.name: e.experiment_id for e in client.search_experiments(max_results=1000)}
    for name in experiments:
        if name not in known:
            raise AnalysisError(
                f"there is no experiment {name!r}: choose from {', '.join(sorted(known))}"
            )
    ids = [known[name] for name in experiments or known]
    rows: dict[str, dict[str, Any]] = {}
    names = {number: name for name, number in known.items()}
    token: str | None = None
    while True:
        page = client.search_runs(
            ids,
            "attributes.status = 'FINISHED'",
            max_results=1000,
            order_by=["attributes.end_time DESC"],
            page_token=token,
        )
        for run in page:
            key = run.data.tags.get(KEY)
            if key and "final/miou" in run.data.metrics and key not in rows:
                rows[key] = _row(run, names[run.info.experiment_id])
        token = page.token
        if not token:
            break
    if not rows:
        raise AnalysisError(
            "no run has finished yet: run one grid first, for example "
            "python sweeps/run.py --grid attention"
        )
    return pd.DataFrame(list(rows.values()))


def _row(run: Any, experiment: str) -> dict[str, Any]:
    params = run.data.params
    row: dict[str, Any] = {
        "run_id": run.info.run_id,
        "key": run.data.tags[KEY],
        "experiment": experiment,
        **params,
    }
    for column, name in FIELDS.items():
        value = params[name]
        row[column] = int(value) if column in NUMBERS else value
    row["toy"] = json.loads(params["data.toy"])
    for name, value in run.data.metrics.items():
        if name.startswith("final/"):
            row[name.removeprefix("final/")] = value
    return row
