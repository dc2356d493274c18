"""The command itself, as a process of its own, with a stand-in for the training."""

import os
import re
import shlex
import signal
import sqlite3
import time
from collections import Counter
from pathlib import Path

import pytest
from fake_training import BROKEN, BROKEN_ONCE, CROWDED, KILLED, NON_FINITE
from servers import assert_undisturbed
from sweep_process import FOUR, ROOT, Sweeps

from sweeps.track.provenance import code_tags

pytestmark = pytest.mark.slow


def starts_of(sweeps: Sweeps) -> Counter[str]:
    return Counter(event.split()[0] for event in sweeps.trainings())


def test_a_sweep_finishes_its_cells_and_its_repetition_does_nothing(sweeps: Sweeps) -> None:
    code, output = sweeps.run(*FOUR)
    assert code == 0, output
    assert_undisturbed(sweeps.store, 4)
    assert len(re.findall(r"mIoU +3\d\.\d\d", output)) == 4
    assert not {"WARNING", "INFO", "ERROR"} & set(output.split()), output
    assert len({event.split()[-1] for event in sweeps.trainings()}) == 2, "workers are not reused"
    assert sum(event.startswith("prepare") for event in sweeps.events()) == 1

    code, output = sweeps.run(*FOUR)
    assert code == 0, output
    assert "nothing to run" in output
    assert len(sweeps.trainings()) == 4

    # A cell that another grid shares is taken from here: DLG at budget 100 is semidavil's.
    code, output = sweeps.run("--grid", "baselines", "--budgets", "100", "--seeds", "0", "--list")
    assert re.search(r"semidavil/100/s0.*done.*by attention", output), output
    assert sum("to do" in line for line in output.splitlines() if "│" in line) == 3


def test_one_broken_cell_leaves_the_others_and_the_command_fails(sweeps: Sweeps) -> None:
    arguments = (*FOUR, "--set", f"training.lr={BROKEN}")
    code, output = sweeps.run(*arguments)
    assert code == 1
    assert sweeps.states() == {"FINISHED": 3, "FAILED": 1}
    assert "a broken image" in output
    (log,) = re.findall(r"\S+train\.log", output)
    assert "Traceback" in Path(log).read_text()
    assert f"retry them: python sweeps/run.py {shlex.join(arguments)}\n" in output
    assert len(sweeps.trainings()) == 5, "it is tried once more"

    code, _ = sweeps.run(*arguments, "--retries", "0")  # broken still; no second run
    assert code == 1
    assert sweeps.states() == {"FINISHED": 3, "FAILED": 1}
    assert len(sweeps.trainings()) == 6


def test_a_failure_that_passes_is_overcome_from_the_checkpoint(sweeps: Sweeps) -> None:
    code, output = sweeps.run(*FOUR, "--set", f"training.lr={BROKEN_ONCE}")
    assert code == 0, output
    assert sweeps.states() == {"FINISHED": 4}
    assert starts_of(sweeps) == {"train-from-0": 4, "train-from-4": 4}
    runs = sweeps.store.runs()
    assert {(run.tags["attempts"], run.tags["reason"], run.tags["data"]) for run in runs} == {
        ("2", "", "feed")
    }


def test_what_is_out_of_memory_beside_others_runs_alone_at_the_end(sweeps: Sweeps) -> None:
    arguments = (*FOUR, "--retries", "0", "--set", f"training.lr={CROWDED}")
    code, output = sweeps.run(*arguments, step_seconds=0.2)
    assert code == 0, output
    assert "out of memory" in output
    assert "by itself" in output
    assert sweeps.states() == {"FINISHED": 4}


