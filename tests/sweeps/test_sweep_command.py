"""The command itself, as a process of its own, with a stand-in for the training."""

import re
import shlex
import signal
from collections import Counter
from pathlib import Path

import pytest
from fake_training import BROKEN, BROKEN_ONCE, CROWDED, KILLED, NON_FINITE
from sweep_process import FOUR, ROOT, Sweeps

from semidavil.config import preset
from sweeps.engine import Resources
from sweeps.grids import GRIDS
from sweeps.provenance import code_tags
from sweeps.run import main, parser
from sweeps.trial import Task


@pytest.mark.slow
def test_a_sweep_finishes_its_cells_and_its_repetition_does_nothing(sweeps: Sweeps) -> None:
    code, output = sweeps.run(*FOUR)
    assert code == 0, output
    assert sweeps.states() == {"FINISHED": 4}
    assert len(re.findall(r"mIoU +3\d\.\d\d", output)) == 4
    assert "WARNING" not in output
    assert "INFO" not in output
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_failure_that_passes_is_overcome_from_the_checkpoint(sweeps: Sweeps) -> None:
    code, output = sweeps.run(*FOUR, "--set", f"training.lr={BROKEN_ONCE}")
    assert code == 0, output
    assert sweeps.states() == {"FINISHED": 4}
    starts = Counter(event.split()[0] for event in sweeps.trainings())
    assert starts == {"train-from-0": 4, "train-from-4": 4}
    runs = sweeps.store.runs()
    assert {run.tags["attempts"] for run in runs} == {"2"}
    assert {run.tags["reason"] for run in runs} == {""}
    assert {run.tags["data"] for run in runs} == {"feed"}


@pytest.mark.parametrize(
    ("resources", "packed", "alone"),
    [
        (Resources(2, 1, 0.5), True, {"CPU": 1, "GPU": 1.0}),  # two on a GPU
        (Resources(2, 1, 1), False, {"CPU": 1, "GPU": 1}),
        (Resources(3, 2, 0), True, {"CPU": 6}),
        (Resources(1, 2, 0), False, {"CPU": 2}),
        (Resources(8, 1, 0, "auto"), False, {"CPU": 1}),  # nobody knows who shares a node
    ],
)
def test_alone_means_a_whole_gpu_or_machine(
    resources: Resources, packed: bool, alone: dict[str, float]
) -> None:
    task = Task("cell", {}, "run", "uri", "folder", alone=True)
    assert resources.packed() == packed
    assert resources.of(task).required_resources == alone


@pytest.mark.slow
def test_what_is_out_of_memory_beside_others_runs_alone_at_the_end(sweeps: Sweeps) -> None:
    arguments = (*FOUR, "--retries", "0", "--set", f"training.lr={CROWDED}")
    process = sweeps.start(*arguments, step_seconds=0.2)
    output, _ = process.communicate(timeout=180)
    assert process.returncode == 0, output
    assert "out of memory" in output
    assert "by itself" in output
    assert sweeps.states() == {"FINISHED": 4}


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_killed_worker_goes_on_from_its_checkpoint(sweeps: Sweeps) -> None:
    code, output = sweeps.run(*FOUR[:-1], "1", "--set", f"training.lr={KILLED}")
    assert code == 0, output
    assert sweeps.states() == {"FINISHED": 4}
    starts = Counter(event.split()[0] for event in sweeps.trainings())
    assert starts == {"train-from-0": 4, "train-from-4": 4}


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_finished_and_the_repetition_completes(sweeps: Sweeps) -> None:
    process = sweeps.start(*FOUR, step_seconds=0.3)
    sweeps.wait_until(lambda: len(sweeps.trainings()) >= 3)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "the same command goes on" in output
    states = sweeps.states()
    assert states["FINISHED"] >= 1
    assert states["KILLED"] >= 1
    assert states["RUNNING"] == 0

    code, output = sweeps.run(*FOUR)
    assert code == 0, output
    assert sweeps.states() == {"FINISHED": 4}


