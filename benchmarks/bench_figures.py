"""What the figures cost: all that a store of N finished runs allows, drawn by the real command.

    python benchmarks/bench_figures.py [--runs 10000]

The runs are those of the attention grid with as many seeds as it takes; copies of a tracked one, with
some 60 metrics, and without artifacts. Prints seconds of one core and the memory at the peak.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from bench_planning import ROOT, copy_run, track_one_run
from rows import Row

from semidavil.config import preset
from sweeps.plan.grids import GRIDS
from sweeps.track.store import Store

RUNS, FEWER = 10_000, 2_500
GOAL_SECONDS, LINEAR = 30.0, 1.0


def measure(quick: bool) -> list[Row]:
    """Seconds for many runs, and for each of them against a quarter of them; 200 runs if `quick`."""
    many, few = (200, 50) if quick else (RUNS, FEWER)
    seconds, fewer_seconds = draw(many)[0], draw(few)[0]
    each, fewer_each = 1000 * seconds / many, 1000 * fewer_seconds / few
    return [
        Row(f"figures of {many:,} runs", seconds, GOAL_SECONDS, "the goal", "s", 1.0),
        Row(f"figures, each of {many:,} runs", each, fewer_each, f"each of {few:,}", goal=LINEAR),
    ]


def draw(number: int) -> tuple[float, int, float]:
    """Seconds of one core, figures and tables that are made, and MiB at the peak, for so many runs."""
    with tempfile.TemporaryDirectory() as scratch:
        store = Store(Path(scratch))
        cells = GRIDS["attention"].cells(preset("toy"), seeds=range(-(-number // 24)))[:number]
        run_id = track_one_run(store, cells[0], Path(scratch))
        assert store.database is not None
        copy_run(store.database, run_id, cells[1:])
        out = Path(scratch) / "figures"
        script = str(ROOT / "analysis" / "make_figures.py")
        process = subprocess.Popen(
            [sys.executable, script, "--out", str(out)],
            env=os.environ | {"MLFLOW_TRACKING_URI": store.uri},
            stdout=subprocess.DEVNULL,
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        made = len(list(out.glob("*.png")))
    return usage.ru_utime + usage.ru_stime, made, usage.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", metavar="N", type=int, default=RUNS)
    number = parser.parse_args().runs
    seconds, made, memory = draw(number)
    print(
        f"{number} runs: {seconds:.1f} s for {made} figures and tables with the report, "
        f"{memory:.0f} MiB at the peak"
    )


if __name__ == "__main__":
    main()
