"""Reads all runs of an SQLite store in four queries.

MLflow makes an object of every tag, param and metric: 1.1 ms a run, eleven seconds for ten thousand,
before each sweep. This reads the same tables. Where they are not as expected, as a later MLflow may
have them, the caller asks MLflow itself.
"""

import math
import sqlite3
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

_RUNS = """
SELECT r.run_uuid, r.name, e.name, r.status, r.start_time, r.end_time
FROM runs r JOIN experiments e ON r.experiment_id = e.experiment_id
WHERE r.lifecycle_stage = 'active' AND e.lifecycle_stage = 'active'
  AND r.run_uuid IN (SELECT run_uuid FROM tags WHERE key = ? AND (? IS NULL OR value = ?))
ORDER BY r.start_time, r.run_uuid
"""
FINAL = "final/"  # of the metrics that a run ends with; those on the way are many, and not needed
_NOTHING = object()
_OF_ONE = "run_uuid IN (SELECT run_uuid FROM tags WHERE key = ? AND value = ?)"


class Row(Mapping[str, Any]):
    """What one run has of a table, by name; all runs that are read together share the names.

    A dict for each of ten thousand runs would take four times as much memory.
    """

    __slots__ = ("_cells", "_places")

    def __init__(self, places: dict[str, int]) -> None:
        self._places = places  # of all names that any run has
        self._cells: list[Any] = []

    def put(self, name: str, value: Any) -> None:
        place, cells = self._places.setdefault(name, len(self._places)), self._cells
        cells.extend([_NOTHING] * (place + 1 - len(cells)))
        cells[place] = value

    def __getitem__(self, name: str) -> Any:
        place = self._places[name]
        value = self._cells[place] if place < len(self._cells) else _NOTHING
        if value is _NOTHING:
            raise KeyError(name)
        return value

    def __iter__(self) -> Iterator[str]:
        cells = zip(self._places, self._cells, strict=False)  # the last ones may be missing
        return (name for name, value in cells if value is not _NOTHING)

    def __len__(self) -> int:
        return sum(value is not _NOTHING for value in self._cells)

    def __repr__(self) -> str:
        return repr(dict(self))


def read_runs(database: Path, prefix: str, key: str | None) -> Iterator[dict[str, Any]]:
    """The active runs with a key, oldest first, as the arguments of a `TrackedRun`.

    Args:
        prefix: of our tags; they come without it, and others not at all.
        key: only those of this Config.

    Raises:
        sqlite3.Error: the file cannot be read, or its tables are others.
    """
    tag = f"{prefix}key"
    some, chosen = ("TRUE", ()) if key is None else (_OF_ONE, (tag, key))
    tags, params, metrics = _rows(), _rows(), _rows()
    intern = sys.intern  # one copy of what thousands of runs have in common
    with closing(
        sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True, timeout=5)
    ) as connection:
        connection.execute("BEGIN")  # all of it as of one moment
        runs = connection.execute(_RUNS, (tag, key, key)).fetchall()
        for run, name, value in connection.execute(
            f"SELECT run_uuid, key, value FROM tags WHERE {some}", chosen
        ):
            if name.startswith(prefix):
                tags[run].put(name.removeprefix(prefix), intern(value or ""))
        for run, name, value in connection.execute(
            f"SELECT run_uuid, key, value FROM params WHERE {some}", chosen
        ):
            params[run].put(name, intern(value))
        for run, name, value, is_nan in connection.execute(
            f"SELECT run_uuid, key, value, is_nan FROM latest_metrics WHERE {some} AND key LIKE ?",
            (*chosen, f"{FINAL}%"),
        ):
            metrics[run].put(name, math.nan if is_nan else value)
    return (
        {"run_id": run, "name": name or "", "experiment": experiment, "status": status,
         "started": started, "ended": ended, "tags": tags[run], "params": params[run],
         "metrics": metrics[run]}
        for run, name, experiment, status, started, ended in runs
    )  # fmt: skip


def _rows() -> dict[str, Row]:
    """By run."""
    places: dict[str, int] = {}
    return defaultdict(lambda: Row(places))
