"""A search's study: its trials as Configs, kept by Optuna in a database beside the tracking store.

Trial 0 is the preset itself, so that a search holds its baseline. Trials are ended early by
asynchronous successive halving (ASHA, Li et al., MLSys 2020) over the validation scores that the study
knows; it is Optuna's and not Ray Tune's, whose rungs would be forgotten by a restart.

A search that is killed leaves its trials RUNNING. Each search beats for its own trials (Optuna's
heartbeats), so that any other one sees which of them are stale, fails them and queues them again with
the same settings. A trial that was queued again is a new trial to Optuna and the same one to people, with
the number that it had.
"""

import math
import sqlite3
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import optuna
from filelock import FileLock, Timeout
from optuna.exceptions import (
    ExperimentalWarning,
    OptunaError,
    StorageInternalError,
    UpdateFinishedTrialError,
)
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback, fail_stale_trials
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from semidavil.config import Config
from semidavil.data.benchmarks import BENCHMARKS
from sweeps.run.space import preset_value, space_of, study_name
from sweeps.show.tables import csv_text
from sweeps.track.retry import StoreAway, TrackingError
from sweeps.track.store import Store

HALVING = 3  # one in so many goes on at each rung
RANDOM_TRIALS = 10  # before TPE has something to learn from
LEAST_FOR_IMPORTANCE = 4  # finished trials
HEARTBEAT_SECONDS = 10
GRACE_SECONDS = 30  # without a heartbeat, after which a trial counts as stale
DATABASE_SECONDS = (
    2.0  # to wait for another process's transaction: `should_stop` runs in Tune's loop
)
LOCK_SECONDS = 60.0  # to wait for another search that begins or queues a trial
FILE = "studies.db"


@dataclass(frozen=True)
class OpenTrial:
    """A trial that this process has begun.

    Attributes:
        name: readable, unique within the study, the same when the trial is queued again.
        number: the one that people see; Optuna has another one for a trial that was queued again.
        storage_id: by which heartbeats are recorded.
    """

    name: str
    number: int
    config: Config
    trial: Trial
    storage_id: int


