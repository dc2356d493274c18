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
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from semidavil.config import Config
from sweeps.plan.cells import Cell, Plan, State, state_of
from sweeps.plan.grids import Grid
from sweeps.plan.pace import Pace, kind_of, time_left
from sweeps.run.events import Done, Progress
from sweeps.run.study import GRACE_SECONDS, HEARTBEAT_SECONDS, Study
from sweeps.show.overview import Overview, write_search_overview
from sweeps.show.tables import duration
from sweeps.track.retry import TrackingError
from sweeps.track.store import Store

ABOUT = (__doc__ or "").strip()
LOOK_SECONDS = 10.0  # between two looks at cells that another sweep trains
# After so long, the trials of a search that was killed have been queued again.
KNOWN_SECONDS = GRACE_SECONDS + HEARTBEAT_SECONDS
LOCKED_PAUSE_SECONDS = 60.0  # in which Tune's loop asks nothing of a studies.db that is held locked


class StudySource:
    """The cells of a search: a `CellSource` whose cells Optuna chooses one by one.

    `should_stop`, `exhausted` and `total` are for Tune's loop, the rest is called from one other thread. Only
    `next` fails because `studies.db` is locked: what could not be told is told before the next trial, and
    after the search's end it is found in the tracking store by the next search.

    Args:
        pace: by which runs trials are timed.
        say: prints a line of rich markup.
        wait: stay until the trials that other searches and sweeps run have ended.
        retry_diverged: also run trials again whose loss became infinite; others that have failed are.

    Raises:
        TrackingError: the study cannot be used.
    """

    def __init__(
        self,
        study: Study,
        store: Store,
        pace: Pace,
        say: Callable[[str], None],
        wait: bool = False,
        retry_diverged: bool = False,
    ) -> None:
        self.study, self.store, self.pace, self.say, self.wait = study, store, pace, say, wait
        self._begun: Cell | None = None  # the tracking store has not said yet whether it has a run
        self._taken: dict[str, Cell] = {}  # that another sweep has, by name
        self._gone: set[str] = set()  # of those, the ones whose run was deleted
        self._others: dict[int, float] = {}  # trials of other searches: since when they are known
        self._untold: list[Callable[[], None]] = []
        self._ended = 0
        self._waits = self._exhausted = False
        self._next_look = 0.0  # monotonic, as are all times here
        self._quiet_until = 0.0
        study.queue_failed(retry_diverged)
        self._left = max(0, study.left())

    @property
    def total(self) -> int:
        """Cells of this search that have ended, are open, or are left to run."""
        return self._ended + len(self.study.open) - len(self._taken) + self._left

    def next(self) -> Cell | None:
        """The next trial that must be trained; None if there is none now.

        Raises:
            StoreAway: the tracking store or the studies do not answer; the trial is not lost.
        """
        self._tell_rest()
        self._watch_others()
        cell = self._look_at_taken()
        while cell is None and (cell := self._begun or self._ask()):
            self._begun = cell
            state, run = state_of(self.store.runs(cell.config.key()), time.time())
            self._begun = None
            if state is State.DONE and run is not None:
                self.say(f"{escape(cell.name)} has a finished run: {run.run_id[:8]}")
                self._tell(self.study.tell, cell.name, run.score, run.latency_ms, run.run_id)
                cell = None
            else:
                cell = replace(cell, state=state, run=run)
        self._exhausted = cell is None and self._is_exhausted()
        return cell

    def _ask(self) -> Cell | None:
        self._left = max(0, self.study.left())
        one = self.study.ask()
        if one is None:
            return None
        self._left = max(0, self._left - 1)
        estimate = self.pace.seconds(kind_of(one.config.to_params()))
        return Cell(one.config, one.name, State.TODO, None, estimate)

    def _watch_others(self) -> None:
        now = time.monotonic()
        others = self.study.running_elsewhere()
        self._others = {number: self._others.get(number, now) for number in others}

    def finished(self, cell: Cell, done: Done, run_id: str) -> None:
        """A cell that `next` gave has been trained."""
        self._tell(self.study.tell, cell.name, done.score, done.latency_ms, run_id)
        self._ended += 1

    def failed(self, cell: Cell, reason: str, run_id: str, diverged: bool) -> None:
        """A cell was given up."""
        self._tell(self.study.tell_failed, cell.name, run_id, diverged)
        self._ended += 1

    def stopped(self, cell: Cell, run_id: str) -> None:
        """A cell was ended early after `should_stop`, and its run is closed."""
        self._tell(self.study.tell_stopped, cell.name, run_id)
        self._ended += 1

    def taken(self, cell: Cell) -> None:
        """Another sweep trains this cell, or has finished it: its trial takes that run's result.

        The other sweep may be this one: its trial was stale while the machine was suspended, and another
        search has queued it again.
        """
        self._taken[cell.name] = cell
        self._exhausted = self._exhausted and not self.wait

    def should_stop(self, cell: Cell, progress: Progress) -> bool:
        """Whether the cell's training ends here. Called in Tune's loop."""
        if progress.score is None or progress.step == progress.total:
            return False
        if time.monotonic() < self._quiet_until:
            return False
        try:
            return self.study.should_stop(cell.name, progress.step, progress.score)
        except TrackingError as error:  # it trains on
            self._quiet_until = time.monotonic() + LOCKED_PAUSE_SECONDS
            self.say(f"{escape(str(error))}; no trial is stopped early meanwhile")
            return False

    def exhausted(self) -> bool:
        """Whether `next` will give no cell any more. Called in Tune's loop."""
        return self._exhausted

    def _is_exhausted(self) -> bool:
        """All trials are begun, and those that other searches have begun are not of one that was killed."""
        now = time.monotonic()
        if any(now - since < KNOWN_SECONDS for since in self._others.values()):
            if not self._waits:
                self._waits = True
                text = f"whether they live is known within {KNOWN_SECONDS} s"
                self.say(f"other searches have begun the last {len(self._others)} trials: {text}")
            return False
        return not (self.wait and (self._others or self._taken.keys() - self._gone))

    @property
    def elsewhere(self) -> int:
        """Trials that other searches and sweeps are at work on."""
        return len(self._taken.keys() - self._gone) + len(self.study.running_elsewhere())

    def tags(self, cell: Cell) -> Mapping[str, str]:
        """Tags of the cell's run; a run that was once stopped early loses that one."""
        number = str(self.study.open[cell.name].number)
        return {"study": self.study.name, "trial": number, "stopped_early": ""}

    def close(self) -> None:
        """At the end of the search, however it ends: what is still open is for the next search."""
        try:
            self._look_at_taken(now=True)
        except TrackingError as error:
            self.say(escape(str(error)))
        self._tell_rest()
        self.study.close()

    def _look_at_taken(self, now: bool = False) -> Cell | None:
        """Takes what other sweeps have finished; a cell that is free again, because its sweep ended."""
        if not now and time.monotonic() < self._next_look:
            return None
        self._next_look = time.monotonic() + LOOK_SECONDS
        for name, cell in list(self._taken.items()):
            state, run = state_of(self.store.runs(cell.config.key()), time.time())
            if run is None:  # it may also be that the other sweep has not opened it yet
                self._gone.add(name)
                continue
            self._gone.discard(name)
            if state is State.ELSEWHERE or (state is State.INTERRUPTED and now):
                continue
            if state is State.DONE:
                self._tell(self.study.tell, name, run.score, run.latency_ms, run.run_id)
            elif state is State.INTERRUPTED:
                del self._taken[name]
                return replace(cell, state=state, run=run)
            else:
                self._tell(self.study.tell_failed, name, run.run_id, state is State.DIVERGED)
        return None

    def _tell(self, tell: Callable[..., None], name: str, *arguments: object) -> None:
        self._taken.pop(name, None)
        self._untold.append(partial(tell, name, *arguments))
        if error := self._tell_rest():
            self.say(f"{escape(str(error))}; how trials end is told when it can be")

    def _tell_rest(self) -> TrackingError | None:
        try:
            while self._untold:
                self._untold[0]()
                del self._untold[0]
        except TrackingError as error:
            return error
        return None


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


