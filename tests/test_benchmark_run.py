"""The command that runs every measurement: a part that fails or dies is named, and the others go on."""

import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
ROW = """
from rows import Row
def measure(quick):
    return [Row("a wheel", 3.0, 2.0, "a stone", goal=1.2)]
"""
PARTS = {
    "round": ROW,
    "failing": "def measure(quick):\n    raise ValueError(f'no {quick} idea')\n",
    "dying": "import os\ndef measure(quick):\n    os._exit(3)\n",
}


def test_a_part_that_fails_or_dies_is_named_and_the_others_go_on(tmp_path: Path) -> None:
    for name, text in PARTS.items():
        (tmp_path / f"{name}.py").write_text(text)
    code = f"import run, sys; run.PARTS = {tuple(PARTS)}; sys.exit(run.main())"
    done = subprocess.run(
        [sys.executable, "-c", code, "--quick", "--markdown", "--only", "failing", "dying", "round"],
        capture_output=True, text=True, timeout=120, cwd=tmp_path,
        env={"PYTHONPATH": f"{BENCHMARKS}:{tmp_path}", "PATH": ""},
    )  # fmt: skip
    assert done.returncode == 1
    assert "ValueError: no True idea" in done.stderr
    assert "BrokenProcessPool" in done.stderr
    assert done.stderr.rstrip().endswith("failed: failing, dying")
    assert "| a wheel | 3 ms | 2 ms | a stone | 1.5 | 1.2 (missed) |" in done.stdout
    assert "cores, Python 3." in done.stdout