class Study:
    """Asks Optuna for trials, tells it how they end, and says what was found.

    One thread asks and tells; `should_stop` may be called from another one.

    Attributes:
        open: the trials that this process has begun and whose end it has not told yet, by name.

    Args:
        base: the preset; trials differ from it in the space's settings alone.
        trials: how many there are to be in all.
        create: begin the study if there is none.

    Raises:
        TrackingError: the database cannot be used.
        KeyError: there is no such study, and `create` is False.
    """

    def __init__(
        self, base: Config, objective: str, trials: int, store: Store, create: bool = True
    ) -> None:
        self.base, self.objective, self.trials = base, objective, trials
        self.space = space_of(base, objective)
        self.benchmark = BENCHMARKS[base.data.benchmark]
        self.open: dict[str, OpenTrial] = {}
        self.name = study_name(base, objective, store.uri)
        self.file = store.folder / FILE
        if not create and not self.file.exists():
            raise KeyError(self.name)
        _quiet_optuna()
        self._lock = FileLock(f"{self.file}.lock", timeout=LOCK_SECONDS)
        self._requeue = RetryHeartbeatStaleTrialCallback(inherit_intermediate_values=True)
        self._closed = threading.Event()
        self._heart: threading.Thread | None = None
        with _usable(self.file):
            self.study = self._create() if create else self._load()

    def _create(self) -> optuna.Study:
        """The study, with the preset as its first trial."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self._lock:
            self.storage = _open_storage(self.file)
            study = optuna.create_study(
                storage=self.storage,
                study_name=self.name,
                directions=["maximize"] if self.objective == "miou" else ["maximize", "minimize"],
                pruner=self._pruner(),
                load_if_exists=True,
            )
            if not study.get_trials(deepcopy=False):
                study.enqueue_trial({path: preset_value(self.base, path) for path in self.space})
        return study

    def _load(self) -> optuna.Study:
        self.storage = _open_storage(self.file)
        return optuna.load_study(storage=self.storage, study_name=self.name, pruner=self._pruner())

    def _pruner(self) -> optuna.pruners.BasePruner:
        # Rungs are evaluations: without any on the way, no trial ends early.
        return optuna.pruners.SuccessiveHalvingPruner(self.base.runtime.eval_every or 1, HALVING)

    # What is left

    def left(self) -> int:
        """Trials that nobody has begun yet, or whose process has died."""
        return self.trials - sum(_is_spent(trial) for trial in self._latest())

    def failed(self, diverged: bool) -> list[FrozenTrial]:
        """Trials that have failed, those that would fail in the same way again only if `diverged`."""
        wanted = {"other", "diverged"} if diverged else {"other"}
        return [t for t in self._latest() if _failure(t) in wanted]

    def queue_failed(self, diverged: bool = False) -> None:
        """Queues `failed` trials again, and those of searches that have died: what a new command does."""
        with _usable(self.file), self._lock:
            self._queue_dead()
            for trial in self.failed(diverged):
                self._requeue(self.study, trial)

    def running_elsewhere(self) -> set[int]:
        """Optuna's numbers of the trials that other searches have begun, and not ended.

        Those of a search that has died are among them for `GRACE_SECONDS`.
        """
        ours = {one.trial.number for one in list(self.open.values())}
        return {t.number for t in self._latest() if t.state is TrialState.RUNNING} - ours

    # One trial

    def ask(self) -> OpenTrial | None:
        """Begins the next trial: one that was queued again, else a new one.

        None if none is left: another search of the same study may have had the last.

        Raises:
            StoreAway: another process holds the database locked; nothing was begun.
        """
        with _usable(self.file), self._lock:
            self._queue_dead()
            if self.left() <= 0:
                return None
            # The draws depend on what the study knows alone: a search that is continued takes the
            # same way. Without `constant_liar`, searches with several workers would draw the same
            # settings for all of them; `multivariate`, because rate and weights depend on each other.
            self.study.sampler = optuna.samplers.TPESampler(
                n_startup_trials=RANDOM_TRIALS,
                seed=1000 * self.base.seed + len(self._latest()),
                multivariate=True,
                constant_liar=True,
            )
            trial = self.study.ask(dict(self.space))
            study_id = self.storage.get_study_id_from_name(self.name)
            storage_id = self.storage.get_trial_id_from_study_id_trial_number(
                study_id, trial.number
            )
            self.storage.record_heartbeat(storage_id)
            config = self.base.replace(trial.params)
            trial.set_user_attr("key", config.key())
            trial.set_user_attr("failure", "")
            trial.set_user_attr("begun", trial.number)  # last: without it, its process died here
            number = next(n for n, one in self.numbered() if one.number == trial.number)
        data = config.data
        name = f"{data.benchmark}/trial-{number}/{data.budget}/s{config.seed}"
        self.open[name] = OpenTrial(name, number, config, trial, storage_id)
        if self._heart is None:
            self._heart = threading.Thread(target=self._keep_beating, daemon=True)
            self._heart.start()
        return self.open[name]

    def _queue_dead(self) -> None:
        """Queues the trials of processes that have died again. The caller holds the lock."""
        self._beat()  # a machine that was suspended finds its own trials stale when it wakes up
        fail_stale_trials(self.study)
        for trial in self._trials(TrialState.RUNNING):
            # Only whoever holds the lock begins trials: a process that did so died, or lost the database.
            if trial.user_attrs.get("begun") != trial.number:
                self.study.tell(trial.number, state=TrialState.FAIL)
        for trial in self._latest():
            if trial.state is TrialState.FAIL and not _failure(trial):
                self._requeue(self.study, trial)

    def _keep_beating(self) -> None:
        while not self._closed.wait(HEARTBEAT_SECONDS):
            with suppress(OptunaError, SQLAlchemyError):  # the next beat may come through
                self._beat()

    def _beat(self) -> None:
        for one in list(self.open.values()):
            self.storage.record_heartbeat(one.storage_id)

    def should_stop(self, name: str, step: int, score: float) -> bool:
        """Takes a score on the way; True at a rung for one of those that do not go on.

        The preset always goes on: it is what the others are compared to.

        Raises:
            StoreAway: another process holds the database locked.
        """
        one = self.open.get(name)
        if one is None or self.objective != "miou":  # successive halving knows one objective
            return False
        with _usable(self.file):
            try:
                one.trial.report(score, step)
                return one.trial.should_prune() and one.config.key() != self.base.key()
            except UpdateFinishedTrialError:  # another search took this one for dead
                return False

    def tell(self, name: str, score: float, latency_ms: float, run_id: str) -> None:
        """A trial that has finished; without one of its values, as runs of old are, it has failed.

        Raises:
            StoreAway: another process holds the database locked; tell it again. So do the next two.
        """
        values = [score] if self.objective == "miou" else [score, latency_ms]
        if any(math.isnan(value) for value in values):
            self.tell_failed(name, run_id, diverged=True)
        else:
            self._end(name, run_id, TrialState.COMPLETE, values)

    def tell_stopped(self, name: str, run_id: str) -> None:
        """A trial that was stopped early."""
        self._end(name, run_id, TrialState.PRUNED)

    def tell_failed(self, name: str, run_id: str, diverged: bool) -> None:
        """A trial that has failed; `diverged` if it would do so again in the same way."""
        self._end(name, run_id, TrialState.FAIL, failure="diverged" if diverged else "other")

    def _end(
        self,
        name: str,
        run_id: str,
        state: TrialState,
        values: list[float] | None = None,
        failure: str = "",
    ) -> None:
        if name not in self.open:  # told already: this search had it twice, see `StudySource.taken`
            return
        trial = self.open[name].trial
        with _usable(self.file), suppress(UpdateFinishedTrialError):  # another search was first
            trial.set_user_attr("run_id", run_id)
            trial.set_user_attr("failure", failure)
            # Optuna keeps no values of a failed trial, and those on the way of one that was stopped.
            told = None if state is TrialState.COMPLETE else state
            self.study.tell(trial, values, told, skip_if_finished=True)
        del self.open[name]

    def close(self) -> None:
        """Queues what is still open again: the next search need not wait until it is stale."""
        self._closed.set()
        with suppress(TrackingError), _usable(self.file), self._lock:
            for one in self.open.values():
                self.study.tell(one.trial, state=TrialState.FAIL, skip_if_finished=True)
            self.open.clear()
            self._queue_dead()

    # What came out

    def _trials(self, *states: TrialState) -> list[FrozenTrial]:
        with _usable(self.file):
            return self.study.get_trials(deepcopy=False, states=states or None)

    def numbered(self) -> list[tuple[int, FrozenTrial]]:
        """Each trial as it was begun or queued last, with the number that people see."""
        return list(enumerate(self._latest()))

    def _latest(self) -> list[FrozenTrial]:
        return list({_root(trial): trial for trial in self._trials()}.values())

    def is_preset(self, trial: FrozenTrial) -> bool:
        return trial.user_attrs.get("key") == self.base.key()

    def preset(self) -> FrozenTrial | None:
        """The finished trial of the preset."""
        done = self._trials(TrialState.COMPLETE)
        return next((trial for trial in done if self.is_preset(trial)), None)

    def best(self) -> list[FrozenTrial]:
        """The best finished trial; of two objectives, those that no other beats in both.

        The highest score comes first.
        """
        if not self._trials(TrialState.COMPLETE):
            return []
        with _usable(self.file):
            return sorted(self.study.best_trials, key=lambda trial: -trial.values[0])

    def importances(self) -> dict[str, float]:
        """Share of the score's variance that each setting explains (fANOVA); empty for few trials."""
        done = self._trials(TrialState.COMPLETE)
        if len(done) < LEAST_FOR_IMPORTANCE or len({trial.values[0] for trial in done}) < 2:
            return {}
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        return optuna.importance.get_param_importances(
            self.study, evaluator=evaluator, target=lambda trial: trial.values[0]
        )

    def counts(self) -> dict[str, int]:
        trials = self._latest()
        counts = {
            name: sum(trial.state is state for trial in trials)
            for name, state in (
                ("finished", TrialState.COMPLETE),
                ("stopped_early", TrialState.PRUNED),
            )
        }
        return {**counts, "failed": sum(bool(_failure(trial)) for trial in trials)}

    def csv(self) -> str:
        """One line a trial: its state, score, latency, last value on the way, settings and run."""
        rows: list[list[object]] = []
        for number, trial in self.numbered():
            values = trial.values if trial.state is TrialState.COMPLETE else []
            step = trial.last_step
            on_the_way = ["", ""] if step is None else [step, trial.intermediate_values[step]]
            rows.append(
                [number, trial.state.name.lower(), *[*values, "", ""][:2], *on_the_way,
                 *(trial.params.get(path, "") for path in self.space),
                 trial.user_attrs.get("run_id", ""), self.is_preset(trial)]
            )  # fmt: skip
        header = ["trial", "state", "score", "latency_ms", "step", "value", *self.space, "run_id"]
        return csv_text([*header, "preset"], rows)

    def importances_csv(self) -> str:
        shares = self.importances().items()
        return csv_text(["setting", "importance"], [[path, f"{x:.6f}"] for path, x in shares])


