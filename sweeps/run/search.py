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
from contextlib import suppress
from dataclasses import replace

from optuna.trial import TrialState
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from semidavil.benchmarks import BENCHMARKS
from semidavil.config import Config
from semidavil.data.fingerprint import differences
from sweeps.plan.cells import ON_OTHER, Cell, Plan, State, with_runs
from sweeps.plan.data import NOT_COMPARED, PresentData
from sweeps.plan.grid import Grid
from sweeps.plan.pace import Pace, kind_of, time_left
from sweeps.run.events import Done, Progress
from sweeps.run.resources import Resources
from sweeps.run.study import GRACE_SECONDS, HEARTBEAT_SECONDS, Study, number_of
from sweeps.show.overview import Overview
from sweeps.show.tables import expected, mark_of
from sweeps.track.retry import RunGone, StoreRefused, TrackingError
from sweeps.track.runs import TrackedRun
from sweeps.track.store import Store
from sweeps.track.wishes import ASKED

ABOUT = (__doc__ or "").strip()
LOOK_SECONDS = 10.0  # between two looks at a cell that another sweep trains
# After so long, the trials of a search that was killed have been queued again.
KNOWN_SECONDS = GRACE_SECONDS + HEARTBEAT_SECONDS
LOCKED_PAUSE_SECONDS = 60.0  # in which Tune's loop asks nothing of a studies.db that is held locked


