"""A sweep from its start to its end: tidy up, prepare data, start Ray, run what waits, say what is left."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial

from rich.console import Console
from rich.markup import escape

from semidavil.config import Config
from sweeps.keep.storage import StorageError
from sweeps.plan.cells import Cell, FailedCell, Plan, plan_of
from sweeps.plan.pace import Kind, Pace, kind_of
from sweeps.plan.spec import Job
from sweeps.run.cluster import Common, require_common, run_on_cluster
from sweeps.run.context import Outcome, SweepContext, SweepOptions
from sweeps.run.driver import CLOSING_SECONDS, Driver
from sweeps.run.engine import run_tasks, started_ray
from sweeps.run.failures import is_input_error
from sweeps.run.listening import Listening
from sweeps.run.preparation import Preparation, described, preparation_of, preparations
from sweeps.run.resources import Resources
from sweeps.run.source import CellSource, QueueSource
from sweeps.run.worker import load_training
from sweeps.show.overview import PREPARES, Overview, open_overview, write_overview
from sweeps.show.progress import SweepProgress
from sweeps.stopping import AskedToStop, Stopped
from sweeps.track.deliver import advice, deliver_all
from sweeps.track.lease import is_held
from sweeps.track.provenance import owner_tags
from sweeps.track.retry import RunGone, StoreAway, StoreRefused, TrackingError
from sweeps.track.runs import TrackedRun
from sweeps.track.store import Store
from sweeps.track.wishes import Wishes

ROUNDS_IN_VAIN = 3  # in which others had all cells that looked free
LOOK_SECONDS = 10.0  # between two looks at cells that others train, with --wait

# Of each cell that waits: what runs are like it, and the share of its training that is left.
Work = Sequence[tuple[Kind, float]]


@dataclass
class SweepResult:
    """What is not done, and why."""

    failed: list[FailedCell] = field(default_factory=list)  # given up, or could not be prepared
    undelivered: int = 0  # runs that ended, and that the store does not have
    elsewhere: int = 0  # cells that other sweeps are at
    plans: dict[str, Plan] = field(default_factory=dict)  # of each job at the end, by its name


@dataclass
class Sweep:
    """The cells of some jobs, run on one start of Ray.

    Raises (from its methods):
        ClusterError: a machine of the cluster lacks something; no cell has started.
        StorageError: runs cannot be kept where the store keeps them; no cell has started.
        StoreAway: the store was away for too long; the message says what is kept.
        Stopped, KeyboardInterrupt: runs that were not finished are KILLED, their checkpoints kept.
    """

    store: Store
    resources: Resources
    console: Console
    options: SweepOptions
    result: SweepResult = field(default_factory=SweepResult)
    _unprepared: dict[Preparation, str] = field(default_factory=dict)  # with the reason
    _attempted: set[str] = field(default_factory=set)  # keys
    _overviews: dict[str, Overview] = field(default_factory=dict)  # by job
    _drivers: list[Driver] = field(default_factory=list)  # of which cells may be open
    _honoured: set[str] = field(default_factory=set)  # tokens of retries
    _got_on: bool = False  # whether a run has made a step
    _said: str = ""

    def run_jobs(self, jobs: Sequence[Job]) -> SweepResult:
        """Runs what waits, and what becomes free meanwhile, job by job."""
        runs = self.store.runs()
        plans = [self._plan(job, runs) for job in jobs]
        waiting = [cell.config for plan in plans for cell in plan.waiting]

        def overviews() -> list[Overview]:
            """Of jobs that are to do something, so that people can steer them from here on."""
            for job, plan in zip(jobs, plans, strict=True):
                self._adopt(job, plan)  # their figures have these runs, however this sweep ends
            wait = self.options.wait
            active = (plan.waiting or (wait and plan.elsewhere) for plan in plans)
            each = zip(jobs, plans, active, strict=True)
            return [self._overview(job, plan) for job, plan, acts in each if acts]

        try:
            with self._ready(waiting, overviews, self.options.wait) as ray_is_up:
                for job in jobs:
                    self._run_job(job, ray_is_up)
        except BaseException:
            with suppress(TrackingError):
                for job in jobs:
                    self._write_overview(job, self.store.within(CLOSING_SECONDS))
            raise
        return self.result

    def run_source(self, source: CellSource, overview: Overview, configs: Sequence[Config]) -> None:
        """Prepares what `configs` need, and runs a source such as a search below its overview."""
        work = [(kind_of(config.to_params()), 1.0) for config in configs]
        with self._ready(configs, lambda: [overview]) as ray_is_up:
            if not ray_is_up:
                reasons = set(self._unprepared.values())
                self.result.failed += [FailedCell(overview.spec.grid, why) for why in reasons]
                return
            more = True
            while more:
                outcome = self._drive(source, overview, work, self.store.runs())
                # Asked for when the last cell had just ended.
                again = {key for key in self._retries(overview) if source.retry(key)}
                failed = [*self.result.failed, *outcome.failed]
                self.result.failed = [one for one in failed if one.key not in again]
                more = bool(again)
        self._close_own(self.store.runs())

    @contextmanager
    def _ready(
        self,
        configs: Sequence[Config],
        overviews: Callable[[], Sequence[Overview]],
        wait: bool = False,
    ) -> Iterator[bool]:
        """Data and captions are prepared and Ray is up, unless nothing can run: then it yields False."""
        if not configs and not wait:
            yield False
            return
        self.store.storage.require()
        local, opened = not self.resources.address, overviews()
        if local:
            self._prepare(configs, opened)
            self._say_prepares(opened, "workers")
        if local and not wait and self._unprepared.keys() >= set(map(preparation_of, configs)):
            yield False
            return
        try:
            with started_ray(self.resources, self.options.train):
                if not local:
                    store, each = self.store, self.resources
                    common = Common.of(store.uri, store.database, store.storage, configs)
                    require_common(common, each.cpus, each.gpus)
                    self.console.print("the cluster is ready; preparing data and captions on it")
                    self._prepare(configs, opened)
                self._say_prepares(opened, "")
                yield True
        finally:
            # After Ray: a worker that trains on in a run that was closed would be one of two.
            for driver in self._drivers:
                driver.close("the sweep was stopped")

    def _prepare(self, configs: Sequence[Config], overviews: Sequence[Overview]) -> None:
        """What cannot be prepared costs its own cells, and no others."""
        resources, kinds = self.resources, preparations(configs, self.options.train)
        if kinds and not resources.address:
            load_training(self.options.train)  # an import that was interrupted may fail later
        with Listening(self.store, overviews, self.console.print) as listening:
            for kind, prepare in kinds.items():
                work, meant = prepare, [one for one in configs if preparation_of(one) == kind]
                self._say_prepares(overviews, described(meant[0]))
                if resources.address:
                    work = partial(run_on_cluster, prepare, resources.cpus, resources.gpus)
                try:
                    if said := listening.during(work):
                        self.console.print(escape(said), soft_wrap=True, highlight=False)
                except Exception as error:
                    if not is_input_error(error):
                        raise
                    self._unprepared[kind] = str(error)
                    text = f"{error} ({len(meant)} runs cannot be made)"
                    self.console.print(f"[red]left out:[/] {escape(text)}")

    def _say_prepares(self, overviews: Sequence[Overview], what: str) -> None:
        """To `status.py`, which sees no run of theirs yet."""
        with suppress(TrackingError):
            for overview in overviews:
                self.store.within(0).log(overview.run_id, tags={PREPARES: what})

    def _run_job(self, job: Job, ray_is_up: bool) -> None:
        """Rounds of what waits, until nothing does that this command may take."""
        in_vain = 0
        while True:
            runs = self._close_own(self.store.runs())
            if overview := self._overviews.get(job.name):
                self._attempted -= self._retries(overview)
            plan = self._plan(job, runs)
            self._adopt(job, plan)
            cells = [cell for cell in plan.waiting if self._may_run(cell)]
            if cells and ray_is_up and in_vain < ROUNDS_IN_VAIN:
                overview = self._overview(job, plan)
                outcome = self._drive(QueueSource(cells), overview, _work(cells), runs)
                keys = {cell.config.key() for cell in cells}
                self._attempted |= keys - outcome.taken
                earlier = [one for one in self.result.failed if one.key not in keys]
                self.result.failed = earlier + outcome.failed
                # A claim of another sweep may not show in the plan yet.
                in_vain = in_vain + 1 if len(outcome.taken) == len(cells) else 0
                time.sleep(in_vain)
            elif (plan.elsewhere or cells) and self.options.wait:
                waiting = len(plan.elsewhere) + len(cells)
                self._say_once(f"waiting for {waiting} runs that other sweeps train")
                time.sleep(LOOK_SECONDS)
                in_vain = 0
            else:
                break
        self._write_overview(job, self.store)
        self.result.plans[job.name] = plan
        self.result.elsewhere += len(plan.elsewhere) + len(cells)

    def _adopt(self, job: Job, plan: Plan) -> None:
        """Finished runs of other grids say that they are this one's, too: its figures find them so."""
        for run in plan.foreign():
            self._overview(job, plan)
            with self._left_out_if_refused():
                self.store.add_to(run, "grids", job.name)

    def _retries(self, overview: Overview) -> set[str]:
        """Keys of cells that people want tried again, and that no driver has given once more.

        Raises AskedToStop if somebody has told this sweep to stop.
        """
        try:
            tags = self.store.run(overview.run_id).tags
        except RunGone:
            return set()
        wishes = Wishes.of(tags).since(self._past(overview))
        if wishes.stop:
            raise AskedToStop(wishes.stopped_by)
        self._honoured |= set(wishes.retries)
        return set(wishes.keys)

    def _past(self, overview: Overview) -> Wishes:
        """What was asked before this sweep, and the retries that it has honoured: each counts once."""
        before = overview.wishes
        return replace(before, retries=(*before.retries, *self._honoured))

    def _plan(self, job: Job, runs: Sequence[TrackedRun]) -> Plan:
        each = self.options
        return plan_of(job, runs, each.retry_diverged, each.data, each.refresh)

    def _close_own(self, runs: list[TrackedRun]) -> list[TrackedRun]:
        """Ends what this process has left open, such as the run of a claim that was refused half-way."""
        mine = owner_tags().items()
        left = [run for run in runs if run.is_open and mine <= run.tags.items()]
        for run in left:
            with self._left_out_if_refused():
                self.store.close(run.run_id, "KILLED", "it had not begun yet", run.epoch)
        return self.store.runs() if left else runs

    @contextmanager
    def _left_out_if_refused(self) -> Iterator[None]:
        """Bookkeeping that the store refuses, or whose run is gone, costs no cell."""
        try:
            yield
        except (RunGone, StoreRefused) as error:
            self._say_once(escape(str(error)))

    def _may_run(self, cell: Cell) -> bool:
        key = cell.config.key()
        if key in self._attempted:
            return False
        reason = self._unprepared.get(preparation_of(cell.config))
        if reason is not None:
            self._attempted.add(key)
            self.result.failed.append(FailedCell(cell.name, reason))
        return reason is None

    def _overview(self, job: Job, plan: Plan) -> Overview:
        """Opened when the first cell is about to be prepared."""
        if job.name not in self._overviews:
            concurrency = self.resources.concurrency
            overview = open_overview(
                self.store,
                job.spec,
                plan.grid.about,
                concurrency,
                self.options.data,
                {"command": self.options.command, "storage": self.store.storage.uri},
            )
            self._overviews[job.name] = overview
            self._write_overview(job, self.store)
        return self._overviews[job.name]

    def _write_overview(self, job: Job, store: Store) -> None:
        if job.name in self._overviews and not job.spec.study:  # a search writes its own
            with self._left_out_if_refused():
                write_overview(store, self._overviews[job.name], store.runs())

    def _say_once(self, text: str) -> None:
        if text != self._said:
            self._said = text
            self.console.print(text)

    def _drive(
        self, source: CellSource, overview: Overview, to_come: Work, runs: Sequence[TrackedRun]
    ) -> Outcome:
        grid = overview.spec.grid
        context = SweepContext(
            self.store, self.resources, self.options, grid, self.store.experiment_id(grid),
            overview.run_id, self._past(overview),
        )  # fmt: skip
        pace = Pace(runs)
        progress = SweepProgress(
            self.console, source, to_come, self.resources.concurrency, pace, self.options.notify
        )
        driver = Driver(source, context, progress)
        self._drivers.append(driver)
        try:
            with progress:
                run_tasks(driver, self.resources)
        except Stopped as stop:
            self._got_on = stop.got_on = self._got_on or progress.got_on
            raise
        self._got_on = True
        driver.close("the sweep has ended")
        self._drivers.remove(driver)
        self._settle(driver)
        if driver.wishes.stop:
            raise AskedToStop(driver.wishes.stopped_by)
        self._honoured |= driver.retrying
        return driver.outcome

    def _settle(self, driver: Driver) -> None:
        """Delivers what workers could not; raises StoreAway also if cells were not begun because of that."""
        patient, waiting = self.store.within(CLOSING_SECONDS), driver.outcome.undelivered
        try:
            if waiting:
                deliver_all(patient, partial(self.console.print, markup=False))
                for task in waiting:  # refused still: the run must not look as if it went on
                    why = "its results wait to be delivered"
                    self.result.undelivered += patient.close(task.run_id, "KILLED", why, task.epoch)
        except StoreAway as error:
            raise StoreAway(f"{error}. {advice(self.store)}") from None
        except (TrackingError, StorageError) as error:  # what was trained stays where it waits
            self._say_once(escape(str(error)))
            self.result.undelivered = max(self.result.undelivered, len(waiting))
        if isinstance(driver.problem, StoreAway):
            raise StoreAway(f"{driver.problem}. {advice(self.store)}")
        if driver.problem is not None:
            raise driver.problem


