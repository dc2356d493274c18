"""What a sweep costs besides its training: trials that only sleep, run by the real command.

    python benchmarks/bench_overhead.py [--trials 200] [--seconds 2] [--concurrency 2]

Prints wall time over trials x seconds / concurrency: of the whole command, and from the first trial's
start to the last one's end, which leaves out what happens once (imports, Ray, the database).
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import sleeping

from sweeps.track.store import Store

RUN = Path(__file__).resolve().parents[1] / "sweeps" / "run.py"
CELLS_PER_SEED = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--trials", metavar="N", type=int, default=200)
    parser.add_argument("--seconds", metavar="S", type=float, default=2.0)
    parser.add_argument("--concurrency", metavar="N", type=int, default=2)
    options = parser.parse_args()
    seeds = range(options.trials // CELLS_PER_SEED)
    trials = CELLS_PER_SEED * len(seeds)
    with tempfile.TemporaryDirectory() as scratch:
        store = Store(Path(scratch))
        command = [
            sys.executable, str(RUN), "--grid", "attention", "--budgets", "100",
            "--concurrency", str(options.concurrency), "--seeds", *map(str, seeds),
        ]  # fmt: skip
        environment = os.environ | {
            "MLFLOW_TRACKING_URI": store.uri,
            "SEMIDAVIL_TRAIN": "sleeping:train",
            "PYTHONPATH": str(Path(sleeping.__file__).parent),
            sleeping.SECONDS: str(options.seconds),
        }
        start = time.perf_counter()
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
        wall = time.perf_counter() - start
        runs = store.runs()
        last_end = max(store.client.get_run(run.run_id).info.end_time for run in runs)
    assert [run.status for run in runs] == trials * ["FINISHED"]
    between = (last_end - min(run.started for run in runs)) / 1000
    ideal = trials * options.seconds / options.concurrency
    print(
        f"{trials} trials of {options.seconds:g} s, {options.concurrency} at a time: {wall:.0f} s, "
        f"{wall / ideal:.3f} of the ideal {ideal:.0f} s; from the first trial's start to the last "
        f"one's end {between:.0f} s, {between / ideal:.3f}"
    )


if __name__ == "__main__":
    main()
