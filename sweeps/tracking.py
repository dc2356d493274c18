"""MLflow: what a run logs, and which runs there are. Nothing else talks to MLflow.

The driver opens a `Store`, creates the experiment and the runs, and closes what dead processes left
open; a worker logs into the run that it is given through a `run_log.RunLog`. Everything goes through
`MlflowClient`: no global, "active" run exists that trials sharing a process could inherit.
"""

import contextlib
import json
import logging
import math
import os
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag, ViewType
from mlflow.exceptions import MlflowException

from semidavil.config import Config
from semidavil.data.benchmarks import BENCHMARKS
from sweeps.credentials import redact, without_credentials
from sweeps.garbage import no_garbage_collection
from sweeps.provenance import owner_is_dead, owner_tags
from sweeps.server import (
    StoreAway,
    TrackingError,
    check_server,
    patiently,
)
from sweeps.sqlite_runs import FINAL, read_runs
from sweeps.storage import Storage, open_storage

note = logging.getLogger(__name__)

PREFIX = "semidavil."  # of all our tags
SWEEP = f"{PREFIX}sweep"  # an experiment's tag: its last sweep
OVERVIEW = f"{PREFIX}overview"  # a run's tag: it stands for its whole experiment
PARENT = "mlflow.parentRunId"
NOTE = "mlflow.note.content"  # Markdown above a run
BATCH = 1000  # how many metrics, params and tags one call may log
SILENCE_SECONDS = 1800.0  # after which a run on another machine counts as dead
OPEN = ("RUNNING", "SCHEDULED")


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """One run as the store knows it. Tags are ours, without their prefix; metrics are the final ones."""

    run_id: str
    name: str
    experiment: str
    status: str  # MLflow's: RUNNING, FINISHED, FAILED, KILLED
    started: int  # ms since 1970
    ended: int | None  # ms since 1970; None while it is open
    tags: Mapping[str, str]
    params: Mapping[str, str]
    metrics: Mapping[str, float]

    @property
    def key(self) -> str:
        return self.tags["key"]

    @property
    def progress(self) -> dict[str, float]:
        """`step` and `seconds` of training so far, and the `time` at which they were logged."""
        return read_progress(self.tags.get("progress", "{}"))

    @property
    def share(self) -> float:
        """How much of its training it has behind it, from 0 to 1."""
        steps = int(self.params.get("training.steps", "0"))
        return min(1.0, float(self.progress["step"]) / steps) if steps else 0.0

    def is_taken(self) -> bool:
        """Finished, or somebody is at work on it."""
        return self.status == "FINISHED" or (self.status in OPEN and not self.is_dead())

    def is_dead(self) -> bool:
        """Open in the store, but nobody works on it any more."""
        if self.status not in OPEN:
            return False
        return is_gone(self.tags, self.last_word, time.time())

    def is_of(self, owner: Mapping[str, str]) -> bool:
        """Whether the process of these `owner_tags` has it: another may have taken it over."""
        return all(self.tags.get(name) == value for name, value in owner.items())

    def was_stopped_early(self) -> bool:
        """By a search. One that was tagged while the store went away has trained on."""
        return self.status == "KILLED" and bool(self.tags.get("stopped_early"))

    @property
    def last_word(self) -> float:
        """When it last gave a sign of life, in seconds since 1970."""
        return max(self.progress["time"], float(self.tags.get("alive", 0)), self.started / 1000)

    @property
    def score(self) -> float:
        """Its benchmark's score in per cent; NaN before its end."""
        known = BENCHMARKS.get(self.params.get("data.benchmark", ""))
        return self.metrics.get(f"final/{known.metric}", math.nan) if known else math.nan


def tracked(run: Any, experiment: str = "") -> TrackedRun:
    """What MLflow's client has returned."""
    tags = {n.removeprefix(PREFIX): v for n, v in run.data.tags.items() if n.startswith(PREFIX)}
    return TrackedRun(
        run_id=run.info.run_id,
        name=run.info.run_name or "",
        experiment=experiment,
        status=run.info.status,
        started=run.info.start_time,
        ended=run.info.end_time,
        # One copy of the names and values that thousands of runs have in common.
        tags={sys.intern(name): sys.intern(value) for name, value in tags.items()},
        params={sys.intern(n): sys.intern(value) for n, value in run.data.params.items()},
        metrics={
            sys.intern(name): value
            for name, value in run.data.metrics.items()
            if name.startswith(FINAL)
        },
    )