def test_a_non_finite_loss_is_tried_again_only_when_asked(sweeps: Sweeps) -> None:
    arguments = (*FOUR, "--set", f"training.lr={NON_FINITE}")
    again = f"python sweeps/run.py {shlex.join(arguments)} --retry-failed\n"
    code, output = sweeps.run(*arguments)
    assert code == 1
    assert f"retry them: {again}" in output
    assert sweeps.states() == {"FAILED": 4}
    code, output = sweeps.run(*arguments)
    assert len(sweeps.trainings()) == 4
    assert code == 1, output
    assert f"4 cells, whose loss became infinite, are tried again only by {again}" in output
    assert sweeps.run(*arguments, "--retry-failed")[0] == 1
    assert len(sweeps.trainings()) == 8
    assert max(sweeps.keys().values()) == 1


def test_a_killed_worker_goes_on_from_its_checkpoint(sweeps: Sweeps) -> None:
    code, output = sweeps.run(*FOUR[:-1], "1", "--set", f"training.lr={KILLED}")
    assert code == 0, output
    assert sweeps.states() == {"FINISHED": 4}
    assert starts_of(sweeps) == {"train-from-0": 4, "train-from-4": 4}


# People and batch systems


@pytest.mark.parametrize(
    ("number", "everywhere"),
    [
        (signal.SIGINT, False),
        (signal.SIGTERM, False),
        (signal.SIGHUP, True),
        (signal.SIGUSR1, True),  # as a batch system announces that it takes the machine
    ],
)
def test_a_signal_leaves_a_checkpoint_of_the_last_step_and_no_run_open(
    number: signal.Signals, everywhere: bool, sweeps: Sweeps
) -> None:
    process = sweeps.start(*FOUR, step_seconds=0.5)
    sweeps.wait_until(lambda: len(sweeps.trainings()) >= 3)
    if everywhere:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 128 + number, output
    assert "the same command goes on" in output
    assert "Traceback" not in output
    states = sweeps.states()
    assert states["FINISHED"] >= 1
    assert states["KILLED"] >= 1
    assert states["RUNNING"] == 0

    code, output = sweeps.run(*FOUR)
    assert code == 0, output
    assert_undisturbed(sweeps.store, 4)
    steps = Counter(tuple(e.split()[:3]) for e in sweeps.events() if e.startswith("step-"))
    assert max(steps.values()) == 1, "a step was trained twice"


def test_after_a_kill_of_the_driver_nothing_is_doubled_or_left_running(sweeps: Sweeps) -> None:
    process = sweeps.start(*FOUR, step_seconds=0.3)
    sweeps.wait_until(lambda: len(sweeps.trainings()) >= 3)
    process.kill()
    process.communicate(timeout=600)
    assert sweeps.states()["RUNNING"] >= 1

    code, output = sweeps.run(*FOUR)
    assert code == 0, output
    assert "left open" in output
    assert_undisturbed(sweeps.store, 4)


def test_a_run_that_is_deleted_in_mlflows_page_costs_its_cell_and_no_other(sweeps: Sweeps) -> None:
    """It used to end the whole sweep with 500 lines of traceback and leave runs RUNNING."""
    process = sweeps.start(*FOUR, step_seconds=1.0)
    sweeps.wait_until(lambda: len(sweeps.trainings()) >= 2)
    sweeps.store.delete(sweeps.store.runs()[0].run_id)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 1, output
    assert "deleted" in output
    assert "Traceback" not in output
    assert sweeps.states() == {"FINISHED": 3}

    code, output = sweeps.run(*FOUR)
    assert code == 0, output
    assert sweeps.states() == {"FINISHED": 4}


def test_a_database_that_somebody_holds_locked_stops_no_training(sweeps: Sweeps) -> None:
    """As a viewer of SQLite files does while it has unsaved changes."""
    process = sweeps.start(*FOUR, step_seconds=0.5)
    sweeps.wait_until(lambda: len(sweeps.trainings()) >= 2)
    assert sweeps.store.database is not None
    holder = sqlite3.connect(sweeps.store.database, timeout=60)
    holder.execute("BEGIN IMMEDIATE")
    trained = len(sweeps.events())
    sweeps.wait_until(lambda: sum("trained" in e for e in sweeps.events()[trained:]) == 2)
    holder.close()
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    assert_undisturbed(sweeps.store, 4)


