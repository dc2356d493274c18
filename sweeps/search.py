"""Settings chosen by Optuna instead of by a grid.

    python sweeps/run.py --grid search --trials 40
    python sweeps/run.py --grid search --objective miou-latency

A study is kept in a database, so that the same command goes on with it. Every trial is a run like a
cell of a grid: claimed, tracked, continued after a crash, and a Config that has a finished run is not
trained again. Trial 0 is the preset itself, so that a search holds its baseline. Trials are ended
early by asynchronous successive halving (ASHA, Li et al., MLSys 2020) over the validation scores that
the study knows; it is Optuna's and not Ray Tune's, whose rungs would be forgotten by a restart.

The best of many trials is too good on the images that chose it, and on the seed: what a search found is
only known after `--confirm-seeds` has trained it and the preset again with other seeds.
"""

import hashlib
import math
import shutil
import statistics
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, Trial, TrialState
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from semidavil.config import Config
from semidavil.data.benchmarks import BENCHMARKS
from sweeps.grids import SEARCH, Grid
from sweeps.plan import Cell, Plan, State, measured_pace
from sweeps.provenance import owner_tags
from sweeps.server import StoreAway
from sweeps.sweep import Driver
from sweeps.tables import csv_text
from sweeps.tracking import Store, is_gone
from sweeps.trial import Task

ABOUT = (__doc__ or "").strip()
HALVING = 3  # one in so many goes on at each rung
RANDOM_TRIALS = 10  # before TPE has something to learn from

_Space = Mapping[str, BaseDistribution]