class StudySource:
    """The cells of a search: a `CellSource` whose cells Optuna chooses one by one.

    Args:
        say: prints a line of rich markup.
        wait: stay until the trials that other searches and sweeps run have ended.
        retry_diverged: also run trials again that have failed for good; others that have failed are.
        data: what is here now; runs that saw other data are no trial's, and are trained again with `refresh`.

    Methods that the driver's store thread calls, and this, raise StoreAway if the tracking store or the
    study does not answer, and TrackingError if the study cannot be used.
    """

    def __init__(
        self,
        study: Study,
        store: Store,
        say: Callable[[str], None],
        wait: bool = False,
        retry_diverged: bool = False,
        data: PresentData = NOT_COMPARED,
        refresh: bool = False,
    ) -> None:
        self.data, self.refresh = data, refresh
        self.study, self.store, self.say, self.wait = study, store, say, wait
        # Trials that are begun and that the driver does not have, each with the time of the next look at
        # its runs: new ones in state TODO, those that another sweep trains in state ELSEWHERE.
        self._pending: dict[str, tuple[float, Cell]] = {}
        self._ended = 0
        self._exhausted = False
        self._nothing_since: float | None = None  # monotonic, as are all times here
        self._locked_until = 0.0
        self._given_up: set[str] = set()  # names of trials that have failed here
        study.queue_failed("other", *(["diverged"] if retry_diverged else []))
        for run in store.runs() if study.failed("diverged") else []:
            if run.tags.get("retry") == ASKED:
                study.retry(run.key)
        self._left = study.left()

    @property
    def total(self) -> int:
        return self._ended + len(self.study.open) - len(self._pending) + self._left

    @property
    def elsewhere(self) -> int:
        """Trials that other searches and sweeps are at work on."""
        return len(self._pending) + self.study.running_elsewhere()

    def next(self) -> Cell | None:
        now = time.monotonic()
        due = [cell for look_at, cell in self._pending.values() if look_at <= now]
        while cell := due.pop(0) if due else self._begin():
            runs = self.store.runs(cell.config.key())
            known = with_runs(cell, runs, time.time(), self.data)
            state, run = known.state, known.run
            if state is State.DONE and run is not None:
                self._take_result(cell, run)
            elif state in ON_OTHER and not self.refresh:
                self._leave(known)
            elif cell.state is State.TODO or state is State.INTERRUPTED:
                del self._pending[cell.name]
                return known
            elif state is State.ELSEWHERE:
                self.taken(cell)
            else:  # it has failed there, or somebody has deleted its run
                run_id, diverged = run.run_id if run else "", state is State.DIVERGED
                self.study.tell(cell.name, run_id, TrialState.FAIL, diverged=diverged)
                del self._pending[cell.name]
        self._exhausted = self._is_exhausted(now)
        return None

    def _begin(self) -> Cell | None:
        one = self.study.ask()
        if one is not None:
            cell = Cell(one.config, one.name, State.TODO, None, math.nan)
            self._pending[one.name] = 0.0, cell
        self._left = self.study.left()
        return cell if one else None

    def _take_result(self, cell: Cell, run: TrackedRun) -> None:
        """The run of another sweep is this trial's, and `status.py` counts it for the study."""
        if self.study.name != run.tags.get("study"):
            with suppress(RunGone, StoreRefused):
                self.store.add_to(run, "studies", self.study.name)
        self.study.tell(cell.name, run.run_id, score=run.score, latency_ms=run.latency_ms)
        del self._pending[cell.name]
        self.say(f"{escape(cell.name)} has a finished run: {run.run_id[:8]}")

    def _leave(self, cell: Cell) -> None:
        """A trial whose run saw other data than are here now has failed."""
        self.say(
            f"{escape(cell.name)} is {cell.state}; not the same: {', '.join(cell.changed)}. --refresh trains "
            "it again"
        )
        self.study.tell(cell.name, cell.run.run_id if cell.run else "", TrialState.FAIL)
        del self._pending[cell.name]

    def _is_exhausted(self, now: float) -> bool:
        """Whether nothing is left to begin, and no trial of others will become free.

        Without `wait`, a search stays for the trials of one that was killed, and for no others.
        """
        elsewhere = self.elsewhere
        if self.wait or not elsewhere:
            return not elsewhere
        if self._nothing_since is None:
            self._nothing_since = now
            self.say(
                f"others have begun the last {elsewhere} trials: whether they live is known within "
                f"{KNOWN_SECONDS} s"
            )
        return now - self._nothing_since >= KNOWN_SECONDS

    def exhausted(self) -> bool:
        return self._exhausted

    def should_stop(self, cell: Cell, progress: Progress) -> bool:
        if progress.score is None or time.monotonic() < self._locked_until:
            return False
        try:
            return self.study.should_stop(cell.name, progress.step, progress.score)
        except TrackingError as error:  # it trains on
            self._locked_until = time.monotonic() + LOCKED_PAUSE_SECONDS
            self.say(f"{escape(str(error))}; no trial is stopped early meanwhile")
            return False

    def finished(self, cell: Cell, done: Done, run_id: str) -> None:
        self.study.tell(cell.name, run_id, score=done.score, latency_ms=done.latency_ms)
        self._end(cell)

    def failed(self, cell: Cell, reason: str, run_id: str, diverged: bool) -> None:
        self.study.tell(cell.name, run_id, TrialState.FAIL, diverged=diverged)
        self._given_up.add(cell.name)
        self._end(cell)

    def retry(self, key: str) -> str:
        """Also of trials that other searches of this study have given up."""
        if name := self.study.retry(key):
            self._ended -= name in self._given_up
            self._given_up.discard(name)
            self._exhausted, self._nothing_since = False, None
            self._left = self.study.left()
        return name

    def stopped(self, cell: Cell, run_id: str) -> None:
        self.study.tell(cell.name, run_id, TrialState.PRUNED)
        self._end(cell)

    def _end(self, cell: Cell) -> None:
        self._pending.pop(cell.name, None)
        self._ended += 1

    def taken(self, cell: Cell) -> None:
        """Another sweep trains this cell, or has finished it: its trial takes that run's result.

        It may be this sweep, if the trial became stale while the machine was suspended and was queued again.
        """
        next_look = time.monotonic() + LOOK_SECONDS
        self._pending[cell.name] = next_look, replace(cell, state=State.ELSEWHERE)
        self._exhausted = False

    def tags(self, cell: Cell) -> Mapping[str, str]:
        """Tags of the cell's run; a run that was once stopped early loses that one."""
        number = str(self.study.open[cell.name].number)
        return {"study": self.study.name, "trial": number, "stopped_early": ""}


