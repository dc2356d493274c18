"""What tracking costs a toy run: claiming it, logging 30 reports and two evaluations, artifacts.

    python benchmarks/bench_tracking.py

Prints seconds for which the training waits, and their share of a run of 20 s. Reports come at the pace of
such a run, so that batching works as it does there. What the outbox does in its own thread is not counted.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from semidavil.benchmarks import CITYSCAPES_19
from semidavil.config import preset
from sweeps.track.lease import Claimed, Leases
from sweeps.track.outbox import Outbox
from sweeps.track.store import Store

RUN_SECONDS = 20.0
REPORTS = 30
RUNS = 3

T = TypeVar("T")


class Stopwatch:
    """Adds up the time spent in calls."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self, call: Callable[[], T]) -> T:
        start = time.perf_counter()
        try:
            return call()
        finally:
            self.seconds += time.perf_counter() - start


def track_one_run(store: Store, folder: Path, number: int, watch: Stopwatch) -> None:
    config = preset("toy")
    experiment = store.experiment_id("attention")
    config = config.replace({"seed": number})
    leases = Leases(store)
    lease = watch(lambda: leases.claim(experiment, "cell", config, {"commit": "c0ffee"}))
    assert isinstance(lease, Claimed)
    outbox = watch(lambda: Outbox(store, lease.run_id, lease.epoch, folder))
    outbox.tag({"device": "cpu"})
    training = {f"train/{n}": 0.5 for n in ("loss", "loss_sup", "loss_con", "lr", "a", "b", "c")}
    evaluation = {f"val/iou/{name}": 50.0 for name in CITYSCAPES_19}
    for report in range(1, REPORTS + 1):
        time.sleep(RUN_SECONDS / REPORTS)
        values = training | (evaluation if report % (REPORTS // 2) == 0 else {})
        watch(lambda step=report, values=values: outbox.metrics(step, values))
    artifacts = folder / "artifacts"
    artifacts.mkdir()
    (artifacts / "segmenter.safetensors").write_bytes(bytes(2_400_000))
    watch(lambda: outbox.finish({"final/miou": 50.0, **evaluation}, artifacts))


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        store = Store(Path(scratch))
        start = time.perf_counter()
        store.experiment_id("attention")
        print(f"new database: {time.perf_counter() - start:.1f} s, once")
        for number in range(RUNS):
            folder = Path(scratch) / str(number)
            folder.mkdir()
            watch = Stopwatch()
            track_one_run(store, folder, number, watch)
            share = 100 * watch.seconds / RUN_SECONDS
            print(f"run {number + 1}: {watch.seconds:.2f} s, {share:.1f}% of {RUN_SECONDS:.0f} s")


if __name__ == "__main__":
    main()