def space_of(base: Config, objective: str) -> _Space:
    """The settings that are searched, around those of `base`."""
    lr = base.training.lr
    space: dict[str, BaseDistribution] = {
        "training.lr": FloatDistribution(lr / 10, lr * 10, log=True),
        "training.confidence": FloatDistribution(0.3, 0.99),
        "training.ema": FloatDistribution(0.8, 0.9999),
        "training.consistency_weight": FloatDistribution(0.0, 2.0),
    }
    if base.loss.name == "dyce":
        space["loss.hard_fraction"] = FloatDistribution(0.05, 1.0)
        space["loss.omega"] = FloatDistribution(0.0, 1.0)
    if objective == "miou-latency":
        width, inner = base.model.decoder_dim, base.model.fusion_dim
        fusions = ("none", "dlg", "vlga", "wpct", "cross_attention")
        space["model.fusion"] = CategoricalDistribution(fusions)
        space["model.decoder_dim"] = CategoricalDistribution((width // 2, width, width * 2))
        space["model.fusion_dim"] = CategoricalDistribution((inner // 2, inner, inner * 2))
    return space


class Search:
    """A study with its trials as Configs.

    Attributes:
        about: what stands above the overview in MLflow.

    Args:
        base: the preset; trials differ from it in the space's settings alone.
        trials: how many there are to be in all.
        database: SQLite file of the studies.
    """

    about = ABOUT

    def __init__(self, base: Config, objective: str, trials: int, database: Path) -> None:
        self.base, self.objective, self.trials = base, objective, trials
        self.space = space_of(base, objective)
        self.benchmark = BENCHMARKS[base.data.benchmark]
        self.given_out: dict[str, Trial] = {}  # by the cell's name, in this process
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        content = f"{base.key()} {sorted((name, str(kind)) for name, kind in self.space.items())}"
        digest = hashlib.sha256(content.encode()).hexdigest()[:8]
        self.name = f"{base.data.benchmark}-{base.data.budget}-s{base.seed}-{objective}-{digest}"
        database.parent.mkdir(parents=True, exist_ok=True)
        # Rungs are evaluations: without any on the way, no trial ends early.
        every = base.runtime.eval_every
        self.study = optuna.create_study(
            storage=f"sqlite:///{database}",
            study_name=self.name,
            directions=["maximize"] if objective == "miou" else ["maximize", "minimize"],
            pruner=optuna.pruners.SuccessiveHalvingPruner(every or 1, HALVING),
            load_if_exists=True,
        )
        if not self.study.trials:
            params = base.model_dump(mode="json")
            defaults = {path: _at(params, path) for path in self.space}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that a preset may lie outside of the space
                self.study.enqueue_trial(defaults)

    def left(self) -> int:
        """Trials that are still to be run, those of a process that has died among them."""
        begun = [t for t in self.study.trials if t.state is not TrialState.WAITING]
        abandoned = {t.number for t in self._abandoned()}
        return max(0, self.trials - sum(t.number not in abandoned for t in begun))

    def _abandoned(self) -> list[FrozenTrial]:
        running = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        mine = {trial.number for trial in self.given_out.values()}
        return [
            trial
            for trial in running
            if trial.number not in mine
            and is_gone(trial.user_attrs.get("owner", {}), _started(trial), time.time())
        ]

    def ask(self) -> Cell:
        """The next trial: one that a dead process had begun, else a new one."""
        if abandoned := self._abandoned():
            trial = Trial(self.study, abandoned[0]._trial_id)
        else:
            # Its draws depend on what is known alone: a search that is continued takes the same way.
            self.study.sampler = optuna.samplers.TPESampler(
                n_startup_trials=RANDOM_TRIALS,
                seed=1000 * self.base.seed + len(self.study.trials),
                multivariate=True,
                constant_liar=True,
            )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                trial = self.study.ask(dict(self.space))
        config = self.base.replace(trial.params)
        trial.set_user_attr("owner", owner_tags())
        trial.set_user_attr("key", config.key())
        data = config.data
        name = f"{data.benchmark}/trial-{trial.number}/{data.budget}/s{config.seed}"
        self.given_out[name] = trial
        return Cell(config, name, State.TODO, None, math.nan)

    def number(self, name: str) -> int:
        return self.given_out[name].number

    def should_stop(self, name: str, step: int, value: float) -> bool:
        """Takes a score on the way; True at a rung for one of those that do not go on.

        The preset always goes on: it is what the others are compared to.
        """
        if self.objective != "miou":  # successive halving knows one objective
            return False
        trial = self.given_out[name]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a continued trial tells some steps twice
            trial.report(value, step)
        return trial.should_prune() and trial.number > 0

    def tell(self, name: str, value: float, latency_ms: float, run_id: str) -> None:
        trial = self.given_out[name]
        trial.set_user_attr("run_id", run_id)
        values = [value] if self.objective == "miou" else [value, latency_ms]
        if any(math.isnan(v) for v in values):
            self.study.tell(trial, state=TrialState.FAIL)
        else:
            self.study.tell(trial, values)

    def tell_ended(self, name: str, state: TrialState, run_id: str) -> None:
        """A trial that was stopped early, or has failed."""
        self.given_out[name].set_user_attr("run_id", run_id)
        self.study.tell(self.given_out[name], state=state)

    def plan(self, pace: Mapping[Any, float]) -> Plan:
        """A slot for each trial that is left; what it trains is only known when it begins."""
        estimate = next(iter(pace.values()), math.nan) * self.base.training.steps
        slot = Cell(self.base, "", State.TODO, None, estimate)
        grid = Grid(_no_cells, {path: None for path in self.space}, ()).around(self.base)
        return Plan(SEARCH, grid, [slot] * self.left())

    def best(self) -> list[FrozenTrial]:
        """The best finished trial; of two objectives, those that no other beats in both."""
        done = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        return self.study.best_trials if done else []

    def importances(self) -> dict[str, float]:
        """Share of the score's variance that each setting explains (fANOVA); empty for few trials."""
        done = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if len(done) < 4 or len({trial.values[0] for trial in done}) < 2:
            return {}
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        return optuna.importance.get_param_importances(
            self.study, evaluator=evaluator, target=lambda trial: trial.values[0]
        )

    def counts(self) -> dict[str, int]:
        trials = self.study.get_trials(deepcopy=False)
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
        for trial in self.study.get_trials(deepcopy=False):
            done = trial.values if trial.state is TrialState.COMPLETE else []
            step = trial.last_step
            on_the_way = ["", ""] if step is None else [step, trial.intermediate_values[step]]
            rows.append(
                [trial.number, trial.state.name.lower(), *[*done, "", ""][:2], *on_the_way,
                 *(trial.params.get(path, "") for path in self.space),
                 trial.user_attrs.get("run_id", "")]
            )  # fmt: skip
        header = ["trial", "state", "score", "latency_ms", "step", "value", *self.space, "run_id"]
        return csv_text(header, rows)

    def importances_csv(self) -> str:
        shares = self.importances().items()
        return csv_text(["setting", "importance"], [[path, f"{x:.6f}"] for path, x in shares])


class SearchDriver(Driver):
    """A sweep's driver whose cells are asked for one by one."""

    def __init__(self, search: Search, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.search = search
        self.asked_cell: Cell | None = None  # but not yet claimed: the store was away
        self.stopped: list[Path] = []  # folders of what was ended early

    def claim(self, cell: Cell) -> Task | None:
        if cell.name:  # a trial that is tried again
            return super().claim(cell)
        cell = self.asked_cell or self.search.ask()
        self.asked_cell = cell
        runs = self.store.runs(cell.config.key())
        finished = next((run for run in runs if run.status == "FINISHED"), None)
        if finished is not None:
            latency = finished.metrics.get("final/latency_ms", math.nan)
            self.search.tell(cell.name, finished.score, latency, finished.run_id)
            self.progress.say(f"{escape(cell.name)} has a finished run: {finished.run_id[:8]}")
            task = None
        else:
            task = super().claim(replace(cell, run=runs[-1] if runs else None))
            if task is None:
                self.search.tell_ended(cell.name, TrialState.FAIL, "")
                self.progress.say(f"{escape(cell.name)}: another sweep has begun it")
        self.asked_cell = None
        return task

    def skipped(self, cell: Cell) -> None:
        self.progress.total -= 1

    def tags_of(self, cell: Cell) -> Mapping[str, str]:
        number = str(self.search.number(cell.name))
        return {**self.tags, "study": self.search.name, "trial": number, "stopped_early": ""}

    def stops(self, task: Task, news: dict[str, Any]) -> bool:
        if news["state"] != "running" or task.run_id not in self.open:
            return False
        if news["step"] == news["total"]:
            return False
        return self.search.should_stop(task.name, news["step"], news["value"]) and self._stop(
            task, news["step"]
        )

    def _stop(self, task: Task, step: int) -> bool:
        try:
            self.store.stop_early(task.run_id, step)
        except StoreAway as error:  # nobody would learn of it: let it train on
            self.left_alone(error)
            return False
        self.search.tell_ended(task.name, TrialState.PRUNED, task.run_id)
        del self.open[task.run_id]
        self.stopped.append(Path(task.folder))
        self.outcome.finished += 1
        self.progress.end(task.name, score=f"stopped early at step {step}")
        return True

    def close_open_runs(self) -> None:
        super().close_open_runs()
        for folder in self.stopped:  # their workers are gone by now
            shutil.rmtree(folder, ignore_errors=True)

    def told(self, task: Task, news: dict[str, Any]) -> None:
        if task.run_id not in self.open:
            return
        super().told(task, news)
        if news["state"] == "done":
            self.search.tell(task.name, news["value"], news["latency_ms"], task.run_id)

    def given_up(self, task: Task, reason: str) -> None:
        self.search.tell_ended(task.name, TrialState.FAIL, task.run_id)
        super().given_up(task, reason)


def waiting_plan(search: Search, store: Store) -> Plan:
    """The slots that are left, with the time that they take by earlier runs."""
    runs = [run for run in store.runs() if run.status == "FINISHED"]
    mine = [run for run in runs if run.tags.get("study") == search.name]
    return search.plan(measured_pace(mine or runs[-1:]))


def confirmation(base: Config, search: Search, seeds: Sequence[int]) -> tuple[Grid, list[Config]]:
    """A grid of the preset and the best trial with other seeds."""
    best = base.replace(search.best()[0].params)

    def name_of(params: Mapping[str, str]) -> str:
        config = Config.from_params(params)
        return "preset" if config.replace({"seed": base.seed}).key() == base.key() else "found"

    grid = Grid(_no_cells, {path: None for path in search.space}, (), name_of=name_of)
    return grid.around(base), [
        config.replace({"seed": seed}) for seed in seeds for config in (base, best)
    ]


def print_confirmation(console: Console, plan: Plan) -> None:
    """The paired difference over seeds that the search has not seen."""
    scores: dict[int, dict[str, float]] = {}
    for cell in plan.cells:
        if cell.run is not None and cell.state is State.DONE:
            of_seed = scores.setdefault(cell.config.seed, {})
            of_seed[plan.grid.variant(cell.config)] = cell.run.score
    gains = [s["found"] - s["preset"] for s in scores.values() if {"found", "preset"} <= set(s)]
    if gains:
        spread = f" ± {statistics.stdev(gains):.2f}" if len(gains) > 1 else ""
        console.print(
            f"found minus preset, on seeds that the search has not seen: "
            f"{statistics.mean(gains):+.2f}{spread} (n={len(gains)})",
            highlight=False,
        )


def print_search(console: Console, search: Search) -> None:
    """What came out: the best beside the preset, what mattered, how many ended early."""
    score = search.benchmark.score
    trials = search.study.get_trials(deepcopy=False)
    told = ", ".join(f"{n} {name.replace('_', ' ')}" for name, n in search.counts().items())
    console.print(
        f"study {search.name}: {told}",
        highlight=False,
        soft_wrap=True,
    )
    first = trials[0] if trials else None
    table = Table("", score, *(["ms per image"] if len(search.study.directions) > 1 else []))
    table.add_column("settings", overflow="fold")
    shown = search.best()
    if first is not None and first.state is TrialState.COMPLETE:
        shown = [first, *(trial for trial in shown if trial.number != 0)]
    for trial in shown:
        table.add_row(
            f"trial {trial.number}" + (" (preset)" if trial.number == 0 else ""),
            *(f"{value:.2f}" for value in trial.values),
            ", ".join(
                f"{path.rpartition('.')[2]}={_short(trial.params[path])}" for path in search.space
            ),
        )
    if shown:
        console.print(table)
    if important := search.importances():
        told = ", ".join(f"{path} {100 * share:.0f}%" for path, share in important.items())
        console.print(f"importance for the {score}: {told}", highlight=False, soft_wrap=True)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _at(tree: Mapping[str, Any], path: str) -> Any:
    section, _, name = path.rpartition(".")
    return tree[section][name]


def _started(trial: FrozenTrial) -> float:
    return trial.datetime_start.timestamp() if trial.datetime_start else 0.0


def _no_cells(*_: Any) -> list[Config]:
    """Settings chosen by Optuna; the best of them against the preset."""
    return []
