"""What the process that trains a run logs into it."""

import contextlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric

from sweeps.tracking import log_batches, patiently, quiet_logs

FLUSH_SECONDS = 5.0  # a call costs some 20 ms on SQLite, however much it logs


class RunLog:
    """Logs one run from the process that trains it.

    Metrics wait for up to `FLUSH_SECONDS` and then go out together. All of them are also written to
    a journal in `folder` at once, so that those of a killed process are delivered by the next
    attempt; what is logged already is not logged twice when training repeats steps.

    Args:
        logged_step, seconds: what the store has of earlier attempts, and their training time; the
            journal knows better where it is still there.
    """

    def __init__(
        self, uri: str, run_id: str, folder: Path, logged_step: int = 0, seconds: float = 0.0
    ) -> None:
        quiet_logs()
        self.client, self.run_id = MlflowClient(uri), run_id
        self.journal = folder / "metrics.jsonl"
        entries = []
        for line in _read_journal(self.journal):
            if "values" in line:
                entries.append(line)
            elif line["sent_to"] == run_id:
                logged_step = max(logged_step, line["step"])
                seconds = max(seconds, line["seconds"])
        self.waiting = [entry for entry in entries if entry["step"] > logged_step]
        self.step = max([logged_step, *(entry["step"] for entry in entries)])
        self.seconds_before, self.started = seconds, time.monotonic()
        self.flushed = self.started

    @property
    def seconds(self) -> float:
        """Training time so far, of all attempts."""
        return self.seconds_before + time.monotonic() - self.started

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Takes the metrics of a step, unless an earlier attempt has had them."""
        if step > self.step:
            entry = {"step": step, "time": int(time.time() * 1000), "values": dict(values)}
            self._write(entry)
            self.waiting.append(entry)
            self.step = step
        if time.monotonic() - self.flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self, tags: Mapping[str, str] | None = None) -> None:
        """Sends what waits, with a sign of life."""
        progress = {"step": self.step, "seconds": round(self.seconds, 1), "time": int(time.time())}
        metrics = [
            Metric(name, value, entry["time"], entry["step"])
            for entry in self.waiting
            for name, value in entry["values"].items()
        ]
        all_tags = {"progress": json.dumps(progress), **(tags or {})}
        log_batches(self.client, self.run_id, metrics=metrics, tags=all_tags)
        self.waiting, self.flushed = [], time.monotonic()
        self._write({"sent_to": self.run_id, "step": self.step, "seconds": progress["seconds"]})

    def _write(self, line: Mapping[str, Any]) -> None:
        with self.journal.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def finish(self, values: Mapping[str, float], artifacts: Path) -> None:
        """Final metrics and the contents of `artifacts`; then, and only then, FINISHED."""
        entry = {"step": self.step, "time": int(time.time() * 1000), "values": dict(values)}
        self.waiting.append(entry)
        patiently(lambda: self.client.log_artifacts(self.run_id, str(artifacts)))
        self.flush()
        patiently(lambda: self.client.set_terminated(self.run_id, "FINISHED"))

    def fail(self, reason: str, retry: bool, files: Sequence[Path]) -> None:
        """FAILED, with the reason, whether a repetition may help, and files that explain it."""
        self.flush({"reason": reason[:500], "retry": str(retry).lower()})
        for file in files:
            patiently(partial(self.client.log_artifact, self.run_id, str(file)))
        patiently(lambda: self.client.set_terminated(self.run_id, "FAILED"))


def _read_journal(path: Path) -> Iterator[dict[str, Any]]:
    if path.exists():
        for line in path.read_text().splitlines():
            with contextlib.suppress(json.JSONDecodeError):  # the process died writing this line
                yield json.loads(line)
