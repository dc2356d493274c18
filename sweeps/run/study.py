"""A search's study: its trials as Configs, kept by Optuna in a database beside the tracking store.

Trial 0 is the preset itself, so that a search holds its baseline. Trials are ended early by
asynchronous successive halving (ASHA, Li et al., MLSys 2020) over the validation scores that the study
knows; it is Optuna's and not Ray Tune's, whose rungs would be forgotten by a restart.

Each search records heartbeats for the trials that it has begun. The trials of a search that was killed
become stale; any other search fails them and queues them again. A trial that was queued again is a new
trial to Optuna; here it keeps the number of the first.
"""

import copy
import hashlib
import math
import sqlite3
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from pathlib import Path

import optuna
from filelock import FileLock, Timeout
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.exceptions import (
    ExperimentalWarning,
    OptunaError,
    StorageInternalError,
    UpdateFinishedTrialError,
)
from optuna.pruners import SuccessiveHalvingPruner
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback, fail_stale_trials
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from semidavil.config import Config
from semidavil.names import FUSIONS
from sweeps.show.tables import csv_text
from sweeps.track.retry import StoreAway, TrackingError
from sweeps.track.store import Store

HALVING = 3  # one in so many goes on at each rung
RANDOM_TRIALS = 10  # before TPE has something to learn from
LEAST_FOR_IMPORTANCE = 4  # finished trials
HEARTBEAT_SECONDS = 10
GRACE_SECONDS = 30  # without a heartbeat, after which a trial is stale
DATABASE_SECONDS = 2.0  # to wait for another's transaction: `should_stop` runs in Tune's loop
LOCK_SECONDS = 60.0  # to wait for another search that begins or queues a trial
FILE = "studies.db"


