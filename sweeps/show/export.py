"""All runs as one table: a row for each, with ids, settings, results and tags."""

import csv
import io
import json
import math
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from sweeps.track.runs import TrackedRun

FIRST = ("run_id", "name", "grid", "status", "started", "key")


def row_of(run: TrackedRun) -> dict[str, object]:
    """One level deep, with the prefixes of MLflow's own tables: `params.`, `metrics.`, `tags.`"""
    started = datetime.fromtimestamp(run.started / 1000, UTC).isoformat(timespec="seconds")
    values: tuple[str, ...] = run.run_id, run.name, run.made_by, run.status, started, run.key
    row: dict[str, object] = dict(zip(FIRST, values, strict=True))
    row |= {f"params.{name}": value for name, value in run.params.items()}
    row |= {f"metrics.{name}": value for name, value in run.metrics.items()}
    return row | {f"tags.{name}": value for name, value in run.tags.items() if name != "key"}


def as_csv(runs: Iterable[TrackedRun]) -> str:
    """A column for all that any run has; empty where a run lacks it."""
    rows = [row_of(run) for run in runs]
    others = sorted({name for row in rows for name in row} - set(FIRST), key=_order)
    file = io.StringIO()
    lines = csv.DictWriter(file, [*FIRST, *others], restval="", lineterminator="\n")
    lines.writeheader()
    lines.writerows(rows)
    return file.getvalue()


def _order(name: str) -> tuple[int, str]:
    return ("params", "metrics", "tags").index(name.partition(".")[0]), name


def as_json(runs: Sequence[TrackedRun]) -> str:
    """A list of the same rows; what is no number is null."""
    rows = [
        {n: None if isinstance(v, float) and not math.isfinite(v) else v for n, v in row.items()}
        for row in map(row_of, runs)
    ]
    return json.dumps(rows, indent=1) + "\n"
