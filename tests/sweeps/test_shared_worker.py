"""Runs that share a worker's process: nothing of one stays for the next."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from semidavil.config import preset
from sweeps.run.events import Task
from sweeps.run.worker import run_task
from sweeps.track.store import Store

RUNS = 12
GROWTH_BYTES = 100 * 2**20  # from the second run on; each takes 64 MiB
SCRIPT = """
import os, resource, sys, threading
from pathlib import Path
sys.path.insert(0, {tests!r})
from semidavil.config import preset
from sweeps.run.events import Task
from sweeps.run.worker import run_task
from sweeps.track.store import Store

os.environ["FAKE_TRAINING"], os.environ["FAKE_STEP_SECONDS"] = {folder!r}, "0"
store = Store(Path({folder!r}))
experiment = store.experiment_id("attention")
end = threading.Event()


def work(task, done):
    run_task(task, lambda event: False)
    done.set()
    end.wait()


pages = []
for seed in range({runs}):
    config = preset("toy", {{"seed": seed}})
    run_id = store.create_run(experiment, "cell", config, {{"key": config.key(), "epoch": "1"}})
    task = Task("cell", config.to_params(), run_id, 1, store.uri, store.storage.of(config.key()),
                train="fake_training:hungry_train")
    done = threading.Event()
    threading.Thread(target=work, args=(task, done)).start()
    done.wait()
    pages.append(int(Path("/proc/self/statm").read_text().split()[1]))
end.set()
assert {{run.status for run in store.runs()}} == {{"FINISHED"}}
print((pages[-1] - pages[1]) * resource.getpagesize())
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, and is about glibc")
def test_a_worker_does_not_grow_with_every_run(store: Store, tmp_path: Path) -> None:
    """Each run has a thread of its own, as in Ray Tune. It stays, as do those of PyTorch's thread pools."""
    tests = str(Path(__file__).parent)
    script = SCRIPT.format(tests=tests, folder=str(store.folder), runs=RUNS)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < GROWTH_BYTES


@pytest.mark.slow
def test_a_run_ends_the_same_whatever_its_worker_did_before(
    store: Store, few_images: Path, tmp_path: Path
) -> None:
    tiny = {
        "data.toy": False,
        "data.budget": 4,
        "training.steps": 4,
        "training.warmup_steps": 0,
        "training.batch_size": 2,
        "runtime.data_root": str(few_images),
        "runtime.cache_dir": str(tmp_path / "cache"),
        "runtime.threads": 1,
        "runtime.device": "cpu",
    }

    def loss_and_score(changes: dict[str, Any]) -> tuple[float, float]:
        config = preset("toy", tiny | changes)
        tags = {"key": config.key(), "epoch": "1"}
        run_id = store.create_run(store.experiment_id("attention"), "cell", config, tags)
        where = str(tmp_path / run_id)
        run_task(Task("cell", config.to_params(), run_id, 1, store.uri, where), lambda _: False)
        run = store.client.get_run(run_id)
        assert run.info.status == "FINISHED", run.data.tags
        return run.data.metrics["train/loss"], run.data.metrics["final/pixel_accuracy"]

    alone = loss_and_score({})
    other = loss_and_score({"model.fusion": "cross_attention", "seed": 5})
    assert loss_and_score({}) == alone
    assert other != alone
