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
from fake_training import CROWDED, NON_FINITE, TROUBLED, TROUBLES
from forked_commands import ROOT
from servers import assert_undisturbed
from sweep_process import FOUR, Command, Sweeps

from semidavil.config import Config, preset
from sweeps.track.lease import Claimed, Leases
from sweeps.track.provenance import code_tags

pytestmark = pytest.mark.slow
CELL = {"data.budget": 100}


def starts_of(sweeps: Sweeps) -> Counter[str]:
    return Counter(event.split()[0] for event in sweeps.trainings())


def test_a_sweep_finishes_its_cells_and_its_repetition_does_nothing(sweeps: Sweeps) -> None:
    sweeps.forks = False
    code, output = sweeps.run(*FOUR)
    assert code == 0, output
    assert_undisturbed(sweeps.store, 4)
    assert len(re.findall(r"mIoU +3\d\.\d\d", output)) == 4
    assert not {"WARNING", "INFO", "ERROR"} & set(output.split()), output
    workers = {event.split()[-1] for event in sweeps.trainings()}
    assert len(workers) <= 2, "workers are not reused"  # one may end all before another is up
    assert sum(event.startswith("prepare") for event in sweeps.events()) == 1

    sweeps.forks = True
    code, output = sweeps.run(*FOUR)
    assert code == 0, output
    assert "4 runs, all done" in output
    assert len(sweeps.trainings()) == 4

    # A cell that another grid shares is taken from here: DLG at budget 100 is semidavil's.
    code, output = sweeps.run("--grid", "baselines", "--budgets", "100", "--seeds", "0", "--list")
    assert re.search(r"semidavil/100/s0.*done.*by attention", output), output
    assert len(re.findall(r"/s0 +to do", output)) == 3

    make_a_run_again(sweeps)


def make_a_run_again(sweeps: Sweeps) -> None:
    """From the store alone."""
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
    assert "is called 'no-such-run'" in output
    code, output = sweeps.run("--rerun", run.run_id, "--set", "training.lr=1")
    assert code == 2
    assert "only runtime.*" in output


def test_each_kind_of_failure_is_tried_again_where_that_may_help(sweeps: Sweeps) -> None:
    """Of four cells one fails once, one always, one diverges, and one kills its worker."""
    arguments = (*FOUR, "--set", f"training.lr={TROUBLED}")
    again = f"python sweeps/run.py {shlex.join(arguments)} --retry-failed\n"
    code, output = sweeps.run(*arguments)
    assert code == 1
    assert sweeps.states() == {"FINISHED": 2, "FAILED": 2}
    assert "a broken image" in output
    assert "the loss is not finite" in output
    logs = re.findall(r"\S+train\.log", output)
    assert len(logs) == 2
    assert all("Traceback" in Path(log).read_text() for log in logs)
    assert f"retry them: {again}" in output
    # All but the cell that has diverged are tried once more, from their checkpoints.
    assert starts_of(sweeps) == {"train-from-0": 4, "train-from-4": 3}
    assert attempts_at(sweeps) == {"dlg": 2, "vlga": 2, "wpct": 1, "cross_attention": 2}
    (overcome,) = (run for run in sweeps.store.runs() if run.params["model.fusion"] == "dlg")
    tags = overcome.tags
    assert (tags["attempts"], tags["reason"], tags["data"]) == ("2", "", "feed")

    code, output = sweeps.run(*arguments, "--retries", "0")  # broken still; no second run
    assert code == 1
    assert sweeps.states() == {"FINISHED": 2, "FAILED": 2}
    assert attempts_at(sweeps) == {"dlg": 2, "vlga": 3, "wpct": 1, "cross_attention": 2}

    assert sweeps.run(*arguments, "--retries", "0", "--retry-failed")[0] == 1
    assert attempts_at(sweeps) == {"dlg": 2, "vlga": 4, "wpct": 2, "cross_attention": 2}
    assert max(sweeps.keys().values()) == 1


def attempts_at(sweeps: Sweeps) -> Counter[str]:
    return Counter(event.split()[1] for event in sweeps.trainings())


def test_cells_that_have_all_diverged_are_tried_again_only_when_asked(sweeps: Sweeps) -> None:
    arguments = (*FOUR, "--set", f"training.lr={NON_FINITE}")
    again = f"python sweeps/run.py {shlex.join(arguments)} --retry-failed\n"
    for fusion in TROUBLES:  # all of the grid
        config = preset("toy", CELL | {"training.lr": NON_FINITE, "model.fusion": fusion})
        run_id = claimed(sweeps, config)
        sweeps.store.log(run_id, tags={"retry": "false"})
        sweeps.store.end(run_id, "FAILED")
    code, output = sweeps.run(*arguments)
    assert code == 1, output
    assert f"a mistake in a plugin) are tried again only by {again}" in output
    assert sweeps.trainings() == []


