"""What the process that trains a run logs into it, and what it keeps until the store has it.

A run's folder holds a journal of its metrics. A thread sends what the store lacks, so that training never
waits for the store; what was not sent before a crash is sent by the next attempt, and nothing is sent
twice. A run that has ended has its `Ending` beside the journal, with the files to upload in the same
folder, until the store has all of it.
"""

import contextlib
import json
import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from filelock import FileLock, Timeout

from semidavil.full_disk import DiskFull, on_disk
from semidavil.names import WEIGHTS
from sweeps.keep.workspace import ENDING, JOURNAL
from sweeps.track.credentials import redact
from sweeps.track.lease import is_held
from sweeps.track.models import describe
from sweeps.track.retry import RunGone, StoreAway, StoreRefused, TrackingError
from sweeps.track.store import REASON_CHARACTERS, Measurement, Store

SEND_SECONDS = 5.0  # between two calls, of which each costs some 20 ms on SQLite
AWAY_SECONDS = 15.0  # before a store that is away, or refuses, is tried again
FENCE_SECONDS = 60.0  # between two looks whether the lease is still ours

logger = logging.getLogger(__name__)


class LeaseLost(RuntimeError):  # noqa: N818 - no fault of the training
    """Another sweep holds the run's lease by now: it is not ours to write to."""


@dataclass(frozen=True)
class Entry:
    """The metrics of one step; `time` in ms since 1970."""

    step: int
    time: int
    values: dict[str, float]

    def measurements(self) -> Iterator[Measurement]:
        return ((name, value, self.time, self.step) for name, value in self.values.items())


@dataclass(frozen=True)
class Ending:
    """How a run has ended."""

    run_id: str
    store: str  # where it belongs: an address without passwords, for people
    status: str  # FINISHED or FAILED
    step: int
    time: int  # ms since 1970
    seconds: float  # training time, of all attempts
    epoch: int = 0  # of the lease under which it was trained
    values: dict[str, float] = field(default_factory=dict)  # final metrics, of `step`
    tags: dict[str, str] = field(default_factory=dict)
    # Relative to the run's folder; of a folder, its contents.
    files: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, folder: Path) -> "Ending | None":
        """The ending in a run's folder, if it has one; raises as `parse`."""
        path = folder / ENDING
        try:
            return cls.parse(path.read_text(), str(path))
        except FileNotFoundError:
            return None

    @classmethod
    def parse(cls, text: str, file: str) -> "Ending":
        """The ending that `file` holds; raises TrackingError if this program has not written it."""
        try:
            fields = json.loads(text)
            fields.pop("owner", None)  # of older versions
            return cls(**fields)
        except (TypeError, ValueError, AttributeError) as error:
            raise TrackingError(
                f"{file} cannot be read ({error}): restore it, or remove it to train the run again"
            ) from error

    def write(self, folder: Path) -> None:
        """Durably, in place of the one before, which stays if the disk is full."""
        draft = folder / f"{ENDING}.part"
        with on_disk(folder):
            with draft.open("w") as file:
                file.write(json.dumps(asdict(self)))
                file.flush()
                os.fsync(file.fileno())
            draft.replace(folder / ENDING)