def other_data(study: Study, runs: Sequence[TrackedRun], data: PresentData) -> list[str]:
    """In which parts the data that a study's trials saw differ from those that are here now."""
    ended = {trial.user_attrs.get("run_id") for trial in study.latest().values()}
    seen = {run.data for run in runs if run.data and run.run_id in ended}
    present = data.of(study.base) if seen else ""
    changed = {name for one in seen if present for name in differences(one, present)}
    return sorted(changed)


def confirmation(study: Study, seeds: Sequence[int]) -> tuple[Grid, list[Config]]:
    """A grid of the preset and the best trial with other seeds; of two objectives, the best score."""
    base = study.base
    best = base.replace(study.best()[0].params)

    def name_of(params: Mapping[str, str]) -> str:
        config = Config.from_params(params)
        return "preset" if config.replace({"seed": base.seed}).key() == base.key() else "found"

    grid = Grid(_no_cells, {path: None for path in study.space}, (), name_of=name_of)
    better = best.key() != base.key()
    return grid.around(base), [
        config.replace({"seed": seed}) for seed in seeds for config in (base, best) if better
    ]


def _no_cells(*_: object) -> list[Config]:
    """Settings chosen by Optuna; the best of them against the preset."""
    return []


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
            "found minus preset, on seeds that the search has not seen: "
            f"{statistics.mean(gains):+.2f}{spread} (n={len(gains)})"
        )


def write_study(store: Store, overview: Overview, study: Study) -> None:
    """Brings the overview of a search in MLflow up to date: its trials and what mattered."""
    metrics = {f"trials/{name}": count for name, count in study.counts().items()}
    texts = {
        f"studies/{study.name}.csv": study.csv(),
        f"studies/{study.name}-importances.csv": study.importances_csv(),
    }
    status = "SCHEDULED" if study.left() or study.running_elsewhere() else "FINISHED"
    store.update_overview(overview.run_id, status, metrics, texts)


def print_search(console: Console, study: Study, pace: Pace, resources: Resources) -> None:
    """How far a search is: its trials, the best beside the preset, what mattered, what is to run."""
    score = BENCHMARKS[study.base.data.benchmark].score
    text = ", ".join(f"{n} {name.replace('_', ' ')}" for name, n in study.counts().items())
    if elsewhere := study.running_elsewhere():
        text += f", {elsewhere} begun by other searches"
    if waiting := study.left() + len(study.failed("other")):
        seconds = pace.seconds(kind_of(study.base.to_params()))
        left = time_left([(seconds, 1.0)] * waiting, resources.concurrency)
        gpu_seconds = waiting * seconds * resources.gpus
        text += f"; {waiting} to run, "
        text += expected(left, gpu_seconds, resources.concurrency)
    note = f" ({mark_of(study.base)})" if mark_of(study.base) else ""
    console.print(f"study {study.name}{note}: {text}")
    table = Table("", score, *(["ms per image"] if study.objective != "miou" else []))
    table.add_column("settings", overflow="fold")
    shown = [trial for trial in study.finished() if study.is_preset(trial)]
    shown += [trial for trial in study.best() if not study.is_preset(trial)]
    for trial in shown:
        table.add_row(
            f"trial {number_of(trial)}" + (" (preset)" if study.is_preset(trial) else ""),
            *(f"{value:.2f}" for value in trial.values),
            ", ".join(
                f"{path.rpartition('.')[2]}={_short(trial.params[path])}" for path in study.space
            ),
        )
    if shown:
        console.print(table)
    if important := study.importances():
        text = ", ".join(f"{path} {100 * share:.0f}%" for path, share in important.items())
        console.print(f"importance for the {score}: {text}")


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
