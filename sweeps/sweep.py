"""A sweep: the waiting cells of a plan, run and tracked."""

import math
import signal
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from rich.console import Console
from rich.markup import escape

from semidavil.config import Config
from sweeps.claims import Claims
from sweeps.deliver import advice, deliver_kept
from sweeps.garbage import spare_imports
from sweeps.plan import Cell, Plan
from sweeps.progress import SweepProgress
from sweeps.provenance import owner_tags
from sweeps.server import LONGEST_PAUSE, StoreAway, patience_of
from sweeps.storage import LOG, file_of
from sweeps.tracking import Store
from sweeps.trial import LATER, TRAIN, Failure, Later, Task, load_training

AHEAD_SECONDS = 2.0  # before a run ends, the cell that follows it is claimed
ALIVE_SECONDS = 300.0  # between two signs of life of a sweep's open runs
CLOSING_SECONDS = 10.0  # to wait for a store that is away when a sweep ends


@dataclass
class Outcome:
    """What became of the cells that ran."""

    finished: int = 0
    failed: list[tuple[str, str, str]] = field(default_factory=list)  # name, reason, log


class Driver:
    """Turns cells into tasks with an open run each, and hears what becomes of them."""

    def __init__(
        self,
        plan: Plan,
        store: Store,
        tags: Mapping[str, str],
        resources: Any,
        progress: SweepProgress,
        train: str,
        retries: int,
    ) -> None:
        self.plan, self.store, self.tags = plan, store, tags
        self.resources, self.progress, self.train = resources, progress, train
        self.retries = retries
        self.claims = Claims(store)
        self.queue = deque(plan.waiting)
        self.ready: deque[Task] = deque()  # claimed, and not yet handed out
        self.ends: set[str] = set()  # runs about to end, by id
        self.wanted = 0  # cells to follow them that are not claimed yet
        self.open: dict[str, tuple[Task, Cell]] = {}  # by run id
        self.retried: Counter[str] = Counter()  # by name, as is `alone`
        self.alone: set[str] = set()
        self.outcome = Outcome()
        self.kept = 0  # ended runs that the store does not have
        self.away: StoreAway | None = None
        self.asked = 0.0  # when the store was last found away
        self.next_sign = time.monotonic() + ALIVE_SECONDS

    @cached_property
    def experiment(self) -> str:
        """MLflow's id of it; the store is not asked before it is needed."""
        return self.store.experiment_id(self.plan.grid_name)

    def next_task(self) -> Task | Later | None:
        """The next cell that nobody else has begun since the plan was made.

        While the store is away, none as long as others run; with none running, that is the end.
        """
        if not self.ready:
            self.make_ready()
        if self.ready:
            return self.ready.popleft()
        return LATER if self.open else None

    def make_ready(self) -> None:
        """Claims the next cell."""
        while self.queue and (not self.away or time.monotonic() > self.asked + LONGEST_PAUSE):
            cell = self.queue[0]
            try:
                task = self.claim(cell)
            except StoreAway as error:
                self.left_alone(error)
                break
            self.away = None
            self.queue.popleft()
            if task:
                self.ready.append(task)
                break
            self.skipped(cell)

    def skipped(self, cell: Cell) -> None:
        self.progress.leave(cell.name, "another sweep has begun it")

    def left_alone(self, error: StoreAway) -> None:
        if not self.away:
            self.progress.say(f"{escape(str(error))}; no cell begins before it does")
        self.away, self.asked = error, time.monotonic()

    def claim(self, cell: Cell) -> Task | None:
        config = self._placed(cell.config)
        earlier = cell.run.progress if cell.run else {"step": 0, "seconds": 0.0}
        tags = {
            **self.tags_of(cell),
            "benchmark": config.data.benchmark,
            "grid": self.plan.grid_name,
        }
        run_id = self.claims.claim(self.experiment, cell.name, config, tags, cell.run)
        if run_id is None:
            return None
        task = Task(
            name=cell.name,
            params=config.to_params(),
            run_id=run_id,
            tracking_uri=self.store.uri,
            place=self.store.storage.of(config.key()),
            logged_step=int(earlier["step"]),
            seconds=float(earlier["seconds"]),
            train=self.train,
            alone=cell.name in self.alone,
            owner=owner_tags(),
            claimed=time.time(),
        )
        self.open[task.run_id] = task, cell
        return task

    def tags_of(self, cell: Cell) -> Mapping[str, str]:
        return self.tags

    def _placed(self, config: Config) -> Config:
        """With this sweep's share of the machine, unless the user has chosen."""
        threads = config.runtime.threads or self.resources.threads
        return config.replace({"runtime.threads": threads})

    def started(self, task: Task) -> None:
        self.progress.start(task.name)

    def told(self, task: Task, news: dict[str, Any]) -> None:
        if news["state"] == "running":
            self.progress.step(task.name, news["step"], news["total"])
            ends = self.progress.seconds_left_of(task.name) <= AHEAD_SECONDS
            if ends and task.run_id not in self.ends:
                self.ends.add(task.run_id)
                self.ending(task)
        elif task.run_id in self.open and news["state"] == "done":
            del self.open[task.run_id]
            self.outcome.finished += 1
            self.progress.end(task.name, score=news["score"], seconds=news["seconds"])
            self._hear_of_kept(task, news)
        elif task.run_id in self.open and news["state"] == "failed":
            delivered = self._hear_of_kept(task, news)
            self._failed(task, news["reason"], Failure(news["failure"]) if delivered else None)
        elif task.run_id in self.open and news["state"] == "taken":
            self.taken(task, news["reason"])

    def taken(self, task: Task, reason: str) -> None:
        """Another sweep has the run."""
        del self.open[task.run_id]
        self.progress.leave(task.name, reason)

    def ending(self, task: Task) -> None:
        """A run is about to end: its worker shall not wait for the next claim."""
        self.wanted += 1

    def idle(self) -> None:
        """Claims, and says that open runs are alive, while no worker waits for an answer."""
        while self.wanted:
            self.wanted -= 1
            self.make_ready()
        if time.monotonic() >= self.next_sign:
            self.next_sign = time.monotonic() + ALIVE_SECONDS
            try:
                with patience_of(0):
                    self.store.keep_alive(self.open)
            except StoreAway as error:
                self.left_alone(error)

    def _hear_of_kept(self, task: Task, news: dict[str, Any]) -> bool:
        if not news["delivered"]:
            self.kept += 1
            self.progress.say(
                f"{escape(task.name)}: the store is away; what it has left waits in {escape(task.place)}"
            )
        return bool(news["delivered"])

    def stops(self, task: Task, news: dict[str, Any]) -> bool:
        """Whether a running task is to end here, having told a score."""
        return False

    def revived(self, task: Task) -> None:
        self.progress.say(f"{task.name}: its worker process died; it goes on from its checkpoint")

    def lost(self, task: Task, reason: str) -> None:
        if task.run_id in self.open:
            try:
                ours = self.store.close(task.run_id, "FAILED", reason, own=True)
            except StoreAway as error:  # the next sweep finds it open, and its owner gone
                self.left_alone(error)
                ours = True
            if ours:
                self._failed(task, reason)
            else:
                self.taken(task, f"{reason}; its run had ended, or is another sweep's by now")

    def _failed(self, task: Task, reason: str, failure: Failure | None = None) -> None:
        """Queues a failed cell once more if that may help; without a `failure` it may not."""
        _, cell = self.open.pop(task.run_id)
        if failure is Failure.MEMORY and self.resources.packed() and not task.alone:
            self.alone.add(cell.name)
            how = "again by itself, after the others"
        elif failure in (Failure.OTHER, Failure.MEMORY) and self.retried[cell.name] < self.retries:
            self.retried[cell.name] += 1
            how = "again"
        else:
            self.given_up(task, reason)
            return
        try:
            runs = self.store.runs(cell.config.key())
        except StoreAway as error:
            self.left_alone(error)
            self.given_up(task, reason)
            return
        previous = next(run for run in runs if run.run_id == task.run_id)
        self.queue.append(replace(cell, run=previous))
        self.progress.say(f"{escape(task.name)}: {escape(reason)}; it is tried {how}")

    def given_up(self, task: Task, reason: str) -> None:
        self.outcome.failed.append((task.name, reason, file_of(task.place, LOG)))
        self.progress.end(task.name, error=reason)

    def close_open_runs(self) -> None:
        """What is still open was stopped together with this sweep; or the next one closes it."""
        try:
            with patience_of(CLOSING_SECONDS):
                for run_id in self.open:
                    self.store.close(run_id, "KILLED", "the sweep was stopped", own=True)
        except StoreAway as error:
            self.progress.say(f"{escape(str(error))}; the next sweep closes what this one ran")

    def settle(self) -> None:
        """Delivers what workers could not.

        Raises:
            StoreAway: the store is away still, or cells were not begun because it was.
        """
        try:
            with patience_of(CLOSING_SECONDS):
                if self.kept:
                    deliver_kept(self.store, self.progress.say)
            if self.away and self.queue:
                raise self.away
        except StoreAway as error:
            raise StoreAway(f"{error}. {advice(self.store)}") from error