class Outbox:
    """Logs one run from the process that trains it.

    `metrics`, `finish` and `fail` raise LeaseLost or RunGone once it has been found out; whatever writes
    raises DiskFull.

    Args:
        store: its patience says how long the run's end waits for the store; nothing else does.
        epoch: of the lease; 0 trusts that nobody else has the run.
        folder: the run's, on this machine.
        logged_step, seconds: what the store has of earlier attempts, and their training time; the journal
            knows better where it is still there.
        behind: the store may know of steps that neither does, made on another machine.
    """

    def __init__(
        self,
        store: Store,
        run_id: str,
        epoch: int,
        folder: Path,
        logged_step: int = 0,
        seconds: float = 0.0,
        behind: bool = False,
    ) -> None:
        self.store, self.run_id, self.epoch = store, run_id, epoch
        self.folder, self.journal = folder, folder / JOURNAL
        self._tags: dict[str, str] = {}  # that wait
        entries, sent_step, sent_seconds, self._torn = _read_journal(self.journal, run_id)
        logged_step = max(logged_step, sent_step)
        self.step = max([logged_step, *(entry.step for entry in entries)])
        self._waiting = [entry for entry in entries if entry.step > logged_step]
        self._seconds_before = max(seconds, sent_seconds)
        self._started = time.monotonic()
        self._behind = behind
        # Wall time: a monotonic clock stands still while its machine is suspended.
        self._fence_seen = 0.0
        self._away = False
        self._problem: LeaseLost | RunGone | None = None
        self._lock = threading.Lock()  # of what waits
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def seconds(self) -> float:
        """Training time so far, of all attempts."""
        return self._seconds_before + time.monotonic() - self._started

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Takes the metrics of a step, unless an earlier attempt has had them."""
        self._raise_problem()
        with self._lock:
            if step > self.step:
                entry = Entry(step, int(time.time() * 1000), dict(values))
                self._write(asdict(entry))
                self._waiting.append(entry)
                self.step = step
        if self._thread is None:
            self._thread = threading.Thread(target=self._send_until_ended, daemon=True)
            self._thread.start()

    def tag(self, tags: Mapping[str, str]) -> None:
        """Takes tags of the run; they go out with the next metrics."""
        with self._lock:
            self._tags.update(tags)

    def close(self) -> None:
        """Sends what waits, if the store answers at once; training ends here without an ending."""
        with contextlib.suppress(LeaseLost, RunGone):
            self._stop_sending()
            self.flush()

    def flush(self) -> None:
        """Sends what waits with a sign of life, without patience; or keeps it, if the store is away."""
        try:
            store = self.store.within(0)
            self._require_lease(store)
            step, seconds = self._send(store)
        except (StoreAway, StoreRefused) as error:
            if not self._away:
                logger.warning("%s; training goes on, metrics wait in %s", error, self.journal)
            self._away = True
        else:
            if self._away:
                logger.warning("the tracking store takes metrics again, and has all of them")
            self._away = False
            with self._lock:
                self._write({"sent_to": self.run_id, "step": step, "seconds": seconds})

    def _send_until_ended(self) -> None:
        while not self._ended.wait(AWAY_SECONDS if self._away else SEND_SECONDS):
            try:
                self.flush()
            except (LeaseLost, RunGone) as error:
                self._problem = error
                return
            except (TrackingError, DiskFull, OSError) as error:  # the run's end meets it again
                logger.warning("%s", error)

    def _stop_sending(self) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        self._raise_problem()

    def _raise_problem(self) -> None:
        if self._problem is not None:
            raise self._problem

    def _require_lease(self, store: Store, ends: str = "") -> None:
        """Raises LeaseLost if the lease is not ours any more; looks now and then, and before an end.

        What was trained to its end (`ends` says how) is worth having, unless another sweep is at it, or has
        it.
        """
        now = time.time()
        if not self.epoch or (not ends and now - self._fence_seen < FENCE_SECONDS):
            return
        run = store.run(self.run_id)
        ours = run.epoch == self.epoch
        if ends == "FINISHED":
            ours = ours or (run.status != "FINISHED" and not is_held(run, now))
        elif not ends:
            ours = ours and run.is_open
        if not ours:
            raise LeaseLost(f"another sweep has taken over the run, which is {run.status}")
        self._fence_seen = now

    def _send(self, store: Store, seconds: float | None = None) -> tuple[int, float]:
        """Sends what waits; returns up to which step, and the seconds of training, by default until now."""
        if self._behind:
            self._catch_up(store)
        with self._lock:
            entries, tags, step = list(self._waiting), dict(self._tags), self.step
        seconds = round(self.seconds if seconds is None else seconds, 1)
        progress = {"step": step, "seconds": seconds, "time": int(time.time())}
        measurements = [point for entry in entries for point in entry.measurements()]
        marks = {**tags, "progress": json.dumps(progress)}
        store.log(self.run_id, metrics=measurements, tags=marks)
        with self._lock:
            del self._waiting[: len(entries)]
            self._tags = {name: v for name, v in self._tags.items() if tags.get(name) != v}
        return step, seconds

    def _catch_up(self, store: Store) -> None:
        """Learns from the store what an attempt on another machine has logged."""
        known = store.run(self.run_id).progress
        with self._lock:
            self.step = max(self.step, known.step)
            self._waiting = [entry for entry in self._waiting if entry.step > known.step]
        self._seconds_before = max(self._seconds_before, known.seconds)
        self._behind = False

    def _write(self, line: Mapping[str, object]) -> None:
        before = "\n" if self._torn else ""  # else this would join the line that was cut short
        with on_disk(self.folder), self.journal.open("a") as file:
            file.write(before + json.dumps(line) + "\n")
        self._torn = False

    def finish(self, values: Mapping[str, float], artifacts: Path) -> bool:
        """Final metrics and the contents of `artifacts`, a folder of the run; then, and only then, FINISHED.

        Returns whether the store has it; else it is kept, for `deliver`.
        """
        self._stop_sending()
        self._ending("FINISHED", values, [artifacts]).write(self.folder)
        return self.delivered()

    def fail(self, why: str, retry: bool, files: Sequence[Path]) -> bool:
        """FAILED, with the reason, whether a repetition may help, and files that explain it.

        Returns whether the store has it; else it is kept, for `deliver`.
        """
        self._stop_sending()
        with contextlib.suppress(StoreAway, StoreRefused):
            # Before anything is kept where another may train.
            self._require_lease(self.store.within(0), "FAILED")
        self.tag({"reason": redact(why)[:REASON_CHARACTERS], "retry": str(retry).lower()})
        ending = self._ending("FAILED", {}, files)
        earlier = Ending.read(self.folder)
        if earlier is None or earlier.status != "FINISHED":
            try:
                ending.write(self.folder)
                return self.delivered()
            except (OSError, DiskFull) as error:  # perhaps the store takes it
                logger.warning("%s", error)
        # A training that has ended well stays kept: it was the store that refused its results.
        with contextlib.suppress(StoreAway, StoreRefused):
            self._log_ending(ending)
            return True
        return False

    def _ending(self, status: str, values: Mapping[str, float], files: Sequence[Path]) -> Ending:
        return Ending(
            run_id=self.run_id,
            store=redact(self.store.uri),
            status=status,
            step=self.step,
            time=int(time.time() * 1000),
            seconds=self.seconds,
            epoch=self.epoch,
            values=dict(values),
            tags=dict(self._tags),
            files=[str(path.relative_to(self.folder)) for path in files if path.exists()],
        )

    def delivered(self) -> bool:
        """`deliver`, but False where the store is away or refuses."""
        try:
            return self.deliver()
        except (StoreAway, StoreRefused) as error:
            logger.warning("%s; the run is kept in %s until it is delivered", error, self.folder)
            return False

    def deliver(self) -> bool:
        """Sends the ending that is kept in the folder, and all metrics before it.

        It may be the ending of another run, if that one was made anew. Repeating it changes nothing; after
        StoreAway and StoreRefused it stays kept. Returns False if another process is at it.
        """
        # A lock file, not the ending itself: a file system without locks has a way of its own there.
        lock = FileLock(self.folder / f"{ENDING}.lock", timeout=0)
        try:
            with lock:
                ending = Ending.read(self.folder)
                if ending is None:
                    return True
                self._log_ending(replace(ending, run_id=self.run_id))
                if self.run_id == ending.run_id or redact(self.store.uri) == ending.store:
                    (self.folder / ENDING).unlink()  # another server still waits for its own
        except Timeout:
            return False
        return True

    def _log_ending(self, ending: Ending) -> None:
        self._require_lease(self.store, ending.status)
        if self._behind:  # before the final metrics wait: their step may be known
            self._catch_up(self.store)
        inside = self.folder.resolve()
        for name in ending.files:
            path = (inside / name).resolve()
            if not path.is_relative_to(inside):
                raise TrackingError(f"{inside / ENDING} names a file outside its folder: {name}")
            self.store.log_files(ending.run_id, path)
        self.tag(ending.tags)
        final = Entry(ending.step, ending.time, dict(ending.values))
        if ending.values and final not in self._waiting:
            self._waiting.append(final)
        self._send(self.store, ending.seconds)
        trained = ending.status == "FINISHED" and any(
            (inside / name / WEIGHTS).is_file() for name in ending.files
        )
        describe(self.store, ending.run_id, ending.values, ending.step, ending.time, trained)
        self.store.end(ending.run_id, ending.status, ending.time)


def _read_journal(path: Path, run_id: str) -> tuple[list[Entry], int, float, bool]:
    """Its metrics, the step and the seconds of training that were sent to this run last, and whether the
    last line was cut short: by a kill, or a disk that was full.
    """
    text = path.read_text() if path.exists() else ""
    entries, step, seconds = [], 0, 0.0
    for line in text.splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            found = json.loads(line)
            if "values" in found:
                entries.append(Entry(**found))
            elif found["sent_to"] == run_id:
                step, seconds = max(step, found["step"]), max(seconds, found["seconds"])
    return entries, step, seconds, bool(text) and not text.endswith("\n")
