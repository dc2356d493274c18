"""What a process that trains run after run keeps of each."""

import os
import subprocess
import sys
from pathlib import Path

import many_runs
import pytest

RUNS, SETTLED = 8, 3  # from the third run on, nothing new is imported or cached
MARGIN_MB = 40.0  # seen: less than 1, and 170 without `bound_memory` and `trim_memory`


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_process_does_not_grow_with_the_runs_that_it_has_made(tiny_toy: dict[str, str]) -> None:
    command = [sys.executable, str(Path(many_runs.__file__))]
    places = [tiny_toy["runtime.data_root"], tiny_toy["runtime.cache_dir"]]
    done = subprocess.run(
        [*command, *places, str(RUNS), "bounded"],
        capture_output=True,
        text=True,
        # As many as its idle threads have: on a machine of many cores, glibc would make new ones.
        env=os.environ
        | {
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "MALLOC_ARENA_MAX": str(many_runs.ARENAS),
        },
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith(many_runs.RESIDENT)]
    resident = [float(line.split()[-1]) for line in lines]
    assert len(resident) == RUNS
    assert resident[-1] <= resident[SETTLED - 1] + MARGIN_MB, resident
