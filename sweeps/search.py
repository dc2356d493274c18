"""Settings chosen by Optuna instead of by a grid.

    python sweeps/run.py --grid search --trials 40
    python sweeps/run.py --grid search --objective miou-latency

The same command goes on with its study. Every trial is a run like a cell of a grid: claimed, tracked,
continued after a crash, and a Config that has a finished run is not trained again.

The best of many trials is too good on the images that chose it, and on the seed: what a search found is
only known after `--confirm-seeds` has trained it and the preset again with other seeds.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from semidavil.config import Config
from sweeps.grids import SEARCH, Grid
from sweeps.plan import Cell, Plan, State, measured_pace
from sweeps.server import StoreAway
from sweeps.storage import StorageError, workspace
from sweeps.study import Study, latency_of
from sweeps.sweep import Driver
from sweeps.tracking import Store, TrackedRun
from sweeps.trial import Failure, Task

ABOUT = (__doc__ or "").strip()


class SearchDriver(Driver):
    """A sweep's driver whose cells are asked for one by one."""

    def __init__(self, study: Study, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.study = study
        self.asked_cell: Cell | None = None  # but not yet claimed: the store was away
        self.diverged: set[str] = set()  # by name
        self.stopped: list[str] = []  # places of what was ended early

    def ending(self, task: Task) -> None:
        """A trial that is asked for later knows this one's score."""

    def claim(self, cell: Cell) -> Task | None:
        if cell.name:  # a trial that is tried again
            return super().claim(cell)
        if self.asked_cell is None:
            asked = self.study.ask()
            if asked is None:
                return None
            name, config = asked
            self.asked_cell = Cell(config, name, State.TODO, None, math.nan)
        cell = self.asked_cell
        runs = self.store.runs(cell.config.key())
        finished = next((run for run in runs if run.status == "FINISHED"), None)
        task = None
        if finished is not None:
            self.study.tell(cell.name, finished.score, latency_of(finished), finished.run_id)
            self.progress.say(f"{escape(cell.name)} has a finished run: {finished.run_id[:8]}")
        else:
            task = super().claim(replace(cell, run=runs[-1] if runs else None))
            if task is None:
                self.study.leave(cell.name)
                self.progress.say(f"{escape(cell.name)}: another sweep has begun it")
        self.asked_cell = None
        return task

    def skipped(self, cell: Cell) -> None:
        self.progress.total -= 1

    def taken(self, task: Task, reason: str) -> None:
        self.study.leave(task.name)
        super().taken(task, reason)

    def tags_of(self, cell: Cell) -> Mapping[str, str]:
        number = str(self.study.number(cell.name))
        return {**self.tags, "study": self.study.name, "trial": number, "stopped_early": ""}

    def stops(self, task: Task, news: dict[str, Any]) -> bool:
        if news["state"] != "running" or task.run_id not in self.open:
            return False
        if news["step"] == news["total"]:
            return False
        return self.study.should_stop(task.name, news["step"], news["value"]) and self._stop(
            task, news["step"]
        )

    def _stop(self, task: Task, step: int) -> bool:
        try:
            if not self.store.stop_early(task.run_id, step):
                return False  # it is not ours to stop; its worker will find out
        except StoreAway as error:  # nobody would learn of it: let it train on
            self.left_alone(error)
            return False
        self.study.tell_stopped(task.name, task.run_id)
        del self.open[task.run_id]
        self.stopped.append(task.place)
        self.outcome.finished += 1
        self.progress.end(task.name, score=f"stopped early at step {step}")
        return True

    def close_open_runs(self) -> None:
        super().close_open_runs()
        try:
            for place in self.stopped:  # their workers are gone by now
                workspace(place).remove()
        except StorageError as error:
            self.progress.say(f"{escape(str(error))}; a later search removes what is left")

    def told(self, task: Task, news: dict[str, Any]) -> None:
        if task.run_id not in self.open:
            return
        if news.get("failure") == Failure.DIVERGED:
            self.diverged.add(task.name)
        super().told(task, news)
        if news["state"] == "done":
            self.study.tell(task.name, news["value"], news["latency_ms"], task.run_id)

    def given_up(self, task: Task, reason: str) -> None:
        self.study.tell_failed(task.name, task.run_id, task.name in self.diverged)
        super().given_up(task, reason)


def waiting_plan(study: Study, runs: Sequence[TrackedRun]) -> Plan:
    """A slot for each trial that is left; what it trains is only known when it begins.

    Args:
        runs: of the store; how long a trial takes is judged by them.
    """
    finished = [run for run in runs if run.status == "FINISHED"]
    mine = [run for run in finished if run.tags.get("study") == study.name]
    pace = next(iter(measured_pace(mine or finished[-1:]).values()), math.nan)
    slot = Cell(study.base, "", State.TODO, None, pace * study.base.training.steps)
    grid = Grid(_no_cells, {path: None for path in study.space}, ()).around(study.base)
    return Plan(SEARCH, grid, [slot] * study.left())


def remove_stopped(store: Store, runs: Sequence[TrackedRun]) -> None:
    """Folders of trials that were stopped early by a search that was then killed itself."""
    live = {run.key for run in runs if run.status not in ("KILLED", "FAILED")}
    stopped = {run.key for run in runs if run.was_stopped_early()}
    for key in (stopped - live) & store.storage.keys():
        workspace(store.storage.of(key)).remove()


def confirmation(base: Config, study: Study, seeds: Sequence[int]) -> tuple[Grid, list[Config]]:
    """A grid of the preset and the best trial with other seeds; of two objectives, the best score."""
    best = base.replace(study.best()[0].params)

    def name_of(params: Mapping[str, str]) -> str:
        config = Config.from_params(params)
        return "preset" if config.replace({"seed": base.seed}).key() == base.key() else "found"

    grid = Grid(_no_cells, {path: None for path in study.space}, (), name_of=name_of)
    better = best.key() != base.key()
    return grid.around(base), [
        config.replace({"seed": seed}) for seed in seeds for config in (base, best) if better
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


def print_search(console: Console, study: Study) -> None:
    """What came out: the best beside the preset, what mattered, how many ended early."""
    score = study.benchmark.score
    told = ", ".join(f"{n} {name.replace('_', ' ')}" for name, n in study.counts().items())
    if study.busy:
        told += (
            f"; {len(study.busy)} trained by another sweep: repeat the command when it has ended"
        )
    console.print(f"study {study.name}: {told}", highlight=False, soft_wrap=True)
    table = Table("", score, *(["ms per image"] if study.objective != "miou" else []))
    table.add_column("settings", overflow="fold")
    preset = study.preset()
    shown = [] if preset is None else [preset]
    shown += [trial for trial in study.best() if not study.is_preset(trial)]
    for trial in shown:
        table.add_row(
            f"trial {trial.number}" + (" (preset)" if trial is preset else ""),
            *(f"{value:.2f}" for value in trial.values),
            ", ".join(
                f"{path.rpartition('.')[2]}={_short(trial.params[path])}" for path in study.space
            ),
        )
    if shown:
        console.print(table)
    if important := study.importances():
        told = ", ".join(f"{path} {100 * share:.0f}%" for path, share in important.items())
        console.print(f"importance for the {score}: {told}", highlight=False, soft_wrap=True)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _no_cells(*_: Any) -> list[Config]:
    """Settings chosen by Optuna; the best of them against the preset."""
    return []