def space_of(base: Config, objective: str) -> Mapping[str, BaseDistribution]:
    """The settings that are searched, around those of `base`, which lie within."""
    lr = base.training.lr
    space: dict[str, BaseDistribution] = {
        "training.lr": FloatDistribution(lr / 10, lr * 10, log=True),
        "training.confidence": _floats(0.3, 0.99, base.training.confidence),
        "training.temperature": _floats(0.3, 3.0, base.training.temperature, log=True),
        "training.ema": _floats(0.8, 0.9999, base.training.ema),
        "training.consistency_weight": _floats(0.0, 2.0, base.training.consistency_weight),
    }
    if base.loss.name == "dyce":
        space["loss.hard_fraction"] = _floats(0.05, 1.0, base.loss.hard_fraction)
        space["loss.omega"] = FloatDistribution(0.0, 1.0)
    if objective == "miou-latency":
        width, inner = base.model.decoder_dim, base.model.fusion_dim
        space["model.fusion"] = CategoricalDistribution(tuple(sorted(FUSIONS.own)))
        space["model.decoder_dim"] = CategoricalDistribution((width // 2, width, width * 2))
        space["model.fusion_dim"] = CategoricalDistribution((inner // 2, inner, inner * 2))
    return space


def _floats(low: float, high: float, preset: float, log: bool = False) -> FloatDistribution:
    """From `low` to `high`, and as far as the preset's value where that lies outside."""
    return FloatDistribution(min(low, preset), max(high, preset), log=log)


def study_name(base: Config, objective: str, uri: str) -> str:
    """The name of the study that such a search goes on with: the same only if its trials are comparable.

    Runs in a tracking store at another `uri` are other trials.
    """
    space = sorted((name, str(kind)) for name, kind in space_of(base, objective).items())
    server = "" if uri.startswith("sqlite") else uri  # a file lies beside its studies
    content = f"{base.key()} {base.runtime.eval_every} {space} {server}"
    digest = hashlib.sha256(content.encode()).hexdigest()[:8]
    return f"{base.data.benchmark}-{base.data.budget}-s{base.seed}-{objective}-{digest}"


@dataclass(frozen=True)
class OpenTrial:
    """A trial that this process has begun."""

    name: str  # unique within the study; the same when the trial is queued again, as is the number
    number: int
    config: Config
    trial: Trial


class Study:
    """Asks Optuna for trials, tells it how they end, and says what was found.

    One thread asks and tells; `should_stop` may be called from another one.

    Args:
        base: the preset; trials differ from it in the space's settings alone.
        trials: how many there are to be in all.
        create: begin the study if there is none.

    Raises (as do its methods):
        StoreAway: another process holds the database locked, or the disk is full; try again later.
        TrackingError: the database cannot be used.
        KeyError: there is no such study, and `create` is False.
    """

    def __init__(
        self, base: Config, objective: str, trials: int, store: Store, create: bool = True
    ) -> None:
        self.base, self.objective, self.trials = base, objective, trials
        self.space = space_of(base, objective)
        self.name = study_name(base, objective, store.uri)
        self.file = store.folder / FILE
        # What this process has begun and has not told the end of, by name.
        self.open: dict[str, OpenTrial] = {}
        self._lock = FileLock(f"{self.file}.lock", timeout=LOCK_SECONDS)
        self._closed = threading.Event()
        if not create and not self.file.exists():
            raise KeyError(self.name)
        _quiet_optuna()
        with _usable(self.file):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self._lock:
                self.storage = _open_storage(self.file)
                if not create and self.name not in optuna.get_all_study_names(self.storage):
                    raise KeyError(self.name)
                self.study = self._create()
        threading.Thread(target=self._keep_beating, daemon=True).start()

    def _create(self) -> optuna.Study:
        """The study, with the preset as its first trial, unless it is there."""
        study = optuna.create_study(
            study_name=self.name,
            storage=self.storage,
            # Rungs are evaluations: without any on the way, no trial ends early.
            pruner=SuccessiveHalvingPruner(self.base.runtime.eval_every or 1, HALVING),
            directions=["maximize"] if self.objective == "miou" else ["maximize", "minimize"],
            load_if_exists=True,
        )
        if not study.get_trials(deepcopy=False):
            study.enqueue_trial({path: attrgetter(path)(self.base) for path in self.space})
        return study

    def begin_anew(self) -> None:
        """Forgets all trials: their scores are of other data."""
        with _usable(self.file), self._lock:
            optuna.delete_study(study_name=self.name, storage=self.storage)
            self.study = self._create()

    # What is left

    def left(self) -> int:
        """Trials that nobody has begun yet, or that are queued again."""
        states = [trial.state for trial in self.latest().values()]
        return max(0, self.trials - len(states) + states.count(TrialState.WAITING))

    def running_elsewhere(self) -> int:
        """Trials of other searches; those of a dead one are among them for `GRACE_SECONDS`."""
        ours = {one.trial.number for one in list(self.open.values())}
        return len({trial.number for trial in self._trials(TrialState.RUNNING)} - ours)

    def failed(self, *failures: str) -> list[FrozenTrial]:
        """Trials that have failed: `diverged`, by `other` reasons, or "", by their search's death."""
        return [
            trial
            for trial in self.latest().values()
            if trial.state is TrialState.FAIL and trial.user_attrs.get("failure", "") in failures
        ]

    def queue_failed(self, *failures: str) -> None:
        """Queues `failed` trials again, and those of dead searches: what a new command does."""
        with _usable(self.file), self._lock:
            self._queue("", *failures)

    def _queue(self, *failures: str) -> None:
        """The caller holds the lock."""
        self._beat()  # a machine that was suspended finds its own trials stale when it wakes up
        fail_stale_trials(self.study)
        for trial in self._trials(TrialState.RUNNING):
            if "begun" not in trial.user_attrs:  # its process, which had the lock, died in `ask`
                self.study.tell(trial.number, state=TrialState.FAIL)
        for trial in self.failed(*failures):
            self._queue_again(trial)

    def _queue_again(self, trial: FrozenTrial) -> None:
        """With its settings, and the scores and rungs on its way."""
        again = copy.deepcopy(trial)
        again.user_attrs = {}
        RetryHeartbeatStaleTrialCallback(inherit_intermediate_values=True)(self.study, again)

    def retry(self, key: str) -> str:
        """Queues the trial of the Config with this key again, if it has failed for whatever reason.

        Returns its name, or an empty text.
        """
        with _usable(self.file), self._lock:
            for trial in self.failed("", "other", "diverged"):
                if trial.user_attrs.get("key") == key:
                    self._queue_again(trial)
                    return self._name_of(trial)
        return ""

    def _name_of(self, trial: FrozenTrial) -> str:
        base = self.base
        return f"{base.data.benchmark}/trial-{number_of(trial)}/{base.data.budget}/s{base.seed}"

    # One trial

    def ask(self) -> OpenTrial | None:
        """Begins the next trial: one that was queued again, else a new one.

        None if none is left: another search of the same study may have had the last.
        """
        with _usable(self.file), self._lock:
            self._queue("")
            if not self.left():
                return None
            # The draws depend on what the study knows alone: a search that is continued takes the
            # same way. Without `constant_liar`, searches with several workers would draw the same
            # settings for all of them; `multivariate`, because rate and weights depend on each other.
            self.study.sampler = optuna.samplers.TPESampler(
                n_startup_trials=RANDOM_TRIALS,
                seed=1000 * self.base.seed + len(self.latest()),
                multivariate=True,
                constant_liar=True,
            )
            trial = self.study.ask(dict(self.space))
            frozen = self._trials()[trial.number]
            config, name = self.base.replace(trial.params), self._name_of(frozen)
            self.open[name] = OpenTrial(name, number_of(frozen), config, trial)
            self._beat()
            trial.set_user_attr("key", config.key())
            trial.set_user_attr("begun", True)  # last: without it, its process died here
        return self.open[name]

    def _keep_beating(self) -> None:
        while not self._closed.wait(HEARTBEAT_SECONDS):
            with suppress(OptunaError, SQLAlchemyError):  # the next heartbeat may come through
                self._beat()

    def _beat(self) -> None:
        """Records a heartbeat of each open trial."""
        storage, study_id = self.storage, self.storage.get_study_id_from_name(self.name)
        for one in list(self.open.values()):
            number = one.trial.number
            storage.record_heartbeat(
                storage.get_trial_id_from_study_id_trial_number(study_id, number)
            )

    def should_stop(self, name: str, step: int, score: float) -> bool:
        """Takes a score on the way; True at a rung for one of those that do not go on.

        The preset always goes on: it is what the others are compared to.
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

    def tell(
        self,
        name: str,
        run_id: str,
        state: TrialState = TrialState.COMPLETE,
        score: float = math.nan,
        latency_ms: float = math.nan,
        diverged: bool = False,
    ) -> None:
        """How a trial has ended, unless this or another search has told already.

        One that is `diverged` would fail again in the same way. A finished trial without one of its values,
        as runs of old are, has failed for good.
        """
        if name not in self.open:
            return
        values = [score] if self.objective == "miou" else [score, latency_ms]
        if state is TrialState.COMPLETE and any(math.isnan(value) for value in values):
            state, diverged = TrialState.FAIL, True
        trial = self.open[name].trial
        with _usable(self.file), suppress(UpdateFinishedTrialError):
            trial.set_user_attr("run_id", run_id)
            if state is TrialState.FAIL:
                trial.set_user_attr("failure", "diverged" if diverged else "other")
            known = values if state is TrialState.COMPLETE else None
            self.study.tell(trial, known, state, skip_if_finished=True)
        del self.open[name]

    def close(self) -> None:
        """Queues what is still open again: the next search need not wait until it is stale."""
        self._closed.set()
        with suppress(TrackingError), _usable(self.file), self._lock:
            for one in self.open.values():
                self.study.tell(one.trial, state=TrialState.FAIL, skip_if_finished=True)
            self.open.clear()
            self._queue("")

    # What came out

    def _trials(self, *states: TrialState) -> list[FrozenTrial]:
        with _usable(self.file):
            return self.study.get_trials(deepcopy=False, states=states or None)

    def latest(self) -> dict[int, FrozenTrial]:
        """By `number_of`, each trial as it was begun or queued last."""
        return {number_of(trial): trial for trial in self._trials()}

    def finished(self) -> list[FrozenTrial]:
        return self._trials(TrialState.COMPLETE)

    def is_preset(self, trial: FrozenTrial) -> bool:
        return trial.user_attrs.get("key") == self.base.key()

    def best(self) -> list[FrozenTrial]:
        """The best finished trial; of two objectives, those that no other beats in both.

        The highest score comes first.
        """
        with _usable(self.file):
            return sorted(self.study.best_trials, key=lambda trial: -trial.values[0])

    def importances(self) -> dict[str, float]:
        """Share of the score's variance that each setting explains (fANOVA); empty for few trials."""
        done = self.finished()
        if len(done) < LEAST_FOR_IMPORTANCE or len({trial.values[0] for trial in done}) < 2:
            return {}
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        return optuna.importance.get_param_importances(
            self.study, evaluator=evaluator, target=lambda trial: trial.values[0]
        )

    def counts(self) -> dict[str, int]:
        """Trials that have ended, by how."""
        names = {"finished": "COMPLETE", "stopped_early": "PRUNED", "failed": "FAIL"}
        states = [trial.state.name for trial in self.latest().values()]
        return {name: states.count(state) for name, state in names.items()}

    def csv(self) -> str:
        """One line a trial: its state, score, latency, last value on the way, settings and run."""
        rows: list[list[object]] = []
        for number, trial in self.latest().items():
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


def number_of(trial: FrozenTrial) -> int:
    """The number that people see: of the first of those that were queued again for each other."""
    first = RetryHeartbeatStaleTrialCallback.retried_trial_number(trial)
    return trial.number if first is None else first


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
        f"sqlite:///{FILE}",  # says which kind of database it is; `connect` bears any path
        engine_kwargs={"creator": connect},
        heartbeat_interval=HEARTBEAT_SECONDS,
        grace_period=GRACE_SECONDS,
    )


@contextmanager
def _usable(file: Path) -> Iterator[None]:
    """Turns errors of the database and its lock into StoreAway, if they may pass, or TrackingError."""
    try:
        yield
    except Timeout:
        raise StoreAway(f"another search holds {file}.lock: if none runs, remove it") from None
    except (StorageInternalError, SQLAlchemyError, OSError) as error:
        cause = (error.__cause__ if isinstance(error, StorageInternalError) else None) or error
        kind = StoreAway if isinstance(cause, OperationalError) else TrackingError
        raise kind(
            f"the studies in {file} cannot be used ({str(cause).splitlines()[0]}): free space or "
            "restore the file; the runs of its trials are in the tracking store. Without the file, "
            "a search begins anew and takes those runs as they are"
        ) from error