def is_gone(owner: Mapping[str, str], last_word: float, now: float) -> bool:
    """Whether the process of `owner_tags` has ended; on another machine, whether it is silent."""
    dead = owner_is_dead(owner)
    return now - last_word > SILENCE_SECONDS if dead is None else dead


class Store:
    """The tracking store of a checkout, or the one that `uri` names.

    Attributes:
        attachments: files that each run gets when it is claimed, by artifact path.

    Args:
        root: the checkout; holds `mlflow.db`, `mlruns/` and `checkpoints/`, unless `uri` is another
            SQLite file, which then has them beside it.
        uri: an SQLite file (`sqlite:///...`) or a tracking server (`http://...`).
        storage: where checkpoints and logs are kept, instead of `checkpoints/`.

    Raises:
        TrackingError: `uri` is a folder.
    """

    def __init__(self, root: Path, uri: str | None = None, storage: Storage | None = None) -> None:
        self.uri = without_credentials(uri or f"sqlite:///{root / 'mlflow.db'}")
        self.folder = root
        self.database: Path | None = None
        self.artifacts: Path | None = None  # a server knows its own place for them
        if self.uri.startswith("sqlite:///"):
            self.database = Path(self.uri.removeprefix("sqlite:///")).absolute()
            self.uri = f"sqlite:///{self.database}"
            self.folder = self.database.parent
            self.artifacts = self.folder / "mlruns"
        elif "://" not in self.uri or self.uri.startswith("file:"):
            raise TrackingError(
                f"MLFLOW_TRACKING_URI={redact(self.uri)} is a folder, where MLflow no longer tracks runs: "
                "use a database (sqlite:///PATH.db), a server (http://HOST:PORT), or unset it"
            )
        self.own_storage = storage is None
        self.storage = storage or open_storage(str(self.folder / "checkpoints"))
        self._client: MlflowClient | None = None
        self.attachments: Mapping[str, bytes] = {}
        self._overviews: dict[str, str] = {}  # of experiments: the parent of runs opened in them

    @property
    def client(self) -> MlflowClient:
        """Connects on first use, which creates an SQLite database that is not there yet.

        Raises:
            TrackingError: the server cannot be reached, or refuses; found out within seconds.
        """
        if self._client is None:
            check_server(self.uri)
            quiet_logs()
            if self.database is not None:
                self.database.parent.mkdir(parents=True, exist_ok=True)
            self._client = MlflowClient(self.uri)
        return self._client

    def is_new(self) -> bool:
        """Nothing was ever tracked here."""
        return self.database is not None and not self.database.exists()

    def experiment_id(self, name: str) -> str:
        """The experiment of that name, created if need be.

        Raises:
            TrackingError: it was deleted in MLflow, so that nothing can be logged into it.
        """
        found = patiently(lambda: self.client.get_experiment_by_name(name))
        if found is None:
            location = (self.artifacts / name).as_uri() if self.artifacts else None
            with contextlib.suppress(MlflowException):  # somebody else may be faster
                patiently(lambda: self.client.create_experiment(name, artifact_location=location))
            found = patiently(lambda: self.client.get_experiment_by_name(name))
        if found is None:
            raise TrackingError(
                f"the MLflow experiment {name!r} cannot be created in {redact(self.uri)}"
            )
        if found.lifecycle_stage != "active":
            raise TrackingError(
                f"the MLflow experiment {name!r} is deleted: bring it back with `mlflow experiments "
                f"restore --experiment-id {found.experiment_id}`, or remove it for good with "
                "`mlflow gc`"
            )
        return found.experiment_id

    def runs(self, key: str | None = None) -> list[TrackedRun]:
        """All runs of this harness, in whichever experiment, oldest first; or those of one Config."""
        if self.is_new():
            return []
        with no_garbage_collection():
            if self.database is not None:
                # Otherwise its tables are not those that we know, or it is busy: MLflow will say.
                with contextlib.suppress(sqlite3.Error):
                    return [TrackedRun(**run) for run in read_runs(self.database, PREFIX, key)]
            return self._runs_by_client(key)

    def _runs_by_client(self, key: str | None) -> list[TrackedRun]:
        experiments = _pages(lambda token: self.client.search_experiments(page_token=token))
        names = {found.experiment_id: found.name for found in experiments}
        runs = _pages(
            lambda token: self.client.search_runs(
                list(names),
                f"tags.`{PREFIX}key` " + (f"= '{key}'" if key else "LIKE '%'"),
                ViewType.ACTIVE_ONLY,
                BATCH,
                ["attributes.start_time"],
                token,
            )
        )
        return [tracked(run, names[run.info.experiment_id]) for run in runs]

    def overview(self, experiment_id: str, name: str, about: str) -> str:
        """The run that stands for an experiment, created if need be; runs opened later are its children.

        Of two that sweeps create at the same moment, both take the older one.
        """
        found = self._find_overviews(experiment_id)
        if not found:
            tags = {OVERVIEW: name, NOTE: about}
            patiently(lambda: self.client.create_run(experiment_id, run_name=name, tags=tags))
            found = self._find_overviews(experiment_id)
        self._overviews[experiment_id] = found[0]
        return found[0]

    def _find_overviews(self, experiment_id: str) -> list[str]:
        runs = _pages(
            lambda token: self.client.search_runs(
                [experiment_id],
                f"tags.`{OVERVIEW}` LIKE '%'",
                order_by=["attributes.start_time", "attributes.run_id"],
                page_token=token,
            )
        )
        return [run.info.run_id for run in runs]

    def write_overview(
        self,
        name: str,
        about: str,
        status: str,
        metrics: Mapping[str, float],
        texts: Mapping[str, str],
    ) -> str:
        """The `overview` of an experiment, by name, as things are now; returns its run id.

        Args:
            texts: artifacts, by file name.
        """
        run_id = self.overview(self.experiment_id(name), name, about)
        now = int(time.time() * 1000)
        log_batches(
            self.client, run_id, metrics=[Metric(name, v, now, 0) for name, v in metrics.items()]
        )
        for name, text in texts.items():
            patiently(partial(self.client.log_text, run_id, text, name))
        if status in OPEN:
            patiently(lambda: self.client.update_run(run_id, status=status))
        else:
            patiently(lambda: self.client.set_terminated(run_id, status))
        return run_id

    def announce(self, experiment_id: str, sweep: Mapping[str, Any]) -> None:
        """Leaves word of the sweep that this process runs, for `announced` on any machine."""
        text = json.dumps({**sweep, **owner_tags()})
        patiently(lambda: self.client.set_experiment_tag(experiment_id, SWEEP, text))

    def announced(self) -> dict[str, dict[str, Any]]:
        """The last sweep of each experiment that had one, by the experiment's name."""
        if self.is_new():
            return {}
        experiments = _pages(lambda token: self.client.search_experiments(page_token=token))
        return {e.name: json.loads(e.tags[SWEEP]) for e in experiments if SWEEP in e.tags}

    def close_dead(self, runs: Sequence[TrackedRun]) -> list[TrackedRun]:
        """Marks as KILLED those that are open although their process has ended; returns them."""
        dead = [run for run in runs if run.is_dead()]
        for run in dead:
            self.close(run.run_id, "KILLED", "its process ended without a word")
        return dead

    def open_run(
        self,
        experiment_id: str,
        name: str,
        config: Config,
        tags: Mapping[str, str],
        previous: TrackedRun | None = None,
    ) -> str:
        """The id of a RUNNING run for `config`, owned by this process.

        Args:
            previous: an unfinished run of the same Config, which is then continued.
        """
        mine = {"key": config.key(), "attempts": "1", **tags, **owner_tags()}
        params = [Param(path, value) for path, value in config.to_params().items()]
        if previous is None:
            all_tags = {PREFIX + tag: value for tag, value in mine.items()}
            if experiment_id in self._overviews:
                all_tags[PARENT] = self._overviews[experiment_id]
            run = patiently(
                lambda: self.client.create_run(experiment_id, run_name=name, tags=all_tags)
            )
            log_batches(self.client, run.info.run_id, params=params)
            return run.info.run_id
        mine["attempts"] = str(int(previous.tags.get("attempts", "1")) + 1)
        mine["grid"] = previous.experiment
        mine["reason"] = ""
        mine["alive"] = str(int(time.time()))  # it may have been silent for longer than others wait
        for name in ("commit", "changes"):
            if (before := previous.tags.get(name)) != mine.get(name):
                mine[f"{name}_before"] = before or "unknown"
        params = [] if previous.params else params  # none: it was killed while being created
        log_batches(self.client, previous.run_id, params=params, tags=mine)
        patiently(lambda: self.client.update_run(previous.run_id, status="RUNNING"))
        return previous.run_id

    def attach(self, run_id: str) -> None:
        """Logs the `attachments` as artifacts of a run.

        A run does not fail for want of them: this machine may lack the keys of the bucket where workers
        put theirs, or a proxy may take no file. That is said, and not tried again.
        """
        for name, content in self.attachments.items():
            try:
                with tempfile.TemporaryDirectory() as scratch:
                    path = Path(scratch) / Path(name).name
                    path.write_bytes(content)
                    folder = str(Path(name).parent)
                    patiently(partial(self.client.log_artifact, run_id, str(path), folder))
            except StoreAway:
                raise
            except Exception as error:  # each place for artifacts has its own
                note.warning("%s is not kept with the runs: %s", name, redact(str(error)))
                self.attachments = {}

    def keep_alive(self, run_ids: Iterable[str]) -> None:
        """A sign of life for runs that have nothing to log for long: evaluating, or not yet placed."""
        now = str(int(time.time()))
        for run_id in run_ids:
            log_batches(self.client, run_id, tags={"alive": now})

    def close(
        self,
        run_id: str,
        status: str,
        reason: str,
        own: bool = False,
        tags: Mapping[str, str] | None = None,
    ) -> bool:
        """Ends a run that is still open; one that has ended stays as it is.

        Args:
            own: only if no other sweep has taken it over from this process.
            tags: that it gets besides.

        Returns:
            Whether it was open, and ours if it had to be.
        """
        run = tracked(patiently(lambda: self.client.get_run(run_id)))
        if run.status not in OPEN or (own and not run.is_of(owner_tags())):
            return False
        log_batches(self.client, run_id, tags={"reason": reason[:500], **(tags or {})})
        patiently(lambda: self.client.set_terminated(run_id, status))
        return True

    def stop_early(self, run_id: str, step: int) -> bool:
        """Ends a run that a search does not go on with; only its tag tells it from a broken one."""
        reason = f"stopped early at step {step}: others were better by then"
        tags = {"stopped_early": str(step)}
        return self.close(run_id, "KILLED", reason, own=True, tags=tags)

    def add_to_grid(self, run: TrackedRun, grid: str) -> None:
        """Marks a run of another grid as belonging to this one too."""
        grids = run.tags.get("grids", "").split()
        if grid not in grids:
            log_batches(self.client, run.run_id, tags={"grids": " ".join([*grids, grid])})


