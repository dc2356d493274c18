"""MLflow: what a run logs, and which runs there are. Nothing else talks to MLflow.

The driver opens a `Store`, creates the experiment and the runs, and closes what dead processes left
open; a worker logs into the run that it is given through a `RunLog`. Everything goes through
`MlflowClient`: no global, "active" run exists that trials sharing a process could inherit.
"""

import contextlib
import json
import logging
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag, ViewType
from mlflow.exceptions import MlflowException

from semidavil.config import Config
from sweeps.provenance import owner_is_dead, owner_tags

PREFIX = "semidavil."  # of all our tags
SWEEP = f"{PREFIX}sweep"  # an experiment's tag: its last sweep
BATCH = 1000  # how many metrics, params and tags one call may log
FLUSH_SECONDS = 5.0  # a call costs some 20 ms on SQLite, however much it logs
SILENCE_SECONDS = 1800.0  # after which a run on another machine counts as dead
OPEN = ("RUNNING", "SCHEDULED")

T = TypeVar("T")


class TrackingError(RuntimeError):
    """The tracking store cannot be used; the message says what to do."""


@dataclass(frozen=True)
class TrackedRun:
    """One run as the store knows it. Tags are ours, without their prefix."""

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
        return {"step": 0, "seconds": 0.0, "time": 0.0} | json.loads(
            self.tags.get("progress", "{}")
        )

    def is_dead(self) -> bool:
        """Open in the store, but nobody works on it any more."""
        if self.status not in OPEN:
            return False
        dead = owner_is_dead(self.tags)
        if dead is None:  # on another machine: judged by its last sign of life
            last = max(self.progress["time"], self.started / 1000)
            return time.time() - last > SILENCE_SECONDS
        return dead


class Store:
    """The tracking store of a checkout, or the one that `uri` names.

    Args:
        root: the checkout; holds `mlflow.db`, `mlruns/` and `checkpoints/`, unless `uri` is another
            SQLite file, which then has them beside it.
        uri: an SQLite file (`sqlite:///...`) or a tracking server (`http://...`).

    Raises:
        TrackingError: `uri` is a folder.
    """

    def __init__(self, root: Path, uri: str | None = None) -> None:
        self.uri = uri or f"sqlite:///{root / 'mlflow.db'}"
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
                f"MLFLOW_TRACKING_URI={self.uri} is a folder, where MLflow no longer tracks runs: "
                "use a database (sqlite:///PATH.db), a server (http://HOST:PORT), or unset it"
            )
        self.checkpoints = self.folder / "checkpoints"
        self._client: MlflowClient | None = None

    @property
    def client(self) -> MlflowClient:
        """Connects on first use, which creates an SQLite database that is not there yet."""
        if self._client is None:
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
            raise TrackingError(f"the MLflow experiment {name!r} cannot be created in {self.uri}")
        if found.lifecycle_stage != "active":
            raise TrackingError(
                f"the MLflow experiment {name!r} is deleted: bring it back with `mlflow experiments "
                f"restore --experiment-id {found.experiment_id}`, or remove it for good with "
                "`mlflow gc`"
            )
        return found.experiment_id

    def runs(self) -> list[TrackedRun]:
        """All runs of this harness, in whichever experiment, oldest first."""
        if self.is_new():
            return []
        experiments = _pages(lambda token: self.client.search_experiments(page_token=token))
        names = {found.experiment_id: found.name for found in experiments}
        runs = _pages(
            lambda token: self.client.search_runs(
                list(names),
                f"tags.`{PREFIX}key` LIKE '%'",
                ViewType.ACTIVE_ONLY,
                BATCH,
                ["attributes.start_time"],
                token,
            )
        )
        return [
            TrackedRun(
                run_id=run.info.run_id,
                name=run.info.run_name or "",
                experiment=names[run.info.experiment_id],
                status=run.info.status,
                started=run.info.start_time,
                ended=run.info.end_time,
                tags={
                    name.removeprefix(PREFIX): value
                    for name, value in run.data.tags.items()
                    if name.startswith(PREFIX)
                },
                params=run.data.params,
                metrics=run.data.metrics,
            )
            for run in runs
        ]

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
            run = patiently(
                lambda: self.client.create_run(
                    experiment_id,
                    run_name=name,
                    tags={PREFIX + tag: value for tag, value in mine.items()},
                )
            )
            log_batches(self.client, run.info.run_id, params=params)
            return run.info.run_id
        mine["attempts"] = str(int(previous.tags.get("attempts", "1")) + 1)
        mine["grid"] = previous.experiment
        mine["reason"] = ""
        if (before := previous.tags.get("commit")) != mine.get("commit"):
            mine["commit_before"] = before or "unknown"
        params = [] if previous.params else params  # none: it was killed while being created
        log_batches(self.client, previous.run_id, params=params, tags=mine)
        patiently(lambda: self.client.update_run(previous.run_id, status="RUNNING"))
        return previous.run_id

    def close(self, run_id: str, status: str, reason: str) -> None:
        """Ends a run that is still open; one that has ended stays as it is."""
        run = patiently(lambda: self.client.get_run(run_id))
        if run.info.status in OPEN:
            log_batches(self.client, run_id, tags={"reason": reason[:500]})
            patiently(lambda: self.client.set_terminated(run_id, status))

    def add_to_grid(self, run: TrackedRun, grid: str) -> None:
        """Marks a run of another grid as belonging to this one too."""
        grids = run.tags.get("grids", "").split()
        if grid not in grids:
            log_batches(self.client, run.run_id, tags={"grids": " ".join([*grids, grid])})


