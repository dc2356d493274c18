"""What the process that trains a run logs into it, and what it keeps while the store is away.

A run's folder (see `sweeps.storage`) holds a journal of its metrics. A run that has ended has its ending
beside it, with the files to upload in the same folder, until the store has all of it.
"""

import contextlib
import fcntl
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric

from semidavil.disk import DiskFull, on_disk
from sweeps.credentials import redact
from sweeps.server import StoreAway, TrackingError, patience_of
from sweeps.storage import ENDING, JOURNAL
from sweeps.tracking import (
    OPEN,
    SILENCE_SECONDS,
    log_batches,
    patiently,
    progress_of,
    quiet_logs,
    tracked,
)

FLUSH_SECONDS = 5.0  # a call costs some 20 ms on SQLite, however much it logs
DOUBT_SECONDS = 60.0  # longer than a claim takes
FAILED_SHARE = 10  # a store that is away costs training at most one part in so many

note = logging.getLogger(__name__)


class TakenOver(RuntimeError):  # noqa: N818 - no fault of the training
    """Another sweep has taken the run for dead, and trains it: it is not ours to write to."""


@dataclass(frozen=True)
class Ending:
    """How a run has ended.

    Attributes:
        run_id, store: where it belongs; the store's address without passwords, for people.
        status: FINISHED or FAILED.
        owner: the process whose run it was.
        values: final metrics, of `step`.
        time: ms since 1970.
        seconds: training time, of all attempts.
        files: relative to the run's folder; of a folder, its contents.
    """

    run_id: str
    store: str
    status: str
    step: int
    time: int
    seconds: float
    values: dict[str, float] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)
    owner: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> "Ending | None":
        """The ending kept in a run's folder.

        Raises:
            TrackingError: it is not what this program has written.
        """
        path = folder / ENDING
        try:
            return cls.parse(path.read_text(), str(path))
        except FileNotFoundError:
            return None

    @classmethod
    def parse(cls, text: str, file: str) -> "Ending":
        """The ending that `file` holds.

        Raises:
            TrackingError: it is not what this program has written.
        """
        try:
            return cls(**json.loads(text))
        except (TypeError, ValueError) as error:
            raise TrackingError(
                f"{file} cannot be read ({error}): restore it, or remove it to train the run again"
            ) from error