def _work(cells: Sequence[Cell]) -> Work:
    return [(kind_of(cell.config.to_params()), cell.left) for cell in cells]


def tidy(store: Store, console: Console) -> None:
    """Ends what earlier sweeps have left unended, and removes what nobody needs any more."""
    show = partial(console.print, markup=False)
    try:
        if count := deliver_all(store, show):
            show(f"delivered {count} runs that had ended while the tracking store was away")
    except StoreAway:
        raise
    except TrackingError as error:  # such as an ending that cannot be read
        show(str(error))
    runs, now, closed = store.runs(), time.time(), 0
    for run in runs:
        if run.is_open and not is_held(run, now):
            with suppress(RunGone, StoreRefused):
                closed += store.close(
                    run.run_id, "KILLED", "its process ended without a word", run.epoch
                )
    if closed:
        console.print(f"closed {closed} runs that a stopped sweep had left open")
    done = {run.key for run in runs if run.status == "FINISHED"}
    ended = done | {run.key for run in runs if run.stopped_early}
    held = {run.key for run in runs if is_held(run, now)}
    for key in (ended - held) & store.storage.keys():
        # Another sweep may have begun meanwhile to go on with what was stopped early.
        if key in done or not any(run.is_open for run in store.runs(key)):
            store.storage.remove(key)
    for run in runs:  # what an attempt has left that nobody needs to continue
        if run.key in done - held and run.status != "FINISHED":
            with suppress(RunGone, StoreRefused):
                store.delete(run.run_id)