class RunLog:
    """Logs one run from the process that trains it.

    Metrics wait for up to `FLUSH_SECONDS` and then go out together. All of them are also written to
    a journal in `folder` at once, so that those of a killed process are delivered by the next
    attempt; what is logged already is not logged twice when training repeats steps.

    Args:
        logged_step, seconds: what the store has of earlier attempts, and their training time; the
            journal knows better where it is still there.
    """

    def __init__(
        self, uri: str, run_id: str, folder: Path, logged_step: int = 0, seconds: float = 0.0
    ) -> None:
        quiet_logs()
        self.client, self.run_id = MlflowClient(uri), run_id
        self.journal = folder / "metrics.jsonl"
        entries = []
        for line in _read_journal(self.journal):
            if "values" in line:
                entries.append(line)
            elif line["sent_to"] == run_id:
                logged_step = max(logged_step, line["step"])
                seconds = max(seconds, line["seconds"])
        self.waiting = [entry for entry in entries if entry["step"] > logged_step]
        self.step = max([logged_step, *(entry["step"] for entry in entries)])
        self.seconds_before, self.started = seconds, time.monotonic()
        self.flushed = self.started

    @property
    def seconds(self) -> float:
        """Training time so far, of all attempts."""
        return self.seconds_before + time.monotonic() - self.started

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Takes the metrics of a step, unless an earlier attempt has had them."""
        if step > self.step:
            entry = {"step": step, "time": int(time.time() * 1000), "values": dict(values)}
            self._write(entry)
            self.waiting.append(entry)
            self.step = step
        if time.monotonic() - self.flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self, tags: Mapping[str, str] | None = None) -> None:
        """Sends what waits, with a sign of life."""
        progress = {"step": self.step, "seconds": round(self.seconds, 1), "time": int(time.time())}
        metrics = [
            Metric(name, value, entry["time"], entry["step"])
            for entry in self.waiting
            for name, value in entry["values"].items()
        ]
        all_tags = {"progress": json.dumps(progress), **(tags or {})}
        log_batches(self.client, self.run_id, metrics=metrics, tags=all_tags)
        self.waiting, self.flushed = [], time.monotonic()
        self._write({"sent_to": self.run_id, "step": self.step, "seconds": progress["seconds"]})

    def _write(self, line: Mapping[str, Any]) -> None:
        with self.journal.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def finish(self, values: Mapping[str, float], artifacts: Path) -> None:
        """Final metrics and the contents of `artifacts`; then, and only then, FINISHED."""
        entry = {"step": self.step, "time": int(time.time() * 1000), "values": dict(values)}
        self.waiting.append(entry)
        patiently(lambda: self.client.log_artifacts(self.run_id, str(artifacts)))
        self.flush()
        patiently(lambda: self.client.set_terminated(self.run_id, "FINISHED"))

    def fail(self, reason: str, retry: bool, files: Sequence[Path]) -> None:
        """FAILED, with the reason, whether a repetition may help, and files that explain it."""
        self.flush({"reason": reason[:500], "retry": str(retry).lower()})
        for file in files:
            patiently(partial(self.client.log_artifact, self.run_id, str(file)))
        patiently(lambda: self.client.set_terminated(self.run_id, "FAILED"))


def _read_journal(path: Path) -> Iterator[dict[str, Any]]:
    if path.exists():
        for line in path.read_text().splitlines():
            with contextlib.suppress(json.JSONDecodeError):  # the process died writing this line
                yield json.loads(line)


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


def patiently(call: Callable[[], T], attempts: int = 8, pause: float = 0.25) -> T:
    """Repeats a call that found the database locked; pauses grow to half a minute, at random."""
    for attempt in range(attempts - 1):
        try:
            return call()
        except MlflowException as error:
            if "database is locked" not in str(error):
                raise
            time.sleep(pause * 2**attempt * random.uniform(0.5, 1.5))
    return call()


def _pages(fetch: Callable[[str | None], Any]) -> Iterator[Any]:
    token = None
    while True:
        page = patiently(partial(fetch, token))
        yield from page
        token = page.token
        if not token:
            return


def quiet_logs() -> None:
    """Only warnings of MLflow and of the library that upgrades its database."""
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)


def tracking_uri() -> str | None:
    """The store that the environment names, if any."""
    return os.environ.get("MLFLOW_TRACKING_URI") or None
