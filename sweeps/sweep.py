"""A sweep: the waiting cells of a plan, run and tracked."""

import math
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from semidavil.config import Config
from sweeps.plan import Cell, Plan
from sweeps.progress import SweepProgress
from sweeps.tracking import Store
from sweeps.trial import LOG_NAME, TRAIN, Task


@dataclass
class Outcome:
    """What became of the cells that ran."""

    finished: int = 0
    failed: list[tuple[str, str, Path]] = field(default_factory=list)  # name, reason, log


class _Driver:
    """Turns cells into tasks with an open run each, and hears what becomes of them."""

    def __init__(
        self,
        plan: Plan,
        store: Store,
        tags: Mapping[str, str],
        threads: int,
        progress: SweepProgress,
        train: str,
    ) -> None:
        self.plan, self.store, self.tags = plan, store, tags
        self.threads, self.progress, self.train = threads, progress, train
        self.experiment = store.experiment_id(plan.grid_name)
        self.queue = deque(plan.waiting)
        self.open: dict[str, Task] = {}  # by run id
        self.outcome = Outcome()

    def next_task(self) -> Task | None:
        """The next cell that nobody else has begun since the plan was made."""
        while self.queue:
            cell = self.queue.popleft()
            if task := self._claim(cell):
                return task
            self.progress.skip(cell.name)
        return None

    def _claim(self, cell: Cell) -> Task | None:
        config = self._placed(cell.config)
        earlier = cell.run.progress if cell.run else {"step": 0, "seconds": 0.0}
        tags = {**self.tags, "benchmark": config.data.benchmark, "grid": self.plan.grid_name}
        run_id = self.store.claim(self.experiment, cell.name, config, tags, cell.run)
        if run_id is None:
            return None
        task = Task(
            name=cell.name,
            params=config.to_params(),
            run_id=run_id,
            tracking_uri=self.store.uri,
            folder=str(self.store.checkpoints / config.key()),
            logged_step=int(earlier["step"]),
            seconds=float(earlier["seconds"]),
            train=self.train,
        )
        self.open[task.run_id] = task
        return task

    def _placed(self, config: Config) -> Config:
        """With this sweep's share of the machine, unless the user has chosen."""
        threads = config.runtime.threads or self.threads
        return config.replace({"runtime.threads": threads})

    def started(self, task: Task) -> None:
        self.progress.start(task.name)

    def told(self, task: Task, news: dict[str, Any]) -> None:
        if news["state"] == "running":
            self.progress.step(task.name, news["step"], news["total"])
        elif task.run_id in self.open and news["state"] == "done":
            del self.open[task.run_id]
            self.outcome.finished += 1
            self.progress.end(task.name, score=news["score"], seconds=news["seconds"])
        elif task.run_id in self.open and news["state"] == "failed":
            self._failed(task, news["reason"])

    def revived(self, task: Task) -> None:
        self.progress.say(f"{task.name}: its worker process died; it goes on from its checkpoint")

    def lost(self, task: Task, reason: str) -> None:
        if task.run_id in self.open:
            self.store.close(task.run_id, "FAILED", reason)
            self._failed(task, reason)

    def _failed(self, task: Task, reason: str) -> None:
        del self.open[task.run_id]
        self.outcome.failed.append((task.name, reason, Path(task.folder) / LOG_NAME))
        self.progress.end(task.name, error=reason)

    def close_open_runs(self) -> None:
        """What is still open was stopped together with this sweep."""
        for run_id in self.open:
            self.store.close(run_id, "KILLED", "the sweep was stopped")


def run_sweep(
    plan: Plan,
    store: Store,
    resources: Any,
    tags: Mapping[str, str],
    console: Console,
    prepare: Callable[[], None],
    train: str = TRAIN,
) -> Outcome:
    """Runs the waiting cells of `plan`; every run that it opens is closed when it returns.

    Args:
        resources: `sweeps.engine.Resources`.
        tags: what all runs have in common: commit, versions, preset.
        prepare: done once before the first cell, while Ray starts; on a cluster, by one of its nodes.
        train: the training function as `module:function`; see `sweeps.trial.Task`.

    Raises:
        ClusterError: a machine of the cluster lacks something; no cell has started.
        KeyboardInterrupt: stopped; runs that were not finished are KILLED, their checkpoints kept.
    """
    from sweeps.cluster import Common, require_common, run_on_cluster
    from sweeps.engine import run_tasks, started_ray

    for run in plan.foreign():
        store.add_to_grid(run, plan.grid_name)
    waiting = plan.waiting
    estimates = [cell.estimate for cell in waiting if not math.isnan(cell.estimate)]
    estimate = sum(estimates) / len(estimates) if estimates else math.nan
    progress = SweepProgress(console, len(waiting), resources.concurrency, estimate)
    driver = _Driver(plan, store, tags, resources.threads, progress, train)
    store.announce(
        driver.experiment,
        {"started": time.time(), "cells": len(waiting), "concurrency": resources.concurrency},
    )
    try:
        # Ray ties its processes' lives to the thread that starts them: it must outlive the sweep.
        with ThreadPoolExecutor(1) as background:
            ray_start = started_ray(resources, train)
            starting = background.submit(ray_start.__enter__)
            with _closing(ray_start):
                try:
                    if not resources.address:
                        prepare()
                finally:
                    starting.result()
                if resources.address:
                    configs = [cell.config for cell in waiting]
                    common = Common.of(store.uri, store.database, store.checkpoints, configs)
                    require_common(common, resources.cpus, resources.gpus)
                    console.print("the cluster is ready; preparing data and captions on it")
                    run_on_cluster(prepare, resources.cpus, resources.gpus)
                with progress:
                    run_tasks(driver.next_task, driver, resources)
    finally:
        with _ignoring_signals():
            driver.close_open_runs()
    return driver.outcome


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
def _closing(ray_start: Any) -> Iterator[None]:
    """Shuts Ray down, undisturbed by a second Ctrl-C: workers must be gone before runs are closed."""
    try:
        yield
    finally:
        with _ignoring_signals():
            ray_start.__exit__(None, None, None)


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
