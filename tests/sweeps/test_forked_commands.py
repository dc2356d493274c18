"""Commands that are forks of one process behave as if each had been started."""

import os
from pathlib import Path

import pytest
from sweep_process import source

SCRIPT = """
import random
import subprocess
import sys

import ray
from ray._raylet import ObjectRef


@ray.remote
def drawn():
    return [ObjectRef.from_random().hex(), random.random()]


print(subprocess.run([sys.executable, "-c", "print(1 + 1)"], capture_output=True).stdout)
ray.init(num_cpus=2, log_to_driver=False)
print(*ray.get([drawn.remote(), drawn.remote()]), [ObjectRef.from_random().hex(), random.random()])
"""


@pytest.mark.slow
def test_forks_draw_numbers_of_their_own_and_start_other_processes_too(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    process = source().start(script, [], tmp_path, os.environ | {"OMP_NUM_THREADS": "1"})
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    lines = output.splitlines()
    assert r"b'2\n'" in lines
    drawn = lines[-1].split()
    assert len(set(drawn)) == len(drawn) == 6
