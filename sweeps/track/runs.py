"""A run as the tracking store knows it."""

import json
import math
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from mlflow.entities import LifecycleStage, Run

from semidavil.benchmarks import BENCHMARKS
from semidavil.descriptions import DescriptionError
from semidavil.registry import register

PREFIX = "semidavil."  # of all our tags
DESCRIBED = "described."  # of the tags that say what a user's own benchmark is
FINAL = "final/"  # of the metrics that a run ends with; the many on the way are not kept here
OPEN = ("RUNNING", "SCHEDULED")


@dataclass(frozen=True)
class RunProgress:
    """How far a run's training is, as last logged."""

    step: int = 0
    seconds: float = 0.0  # training time of all attempts
    time: float = 0.0  # when it was logged, in seconds since 1970

    @classmethod
    def parse(cls, tag: str) -> "RunProgress":
        return cls(**json.loads(tag or "{}"))


@dataclass(frozen=True, slots=True)
class TrackedRun:
    run_id: str
    name: str
    experiment: str  # its name
    status: str  # MLflow's: RUNNING, SCHEDULED, FINISHED, FAILED, KILLED
    started: int  # ms since 1970
    tags: Mapping[str, str]  # ours, without their prefix
    params: Mapping[str, str]
    metrics: Mapping[str, float]  # the final ones alone, unless all were asked for; by full name
    deleted: bool = False  # in MLflow, where it can still be restored
    # Since when the store answers again, in seconds since 1970, if it was seen to be away.
    store_back: float = 0.0

    @property
    def key(self) -> str:
        return self.tags["key"]

    @property
    def epoch(self) -> int:
        """Of the lease under which it was last trained; 0 for runs of older versions."""
        return int(self.tags.get("epoch", "0"))

    @property
    def made_by(self) -> str:
        """The grid that made it; its experiment may have been renamed since."""
        return self.tags.get("grid") or self.experiment

    @property
    def is_open(self) -> bool:
        return self.status in OPEN

    @property
    def progress(self) -> RunProgress:
        return RunProgress.parse(self.tags.get("progress", ""))

    @property
    def share(self) -> float:
        """How much of its training it has behind it, from 0 to 1."""
        steps = int(self.params.get("training.steps", "0"))
        return min(1.0, self.progress.step / steps) if steps else 0.0

    @property
    def stopped_early(self) -> bool:
        """By a search. One that was tagged while the store went away has trained on."""
        return self.status == "KILLED" and bool(self.tags.get("stopped_early"))

    @property
    def last_seen(self) -> float:
        """When it last gave a sign of life, in seconds since 1970, by its own machine's clock.

        Silence while the store was away does not count.
        """
        alive = float(self.tags.get("alive", 0))
        return max(self.progress.time, alive, self.started / 1000, self.store_back)

    @property
    def score(self) -> float:
        """Its benchmark's score in per cent; NaN before its end."""
        known = BENCHMARKS.get(self.params.get("data.benchmark", ""))
        return self.metrics.get(f"{FINAL}{known.metric}", math.nan) if known else math.nan

    @property
    def is_undefined(self) -> bool:
        """Whether its benchmark's score was measured and is no number."""
        known = BENCHMARKS.get(self.params.get("data.benchmark", ""))
        return known is not None and math.isnan(self.metrics.get(f"{FINAL}{known.metric}", 0.0))

    @property
    def data(self) -> str:
        """The fingerprint of what it saw; empty before its first step."""
        return self.tags.get("data", "")

    @property
    def latency_ms(self) -> float:
        """Milliseconds per image; NaN where nobody measured them."""
        return self.metrics.get(f"{FINAL}latency_ms", math.nan)


def from_mlflow(
    run: Run, experiment: str = "", store_back: float = 0.0, all_metrics: bool = False
) -> TrackedRun:
    """What MLflow's client has returned; metrics on the way only if `all_metrics` is asked for."""
    learn_benchmarks(run)
    intern = sys.intern  # one copy of the names and values that thousands of runs have in common
    return TrackedRun(
        run_id=run.info.run_id,
        name=run.info.run_name or "",
        experiment=experiment,
        status=run.info.status,
        started=run.info.start_time,
        tags={
            intern(name.removeprefix(PREFIX)): intern(value)
            for name, value in run.data.tags.items()
            if name.startswith(PREFIX)
        },
        params={intern(name): intern(value) for name, value in run.data.params.items()},
        metrics={
            intern(name): value
            for name, value in run.data.metrics.items()
            if all_metrics or name.startswith(FINAL)
        },
        deleted=run.info.lifecycle_stage == LifecycleStage.DELETED,
        store_back=store_back,
    )


def learn_benchmarks(run: Run) -> None:
    """What a run, or a sweep's overview, says of benchmarks that a user has described."""
    said = [run.data.params.get("data.own", "")]
    said += [text for tag, text in run.data.tags.items() if tag.startswith(PREFIX + DESCRIBED)]
    for text in filter(None, said):
        with suppress(DescriptionError):  # of another version: its runs have no score then
            register(text)