# Several sweeps


def test_two_sweeps_of_one_grid_share_its_cells(sweeps: Sweeps) -> None:
    grid = ("--grid", "attention", "--budgets", "0", "100", "--concurrency", "1", "--wait")
    both = [sweeps.start(*grid, step_seconds=0.15) for _ in range(2)]
    outputs = [process.communicate(timeout=600)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert_undisturbed(sweeps.store, 8)
    assert len(sweeps.trainings()) == 8
    assert len({event.split()[-1] for event in sweeps.trainings()}) == 2  # each has done some
    assert any("another sweep has" in output for output in outputs)


def of_another_machine(sweeps: Sweeps) -> str:
    """Kills a sweep of one cell, which then looks like one on a machine that may still live."""
    process = sweeps.start(*FOUR, "--concurrency", "1", step_seconds=0.5)
    sweeps.wait_until(lambda: any(event.startswith("step-3") for event in sweeps.events()))
    process.kill()
    process.communicate(timeout=600)
    (run,) = sweeps.store.runs()
    sweeps.store.log(run.run_id, tags={"host": "another"})
    return run.run_id


def test_what_others_are_at_is_no_success_until_it_is_done(sweeps: Sweeps) -> None:
    """A job that was killed and begun again on another machine used to do nothing and exit with 0."""
    run_id = of_another_machine(sweeps)
    code, output = sweeps.run(*FOUR)
    assert code == 3, output
    assert "other sweeps are at work on the rest" in output
    assert sweeps.states() == {"FINISHED": 3, "RUNNING": 1}

    process = sweeps.start(*FOUR, "--wait")
    assert process.stdout is not None
    assert any("waiting for 1 cells that other sweeps train" in line for line in process.stdout)
    sweeps.store.end(run_id, "KILLED")
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    assert_undisturbed(sweeps.store, 4)


def test_what_becomes_free_while_a_sweep_runs_is_taken_over_before_its_end(sweeps: Sweeps) -> None:
    """A sweep used to end with holes and exit with 0 when its neighbour was interrupted."""
    run_id = of_another_machine(sweeps)
    process = sweeps.start(*FOUR, step_seconds=0.5)
    sweeps.wait_until(lambda: len(sweeps.trainings()) >= 3)
    sweeps.store.end(run_id, "KILLED")
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    assert_undisturbed(sweeps.store, 4)


def test_a_run_is_made_again_from_the_store_alone(sweeps: Sweeps) -> None:
    code, output = sweeps.run(*FOUR)
    assert code == 0, output
    run = sweeps.store.runs()[0]
    assert run.tags["changes"] == code_tags(ROOT)["changes"]
    code, output = sweeps.run("--rerun", run.run_id[:12])
    assert code == 0, output
    assert "mIoU is reproduced" in output
    assert f"{run.metrics['final/miou']:.4f}" in output
    assert sweeps.states() == {"FINISHED": 4}  # nothing is tracked twice

    other = run.metrics["final/miou"] + 0.5
    now = int(time.time() * 1000)
    changed = {"version.torch": "0.1", "commit": "c0ffee"}
    sweeps.store.log(run.run_id, [("final/miou", other, now, 10**6)], tags=changed)
    code, output = sweeps.run("--rerun", run.run_id)
    assert code == 1
    assert "not reproduced: -0.5000" in output
    assert "version.torch 0.1 -> " in output
    assert "git checkout c0ffee" in output

    code, output = sweeps.run("--rerun", "no-such-run")
    assert code == 1
    assert "no run in" in output
    code, output = sweeps.run("--rerun", run.run_id, "--set", "training.lr=1")
    assert code == 2
    assert "only runtime.*" in output
