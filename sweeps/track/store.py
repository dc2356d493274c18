"""MLflow: what a run logs, and which runs there are. Nothing else in the sweeps talks to MLflow.

Everything goes through `MlflowClient`: no global, "active" run exists that trials sharing a process could
inherit. Every call bears repetition and goes through a `Patience`, which leaves three errors: `StoreAway`,
`RunGone`, `StoreRefused`.
"""

import logging
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from copy import copy
from functools import partial
from operator import methodcaller
from pathlib import Path
from typing import Any, TypeVar

from mlflow import MlflowClient
from mlflow.entities import LoggedModel, Metric, Param, RunTag, ViewType

from semidavil.config import Config
from sweeps.keep.storage import Storage, open_storage
from sweeps.track.collector import no_collector
from sweeps.track.credentials import redact
from sweeps.track.database import Connection, store_uri
from sweeps.track.retry import Patience, RunGone, StoreAway, StoreRefused, TrackingError
from sweeps.track.runs import OPEN, PREFIX, TrackedRun, from_mlflow

OVERVIEW = f"{PREFIX}overview"  # a run's tag, with a grid's name: it stands for a whole sweep
SETTINGS = f"{PREFIX}settings"  # an overview's tag: which settings its sweep has
PARENT = "mlflow.parentRunId"
NOTE = "mlflow.note.content"  # Markdown above a run
PAGE = 1000  # runs that one call may return
METRICS, PARAMS, TAGS = 1000, 100, 100  # that one call may log
REASON_CHARACTERS = 500  # of a run's reason

T = TypeVar("T")
Measurement = tuple[str, float, int, int]  # name, value, ms since 1970, step
logger = logging.getLogger(__name__)


