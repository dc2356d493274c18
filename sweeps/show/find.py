"""The run that somebody names on the command line."""

import difflib
from collections.abc import Callable, Iterable, Sequence

from semidavil.run_ids import LETTERS, is_named
from sweeps.track.credentials import redact
from sweeps.track.retry import TrackingError
from sweeps.track.runs import TrackedRun
from sweeps.track.store import Store


def find_run(
    store: Store,
    text: str,
    grid: str | None = None,
    finished: bool = False,
    likely: Callable[[TrackedRun], bool] | None = None,
) -> TrackedRun:
    """The last run of the cell with this name, or whose run's id begins so; or its `finished` one.

    Of several cells, as of a grid with several settings, it is the one whose last run is `likely` meant.

    Raises TrackingError if there is none, or if it is not clear which one is meant.
    """
    runs = [
        run
        for run in store.runs()
        if grid in (None, run.made_by, *run.tags.get("grids", "").split())
    ]
    named = [run for run in runs if run.name == text or is_named(run.run_id, text)]
    if not named:
        of = f" of the grid {grid}" if grid else ""
        raise TrackingError(
            f"no run{of} in {redact(store.uri)} is called {text!r}, nor has an id that begins so: "
            f"{_remedy(runs, text)}"
        )
    if likely and (keys := {key for key, run in _last(named).items() if likely(run)}):
        named = [run for run in named if run.key in keys]
    if len(_last(named)) > 1:
        raise TrackingError(
            f"{text!r} may be any of these: name one by the first letters of its id\n{_table(named)}"
        )
    if finished:
        if not (ended := [run for run in named if run.status == "FINISHED"]):
            raise TrackingError(
                f"run {named[-1].run_id} is {named[-1].status}: it has no final numbers"
            )
        named = ended
    return _last(named)[named[0].key]


def _last(runs: Iterable[TrackedRun]) -> dict[str, TrackedRun]:
    """The last run of each cell, by key."""
    return {run.key: run for run in sorted(runs, key=lambda run: (run.epoch, run.started))}


def _remedy(runs: Sequence[TrackedRun], text: str) -> str:
    """How to find the name of one of these runs."""
    if not runs:
        return "there are none yet"
    if any(run.run_id.startswith(text) for run in runs):
        return f"write at least {LETTERS} letters of the id"
    if close := difflib.get_close_matches(text, [run.name for run in runs], 1):
        return f"did you mean {close[0]}?"
    return "a table of all of them: python -m sweeps export runs --csv runs.csv"


def _table(runs: Iterable[TrackedRun]) -> str:
    return "\n".join(
        f"    {run.run_id[:8]}  {run.made_by}: {run.name}, {run.status}" for run in runs
    )
