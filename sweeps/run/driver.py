"""The open cells of a sweep: claimed, handed to workers, and followed to their end.

Ray Tune's loop calls the driver and must never wait: whatever asks the tracking store is done by a
`StoreThread`, one thing after the other. A cell comes from a `CellSource`, which hears what becomes of it.
"""

import time
from collections import Counter, deque
from contextlib import suppress
from dataclasses import replace
from functools import partial

from rich.markup import escape

from semidavil.config import Config
from semidavil.plugins import in_use
from sweeps.keep.storage import StorageError, file_of
from sweeps.keep.workspace import LOG
from sweeps.plan.cells import Cell, FailedCell
from sweeps.run.context import Outcome, SweepContext
from sweeps.run.events import Done, Event, Failed, Failure, Halted, Lost, Progress, Taken, Task
from sweeps.run.source import CellSource
from sweeps.run.store_thread import StoreThread
from sweeps.show.progress import SweepProgress
from sweeps.track.lease import SIGN_SECONDS, Claimed, Held, Leases
from sweeps.track.retry import RunGone, StoreAway, StoreRefused, TrackingError
from sweeps.track.wishes import Wishes

DEATHS = 2  # how often a cell is started again after its worker was killed
LOOK_SECONDS = 5.0  # between two looks at what people ask for; 10 ms each on SQLite
NEXT_LOOK_SECONDS = 0.5  # before a source that has no cell now is asked again
REFUSED_SECONDS = 5.0  # before the next cell is claimed after the store has refused one
CLOSING_SECONDS = 10.0  # to wait for a store that is away when a sweep ends