class Store:
    """The tracking store of a checkout, or the one that `uri` names.

    Args:
        root: the checkout; holds `mlflow.db`, `mlruns/` and `checkpoints/`, unless `uri` is another
            SQLite file, which then has them beside it.
        uri: an SQLite file (`sqlite:///...`) or a tracking server (`http://...`).
        storage: of checkpoints and logs of unfinished runs, instead of `checkpoints/`.

    Raises:
        TrackingError: `uri` is no address of a store. From all methods: `StoreAway`, `RunGone`,
            `StoreRefused`.
    """

    def __init__(self, root: Path, uri: str | None = None, storage: Storage | None = None) -> None:
        # The address has no credentials; the file is None where the store is a server.
        self.uri, self.database = store_uri(uri or "", root.absolute())
        self.folder = self.database.parent if self.database else root
        self.own_storage = storage is None
        self.storage = storage or open_storage(str(self.folder / "checkpoints"))
        self.patience = Patience()
        self.attachments: Mapping[str, bytes] = {}  # of each run that is claimed, by artifact path
        self._connection = Connection(self.uri, self.database)
        self._names: dict[str, str] = {}  # of experiments, by id

    def within(self, seconds: float) -> "Store":
        """The same store, whose calls wait for so long while it is away."""
        other = copy(self)
        other.patience = Patience(seconds)
        return other

    @property
    def client(self) -> MlflowClient:
        """Creates an SQLite database that is not there yet.

        Raises TrackingError, within seconds, if the store cannot be reached, or cannot be used.
        """
        return self._connection.client()

    def is_new(self) -> bool:
        """Nothing was ever tracked here."""
        return self.database is not None and not self.database.exists()

    def call(self, function: Callable[[MlflowClient], T]) -> T:
        """The answer of MLflow's client to a question that bears repetition."""
        try:
            answer = self.patience.call(lambda: function(self.client))
        except StoreAway:
            self._connection.is_away = True
            raise
        if self._connection.is_away or self.patience.has_waited:
            self._connection.back_since = time.time()
        self._connection.is_away = self.patience.has_waited = False
        return answer

    def _pages(self, fetch: Callable[[MlflowClient, str | None], Any]) -> Iterator[Any]:
        token = None
        while True:
            page = self.call(partial(lambda token, client: fetch(client, token), token))
            yield from page
            token = page.token
            if not token:
                return

    # Experiments

    def experiment_id(self, name: str) -> str:
        """The experiment of that name, created if need be; TrackingError if it was deleted in MLflow."""
        found = self.call(lambda client: client.get_experiment_by_name(name))
        location = (self.folder / "mlruns" / name).as_uri() if self.database else None
        if found is not None and found.lifecycle_stage != "active":
            raise TrackingError(
                f"the MLflow experiment {name!r} is deleted: bring it back with `mlflow experiments restore "
                f"--experiment-id {found.experiment_id}`, or remove it for good with `mlflow gc`"
            )
        if found is not None and location and _has_moved(found.artifact_location, location):
            # MLflow notes absolute paths, and has no way to change them: new runs need a new experiment.
            old = f"{name} (before it was moved, {found.experiment_id})"
            logger.warning(
                "artifacts of %r were in %s: it is %r now", name, found.artifact_location, old
            )
            self.call(lambda client: client.rename_experiment(found.experiment_id, old))
            found = None
        if found is None:
            self.create_experiment(name, location)
            found = self.call(lambda client: client.get_experiment_by_name(name))
        self._names[found.experiment_id] = name
        return str(found.experiment_id)

    def create_experiment(
        self, name: str, location: str | None = None, tags: Mapping[str, str] | None = None
    ) -> None:
        """Creates it unless it is there; of several processes, one does."""
        try:
            self.call(lambda client: client.create_experiment(name, location, dict(tags or {})))
        except StoreRefused:
            if self.call(lambda client: client.get_experiment_by_name(name)) is None:
                raise

    def _experiments(self, fresh: bool = True) -> dict[str, str]:
        """Names of the active experiments, by id."""
        if fresh or not self._names:
            found = self._pages(lambda client, token: client.search_experiments(page_token=token))
            self._names = {one.experiment_id: one.name for one in found}
        return self._names

    # Runs

    def runs(
        self,
        key: str | None = None,
        deleted: bool = False,
        fresh: bool = True,
        all_metrics: bool = False,
    ) -> list[TrackedRun]:
        """All runs of this harness, or of the Config with this key, in whichever experiment, oldest first.

        Args:
            deleted: with those that somebody has deleted in MLflow.
            fresh: also of experiments that were created since this process last looked for some.
            all_metrics: also those that are not final, each with its last value.
        """
        if self.is_new():
            return []
        which = f"= '{key}'" if key else "LIKE '%'"
        return self._search(f"tags.`{PREFIX}key` {which}", deleted, fresh, all_metrics)

    def _search(
        self,
        condition: str,
        deleted: bool = False,
        fresh: bool = True,
        all_metrics: bool = False,
    ) -> list[TrackedRun]:
        names = self._experiments(fresh)
        if not names:
            return []
        view = ViewType.ALL if deleted else ViewType.ACTIVE_ONLY
        order = ["attributes.start_time", "attributes.run_id"]
        found = self._pages(
            lambda client, token: client.search_runs(
                list(names), condition, view, PAGE, order, token
            )
        )
        back = self._connection.back_since
        with no_collector():
            return [
                from_mlflow(run, names[run.info.experiment_id], back, all_metrics) for run in found
            ]

    def run(self, run_id: str) -> TrackedRun:
        """One run as it is now, without its experiment's name; raises RunGone also if it can be restored."""
        run = from_mlflow(self.call(lambda client: client.get_run(run_id)))
        if run.deleted:
            raise RunGone(f"somebody has deleted the run {run_id} in MLflow")
        return run

    def create_run(
        self,
        experiment_id: str,
        name: str,
        config: Config,
        tags: Mapping[str, str],
        parent: str = "",
    ) -> str:
        """The id of a new RUNNING run of `config`, which is shown below the run `parent`.

        The tag `lease` tells apart a run whose creation was asked for twice.
        """
        all_tags = {f"{PREFIX}{tag}": value for tag, value in tags.items()}
        if parent:
            all_tags[PARENT] = parent
        asked = False

        def create(client: MlflowClient) -> str:
            nonlocal asked
            if asked:  # the answer may have been lost
                condition = f"tags.`{PREFIX}lease` = '{tags['lease']}'"
                if found := client.search_runs([experiment_id], condition):
                    return str(found[0].info.run_id)
            asked = "lease" in tags
            return str(client.create_run(experiment_id, run_name=name, tags=all_tags).info.run_id)

        run_id = self.call(create)
        self.log(run_id, params=config.to_params())
        return run_id

    def continue_run(self, run: TrackedRun, config: Config, tags: Mapping[str, str]) -> None:
        """Opens an unfinished run of the same Config again."""
        # The tags last: a run that had a new epoch and were not RUNNING would look free.
        self.call(lambda client: client.update_run(run.run_id, status="RUNNING"))
        # A run without params belongs to a process that was killed while it created the run.
        self.log(run.run_id, params={} if run.params else config.to_params(), tags=tags)

    def log(
        self,
        run_id: str,
        metrics: Iterable[Measurement] = (),
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Logs into a run, in as many calls as MLflow's limits ask for; `tags` come without prefix."""
        points = [Metric(name, value, at, step) for name, value, at, step in metrics]
        names = [Param(name, value) for name, value in (params or {}).items()]
        marks = [RunTag(PREFIX + name, value) for name, value in (tags or {}).items()]
        room = METRICS - PARAMS - TAGS
        while points or names or marks:
            # Tags last: they say how far the metrics have got.
            last = len(points) <= room and len(names) <= PARAMS
            batch = points[:room], names[:PARAMS], marks[:TAGS] if last else []
            del points[:room], names[:PARAMS], marks[: len(batch[2])]
            # Not in MLflow's queue, which a user may have switched on and which keeps its errors to itself.
            self.call(methodcaller("log_batch", run_id, *batch, synchronous=True))

    def log_files(self, run_id: str, path: Path, folder: str = "") -> None:
        """A file, or all in a folder, as artifacts of a run, below `folder`.

        Raises StoreRefused also where this machine lacks the keys of the artifacts' bucket.
        """

        def upload() -> None:
            log = self.client.log_artifacts if path.is_dir() else self.client.log_artifact
            log(run_id, str(path), folder or None)

        # Each place for artifacts has errors of its own.
        self.patience.call(upload, errors=(Exception,))

    def fetch_file(self, run_id: str, path: str, folder: str) -> str:
        """Copies one of a run's artifacts into a folder of this machine; returns where it is.

        Raises StoreRefused if the run has none of that name.
        """
        fetch = partial(self.client.download_artifacts, run_id, path, folder)
        return str(self.patience.call(fetch, errors=(Exception,)))

    def attach(self, run_id: str) -> None:
        """Logs the `attachments` into a run, which does not fail for want of them."""
        for name, content in self.attachments.items():
            with tempfile.TemporaryDirectory() as scratch:
                path = Path(scratch) / Path(name).name
                path.write_bytes(content)
                try:
                    self.log_files(run_id, path, str(Path(name).parent))
                except StoreRefused as error:
                    logger.warning("%s is not kept with the runs: %s", name, error)
                    self.attachments = {}  # it would be refused again
                    return

    def end(self, run_id: str, status: str, end_time: int | None = None) -> None:
        """Ends a run; `end_time` in ms since 1970, by default now."""
        self.call(lambda client: client.set_terminated(run_id, status, end_time))

    def close(
        self,
        run_id: str,
        status: str,
        reason: str,
        epoch: int | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> bool:
        """Ends a run that is still open, and under the lease `epoch` if one is given; another stays as it is.

        Returns whether it has ended it. `tags` are those that it gets besides its reason.
        """
        run = self.run(run_id)
        if not run.is_open or (epoch is not None and run.epoch != epoch):
            return False
        self.log(run_id, tags={"reason": redact(reason)[:REASON_CHARACTERS], **(tags or {})})
        self.end(run_id, status)
        return True

    def delete(self, run_id: str) -> None:
        """Marks a run as deleted, as MLflow's page does: it can be restored, unlike its models."""
        with suppress(RunGone, StoreRefused):  # another process is at it; MLflow 2 has no models
            run = self.call(lambda client: client.get_run(run_id))
            for model in self._models([run.info.experiment_id], f"source_run_id = '{run_id}'"):
                self.delete_model(model.model_id)
        self.call(lambda client: client.delete_run(run_id))

    def delete_model(self, model_id: str) -> None:
        """Marks it as deleted; the weights that it names stay with their run."""
        self.call(lambda client: client.delete_logged_model(model_id))

    def models(self) -> list[LoggedModel]:
        """Those of this harness's runs, deleted runs among them; none of a server of MLflow 2."""
        if self.is_new() or not (names := self._experiments()):
            return []
        with suppress(StoreRefused):
            found = self._models(list(names))
            return [model for model in found if f"{PREFIX}key" in model.tags]
        return []

    def _models(self, experiments: list[str], which: str | None = None) -> list[LoggedModel]:
        pages = self._pages(
            lambda client, token: client.search_logged_models(experiments, which, page_token=token)
        )
        return list(pages)

    def keep_alive(self, run_ids: Iterable[str]) -> None:
        """A sign of life for runs that have nothing to log for long: evaluating, or not yet placed."""
        for run_id in run_ids:
            with suppress(RunGone):  # its worker will find out
                self.log(run_id, tags={"alive": str(int(time.time()))})

    def add_to(self, run: TrackedRun, tag: str, name: str) -> None:
        """Marks a run of another grid or study as belonging to this one too: `grids` or `studies`."""
        # Another grid may have done so since the run was read.
        names = self.run(run.run_id).tags.get(tag, "").split()
        if name not in names:
            self.log(run.run_id, tags={tag: " ".join([*names, name])})

    # Overviews: one run for each grid and settings, the parent of its runs

    def overviews(self) -> list[TrackedRun]:
        """All of them, oldest first; their tags hold `overview`, the grid's name, and `settings`."""
        return [] if self.is_new() else self._search(f"tags.`{OVERVIEW}` LIKE '%'")

    def create_overview(self, grid: str, settings: str, name: str, about: str) -> str:
        """The id of a new one; `settings` tell apart sweeps of one grid that cannot be compared."""
        tags = {OVERVIEW: grid, SETTINGS: settings, NOTE: about}
        create = methodcaller("create_run", self.experiment_id(grid), run_name=name, tags=tags)
        return str(self.call(create).info.run_id)

    def update_overview(
        self, run_id: str, status: str, metrics: Mapping[str, float], texts: Mapping[str, str]
    ) -> None:
        """Brings an overview up to date; `texts` are artifacts, by file name."""
        now = int(time.time() * 1000)
        self.log(run_id, metrics=[(name, value, now, 0) for name, value in metrics.items()])
        try:
            for name, text in texts.items():
                upload = partial(self.client.log_text, run_id, text, name)
                self.patience.call(upload, errors=(Exception,))
        except StoreRefused as error:  # this machine may lack the keys that workers have
            logger.warning("the overview's tables are not kept in the store: %s", error)
        if status in OPEN:
            self.call(lambda client: client.update_run(run_id, status=status))
        else:
            self.end(run_id, status)


def _has_moved(noted: str, location: str) -> bool:
    """Whether an experiment's artifacts go to another checkout, or to where this one once was."""
    ours = noted.startswith("file:") and noted.split("/")[-2:] == location.split("/")[-2:]
    return ours and noted != location
