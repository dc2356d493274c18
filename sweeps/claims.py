"""Cells that several sweeps want at once: exactly one of them gets each.

MLflow has no lock, and a run's start is noted before it can be seen, so that the older of two runs may
be the later one to appear. This is Lamport's bakery (CACM 1974): whoever wants a cell first opens a run,
which all others see; then takes a number higher than any that it sees; then waits for those that have
not got theirs yet; and the lowest number holds.
"""

import time
import uuid
from collections.abc import Callable, Mapping
from functools import partial

from semidavil.config import Config
from sweeps.server import patiently
from sweeps.tracking import Store, TrackedRun, log_batches

CHOOSING_SECONDS = 20.0  # after which somebody without a number has the cell, or has died with it
LOOK_SECONDS = 0.05  # between two looks at those that have none


class Claims:
    """The cells that this process claims in a store."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._begun: set[str] = set()  # and not known to have come through

    def claim(
        self,
        experiment_id: str,
        name: str,
        config: Config,
        tags: Mapping[str, str],
        previous: TrackedRun | None = None,
    ) -> str | None:
        """`Store.open_run`, unless another sweep has the cell: then None.

        Args:
            previous: an unfinished run of the same Config, which is then continued.

        Raises:
            StoreAway: the cell may be claimed again; what this claim has left is no other sweep's.
        """
        claim = uuid.uuid4().hex
        self._begun.add(claim)
        open_run = partial(
            self.store.open_run, experiment_id, name, config, {**tags, "claim": claim}
        )
        run_id = self._enter(config.key(), claim, open_run)
        if run_id is not None and previous is not None:
            # Ours by now: the run that held the place has done its duty.
            open_run(previous)
            self._delete(run_id)
            run_id = previous.run_id
        if run_id is not None:
            self.store.attach(run_id)
        self._begun.remove(claim)
        return run_id

    def _enter(self, key: str, claim: str, open_run: Callable[[], str]) -> str | None:
        """A new run, with the right to the cell; None, and no run, without."""
        known = self.store.runs(key)
        # Of a claim that was cut short when the store went away; it may have got as far as to
        # continue an earlier run, which is continued again.
        ours = [run for run in known if run.tags.get("claim") in self._begun]
        if any(run.is_taken() for run in known if run not in ours):
            return None
        # Whoever had them shall find out, should they wake up.
        self.store.close_dead(known)
        for run in ours:
            if run.tags.get("attempts") == "1":
                self._delete(run.run_id)
        run_id = open_run()
        number = 1 + max(_number(run) or 0 for run in self.store.runs(key))
        log_batches(self.store.client, run_id, tags={"number": str(number)})
        if self._is_first(key, run_id, number, claim):
            return run_id
        self._delete(run_id)
        return None

    def _is_first(self, key: str, run_id: str, number: int, claim: str) -> bool:
        deadline = time.monotonic() + CHOOSING_SECONDS
        while True:
            others = [run for run in self.store.runs(key) if run.run_id != run_id]
            for twin in [run for run in others if run.tags.get("claim") == claim]:
                # Creating it was asked twice, because the answer of a server that died was lost.
                self._delete(twin.run_id)
                others.remove(twin)
            rivals = [
                run for run in others if run.is_taken() and run.tags.get("claim") not in self._begun
            ]
            numbers = [(_number(run), run.run_id) for run in rivals]
            chosen = [(theirs, rival) for theirs, rival in numbers if theirs is not None]
            if any((theirs, rival) < (number, run_id) for theirs, rival in chosen) or any(
                run.status == "FINISHED" for run in rivals
            ):
                return False
            if len(chosen) == len(rivals):
                return True
            if time.monotonic() > deadline:
                return False
            time.sleep(LOOK_SECONDS)

    def _delete(self, run_id: str) -> None:
        patiently(partial(self.store.client.delete_run, run_id))


def _number(run: TrackedRun) -> int | None:
    """None while its sweep has not chosen yet."""
    text = run.tags.get("number", "")
    return int(text) if text else None