def read_progress(tag: str) -> dict[str, float]:
    return {"step": 0, "seconds": 0.0, "time": 0.0} | json.loads(tag)


def progress_of(client: MlflowClient, run_id: str) -> dict[str, float]:
    """`TrackedRun.progress` of one run, as the store has it now."""
    run = patiently(lambda: client.get_run(run_id))
    return read_progress(run.data.tags.get(f"{PREFIX}progress", "{}"))


def log_batches(
    client: MlflowClient,
    run_id: str,
    *,
    metrics: Sequence[Metric] = (),
    params: Sequence[Param] = (),
    tags: Mapping[str, str] | None = None,
) -> None:
    """`MlflowClient.log_batch` within its limits on size."""
    ours = [RunTag(PREFIX + name, value) for name, value in (tags or {}).items()]
    first = BATCH - len(params) - len(ours)
    patiently(lambda: client.log_batch(run_id, metrics[:first], params, ours))
    for start in range(first, len(metrics), BATCH):
        patiently(partial(client.log_batch, run_id, metrics[start : start + BATCH]))


def _pages(fetch: Callable[[str | None], Any]) -> Iterator[Any]:
    token = None
    while True:
        page = patiently(partial(fetch, token))
        yield from page
        token = page.token
        if not token:
            return


def quiet_logs() -> None:
    """Only warnings of MLflow and of the library that upgrades its database, and no error twice."""
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # It prints each error that it then raises, with its traceback; whoever catches it says it.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)


def tracking_uri() -> str | None:
    """The store that the environment names, if any."""
    return os.environ.get("MLFLOW_TRACKING_URI") or None


def chosen_storage(option: str) -> Storage | None:
    """The storage that --storage names; None if it is not given.

    Raises:
        ConfigError: nothing can be kept there.
    """
    return open_storage(option) if option else None