def test_what_is_out_of_memory_beside_others_runs_alone_at_the_end(sweeps: Sweeps) -> None:
    arguments = (*FOUR, "--retries", "0", "--set", f"training.lr={CROWDED}")
    code, output = sweeps.run(*arguments, step_seconds=0.2)
    assert code == 0, output
    assert "out of memory" in output
    assert "by itself" in output
    assert sweeps.states() == {"FINISHED": 4}


# People and batch systems


def test_whatever_stops_a_sweep_leaves_checkpoints_and_the_next_goes_on(sweeps: Sweeps) -> None:
    """One sweep after the other, each of which ends some of the cells."""
    grid = ("--grid", "attention", "--budgets", "0", "100", "200", "--concurrency", "2")

    def begun() -> Command:
        trainings = len(sweeps.trainings())
        process = sweeps.start(*grid, step_seconds=0.2)
        sweeps.wait_until(lambda: len(sweeps.trainings()) >= trainings + 3)
        return process

    for number, everywhere in (
        (signal.SIGINT, False),
        (signal.SIGTERM, False),
        (signal.SIGHUP, True),
        (signal.SIGUSR1, True),  # as a batch system announces that it takes the machine
    ):
        finished, process = sweeps.states()["FINISHED"], begun()
        if everywhere:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        output, _ = process.communicate(timeout=600)
        assert process.returncode == 128 + number, output
        assert "the same command goes on" in output
        assert "Traceback" not in output
        states = sweeps.states()
        assert states["FINISHED"] >= finished + 1
        assert states["KILLED"] >= 1, (number, states)
        assert states["RUNNING"] == 0

    process = begun()
    steps = Counter(tuple(e.split()[:3]) for e in sweeps.events() if e.startswith("step-"))
    assert max(steps.values()) == 1, "a step was trained twice"
    process.kill()
    process.communicate(timeout=600)
    assert sweeps.states()["RUNNING"] >= 1

    code, output = sweeps.run(*grid)
    assert code == 0, output
    assert "left open" in output
    assert_undisturbed(sweeps.store, 12)


def test_a_sweep_whose_time_is_over_ends_itself_and_goes_on_with_the_same_numbers(
    sweeps: Sweeps,
) -> None:
    """Two runs of 20 s at a time do not end before it is; how far they come is the machine's affair."""
    code, output = sweeps.run(*FOUR, "--time-limit", "8s", step_seconds=2.0)
    assert code == 4, output
    assert "stopped by its time limit" in output
    assert f"python sweeps/run.py {shlex.join(FOUR)} --time-limit 8s" in output
    assert sweeps.states()["RUNNING"] == sweeps.states()["FINISHED"] == 0

    code, output = sweeps.run(*FOUR)
    assert code == 0, output
    assert_undisturbed(sweeps.store, 4)
    taken = Counter(tuple(e.split()[:3]) for e in sweeps.events() if e.startswith("step-"))
    assert set(taken.values()) == {1}, "a step was trained twice"


def test_a_run_that_is_deleted_in_mlflows_page_costs_its_cell_and_no_other(sweeps: Sweeps) -> None:
    """It used to end the whole sweep with 500 lines of traceback and leave runs RUNNING."""
    process = sweeps.start(*FOUR, step_seconds=0.5)
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
    """A run of the first cell, by a sweep on a machine that may still live."""
    run_id = claimed(sweeps, preset("toy", CELL))
    sweeps.store.log(run_id, tags={"host": "another"})
    return run_id


def claimed(sweeps: Sweeps, config: Config) -> str:
    """The run of a cell, by this process."""
    experiment = sweeps.store.experiment_id("attention")
    found = Leases(sweeps.store).claim(experiment, "cell", config, {})
    assert isinstance(found, Claimed)
    return found.run_id


def test_what_others_are_at_is_no_success_until_it_is_done(sweeps: Sweeps) -> None:
    """A job that was killed and begun again on another machine used to do nothing and exit with 0."""
    run_id = of_another_machine(sweeps)
    code, output = sweeps.run(*FOUR)
    assert code == 3, output
    assert "other sweeps are at work on the rest" in output
    assert sweeps.states() == {"FINISHED": 3, "RUNNING": 1}

    sweeps.constants["sweeps.run.sweep:LOOK_SECONDS"] = 1.0
    process = sweeps.start(*FOUR, "--wait")
    assert process.stdout is not None
    assert any("waiting for 1 runs that other sweeps train" in line for line in process.stdout)
    sweeps.store.end(run_id, "KILLED")
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    assert_undisturbed(sweeps.store, 4)


def test_what_becomes_free_while_a_sweep_runs_is_taken_over_before_its_end(sweeps: Sweeps) -> None:
    """A sweep used to end with holes and exit with 0 when its neighbour was interrupted."""
    run_id = of_another_machine(sweeps)
    process = sweeps.start(*FOUR, step_seconds=0.3)
    sweeps.wait_until(lambda: len(sweeps.trainings()) >= 2)
    sweeps.store.end(run_id, "KILLED")
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    assert_undisturbed(sweeps.store, 4)
