"""Tracked runs as one tidy table, with the histories and evaluations behind them (no torch)."""

import itertools
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from semidavil.config import Config
from semidavil.metrics import Evaluation
from semidavil.names import captions_name
from semidavil.place import command as sweep_command
from semidavil.place import home
from sweeps.track.collector import no_collector
from sweeps.track.credentials import redact, without_credentials
from sweeps.track.once import CLAIMS
from sweeps.track.runs import learn_benchmarks

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

PREFIX = "semidavil."  # of the tags that the sweeps write
KEY = f"{PREFIX}key"
OVERVIEW = f"{PREFIX}overview"  # of the run that stands for a grid; its value is the grid
PAGE = 1000
PATIENCE_SECONDS = 20.0  # for a tracking server that goes away while runs are read
# Short columns of the table <- parameter of the run.
FIELDS = {
    "benchmark": "data.benchmark",
    "budget": "data.budget",
    "toy": "data.toy",
    "vlm": "model.vlm",
    "fusion": "model.fusion",
    "loss": "loss.name",
    "method": "training.method",
    "steps": "training.steps",
}
# What tells where a run was made; the report prints it.
ENVIRONMENT = ("commit", "dirty", "changes", "python", "version.torch", "device", "preset",
               "results_version")  # fmt: skip
# What a row says of a run besides settings, metrics and environment.
OF_A_RUN = ("run_id", "key", "why", "experiment", "experiment_id", "grids", "began", "ended", "named",
            "version", "data", "asked", "captions", "plugins", "data.own", *FIELDS)  # fmt: skip


class AnalysisError(RuntimeError):
    """Nothing to draw, or a store that cannot be read; the message says what to do."""


class NoRunError(AnalysisError):
    """Nothing to draw yet: a sweep makes it."""


@dataclass
class Tracked:
    """Finished runs and the store that they came from.

    Attributes:
        table: one row per finished run, see `load_runs`.
        uri: the store.
        open: rows of runs that have no result and whose cell no other run has finished, with `why`.
        unreadable: runs and files that could not be read, with the reason.
    """

    table: pd.DataFrame
    uri: str
    open: pd.DataFrame = field(default_factory=pd.DataFrame)
    unreadable: dict[str, str] = field(default_factory=dict)
    rows: dict[str, dict[str, Any]] = field(default_factory=dict, repr=False)  # by run id, all
    _arrays: dict[str, dict[str, np.ndarray]] = field(default_factory=dict, repr=False)
    _histories: dict[tuple[str, str], pd.Series] = field(default_factory=dict, repr=False)

    @cached_property
    def client(self) -> Any:
        return _client(self.uri)

    def of_grid(self, grid: str) -> pd.DataFrame:
        """The runs of a grid, those that it shares with another one included.

        Raises:
            NoRunError: there is none; the message says which command makes them.
        """
        mine = self.table[[grid in grids for grids in self.table["grids"]]]
        if mine.empty:
            raise NoRunError(f"no finished run; make them: {command(grid)}")
        return mine

    def unfinished(self, grid: str) -> pd.DataFrame:
        """The cells of a grid that have no result, as rows of `open`."""
        if self.open.empty:
            return pd.DataFrame(columns=[*self.table.columns, "why"])
        return self.open[[grid in grids for grids in self.open["grids"]]]

    def overviews(self, grid: str) -> list[str]:
        """The runs that stand for the sweeps of a grid, one for each of its settings, newest first."""
        experiments = list(_experiments(self.client))
        newest_first = ["attributes.start_time DESC", "attributes.run_id DESC"]
        condition = f"tags.`{OVERVIEW}` = '{grid}'"
        found = _all(self.client.search_runs, experiments, condition, order_by=newest_first)
        return [run.info.run_id for run in found]

    def files(self, run_id: str, folder: str | None = None) -> list[str]:
        """Paths of a run's artifacts in a folder, or outside of any."""
        return [file.path for file in self.client.list_artifacts(run_id, folder) if not file.is_dir]

    def csv(self, run_id: str, path: str) -> pd.DataFrame:
        """An artifact that is a table."""
        with tempfile.TemporaryDirectory() as folder:
            return pd.read_csv(self.client.download_artifacts(run_id, path, folder))

    def history(self, run_id: str, metric: str) -> pd.Series:
        """A metric over steps, float indexed by step, the last value of each; may be empty."""
        if (run_id, metric) not in self._histories:
            points = self.client.get_metric_history(run_id, metric)
            points = sorted(points, key=lambda p: (p.step, p.timestamp))
            values = pd.Series({p.step: p.value for p in points}, dtype=float)
            self._histories[run_id, metric] = values
        return self._histories[run_id, metric]

    def evaluation(self, run_id: str) -> Evaluation | None:
        """The confusion matrices of a run on images; None for a run without them."""
        stored = self.arrays(run_id)
        if "per_image" not in stored:
            return None
        per_image, confident = (stored[n].astype(np.int64) for n in ("per_image", "confident"))
        return Evaluation(list(map(str, stored["names"])), per_image, confident)

    def arrays(self, run_id: str) -> dict[str, np.ndarray]:
        """The arrays of a run's artifact `evaluation.npz`; empty for a run without one."""
        if run_id not in self._arrays:
            self._arrays[run_id] = self._read(run_id, "evaluation.npz")
        return self._arrays[run_id]

    def gallery(self, run_id: str) -> dict[str, np.ndarray]:
        """The arrays of a run's artifact `gallery.npz`, see `semidavil.gallery`; may be empty."""
        return self._read(run_id, "gallery.npz")

    def _read(self, run_id: str, name: str) -> dict[str, np.ndarray]:
        """A broken file costs its run, and no figure of the others."""
        try:
            if name not in self.files(run_id):
                return {}
            with tempfile.TemporaryDirectory() as folder:
                path = self.client.download_artifacts(run_id, name, folder)
                with np.load(path, allow_pickle=False) as stored:
                    return {name: stored[name] for name in stored.files}
        except AnalysisError:
            raise
        except Exception as error:  # cut off, not NumPy's, not there
            self.unreadable[f"{name} of run {run_id}"] = f"{type(error).__name__}: {error}"
            return {}


