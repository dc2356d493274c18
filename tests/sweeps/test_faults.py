"""Sweeps that are killed again and again, at random moments, until they are done."""

import contextlib
import os
import random
import signal
import subprocess
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fake_training import CHECKPOINT_EVERY, STEPS
from sweep_process import Sweeps

KILLS = int(os.environ.get("SEMIDAVIL_KILLS", "5"))  # more of them take longer: try 100
SEED = int(os.environ.get("SEMIDAVIL_KILLS_SEED", "0"))
BUDGETS = range(0, 100 * max(4, KILLS // 2), 100)  # a kill comes every one to two of their cells
STEP_SECONDS = 0.15
GRID = ("--grid", "attention", "--budgets", *map(str, BUDGETS), "--concurrency", "2")


def kill_driver(process: subprocess.Popen[str], sweeps: Sweeps, rng: random.Random) -> None:
    process.kill()


def kill_group(process: subprocess.Popen[str], sweeps: Sweeps, rng: random.Random) -> None:
    os.killpg(process.pid, signal.SIGKILL)


def interrupt(process: subprocess.Popen[str], sweeps: Sweeps, rng: random.Random) -> None:
    process.send_signal(signal.SIGINT)


def interrupt_twice(process: subprocess.Popen[str], sweeps: Sweeps, rng: random.Random) -> None:
    process.send_signal(signal.SIGINT)
    time.sleep(rng.uniform(0, 1))
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGINT)


def kill_worker(process: subprocess.Popen[str], sweeps: Sweeps, rng: random.Random) -> None:
    """The sweep lives on."""
    pids = [int(mark.name.rpartition("-")[2]) for mark in sorted(sweeps.folder.glob("at-work-*"))]
    # Marks of killed workers stay, and their numbers may be another's by now.
    mine = f"FAKE_TRAINING={sweeps.folder}\0"
    workers = [p for p in pids if "ray" in told(p, "cmdline") and mine in told(p, "environ")]
    if workers:  # none is at work between two cells
        with contextlib.suppress(ProcessLookupError):
            os.kill(rng.choice(workers), signal.SIGKILL)


def told(pid: int, what: str) -> str:
    try:
        return Path(f"/proc/{pid}/{what}").read_bytes().decode(errors="replace")
    except OSError:
        return ""


FAULTS: list[Callable[[subprocess.Popen[str], Sweeps, random.Random], None]] = [
    kill_driver, kill_group, interrupt, interrupt_twice, kill_worker
]  # fmt: skip


@pytest.mark.slow
def test_whatever_is_killed_every_cell_ends_with_one_run_and_the_right_numbers(
    sweeps: Sweeps, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = random.Random(SEED)
    survived: Counter[str] = Counter()
    starts = 0
    process = None
    while survived.total() < KILLS:
        if process is None or process.poll() is not None:
            assert process is None or process.returncode != 0, "done before all kills: more cells"
            process, starts = sweeps.start(*GRID, step_seconds=STEP_SECONDS), starts + 1
        begun = steps_of(sweeps)
        sweeps.wait_until(lambda begun=begun: steps_of(sweeps) > begun, seconds=180)
        time.sleep(rng.uniform(0, 8 * STEP_SECONDS))
        # Each kind in turn, so that few kills already try them all; the moments are random.
        fault = FAULTS[survived.total() % len(FAULTS)]
        fault(process, sweeps, rng)
        survived[fault.__name__] += 1
        if fault is not kill_worker:
            process.communicate(timeout=600)
    process.communicate(timeout=600)
    code, output = sweeps.run(*GRID)
    assert code == 0, output

    cells = 4 * len(BUDGETS)
    assert sweeps.states() == {"FINISHED": cells}
    assert sweeps.keys().most_common(1)[0][1] == 1
    draws = np.random.default_rng(0).random(STEPS)
    for run in sweeps.store.runs():
        points = sweeps.store.client.get_metric_history(run.run_id, "train/loss")
        assert [point.step for point in points] == list(range(1, STEPS + 1))
        assert [point.value for point in points] == draws.tolist()
        undisturbed = 30 + 10 * draws.mean() + int(run.params["data.budget"]) / 1000
        assert run.metrics["final/miou"] == pytest.approx(undisturbed, abs=1e-12)

    times, attempts = steps_and_attempts(sweeps.events())
    repeated = sum(count - 1 for count in times.values())
    interruptions = sum(attempts.values()) - cells
    assert set(attempts) == {cell for cell, _ in times}
    assert interruptions >= KILLS // 2, "the kills came when nothing was trained"
    again: Counter[tuple[str, str]] = Counter()
    for (cell, _), count in times.items():
        again[cell] += count - 1
    assert all(again[cell] <= CHECKPOINT_EVERY * (attempts[cell] - 1) for cell in attempts), again
    with capsys.disabled():
        print(
            f"\nsurvived {survived.total()} kills ({dict(survived)}) of {starts} sweeps: "
            f"{interruptions} runs were interrupted, {repeated} of {len(times)} steps repeated"
        )


def steps_of(sweeps: Sweeps) -> int:
    return sum(event.startswith("step-") for event in sweeps.events())


def steps_and_attempts(
    events: list[str],
) -> tuple[Counter[tuple[tuple[str, str], int]], dict[tuple[str, str], int]]:
    """How often each step of each cell was trained, and how often each cell was begun."""
    times: Counter[tuple[tuple[str, str], int]] = Counter()
    attempts: dict[tuple[str, str], int] = defaultdict(int)
    for event in events:
        what, fusion, budget, _ = event.split()
        if what.startswith("step-"):
            times[(fusion, budget), int(what.removeprefix("step-"))] += 1
        elif what.startswith("train-from"):
            attempts[fusion, budget] += 1
    return times, attempts
