"""A search's study: its trials as Configs, kept by Optuna in a database.

Trial 0 is the preset itself, so that a search holds its baseline. Trials are ended early by
asynchronous successive halving (ASHA, Li et al., MLSys 2020) over the validation scores that the study
knows; it is Optuna's and not Ray Tune's, whose rungs would be forgotten by a restart.

A trial is told its end once, by whoever trains it. One whose process has died is taken up again, with
its settings; one that has failed is queued again with them by the next command.
"""

import fcntl
import hashlib
import math
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from semidavil.config import Config
from semidavil.data.benchmarks import BENCHMARKS
from semidavil.fusion import FUSIONS
from sweeps.provenance import owner_tags
from sweeps.server import TrackingError
from sweeps.tables import csv_text
from sweeps.tracking import Store, TrackedRun, is_gone

HALVING = 3  # one in so many goes on at each rung
RANDOM_TRIALS = 10  # before TPE has something to learn from
FILE = "studies.db"

_Space = Mapping[str, BaseDistribution]


def space_of(base: Config, objective: str) -> _Space:
    """The settings that are searched, around those of `base`."""
    lr = base.training.lr
    space: dict[str, BaseDistribution] = {
        "training.lr": FloatDistribution(lr / 10, lr * 10, log=True),
        "training.confidence": FloatDistribution(0.3, 0.99),
        "training.temperature": FloatDistribution(0.3, 3.0, log=True),
        "training.ema": FloatDistribution(0.8, 0.9999),
        "training.consistency_weight": FloatDistribution(0.0, 2.0),
    }
    if base.loss.name == "dyce":
        space["loss.hard_fraction"] = FloatDistribution(0.05, 1.0)
        space["loss.omega"] = FloatDistribution(0.0, 1.0)
    if objective == "miou-latency":
        width, inner = base.model.decoder_dim, base.model.fusion_dim
        space["model.fusion"] = CategoricalDistribution(tuple(sorted(FUSIONS)))
        space["model.decoder_dim"] = CategoricalDistribution((width // 2, width, width * 2))
        space["model.fusion_dim"] = CategoricalDistribution((inner // 2, inner, inner * 2))
    return space


def study_name(base: Config, objective: str, uri: str) -> str:
    """Of the study that such a search goes on with: the same only if its trials are comparable.

    Args:
        uri: the tracking store; runs of another one are other trials.
    """
    space = sorted((name, str(kind)) for name, kind in space_of(base, objective).items())
    server = "" if uri.startswith("sqlite") else uri  # a file lies beside its studies
    content = f"{base.key()} {base.runtime.eval_every} {space} {server}"
    digest = hashlib.sha256(content.encode()).hexdigest()[:8]
    return f"{base.data.benchmark}-{base.data.budget}-s{base.seed}-{objective}-{digest}"


class Study:
    """Asks for trials, hears of them, tells what was found.

    Attributes:
        given_out: the trials that this process runs, by name.
        busy: numbers of those that it leaves to another sweep, which trains their Config.

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
        self.base, self.objective, self.trials, self.store = base, objective, trials, store
        self.space = space_of(base, objective)
        self.benchmark = BENCHMARKS[base.data.benchmark]
        self.given_out: dict[str, Trial] = {}
        self.busy: set[int] = set()
        self.name = study_name(base, objective, store.uri)
        self.file = store.folder / FILE
        if not create and not self.file.exists():
            raise KeyError(self.name)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        storage = f"sqlite:///{self.file}"
        # Rungs are evaluations: without any on the way, no trial ends early.
        pruner = optuna.pruners.SuccessiveHalvingPruner(base.runtime.eval_every or 1, HALVING)
        with self._alone(), _usable(self.file):
            if create:
                self.study = optuna.create_study(
                    storage=storage,
                    study_name=self.name,
                    directions=["maximize"] if objective == "miou" else ["maximize", "minimize"],
                    pruner=pruner,
                    load_if_exists=True,
                )
            else:
                self.study = optuna.load_study(storage=storage, study_name=self.name, pruner=pruner)
            if create and not self.study.trials:
                self._queue({path: _at(base, path) for path in self.space})

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """No other search begins or queues trials meanwhile; the system lets go when one dies."""
        with self.file.with_suffix(".db.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _queue(self, params: Mapping[str, Any], **attributes: Any) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a preset may lie outside of the space
            self.study.enqueue_trial(dict(params), user_attrs=attributes)

    def _trials(self, *states: TrialState) -> list[FrozenTrial]:
        with _usable(self.file):
            return self.study.get_trials(deepcopy=False, states=states or None)

    # What is left

    def left(self) -> int:
        """Trials that are still to be run, those of a process that has died among them."""
        return self._left(self._abandoned())

    def _left(self, abandoned: Sequence[FrozenTrial]) -> int:
        free = {trial.number for trial in abandoned}
        trials = self._trials()
        again = _retried(trials)
        spent = 0
        for trial in trials:
            if trial.state is TrialState.FAIL:  # others are queued again
                spent += bool(trial.user_attrs.get("hopeless")) and trial.number not in again
            else:
                spent += trial.state is not TrialState.WAITING and trial.number not in free
        return max(0, self.trials - spent)

    def _abandoned(self) -> list[FrozenTrial]:
        """Begun, and nobody runs them any more."""
        mine = {trial.number for trial in self.given_out.values()} | self.busy
        return [
            trial
            for trial in self._trials(TrialState.RUNNING)
            if trial.number not in mine and self._is_gone(trial)
        ]

    def _is_gone(self, trial: FrozenTrial) -> bool:
        began = trial.datetime_start.timestamp() if trial.datetime_start else 0.0
        owner = trial.user_attrs.get("owner")
        if owner is None:  # its process has died asking
            return True
        runs = self.store.runs(trial.user_attrs["key"])
        last_word = max([began, *(run.last_word for run in runs)])
        return is_gone(owner, last_word, time.time())

    def catch_up(self, retry_hopeless: bool = False) -> None:
        """Before a search goes on: takes what other sweeps have finished, queues what has failed."""
        for trial in self._abandoned():
            if "key" in trial.user_attrs:
                self._take_finished(trial)
        self.take_busy()
        with self._alone():
            trials = self._trials()
            again = _retried(trials)
            for trial in trials:
                failed = trial.state is TrialState.FAIL and trial.number not in again
                if failed and (retry_hopeless or not trial.user_attrs.get("hopeless")):
                    self._queue(trial.params, retry_of=trial.number)

    def take_busy(self) -> None:
        """Takes the results of those that were left to another sweep, where they are there."""
        for trial in self._trials(TrialState.RUNNING):
            if trial.number in self.busy:
                self._take_finished(trial)

    def _take_finished(self, trial: FrozenTrial) -> None:
        runs = self.store.runs(trial.user_attrs["key"])
        finished = next((run for run in runs if run.status == "FINISHED"), None)
        values = finished and self._values(finished.score, latency_of(finished))
        if finished is not None and values:
            self._end(Trial(self.study, trial._trial_id), finished.run_id, values)
            self.busy.discard(trial.number)

    # One trial

    def ask(self) -> tuple[str, Config] | None:
        """The next trial's name and Config: one that a dead process had begun, else a new one.

        None if none is left: another search of the same study may have had the last.
        """
        with self._alone(), _usable(self.file):
            abandoned = self._abandoned()
            if not self._left(abandoned):
                return None
            trial = self._next_trial(abandoned)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                # All of them, where a process has died while it was drawing.
                params = {path: trial._suggest(path, kind) for path, kind in self.space.items()}
            config = self.base.replace(params)
            trial.set_user_attr("key", config.key())
            trial.set_user_attr("owner", owner_tags())
        data = config.data
        name = f"{data.benchmark}/trial-{trial.number}/{data.budget}/s{config.seed}"
        self.given_out[name] = trial
        return name, config

    def _next_trial(self, abandoned: Sequence[FrozenTrial]) -> Trial:
        # Its draws depend on what is known alone: a search that is continued takes the same way.
        self.study.sampler = optuna.samplers.TPESampler(
            n_startup_trials=RANDOM_TRIALS,
            seed=1000 * self.base.seed + len(self._trials()),
            multivariate=True,
            constant_liar=True,
        )
        if abandoned:
            return Trial(self.study, abandoned[0]._trial_id)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return self.study.ask(dict(self.space))

    def leave(self, name: str) -> None:
        """Another sweep trains this Config: the trial takes its result when it is there."""
        self.busy.add(self.given_out.pop(name).number)

    def number(self, name: str) -> int:
        return self.given_out[name].number

    def should_stop(self, name: str, step: int, value: float) -> bool:
        """Takes a score on the way; True at a rung for one of those that do not go on.

        The preset always goes on: it is what the others are compared to.
        """
        if self.objective != "miou":  # successive halving knows one objective
            return False
        trial = self.given_out[name]
        with warnings.catch_warnings(), _usable(self.file):
            warnings.simplefilter("ignore")  # a continued trial tells some steps twice
            try:
                trial.report(value, step)
            except UpdateFinishedTrialError:  # told by a search that has taken it for dead
                return False
            return trial.should_prune() and not self.is_preset(trial)

    def tell(self, name: str, value: float, latency_ms: float, run_id: str) -> None:
        """A trial that has finished; without one of its values, as runs of old are, it has failed."""
        if values := self._values(value, latency_ms):
            self._end(self.given_out.pop(name), run_id, values)
        else:
            self.tell_failed(name, run_id, hopeless=True)

    def tell_stopped(self, name: str, run_id: str) -> None:
        """A trial that was stopped early."""
        self._end(self.given_out.pop(name), run_id, state=TrialState.PRUNED)

    def tell_failed(self, name: str, run_id: str, hopeless: bool) -> None:
        """A trial that has failed; `hopeless` if it would do so again in the same way."""
        self._end(self.given_out.pop(name), run_id, state=TrialState.FAIL, hopeless=hopeless)

    def _end(
        self,
        trial: Trial,
        run_id: str,
        values: list[float] | None = None,
        state: TrialState | None = None,
        **attributes: Any,
    ) -> None:
        with _usable(self.file), suppress(UpdateFinishedTrialError):  # somebody else was first
            for key, value in {"run_id": run_id, **attributes}.items():
                trial.set_user_attr(key, value)
            self.study.tell(trial.number, values, state, skip_if_finished=True)

    def _values(self, value: float, latency_ms: float) -> list[float] | None:
        """What the study optimises; None if one of them is not known."""
        values = [value] if self.objective == "miou" else [value, latency_ms]
        return None if any(math.isnan(x) for x in values) else values

    # What came out

    def is_preset(self, trial: Trial | FrozenTrial) -> bool:
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
        if len(done) < 4 or len({trial.values[0] for trial in done}) < 2:
            return {}
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        return optuna.importance.get_param_importances(
            self.study, evaluator=evaluator, target=lambda trial: trial.values[0]
        )

    def counts(self) -> dict[str, int]:
        trials = self._trials()
        return {
            name: sum(trial.state is state for trial in trials)
            for name, state in (
                ("finished", TrialState.COMPLETE),
                ("stopped_early", TrialState.PRUNED),
                ("failed", TrialState.FAIL),
            )
        }

    def csv(self) -> str:
        """One line a trial: its state, score, latency, last value on the way, settings and run."""
        rows: list[list[Any]] = []
        for trial in self._trials():
            done = trial.values if trial.state is TrialState.COMPLETE else []
            step = trial.last_step
            on_the_way = ["", ""] if step is None else [step, trial.intermediate_values[step]]
            rows.append(
                [trial.number, trial.state.name.lower(), *[*done, "", ""][:2], *on_the_way,
                 *(trial.params.get(path, "") for path in self.space),
                 trial.user_attrs.get("run_id", ""), self.is_preset(trial)]
            )  # fmt: skip
        header = ["trial", "state", "score", "latency_ms", "step", "value", *self.space, "run_id"]
        return csv_text([*header, "preset"], rows)

    def importances_csv(self) -> str:
        shares = self.importances().items()
        return csv_text(["setting", "importance"], [[path, f"{x:.6f}"] for path, x in shares])


@contextmanager
def _usable(file: Path) -> Iterator[None]:
    """Says which file is broken, locked or full.

    Raises:
        TrackingError: in place of the database's own errors.
    """
    try:
        yield
    except (StorageInternalError, SQLAlchemyError) as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise TrackingError(
            f"the studies in {file} cannot be used ({reason}): free space or restore the file; the "
            "runs of its trials are in the tracking store. Without the file, a search begins anew "
            "and takes those runs as they are"
        ) from error


def _retried(trials: Iterable[FrozenTrial]) -> set[int]:
    """Numbers of the failed trials whose settings were queued again."""
    return {n for trial in trials if (n := trial.user_attrs.get("retry_of")) is not None}


def latency_of(run: TrackedRun) -> float:
    """Milliseconds per image; NaN where nobody measured them."""
    return run.metrics.get("final/latency_ms", math.nan)


def _at(base: Config, path: str) -> Any:
    section, _, name = path.rpartition(".")
    return base.model_dump(mode="json")[section][name]