class RunLog:
    """Logs one run from the process that trains it.

    Metrics wait for up to `FLUSH_SECONDS` and then go out together. All of them are also written to
    a journal in `folder` at once, so that those of a killed process are delivered by the next
    attempt; what is logged already is not logged twice when training repeats steps. While the store
    is away, training goes on and metrics wait; only the end of a run waits for the store, as long as
    `sweeps.server.patience` says.

    Args:
        logged_step, seconds: what the store has of earlier attempts, and their training time; the
            journal knows better where it is still there.
        behind: the store may know of steps that neither does, made on another machine.
        owner: whose run it is (`sweeps.provenance.owner_tags`). After a silence in which others may have
            taken it for dead, it is looked at before it is written to.
        heard: when it gave its last sign of life, in seconds since 1970; by default, now.

    Raises:
        TakenOver: from any method that sends.
        DiskFull: from any method that writes.
    """

    def __init__(
        self,
        uri: str,
        run_id: str,
        folder: Path,
        logged_step: int = 0,
        seconds: float = 0.0,
        behind: bool = False,
        owner: Mapping[str, str] | None = None,
        heard: float | None = None,
    ) -> None:
        quiet_logs()
        self.client, self.run_id, self.store = MlflowClient(uri), run_id, redact(uri)
        self.folder, self.journal = folder, folder / JOURNAL
        entries = []
        lines, self._torn = _read_journal(self.journal)
        for line in lines:
            if "values" in line:
                entries.append(line)
            elif line["sent_to"] == run_id:
                logged_step = max(logged_step, line["step"])
                seconds = max(seconds, line["seconds"])
        self.waiting = [entry for entry in entries if entry["step"] > logged_step]
        self.tags: dict[str, str] = {}  # that wait
        self.step = max([logged_step, *(entry["step"] for entry in entries)])
        self.seconds_before, self.started = seconds, time.monotonic()
        self.next_flush = self.started + FLUSH_SECONDS
        self.away = False
        self.behind = behind
        self.owner = owner or {}
        # Wall time: a monotonic clock stands still while its machine is suspended.
        self.heard = time.time() if heard is None else heard
        self.doubtful_until = 0.0

    def _catch_up(self) -> None:
        """Learns from the store what an attempt on another machine has logged."""
        known = progress_of(self.client, self.run_id)
        self.step = max(self.step, int(known["step"]))
        self.waiting = [entry for entry in self.waiting if entry["step"] > known["step"]]
        self.seconds_before = max(self.seconds_before, known["seconds"])
        self.behind = False

    @property
    def seconds(self) -> float:
        """Training time so far, of all attempts."""
        return self.seconds_before + time.monotonic() - self.started

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Takes the metrics of a step, unless an earlier attempt has had them."""
        if step > self.step:
            entry = {"step": step, "time": int(time.time() * 1000), "values": dict(values)}
            self.waiting.append(entry)
            self.step = step
            self._write(entry)
        if time.monotonic() > self.next_flush:
            self.flush()

    def flush(self) -> None:
        """Sends what waits, with a sign of life; or keeps it, if the store is away."""
        before = time.monotonic()
        try:
            with patience_of(0):
                self._require_ours()
                self._send()
        except StoreAway as error:
            if not self.away:
                note.warning("%s; training goes on, metrics wait in %s", error, self.journal)
            self.away = True
            took = time.monotonic() - before
            self.next_flush = time.monotonic() + max(FLUSH_SECONDS, FAILED_SHARE * took)
        else:
            if self.away:
                note.warning("the tracking store answers again and has all metrics")
            self.away = False
            seconds = round(self.seconds, 1)
            self._write({"sent_to": self.run_id, "step": self.step, "seconds": seconds})

    def _require_ours(self, ends: str = "") -> None:
        """After a long silence, and for a minute: a takeover that had begun by then may be at work still.

        Args:
            ends: how, if it does: what was trained to its end is worth having, unless another has it.

        Raises:
            TakenOver: it is another sweep's.
        """
        now = time.time()
        if now - self.heard > SILENCE_SECONDS / 2:
            self.doubtful_until = now + DOUBT_SECONDS
        if not self.owner or now > self.doubtful_until:
            return
        run = tracked(patiently(lambda: self.client.get_run(self.run_id)))
        ours = run.is_of(self.owner)
        if ends == "FINISHED":
            ours = ours or not run.is_taken()
        elif not ends:
            ours = ours and run.status in OPEN
        if not ours:
            raise TakenOver(f"another sweep has taken the run for dead: it is {run.status}")

    def _send(self, seconds: float | None = None) -> None:
        """`seconds` of training, where it has ended; else until now."""
        if self.behind:
            self._catch_up()
        seconds = round(self.seconds if seconds is None else seconds, 1)
        progress = {"step": self.step, "seconds": seconds, "time": int(time.time())}
        metrics = [
            Metric(name, value, entry["time"], entry["step"])
            for entry in self.waiting
            for name, value in entry["values"].items()
        ]
        all_tags = {"progress": json.dumps(progress), **self.tags}
        log_batches(self.client, self.run_id, metrics=metrics, tags=all_tags)
        self.waiting, self.tags = [], {}
        self.next_flush = time.monotonic() + FLUSH_SECONDS
        self.heard = time.time()

    def _write(self, line: Mapping[str, Any]) -> None:
        before = "\n" if self._torn else ""  # else this would join the line that was cut short
        with on_disk(self.folder), self.journal.open("a") as file:
            file.write(before + json.dumps(line) + "\n")
        self._torn = False

    def finish(self, values: Mapping[str, float], artifacts: Path) -> bool:
        """Final metrics and the contents of `artifacts`; then, and only then, FINISHED.

        Args:
            artifacts: in the run's folder.

        Returns:
            Whether the store has it; else it is kept, for `deliver`.
        """
        self._keep("FINISHED", values, [artifacts])
        return self.delivered()

    def fail(self, why: str, retry: bool, files: Sequence[Path]) -> bool:
        """FAILED, with the reason, whether a repetition may help, and files that explain it.

        Returns:
            Whether the store has it; else it is kept, for `deliver`.
        """
        with contextlib.suppress(StoreAway), patience_of(0):
            self._require_ours("FAILED")  # before anything is kept where another may train
        self.tags |= {"reason": redact(why)[:500], "retry": str(retry).lower()}
        kept = Ending.read(self.folder)
        if kept is None or kept.status != "FINISHED":
            try:
                self._keep("FAILED", {}, files)
                return self.delivered()
            except (DiskFull, OSError) as error:  # perhaps the store takes it
                note.warning("%s", error)
        # A training that has ended well stays kept: it was the store that refused its results.
        with contextlib.suppress(StoreAway):
            self._log_ending(self._ending("FAILED", {}, files))
            return True
        return False

    def _ending(self, status: str, values: Mapping[str, float], files: Sequence[Path]) -> Ending:
        return Ending(
            run_id=self.run_id,
            store=self.store,
            status=status,
            step=self.step,
            time=int(time.time() * 1000),
            seconds=self.seconds,
            values=dict(values),
            tags=dict(self.tags),
            files=[str(path.relative_to(self.folder)) for path in files if path.exists()],
            owner=dict(self.owner),
        )

    def _keep(self, status: str, values: Mapping[str, float], files: Sequence[Path]) -> None:
        draft = self.folder / f"{ENDING}.part"
        with on_disk(self.folder):
            with draft.open("w") as file:
                file.write(json.dumps(asdict(self._ending(status, values, files))))
                file.flush()
                os.fsync(file.fileno())
            draft.replace(self.folder / ENDING)

    def delivered(self) -> bool:
        """`deliver`, but False where the store is away."""
        try:
            return self.deliver()
        except StoreAway as error:
            note.warning("%s; the run is kept in %s until it does", error, self.folder)
            return False

    def deliver(self) -> bool:
        """Sends the ending that is kept in the folder, and all metrics before it.

        It may be the ending of another run, if that one was made anew. Repeating it changes nothing.

        Returns:
            False if another process is at it.

        Raises:
            StoreAway: it stays kept.
        """
        with _alone_in(self.folder) as alone:
            ending = Ending.read(self.folder) if alone else None
            if ending is None:
                return alone
            self._log_ending(replace(ending, run_id=self.run_id))
            if self.run_id == ending.run_id or self.store == ending.store:
                (self.folder / ENDING).unlink()  # another server still waits for its own
        return True

    def _log_ending(self, ending: Ending) -> None:
        self._require_ours(ending.status)
        if self.behind:  # before the final metrics wait: their step may be known
            self._catch_up()
        inside = self.folder.resolve()
        for name in ending.files:
            path = (inside / name).resolve()
            if not path.is_relative_to(inside):
                raise TrackingError(f"{inside / ENDING} names a file outside its folder: {name}")
            log = self.client.log_artifacts if path.is_dir() else self.client.log_artifact
            patiently(partial(log, ending.run_id, str(path)))
        self.tags |= ending.tags
        if ending.values:
            final = {"step": ending.step, "time": ending.time, "values": ending.values}
            if final not in self.waiting:
                self.waiting.append(final)
        self._send(ending.seconds)
        patiently(
            lambda: self.client.set_terminated(ending.run_id, ending.status, end_time=ending.time)
        )


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[bool]:
    """Whether no other process delivers from this folder; the system lets go when one dies."""
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context((folder / ENDING).open("r+"))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            alone = True
        except FileNotFoundError:
            alone = True
        except BlockingIOError:
            alone = False
        yield alone


def _read_journal(path: Path) -> tuple[list[dict[str, Any]], bool]:
    """Its whole lines, and whether the last one was cut short: by a kill, or a disk that was full."""
    text = path.read_text() if path.exists() else ""
    lines = []
    for line in text.splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            lines.append(json.loads(line))
    return lines, bool(text) and not text.endswith("\n")