class Driver:
    """Turns cells into tasks with an open run each, and decides what follows from each event."""

    def __init__(self, source: CellSource, context: SweepContext, progress: SweepProgress) -> None:
        self.source, self.context, self.progress = source, context, progress
        self.store = context.store.within(0)  # the store thread does its own waiting
        self.leases = Leases(self.store)
        self.thread = StoreThread(self._store_is_away)
        self.outcome = Outcome()
        self.open: dict[str, tuple[Task, Cell]] = {}  # by run id
        self.ready: deque[Task] = deque()  # claimed, and not yet handed out
        self.again: deque[Cell] = deque()  # to be tried again
        self.exclusive_queue: deque[Cell] = deque()  # to be tried by themselves, after the others
        self.exclusive: set[str] = set()  # by name, as are the next two
        self.retried: Counter[str] = Counter()
        self.died: Counter[str] = Counter()
        self.claiming = False
        self.problem: TrackingError | None = None  # why cells that are left do not begin
        self.to_claim: Cell | None = None  # taken from the source, and not yet claimed
        self.next_claim = self.next_sign = self.next_look = 0.0  # monotonic
        self.wishes = Wishes()  # what people ask of the sweep, since it began
        self.retrying: set[str] = set()  # tokens of the wishes that were honoured here
        self.stopping: set[str] = set()  # run ids of trials that were told to end early

    # What Ray Tune's loop calls

    def next_task(self) -> Task | None:
        """A claimed cell, if one is ready; else claims the next one."""
        self.thread.poll()
        if self.halts():
            return None
        if self.ready:
            return self.ready.popleft()
        waits = time.monotonic() < self.next_claim
        if not (self.claiming or self.problem or waits or self._is_exhausted()):
            self.claiming = True
            self.thread.submit(self._claim_next, self._on_claimed)
        return None

    def halts(self) -> bool:
        """Whether somebody has told the sweep to stop or to pause."""
        return bool(self.wishes.stop or self.wishes.paused)

    def finished(self) -> bool:
        """No cell is open and none is left; or the store has been away for as long as is waited."""
        if self.wishes.stop and not self.claiming:
            # Those that have not begun are closed at the end.
            return self.open.keys() <= {task.run_id for task in self.ready}
        if self.open or self.ready:
            return False
        if self.thread.away_for() > self.context.store.patience.seconds:
            self.problem = self.problem or self.thread.away
        return self.problem is not None or (self._is_exhausted() and self.thread.is_idle())

    def on_start(self, task: Task) -> None:
        self.progress.start(task.name, task.params)

    def on_step(self) -> None:
        """Gives signs of life for open runs, and looks what people ask for."""
        self.thread.poll()
        self.progress.breathe()
        # Not once nothing is left: the thread would never be idle, and the sweep never end.
        may_be_asked = (
            self.context.parent and not self.wishes.stop and (self.open or not self._is_exhausted())
        )
        if may_be_asked and time.monotonic() >= self.next_look and self.thread.is_idle():
            self.next_look = time.monotonic() + LOOK_SECONDS
            self.thread.submit(self._read_wishes, self._on_wishes)
        if time.monotonic() >= self.next_sign and self.thread.is_idle():
            self.next_sign = time.monotonic() + SIGN_SECONDS
            run_ids = [*self.open, *filter(None, [self.context.parent])]
            self.thread.submit(lambda: self.store.keep_alive(run_ids))

    def on_event(self, task: Task, event: Event) -> bool:
        """Returns whether the trial is to end now."""
        if task.run_id not in self.open:
            return False
        _, cell = self.open[task.run_id]
        if isinstance(event, Progress):
            self.progress.update(task.name, event)
            return self._stops(task, cell, event)
        if isinstance(event, Halted) and task.run_id not in self.stopping:
            self._on_halted(task, cell)
            return False
        del self.open[task.run_id]
        self.stopping.discard(task.run_id)
        match event:
            case Done():
                self._on_done(task, cell, event)
            case Failed():
                self._on_failed(task, cell, event)
            case Taken():
                self._on_taken(cell, event)
            case Halted():
                self._on_stopped(task, cell, event.step)
            case Lost():
                self._on_lost(task, cell, event)
        return False

    def _stops(self, task: Task, cell: Cell, progress: Progress) -> bool:
        ends = progress.score is None or progress.step >= progress.total
        if ends or task.run_id in self.stopping or not self.source.should_stop(cell, progress):
            return False
        self.stopping.add(task.run_id)
        return True

    # What people ask for

    def _read_wishes(self) -> Wishes:
        return Wishes.of(self.store.run(self.context.parent).tags).since(self.context.before)

    def _on_wishes(self, found: Wishes | Exception) -> None:
        if isinstance(found, Exception):  # somebody has deleted the overview
            return
        before, self.wishes = self.wishes, found
        if found.stop:
            self.progress.print(
                f"[yellow]told to stop by {escape(found.stopped_by)}:[/] each run writes a checkpoint first"
            )
        elif found.paused and not before.paused:
            self.progress.print(
                f"[yellow]paused by {escape(found.paused)}:[/] each run writes a checkpoint and waits for "
                "python -m sweeps resume"
            )
        elif before.paused and not found.paused:
            self.progress.print("resumed")
        self.progress.paused = bool(found.paused)
        for token, key in zip(found.retries, found.keys, strict=True):
            if token not in self.retrying:
                self.thread.submit(
                    partial(self.source.retry, key), partial(self._on_retry, token, key)
                )

    def _on_retry(self, token: str, key: str, name: str | Exception) -> None:
        """`name` is that of the cell which the source gives once more."""
        if isinstance(name, Exception) or not name:
            return  # of what this driver has not given up itself, `Sweep` takes care in its next round
        self.retrying.add(token)
        for one in [one for one in self.outcome.failed if one.key == key]:
            self.outcome.failed.remove(one)
            self.progress.failed -= 1
        self.retried.pop(name, None)
        self.died.pop(name, None)
        self.next_claim = 0.0
        self.progress.say(name, "somebody asks for it; it is tried again")

    def _on_halted(self, task: Task, cell: Cell) -> None:
        """It goes on from its checkpoint: after a pause here, else in the next sweep."""
        del self.open[task.run_id]
        reason = "the sweep was paused" if self.wishes.paused else "the sweep was stopped"

        def halted(closed: bool | Exception) -> None:
            if isinstance(closed, RunGone):
                self._on_taken(cell, Taken(str(closed), gone=True))
            else:
                self.again.append(cell)

        self.progress.pause(task.name)
        close = partial(self.store.close, task.run_id, "KILLED", reason, task.epoch)
        self.thread.submit(close, halted)

    # Claims

    def _is_exhausted(self) -> bool:
        waiting = self.claiming or self.to_claim or self.again or self.exclusive_queue
        return not waiting and self.source.exhausted()

    def _claim_next(self) -> Task | tuple[Cell, Held] | None:
        """In the store thread: a task, or a cell that another sweep has; None without a cell."""
        if self.to_claim is None:
            self.to_claim = self._next_cell()
        cell = self.to_claim
        if cell is None:
            return None
        context, config = self.context, self._placed(cell.config)
        tags = {**context.options.tags, **self.source.tags(cell)}
        tags |= {"benchmark": config.data.benchmark, "grid": context.grid}
        for run_id in cell.replaced:
            with suppress(RunGone):  # another sweep replaces it, too
                self.store.delete(run_id)
        lease = self.leases.claim(context.experiment_id, cell.name, config, tags, context.parent)
        if cell.replaced and isinstance(lease, Claimed):
            self._empty_folder(config.key())
            cell = replace(
                cell, replaced=()
            )  # paused or tried again, it goes on from its checkpoint
        self.to_claim = None
        if isinstance(lease, Held):
            self.source.taken(cell)
            return cell, lease
        task = self._task(cell, config, lease)
        self.open[task.run_id] = task, cell
        return task

    def _empty_folder(self, key: str) -> None:
        """Its checkpoint and its journal are of a run that was replaced; the lease is ours."""
        try:
            removed = self.store.storage.remove(key)
        except StorageError as error:
            raise StoreRefused(str(error)) from None
        if not removed:
            raise StoreRefused(
                f"{self.store.storage.of(key)} holds results: deliver.py delivers them"
            )

    def _next_cell(self) -> Cell | None:
        if self.again:
            return self.again.popleft()
        cell = self.source.next()
        if cell is None and self.exclusive_queue and not self.open:
            return self.exclusive_queue.popleft()
        return cell

    def _placed(self, config: Config) -> Config:
        """With this sweep's share of the machine, unless the user has chosen."""
        resources, runtime = self.context.resources, config.runtime
        return config.replace({
            "runtime.threads": runtime.threads or resources.threads,
            "runtime.device": resources.device(runtime.device),
        })  # fmt: skip

    def _task(self, cell: Cell, config: Config, claimed: Claimed) -> Task:
        return Task(
            name=cell.name,
            params=config.to_params(),
            run_id=claimed.run_id,
            epoch=claimed.epoch,
            tracking_uri=self.store.uri,
            workspace=self.store.storage.of(config.key()),
            logged_step=claimed.logged_step,
            seconds=claimed.seconds,
            train=self.context.options.train,
            exclusive=cell.name in self.exclusive,
            gpus=self.context.resources.gpus,
            plugins={each.name: dict(each.files) for each in in_use(config.plugins)},
        )

    def _on_claimed(self, result: Task | tuple[Cell, Held] | Exception | None) -> None:
        self.claiming = False
        if isinstance(result, Task):
            self.ready.append(result)
        elif result is None:
            self.next_claim = time.monotonic() + NEXT_LOOK_SECONDS
        elif isinstance(result, tuple):
            taken, held = result
            self.outcome.taken.add(taken.config.key())
            self.progress.taken(taken.name, held.reason)
        elif isinstance(result, StoreRefused | RunGone):
            cell, self.to_claim = self.to_claim, None
            self.next_claim = time.monotonic() + REFUSED_SECONDS
            if cell is None:  # the source itself is refused
                self.problem = result
            else:
                self._give_up(cell, str(result), "")

    def _store_is_away(self, error: StoreAway) -> None:
        self.progress.print(f"{escape(str(error))}; no run begins before it answers")

    # Ends

    def _on_done(self, task: Task, cell: Cell, done: Done) -> None:
        self.progress.end(task.name, summary=done.summary, seconds=done.seconds)
        self._note_undelivered(task, done.delivered)
        self.thread.submit(lambda: self.source.finished(cell, done, task.run_id))

    def _note_undelivered(self, task: Task, delivered: bool) -> None:
        if not delivered:
            self.outcome.undelivered.append(task)
            what = f"MLflow does not have all of its results yet; they wait in {task.workspace}"
            self.progress.say(task.name, what)

    def _on_failed(self, task: Task, cell: Cell, failed: Failed) -> None:
        self._note_undelivered(task, failed.delivered)
        may_help = failed.failure in (Failure.OTHER, Failure.MEMORY) and failed.delivered
        if failed.failure is Failure.MEMORY and failed.delivered and self._may_be_exclusive(task):
            self._try_exclusively(cell, failed.reason)
        elif failed.failure is Failure.OTHER_DATA:
            self._on_other_data(task, cell, failed.reason)
        elif may_help and self.retried[cell.name] < self.context.options.retries:
            self.retried[cell.name] += 1
            self._try_again(cell, failed.reason)
        else:
            self._give_up(cell, failed.reason, task.run_id, failed.failure.is_final)

    def _on_other_data(self, task: Task, cell: Cell, reason: str) -> None:
        """Its checkpoint is of no use; planning could not know where it cannot see the data."""
        if self.context.options.refresh:
            self._try_again(replace(cell, replaced=(task.run_id,)), reason)
        else:
            self._give_up(cell, f"{reason}. In a sweep, --refresh does so", task.run_id)

    def _on_taken(self, cell: Cell, taken: Taken) -> None:
        if not taken.gone:
            self.outcome.taken.add(cell.config.key())
        self.progress.taken(cell.name, taken.reason)
        self.thread.submit(lambda: self.source.taken(cell))

    def _on_lost(self, task: Task, cell: Cell, lost: Lost) -> None:
        """The run is ended before the cell is tried again: it would be our own that is in the way."""

        def close() -> bool:
            if self.store.close(task.run_id, "FAILED", lost.reason, task.epoch):
                return True
            run = self.store.run(task.run_id)  # the answer to an earlier try may have been lost
            return run.epoch == task.epoch and run.status == "FAILED"

        def closed(ours: bool | Exception) -> None:
            if isinstance(ours, StoreRefused):
                self._give_up(cell, f"{lost.reason}; {ours}", task.run_id)
                return
            if not ours or isinstance(ours, RunGone):
                reason = f"{lost.reason}; its run had ended, or is another sweep's by now"
                self._on_taken(cell, Taken(reason, gone=isinstance(ours, RunGone)))
                return
            self.died[cell.name] += 1
            if (lost.out_of_memory or self.died[cell.name] > 1) and self._may_be_exclusive(task):
                self._try_exclusively(cell, lost.reason)
            elif self.died[cell.name] <= DEATHS:
                self._try_again(cell, lost.reason)
            else:
                self._give_up(cell, lost.reason, task.run_id)

        self.progress.pause(task.name)
        self.thread.submit(close, closed)

    def _may_be_exclusive(self, task: Task) -> bool:
        return self.context.resources.packed() and not task.exclusive

    def _try_exclusively(self, cell: Cell, reason: str) -> None:
        self.exclusive.add(cell.name)
        self.exclusive_queue.append(cell)
        self.progress.say(cell.name, f"{reason}; it is tried by itself, after the others")

    def _try_again(self, cell: Cell, reason: str) -> None:
        self.again.append(cell)
        self.progress.say(cell.name, f"{reason}; it is tried again")

    def _give_up(self, cell: Cell, reason: str, run_id: str, diverged: bool = False) -> None:
        log = file_of(self.store.storage.of(cell.config.key()), LOG) if run_id else ""
        key = cell.config.key()
        self.outcome.failed.append(FailedCell(cell.name, reason, log, key))
        self.progress.end(cell.name, error=reason)
        self.thread.submit(lambda: self.source.failed(cell, reason, run_id, diverged))

    def _on_stopped(self, task: Task, cell: Cell, step: int) -> None:
        reason = f"stopped early at step {step}: others were better by then"

        def stop() -> None:
            # Where it is another sweep's by now, that one trains in the folder.
            with suppress(StorageError, RunGone, StoreRefused):
                tags = {"stopped_early": str(step)}
                if self.store.close(task.run_id, "KILLED", reason, task.epoch, tags):
                    self.store.storage.remove(cell.config.key())
            self.source.stopped(cell, task.run_id)

        self.thread.submit(stop)
        self.progress.end(task.name, summary=f"stopped early at step {step}")

    # The end of the sweep

    def close(self, reason: str) -> None:
        """Ends the runs that are open still. Their workers must be gone."""

        def close_all() -> None:  # in the thread: after a claim that is still under way
            while self.open:
                task, _ = next(iter(self.open.values()))
                with suppress(RunGone, StoreRefused):
                    self.store.close(task.run_id, "KILLED", reason, task.epoch)
                del self.open[task.run_id]

        self.thread.submit(close_all)
        if left := self.thread.close(CLOSING_SECONDS):
            self.progress.print(f"{escape(str(left))}; the next sweep closes what this one ran")
