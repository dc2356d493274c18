"""What the figures cost: all that a store of N finished runs allows, drawn by the real command.

    python benchmarks/bench_figures.py [--runs 10000]

The runs are those of the attention grid with as many seeds as it takes; copies of a tracked one, with
some 60 metrics, and without artifacts. Prints seconds of one core and the memory at the peak.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from bench_planning import ROOT, copy_run, track_one_run

from semidavil.config import preset
from sweeps.plan.grids import GRIDS
from sweeps.track.store import Store


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", metavar="N", type=int, default=10_000)
    number = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as scratch:
        store = Store(Path(scratch))
        cells = GRIDS["attention"].cells(preset("toy"), seeds=range(-(-number // 24)))[:number]
        run_id = track_one_run(store, cells[0], Path(scratch))
        assert store.database is not None
        copy_run(store.database, run_id, cells[1:])
        out = Path(scratch) / "figures"
        script = str(ROOT / "analysis" / "make_figures.py")
        subprocess.run(
            [sys.executable, script, "--no-keep", "--out", str(out)],
            env=os.environ | {"MLFLOW_TRACKING_URI": store.uri},
            check=True,
            stdout=subprocess.DEVNULL,
        )
        made = len(list(out.glob("*.png")))
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(
        f"{number} runs: {usage.ru_utime + usage.ru_stime:.1f} s for {made} figures and tables with "
        f"the report, {usage.ru_maxrss / 1024:.0f} MiB at the peak"
    )


if __name__ == "__main__":
    main()