def run_sweep(
    plan: Plan,
    store: Store,
    resources: Any,
    tags: Mapping[str, str],
    console: Console,
    train: str = TRAIN,
    retries: int = 1,
    make_driver: "Callable[..., Driver]" = Driver,
    begin: Callable[[], object] = lambda: None,
) -> Outcome:
    """Runs the waiting cells of `plan`; every run that it opens is closed when it returns.

    Args:
        resources: `sweeps.engine.Resources`.
        tags: what all runs have in common: commit, versions, preset.
        train: the training function as `module:function`; see `sweeps.trial.Task`. What its module
            prepares is prepared before the first cell, while Ray starts; on a cluster, by one of its
            nodes.
        retries: how often a cell that fails is tried again in this sweep; not for one that would
            fail in the same way. One that is out of memory beside others is tried alone besides.
        make_driver: what turns cells into tasks; a search chooses them on the way.
        begin: what else there is to do before the first cell, while Ray starts.

    Raises:
        ClusterError: a machine of the cluster lacks something; no cell has started.
        StorageError: runs cannot be kept where `store` keeps them; no cell has started.
        StoreAway: the store was away for too long; the message says what is kept.
        KeyboardInterrupt: stopped; runs that were not finished are KILLED, their checkpoints kept.
    """
    from sweeps.cluster import Common, require_common, run_on_cluster
    from sweeps.engine import run_tasks, started_ray

    waiting = plan.waiting
    estimates = [cell.estimate for cell in waiting if not math.isnan(cell.estimate)]
    estimate = sum(estimates) / len(estimates) if estimates else math.nan
    progress = SweepProgress(console, len(waiting), resources.concurrency, estimate)
    prepare = preparation(train, distinct_preparations(waiting))
    driver = make_driver(plan, store, tags, resources, progress, train, retries)
    sweep = {"started": time.time(), "cells": len(waiting), "concurrency": resources.concurrency}
    try:
        with _starting(started_ray(resources, train)) as ray_start:
            spare_imports()
            store.storage.require()
            begin()
            for run in plan.foreign():
                store.add_to_grid(run, plan.grid_name)
            store.announce(driver.experiment, sweep)
            if not resources.address:
                prepare()
            ray_start.result()
            if resources.address:
                configs = [cell.config for cell in waiting]
                common = Common.of(store.uri, store.database, store.storage, configs)
                require_common(common, resources.cpus, resources.gpus)
                console.print("the cluster is ready; preparing data and captions on it")
                run_on_cluster(prepare, resources.cpus, resources.gpus)
            with progress:
                run_tasks(driver.next_task, driver, resources)
    finally:
        with _ignoring_signals():
            driver.close_open_runs()
    driver.settle()
    return driver.outcome


