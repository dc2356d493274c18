"""The one estimate of how long cells take: behind `--list`, the bars of a sweep and `status.py`.

pace = Pace(store.runs())
seconds = pace.seconds(kind_of(config.to_params()))      # of a whole run; NaN if nothing alike has run
time_left([(seconds, 1.0), (seconds, 0.5)], concurrency=2)
"""

import math
import statistics
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping

from sweeps.track.provenance import owner_tags
from sweeps.track.runs import TrackedRun

RECENT_RUNS = 10  # of each kind, the last ones count: other software or neighbours change the pace
RELIABLE_SHARE = 0.05  # of its steps that a running run must have done before its pace counts

Kind = tuple[str, ...]

# Runs that agree in these take about the same time.
_ALIKE = (
    "model.vlm", "model.encoder", "data.benchmark", "data.crop", "data.target_size",
    "training.batch_size", "training.steps", "training.method",
)  # fmt: skip


def kind_of(params: Mapping[str, str]) -> Kind:
    """What runs of about the same length have in common, from a Config's flat params."""
    return tuple(params.get(name, "") for name in _ALIKE)


class Pace:
    """Seconds of a whole run by kind, from the last runs that have finished, else from running ones.

    Args:
        runs: oldest first. Only those of one machine's sweeps count: others are faster or slower.
        host: that machine's name; None stands for this one.
    """

    def __init__(self, runs: Iterable[TrackedRun] = (), host: str | None = None) -> None:
        host = host or owner_tags()["host"]
        self._finished: dict[Kind, deque[float]] = defaultdict(lambda: deque(maxlen=RECENT_RUNS))
        self._running: dict[Kind, dict[str, float]] = defaultdict(dict)  # then by the run's name
        for run in runs:
            if run.tags.get("host") != host:
                continue
            steps = int(run.params.get("training.steps", "0"))
            made = run.metrics.get("final/steps", 0)
            if run.status == "FINISHED" and made and "final/seconds" in run.metrics:
                self.finished(kind_of(run.params), run.metrics["final/seconds"] / made * steps)
            elif run.is_open:
                self.running(kind_of(run.params), run.run_id, run.share, run.progress.seconds)

    def finished(self, kind: Kind, seconds: float) -> None:
        """A run has taken `seconds` in all."""
        self._finished[kind].append(seconds)

    def running(self, kind: Kind, name: str, share: float, seconds: float) -> None:
        """A run has done `share` of its steps in `seconds`."""
        if share >= RELIABLE_SHARE and seconds > 0:
            self._running[kind][name] = seconds / share

    def seconds(self, kind: Kind) -> float:
        """Of a whole run of this kind; NaN while nothing like it has run."""
        for known in (self._finished.get(kind), self._running.get(kind, {}).values()):
            if known:
                return statistics.median(known)
        return math.nan


def time_left(cells: Iterable[tuple[float, float]], concurrency: int) -> float:
    """Seconds until all cells have ended, so many at a time; NaN if the length of none is known.

    Of each cell: the seconds of a whole run, NaN where unknown, and the share of it that is left.
    """
    cells = list(cells)
    known = [seconds for seconds, _ in cells if not math.isnan(seconds)]
    if not known:
        return math.nan if cells else 0.0
    mean = statistics.fmean(known)  # of a cell of unknown length
    left = [share * (mean if math.isnan(seconds) else seconds) for seconds, share in cells]
    return max(sum(left) / max(1, min(concurrency, len(left))), *left)
