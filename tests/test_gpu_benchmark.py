"""The measurements for a GPU, at toy size on a CPU and without the packages that a bare machine lacks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
MISSING = (
    "h5py", "jinja2", "matplotlib", "mlflow", "monai", "nibabel", "optuna", "pandas", "pyarrow", "ray",
    "rich", "scipy", "transformers", "typer",
)  # fmt: skip
# As if none of them were installed: a finder that raised would stop those that only ask.
RUN = f"""
import runpy, sys
from importlib.machinery import PathFinder
find = PathFinder.find_spec
class Bare:
    invalidate_caches = PathFinder.invalidate_caches
    def find_spec(name, path=None, target=None):
        return None if name.partition(".")[0] in {MISSING} else find(name, path, target)
sys.meta_path[sys.meta_path.index(PathFinder)] = Bare
sys.path.insert(0, {str(BENCHMARKS)!r})
sys.argv = ["gpu.py", *sys.argv[1:]]
runpy.run_path({str(BENCHMARKS / "gpu.py")!r}, run_name="__main__")
"""


@pytest.mark.slow
def test_every_part_runs_on_a_bare_machine(tmp_path: Path) -> None:
    parts = ["steps", "data_wait", "resume", "precision", "evaluation", "two_trials"]
    parts += ["profile", "ways", "launches"]  # not "compiled", which takes a minute
    command = [sys.executable, "-c", RUN, "--small", "--device", "cpu", "--out", str(tmp_path)]
    done = subprocess.run(
        [*command, "--only", *parts],
        capture_output=True, text=True, cwd=tmp_path, timeout=900,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    lines = (tmp_path / "gpu.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert list(dict.fromkeys(row["part"] for row in rows)) == ["files", *parts]
    assert not any("error" in row or "left_out" in row for row in rows)
    steps = [row for row in rows if row["part"] == "steps"]
    assert {"semidavil, vlga", "semidavil, blank", "semivl", "sdepth"} < {r["name"] for r in steps}
    assert all(row["step_ms"] > 0 and row["images_per_second"] > 0 for row in steps)
    (resumed,) = [row for row in rows if row["part"] == "resume"]
    assert (resumed["twice_equal"], resumed["resumed_equal"]) == (True, True)  # exact on a CPU
    assert resumed["resumed_largest"] == 0
    (curves,) = [row for row in rows if row["part"] == "precision"]
    assert curves["largest_relative"] == 0  # no bfloat16 on a CPU
    table = (tmp_path / "gpu.md").read_text()
    assert table.startswith("CPU, PyTorch ")
    assert "| semidavil, vlga |" in table