def preparation(train: str, configs: Sequence[Config]) -> Callable[[], None]:
    """`prepare` of the module that the training function is in, for each of `configs`."""

    def prepare() -> None:
        module, _ = load_training(train)
        for config in configs:
            module.prepare(config)

    return prepare


def distinct_preparations(cells: list[Cell]) -> list[Config]:
    """One Config for each kind of data and captions among the cells, with its largest budget."""
    from semidavil.methods import METHODS

    largest: dict[tuple[str, ...], Config] = {}
    for cell in cells:
        config = cell.config
        data = config.data.model_dump_json(exclude={"budget"})
        model = config.model
        captions = "none" if model.fusion == "none" else model.captions
        depth = str(METHODS[config.training.method].disparity)
        kind = (data, captions, model.vlm, model.weights, depth)
        if kind not in largest or config.data.budget > largest[kind].data.budget:
            largest[kind] = config
    return list(largest.values())


@contextmanager
def _starting(ray: AbstractContextManager[None]) -> Iterator[Future[None]]:
    """Enters `ray` beside what is done within; and leaves it, undisturbed by a second Ctrl-C.

    Workers must be gone before runs are closed, also if they were only about to be there.
    """
    # Ray ties its processes' lives to the thread that starts them: it must outlive the sweep.
    with ThreadPoolExecutor(1) as background:
        start = background.submit(ray.__enter__)
        try:
            yield start
        finally:
            with _ignoring_signals():
                if start.exception() is None:  # waits for it
                    ray.__exit__(None, None, None)


@contextmanager
def _ignoring_signals() -> Iterator[None]:
    before = {
        number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