@pytest.mark.slow
def test_after_a_kill_of_the_driver_nothing_is_doubled_or_left_running(sweeps: Sweeps) -> None:
    process = sweeps.start(*FOUR, step_seconds=0.3)
    sweeps.wait_until(lambda: len(sweeps.trainings()) >= 3)
    process.kill()
    process.communicate(timeout=60)
    assert sweeps.states()["RUNNING"] >= 1

    code, output = sweeps.run(*FOUR)
    assert code == 0, output
    assert "left open" in output
    assert sweeps.states() == {"FINISHED": 4}
    assert max(sweeps.keys().values()) == 1
    for run in sweeps.store.runs():
        history = sweeps.store.client.get_metric_history(run.run_id, "train/loss")
        assert [point.step for point in history] == list(range(1, 11))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--grid", "atention"], "did you mean attention"),
        (["--grid", "attention", "--benchmark", "gta5-citiscapes"], "did you mean gta5-cityscapes"),
        (["--grid", "attention", "--preset", "huge"], "toy"),
        (["--grid", "attention", "--set", "training.rl=1"], "training.lr"),
        (["--grid", "attention", "--set", "seed=3"], "--seeds"),
        (["--grid", "attention", "--set", "model.fusion=vlga"], "varies it"),
        (["--grid", "attention", "--set", "training.lr"], "NAME=VALUE"),
        ([], "--grid is missing"),
    ],
)
def test_a_wrong_command_is_refused_with_the_remedy(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert expected in capsys.readouterr().err


def test_lists_of_numbers_need_no_commas() -> None:
    options = parser().parse_args(
        ["--grid", "attention", "--budgets", "0", "100", "--seeds", "0", "1", "--list"]
    )
    assert options.budgets == [0, 100]
    assert options.seeds == [0, 1]
    with pytest.raises(SystemExit):
        parser().parse_args(["--grid", "attention", "--budgets", "-5"])


def test_list_starts_nothing_and_creates_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("COLUMNS", "160")
    assert main(["--grid", "attention", "--list", "--budgets", "0", "100"]) == 0
    output = capsys.readouterr().out
    assert output.count("to do") == 9  # eight cells and the summary
    assert output.count("(baseline)") == 2
    assert "fusion=cross_attention" in output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [["--list"], ["--grid", "all", "--list"]])
def test_list_of_everything_counts_every_grid_and_starts_nothing(
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("COLUMNS", "200")
    assert main(arguments) == 0
    output = capsys.readouterr().out
    cells = {name: len(grid.cells(preset("toy"))) for name, grid in GRIDS.items()}
    for name, count in cells.items():
        assert re.search(rf"{name} .*{count} cells: {count} to do", output), name
    total = int(re.search(r"--grid all: (\d+) cells", output)[1])
    assert max(cells.values()) < total < sum(cells.values())  # shared cells are counted once
    assert not list(tmp_path.iterdir())


def test_data_are_never_left_alone_silently(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--grid", "attention", "--preset", "toy", "--data-root", "/data", "--list"]
    assert main(options) == 2
    assert "would leave --data-root" in capsys.readouterr().err


def test_the_oracle_is_refused_outside_its_grid(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--grid", "attention", "--set", "model.captions=oracle", "--list"]) == 2
    assert "--grid captions" in capsys.readouterr().err


@pytest.mark.slow
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
    sweeps.store.client.log_metric(run.run_id, "final/miou", other, step=10**6)
    sweeps.store.client.set_tag(run.run_id, "semidavil.version.torch", "0.1")
    sweeps.store.client.set_tag(run.run_id, "semidavil.commit", "c0ffee")
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


@pytest.mark.slow
def test_two_sweeps_of_one_grid_share_its_cells(sweeps: Sweeps) -> None:
    grid = ("--grid", "attention", "--budgets", "0", "100", "--concurrency", "1")
    both = [sweeps.start(*grid, step_seconds=0.15) for _ in range(2)]
    outputs = [process.communicate(timeout=240)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert sweeps.states() == {"FINISHED": 8}
    assert set(sweeps.keys().values()) == {1}
    assert len(sweeps.trainings()) == 8
    assert len({event.split()[-1] for event in sweeps.trainings()}) == 2  # each has done some
    assert any("another sweep has begun it" in output for output in outputs)