def study_summary(study: Study, pace: Pace, concurrency: int, gpus: float = 0.0) -> str:
    """`study NAME: 12 trials to run, about 5 min, 2 at a time`, before a search.

    Args:
        gpus: of each trial; where there are some, GPU-hours are told too.
    """
    trials = study.left() + len(study.failed(diverged=False))
    if trials <= 0:
        begun = len(study.running_elsewhere())
        text = (
            f"another search has begun the last {begun} trials"
            if begun
            else "all trials have ended"
        )
        return f"study {study.name}: {text}"
    seconds = pace.seconds(kind_of(study.base.to_params()))
    when = "time unknown until one has finished on this machine"
    if not math.isnan(seconds):
        when = f"about {duration(time_left([(seconds, 1.0)] * trials, concurrency))}"
        when += f" and {trials * seconds * gpus / 3600:.3g} GPU-hours" if gpus else ""
    return f"study {study.name}: {trials} trials to run, {when}, {concurrency} at a time"


def write_study(store: Store, overview: Overview, study: Study) -> None:
    """Brings the overview of a search in MLflow up to date: its trials and what mattered."""
    ended = study.left() <= 0 and not study.open and not study.running_elsewhere()
    texts = {
        f"studies/{study.name}.csv": study.csv(),
        f"studies/{study.name}-importances.csv": study.importances_csv(),
    }
    write_search_overview(store, overview, study.counts(), texts, ended)


def print_search(console: Console, study: Study, elsewhere: int = 0) -> None:
    """What came out: the best beside the preset, what mattered, how many ended early.

    Args:
        elsewhere: trials that others are at work on.
    """
    score = study.benchmark.score
    text = ", ".join(f"{n} {name.replace('_', ' ')}" for name, n in study.counts().items())
    if elsewhere:
        text += f"; {elsewhere} trained by another sweep: repeat the command when it has ended"
    console.print(f"study {study.name}: {text}", highlight=False, soft_wrap=True)
    table = Table("", score, *(["ms per image"] if study.objective != "miou" else []))
    table.add_column("settings", overflow="fold")
    preset = study.preset()
    shown = [] if preset is None else [preset]
    shown += [trial for trial in study.best() if not study.is_preset(trial)]
    numbers = {trial.number: number for number, trial in study.numbered()}
    for trial in shown:
        table.add_row(
            f"trial {numbers[trial.number]}" + (" (preset)" if trial is preset else ""),
            *(f"{value:.2f}" for value in trial.values),
            ", ".join(
                f"{path.rpartition('.')[2]}={_short(trial.params[path])}" for path in study.space
            ),
        )
    if shown:
        console.print(table)
    if important := study.importances():
        text = ", ".join(f"{path} {100 * share:.0f}%" for path, share in important.items())
        console.print(f"importance for the {score}: {text}", highlight=False, soft_wrap=True)


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _no_cells(*_: object) -> list[Config]:
    """Settings chosen by Optuna; the best of them against the preset."""
    return []