def command(grid: str) -> str:
    """The command that runs a grid."""
    return f"{sweep_command('run')} --grid {grid}"


def default_uri() -> str:
    """The store that `sweeps/run.py` writes to."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home() / 'mlflow.db'}"


def load_runs(
    uri: str | None = None, experiments: Sequence[str] = (), before: Tracked | None = None
) -> Tracked:
    """One row per finished run, each key once (the newest).

    Columns: `run_id`, `key`, `experiment`, `experiment_id`, `grids` (a tuple: the grid that made the run and
    those that reuse it), `ended` (ms since 1970), `version` (of the results; 0 for runs from before it was
    noted), `data` (the fingerprint of what it saw), those of `FIELDS`, `captions` (who captions what, in a
    word), `asked` (the captioner's prompt, its family's default included), every setting by its own name with
    the type of its Config field (a run older than a setting has the setting's default), the final
    metrics without their prefix (`miou`, `iou/<class>`, `seconds`), `peak_memory_mb` (NaN where it
    is not logged) and the environment as `env/<tag>`.

    Args:
        experiments: only the runs of these grids; all of ours if empty.
        before: what was read last, of which only what ended since, or is open, is read again.

    Raises:
        AnalysisError: an unknown experiment, no store, or no finished run.
    """
    uri, first = without_credentials(uri or default_uri()), command("attention")
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        raise AnalysisError(
            f"there are no runs yet ({redact(uri)} does not exist): run one grid first, for example {first}"
        )
    client = before.client if before else _client(uri)
    names = _experiments(client)
    defaults = default_settings()
    rows = dict(before.rows) if before else {}
    unreadable: dict[str, str] = {}
    last = max((row["ended"] or 0 for row in rows.values()), default=0)
    rows = {run_id: row for run_id, row in rows.items() if row["why"] == ""}
    new = [f"attributes.end_time >= {last}", "attributes.status != 'FINISHED'"]
    order = ["attributes.end_time DESC"]
    with no_collector():
        found = (_all(client.search_runs, list(names), text, order_by=order) for text in
                 (new if before else [""]))  # fmt: skip
        for run in itertools.chain.from_iterable(found):
            try:
                row = _row(run, names[run.info.experiment_id], defaults)
            except (ValueError, KeyError, TypeError) as error:
                unreadable[f"run {run.info.run_id}"] = f"{type(error).__name__}: {error}"
                continue
            if row:
                rows[row["run_id"]] = row
    known = {*names.values(), *(grid for row in rows.values() for grid in row["grids"])}
    unknown = sorted(set(experiments) - known)
    if unknown:
        choices = ", ".join(sorted(known - {"Default", CLAIMS}))
        raise AnalysisError(f"there is no experiment {unknown[0]!r}: choose from {choices}")
    wanted = [r for r in rows.values() if not experiments or set(r["grids"]) & set(experiments)]
    wanted.sort(key=lambda row: -(row["ended"] or 0))
    finished: dict[str, dict[str, Any]] = {}
    without: dict[str, dict[str, Any]] = {}
    for row in wanted:
        (without if row["why"] else finished).setdefault(row["key"], row)
    if not finished:
        raise AnalysisError(f"no run has finished yet: run one grid first, for example {first}")
    # As objects, a hundred columns of text lie in one block, and rows are chosen in half the time.
    with pd.option_context("future.infer_string", False):
        table = pd.DataFrame(list(finished.values())).drop(columns="why")
        open_ = pd.DataFrame([row for key, row in without.items() if key not in finished])
    return Tracked(table, uri, open_, unreadable, rows)


def _experiments(client: Any) -> dict[str, str]:
    """Name by id, of however many there are."""
    return {one.experiment_id: one.name for one in _all(client.search_experiments)}


def _all(search: Callable[..., Any], *conditions: Any, **more: Any) -> Iterator[Any]:
    """What a search of MLflow finds, page by page."""
    token: str | None = None
    while True:
        page = search(*conditions, max_results=PAGE, page_token=token, **more)
        yield from page
        token = page.token
        if not token:
            return


def _why(run: Any) -> str:
    """Why a run has no result; empty for a finished one."""
    tags = run.data.tags
    diverged, early = tags.get(f"{PREFIX}retry") == "false", tags.get(f"{PREFIX}stopped_early")
    reasons = {"FINISHED": "", "FAILED": "diverged" if diverged else "failed",
               "KILLED": "stopped early" if early else "interrupted"}  # fmt: skip
    return reasons.get(run.info.status, "running")


def default_settings() -> dict[str, Any]:
    """Every setting of a run that may change its result, by dotted name, with its default.

    Plugins follow from the variants that are chosen, and are no setting.
    """
    settings = Config().settings(of_all_methods=True)
    return {name: _plain(value) for name, value in settings if name != "plugins"}


def _plain(value: Any) -> Any:
    """Hashable, so that pandas can group by it."""
    return tuple(value) if isinstance(value, list | tuple) else value


def _row(run: Any, experiment: str, defaults: dict[str, Any]) -> dict[str, Any] | None:
    tags, params, metrics = run.data.tags, run.data.params, run.data.metrics
    experiment = tags.get(f"{PREFIX}grid", experiment)  # which somebody may have renamed
    final = {n.removeprefix("final/"): v for n, v in metrics.items() if n.startswith("final/")}
    why = _why(run)
    if KEY not in tags or not (final or why):
        return None
    learn_benchmarks(run)
    settings = {name: _parsed(params.get(name), value) for name, value in defaults.items()}
    shared = [name for name in tags.get(f"{PREFIX}grids", "").split() if name != experiment]
    return {
        "run_id": run.info.run_id,
        "key": tags[KEY],
        "why": why,
        "experiment": experiment,
        "experiment_id": run.info.experiment_id,
        "grids": (experiment, *shared),
        "began": run.info.start_time,
        "ended": run.info.end_time,
        "named": _variant_of(run.info.run_name),
        "version": int(tags.get(f"{PREFIX}results_version", "0")),
        "data": tags.get(f"{PREFIX}data", ""),
        "runtime.data_root": params.get("runtime.data_root", ""),
        "runtime.eval_every": params.get("runtime.eval_every", "0"),
        "plugins": params.get("plugins", "[]"),
        "data.own": params.get("data.own", ""),
        **settings,
        **{column: settings[name] for column, name in FIELDS.items()},
        "captions": captions_name(
            *(
                settings[f"model.{name}"]
                for name in ("captions", "caption_region", "caption_prompt")
            )
        ),
        "asked": tags.get(f"{PREFIX}caption_prompt", settings["model.caption_prompt"]),
        **final,
        "peak_memory_mb": metrics.get("train/peak_memory_mb", np.nan),
        **{f"env/{name}": tags.get(PREFIX + name, "") for name in ENVIRONMENT},
    }


def _variant_of(name: str) -> str:
    """What a grid calls a run's variant: `soft + DLG` of `gta5-cityscapes/soft + DLG/100/s0`."""
    return "/".join(name.split("/")[1:-2]) or name


@lru_cache(maxsize=None, typed=True)  # 1 is neither 1.0 nor true
def _parsed(text: str | None, default: Any) -> Any:
    """A logged parameter with the type of its field; thousands of runs share the few values of each."""
    if text is None:
        return default
    if isinstance(default, str):
        return text
    value = _plain(json.loads(text.lower() if text in ("True", "False") else text))
    return float(value) if isinstance(default, float) else value


def _client(uri: str) -> Any:
    from mlflow.tracking import MlflowClient

    from sweeps.track.retry import TrackingError, check_server

    try:
        check_server(uri)
    except TrackingError as error:
        raise AnalysisError(str(error)) from error
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return _Patient(MlflowClient(uri))


class _Patient:
    """An MLflow client that bears a server's short absence; a longer one is an AnalysisError."""

    def __init__(self, client: Any) -> None:
        from sweeps.track.retry import Patience

        self._client, self._patience = client, Patience(PATIENCE_SECONDS)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        from sweeps.track.retry import StoreAway

        def call(*arguments: Any, **named: Any) -> Any:
            try:
                return self._patience.call(
                    partial(getattr(self._client, name), *arguments, **named)
                )
            except StoreAway as error:
                raise AnalysisError(f"{error}; draw again when it does") from error

        return call
