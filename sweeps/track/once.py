"""A compare-and-set in the tracking store: what is put under a name first, stays."""

import time
import uuid
from contextlib import suppress
from operator import methodcaller

from mlflow.entities import Experiment

from sweeps.track.retry import RunGone, StoreRefused
from sweeps.track.runs import PREFIX
from sweeps.track.store import NOTE, Store

CLAIMS = "semidavil-claims"  # the experiment whose one run holds all that was put
CREATION_SECONDS = 20.0  # after which the process that was creating that run counts as dead
LOOK_SECONDS = 0.1  # between two looks for that run
WRITTEN = "Changing param values is not allowed"


class WriteOnce:
    """Values by name, of which each is written once and for ever.

    MLflow writes a param of a run once. All values are params of one run, in an experiment of its own, so
    that no listing of runs carries them. Whoever deletes it deletes claims and no result.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self._run_id = ""

    def put(self, name: str, value: str) -> str:
        """Keeps `value` under `name` unless there is one; returns the one that is kept."""
        while True:
            self._run_id = self._run_id or self._find_run()
            try:
                return self._put(self._run_id, name, value)
            except RunGone:  # somebody has deleted it
                self._run_id = ""

    def _put(self, run_id: str, name: str, value: str) -> str:
        try:
            self.store.call(lambda client: client.log_param(run_id, name, value, synchronous=True))
            return value
        except StoreRefused as error:
            if WRITTEN not in str(error):
                raise
        return self.store.run(run_id).params[name]

    def _find_run(self) -> str:
        """The run that all processes find.

        The name of an experiment is unique, so that one process creates it; that one creates the run. If
        it dies in between, the others delete the experiment, and all go on to the next name.
        """
        number, since = 1, time.monotonic()
        while True:
            name = CLAIMS if number == 1 else f"{CLAIMS}-{number}"
            experiment = self._get(name) or self._create(name)
            if experiment.lifecycle_stage != "active":
                number, since = number + 1, time.monotonic()
            elif run_id := self._first_run(experiment.experiment_id):
                return run_id
            elif time.monotonic() > since + CREATION_SECONDS:
                with suppress(RunGone):  # another process was faster
                    self.store.call(methodcaller("delete_experiment", experiment.experiment_id))
            else:
                time.sleep(LOOK_SECONDS)

    def _get(self, name: str) -> Experiment | None:
        return self.store.call(lambda client: client.get_experiment_by_name(name))

    def _first_run(self, experiment_id: str) -> str:
        order = ["attributes.start_time", "attributes.run_id"]
        runs = self.store.call(lambda c: c.search_runs([experiment_id], order_by=order))
        return str(runs[0].info.run_id) if runs else ""

    def _create(self, name: str) -> Experiment:
        creator, tag = uuid.uuid4().hex, f"{PREFIX}creator"
        self.store.create_experiment(name, tags={tag: creator})
        found = self._get(name)
        if found is None:
            raise StoreRefused(f"the experiment {name} cannot be created")
        if found.tags.get(tag) == creator:
            about = {NOTE: "Who trains what: one param a claim. It holds no results; leave it."}
            self.store.call(
                lambda c: c.create_run(found.experiment_id, run_name="claims", tags=about)
            )
        return found
