"""This version against an earlier one on the same machine: the attention grid, and the host work of a step.

    python benchmarks/run.py --before COMMIT

The earlier version is a git worktree in a temporary folder, and each version has a tracking store and a cache
of its own. A grid is timed from its first run's start to its last one's end, when its generated scenes are
there. Grids that follow each other on a machine that others use are not one measurement: look at the load.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean

from full_size import write_full_size
from rows import Row

from sweeps.track.store import Store

ROOT = Path(__file__).resolve().parents[1]
GRID_GOAL, HOST_GOAL = 0.45, 0.1
IMAGES = 24  # of each data set of the host's work; a step takes 4 of each of its three streams
# Runs in both versions: they share the names of `prepare`, `open_experiment` and `Experiment.batches`.
PREPARE = """
import json, sys
from semidavil.config import preset
from semidavil.train import prepare
name, changes = json.loads(sys.argv[1])
prepare(preset(name, changes), False)
"""
HOST_WORK = """
import json, statistics, sys, time
import cv2, torch
torch.set_num_threads(1)
cv2.setNumThreads(1)
from semidavil.config import preset
from semidavil.train import open_experiment
name, changes = json.loads(sys.argv[1])
batches, spent = open_experiment(preset(name, changes), torch.device("cpu")).batches, []
for step in range(int(sys.argv[2])):
    start = time.process_time()
    batches[step]
    spent.append(1000 * (time.process_time() - start))
print(json.dumps(statistics.median(spent)))
"""


def measure(commit: str, quick: bool = False) -> list[Row]:
    """Rows of the grid and of the host's work; the grid with one budget if `quick`."""
    with tempfile.TemporaryDirectory() as scratch, worktree(commit, Path(scratch)) as earlier:
        versions = {earlier: Path(scratch) / "before", ROOT: Path(scratch) / "now"}
        for folder in versions.values():
            folder.mkdir()
        data = write_full_size(Path(scratch) / "data", IMAGES, 2, IMAGES, scale=8 if quick else 1)
        host = [host_work(root, folder, data, quick) for root, folder in versions.items()]
        toy = [toy_host_work(root, folder) for root, folder in versions.items()]
        grids = [grid(root, folder, quick) for root, folder in versions.items()]
    (old_seconds, old_score), (seconds, score) = grids
    runs = "one budget" if quick else "24 runs"
    of_files = "paper" if not quick else "paper, small files"
    return [
        Row(f"--grid attention, toy, {runs}", seconds, old_seconds, commit, "s", GRID_GOAL),
        Row("mean of its final mIoU", score, old_score, commit, "%"),
        Row(f"host work of a step, {of_files}", host[1], host[0], commit, goal=HOST_GOAL),
        Row("host work of a step, toy", toy[1], toy[0], commit),
    ]


@contextmanager
def worktree(commit: str, scratch: Path) -> Iterator[Path]:
    """The files of a commit."""
    folder = scratch / "earlier"
    git = ["git", "-C", str(ROOT), "worktree"]
    subprocess.run([*git, "add", "--quiet", "--detach", str(folder), commit], check=True)
    try:
        yield folder
    finally:
        subprocess.run([*git, "remove", "--force", str(folder)], check=True)


def run(root: Path, folder: Path, *arguments: str) -> str:
    """What Python prints with the code of a version, in a folder of its own."""
    environment = os.environ | {
        "PYTHONPATH": str(root),
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
    }
    done = subprocess.run(
        [sys.executable, *arguments],
        env=environment, cwd=folder, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    return done.stdout


def host_work(root: Path, folder: Path, data: Path, quick: bool) -> float:
    """Milliseconds of one core for a batch of the paper preset, of images that are new to the process."""
    changes = {
        "runtime.data_root": str(data),
        "runtime.cache_dir": str(folder / "cache"),
        "runtime.device": "cpu",
        "model.captions": "class_names",
        "model.weights": "none",
        "data.budget": IMAGES // 2,
    }
    if quick:
        changes |= {"data.crop": [64, 64], "data.source_size": [95, 160]}
        changes |= {"data.target_size": [64, 128], "model.vlm": "toy", "model.weights": "bundled"}
    given = json.dumps(["paper", changes])
    run(root, folder, "-c", PREPARE, given)
    return float(run(root, folder, "-c", HOST_WORK, given, str(IMAGES // 2 // 4)).splitlines()[-1])


def toy_host_work(root: Path, folder: Path) -> float:
    """Milliseconds of one core for a batch of the toy preset, over a whole run."""
    given = json.dumps(["toy", {"runtime.cache_dir": str(folder / "cache")}])
    run(root, folder, "-c", PREPARE, given)
    return float(run(root, folder, "-c", HOST_WORK, given, "150").splitlines()[-1])


def grid(root: Path, folder: Path, quick: bool) -> tuple[float, float]:
    """Seconds from the first run's start to the last one's end, and the mean of the final mIoU."""
    command = [str(root / "sweeps" / "run.py"), "--grid", "attention"]
    command += ["--set", f"runtime.cache_dir={folder / 'cache'}"]
    run(
        root,
        folder,
        *command,
        *(["--budgets", "100", "--set", "training.steps=20"] if quick else []),
    )
    store = Store(folder, f"sqlite:///{folder / 'mlflow.db'}")
    runs = store.runs()
    assert {one.status for one in runs} == {"FINISHED"}
    last_end = max(store.client.get_run(one.run_id).info.end_time for one in runs)
    seconds = (last_end - min(one.started for one in runs)) / 1000
    return seconds, fmean(one.metrics["final/miou"] for one in runs)