def _root(trial: FrozenTrial) -> int:
    """Optuna's number of this trial, or of the one for which it was queued again."""
    first = RetryHeartbeatStaleTrialCallback.retried_trial_number(trial)
    return trial.number if first is None else first


def _failure(trial: FrozenTrial) -> str:
    """How its search has said that it failed; empty for other trials, and where a search has died."""
    return str(trial.user_attrs.get("failure", "")) if trial.state is TrialState.FAIL else ""


def _is_spent(trial: FrozenTrial) -> bool:
    ended = trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
    return ended or trial.state is TrialState.RUNNING or bool(_failure(trial))


def _quiet_optuna() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=ExperimentalWarning)  # heartbeats
    # They are meant for `Study.optimize`, which beats; here `_keep_beating` does.
    warnings.filterwarnings("ignore", message="Heartbeat of storage", module="optuna")
    # A run that goes on from its checkpoint reports some steps twice.
    warnings.filterwarnings("ignore", message="The reported value is ignored", module="optuna")


def _open_storage(file: Path) -> RDBStorage:
    connect = partial(sqlite3.connect, file, timeout=DATABASE_SECONDS, check_same_thread=False)
    return RDBStorage(
        # This only says which kind of database it is: a path with `?`, `%` or `{` would not survive it.
        f"sqlite:///{FILE}",
        engine_kwargs={"creator": connect},
        heartbeat_interval=HEARTBEAT_SECONDS,
        grace_period=GRACE_SECONDS,
    )


@contextmanager
def _usable(file: Path) -> Iterator[None]:
    """Says which file is broken, locked or full.

    Raises:
        StoreAway: in place of the database's own errors, where they may pass: locked, or a full disk.
        TrackingError: in place of its other errors.
    """
    try:
        yield
    except Timeout:
        raise StoreAway(
            f"another search has held {file}.lock for {LOCK_SECONDS:.0f} s: if none runs, remove it"
        ) from None
    except (StorageInternalError, SQLAlchemyError, OSError) as error:
        cause = (error.__cause__ if isinstance(error, StorageInternalError) else None) or error
        passes = isinstance(cause, OperationalError)
        text = str(cause).splitlines()[0]
        raise (StoreAway if passes else TrackingError)(
            f"the studies in {file} cannot be used ({text}): free space or restore the file; the "
            "runs of its trials are in the tracking store. Without the file, a search begins anew "
            "and takes those runs as they are"
        ) from error
