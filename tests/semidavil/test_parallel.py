"""Several processes that share every batch against one that has it all."""

import multiprocessing
import os
import subprocess
import sys
import threading
import time
from multiprocessing.context import ForkServerContext
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import load_file
from shared_step import as_one_of_two, gradients
from test_train import SHORT, collect, losses

from semidavil.checkpoint import CHECKPOINT, StopTraining
from semidavil.config import Config, ConfigError, preset
from semidavil.distributed import ParallelError, require_same_start, shares_of
from semidavil.launch import _listen
from semidavil.train import NonFiniteLossError, Report, Result, train

# Six steps in float32. AdamW's first ones move every weight by some 3e-3 whatever its gradient's
# size, so that rounding shows in weights sooner than in losses; seen: 2e-7 and 2e-5.
LOSS_TOLERANCE, WEIGHT_TOLERANCE = 2e-6, 1e-4
ROOT = Path(__file__).parents[2]
PAIR = {"runtime.world_size": 2}


@pytest.fixture
def prepared() -> ForkServerContext:
    """Starts forks of a process that has imported all: importing costs more than a few steps."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["semidavil.train"])
    return context


@pytest.fixture
def prepared_launch(prepared: ForkServerContext, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the processes of a run."""
    monkeypatch.setattr("semidavil.launch.multiprocessing", Mock(get_context=lambda _: prepared))


@pytest.fixture
def config(tiny_toy: dict[str, str]) -> Config:
    # Some of the pseudo-labels are learnt from in every step, and every strong view is pasted into.
    changes = {"training.batch_size": 4, "training.confidence": 0.12, "training.cutmix": 1.0}
    return preset("toy", {**SHORT, **changes, **tiny_toy})


def assert_same_weights(ours: Path, theirs: Path) -> None:
    mine, expected = load_file(ours), load_file(theirs)
    assert mine.keys() == expected.keys()
    for name, values in expected.items():
        torch.testing.assert_close(mine[name], values, rtol=0, atol=WEIGHT_TOLERANCE, msg=name)


def assert_same(ours: tuple[Result, list[Report]], theirs: tuple[Result, list[Report]]) -> None:
    (mine, reports), (expected, others) = ours, theirs
    assert [r.step for r in reports] == [r.step for r in others]
    for report, other in zip(reports, others, strict=True):
        wanted = {n: v for n, v in other.metrics.items() if n.startswith("train/loss")}
        found = {name: report.metrics[name] for name in wanted}
        assert found == pytest.approx(wanted, rel=LOSS_TOLERANCE), report.step
    assert_same_weights(mine.artifacts["weights"], expected.artifacts["weights"])
    assert mine.metrics["miou"] == pytest.approx(expected.metrics["miou"], abs=0.2)


@pytest.mark.slow
def test_a_shared_step_has_the_losses_and_the_gradient_of_the_whole_batch(
    tmp_path: Path, prepared: ForkServerContext
) -> None:
    alone = gradients()
    pair = [
        prepared.Process(
            target=as_one_of_two, args=(rank, str(tmp_path / "meeting"), str(tmp_path / str(rank)))
        )
        for rank in (0, 1)
    ]
    for process in pair:
        process.start()
    for process in pair:
        process.join()
        assert process.exitcode == 0
    for rank in (0, 1):
        shared = torch.load(tmp_path / str(rank))
        assert shared.keys() == alone.keys()
        for name, values in alone.items():
            assert values.abs().max() > 0.01, name
            # The losses are computed in float32, whatever the network's type.
            torch.testing.assert_close(shared[name], values, rtol=1e-5, atol=1e-7, msg=name)


@pytest.mark.slow
@pytest.mark.usefixtures("prepared_launch")
@pytest.mark.parametrize(("method", "loss"), [("semidavil", "dyce"), ("supervised", "focal")])
def test_two_processes_end_as_one_does(
    config: Config, tmp_path: Path, method: str, loss: str
) -> None:
    config = config.replace({"training.method": method, "loss.name": loss})
    one = collect(config, tmp_path / "one")
    two = collect(config.replace(PAIR), tmp_path / "two")
    if method == "semidavil":
        assert all(0.05 < r.metrics["train/confident"] < 0.95 for r in one[1])
    assert_same(two, one)


@pytest.mark.slow
@pytest.mark.usefixtures("prepared_launch")
def test_a_run_goes_on_with_another_number_of_processes(config: Config, tmp_path: Path) -> None:
    assert config.replace(PAIR).key() == config.key()
    one, reports = collect(config, tmp_path / "one")
    collect(config.replace(PAIR), tmp_path / "two", stop_at=3)
    assert not multiprocessing.active_children()
    resumed, rest = collect(config, tmp_path / "two")
    assert losses(rest) == pytest.approx(losses(reports)[1:], rel=LOSS_TOLERANCE)
    assert_same_weights(resumed.artifacts["weights"], one.artifacts["weights"])

    collect(config, tmp_path / "three", stop_at=3)
    resumed, rest = collect(config.replace(PAIR), tmp_path / "three")
    assert losses(rest) == pytest.approx(losses(reports)[1:], rel=LOSS_TOLERANCE)
    assert_same_weights(resumed.artifacts["weights"], one.artifacts["weights"])


@pytest.mark.slow
def test_a_stop_writes_the_checkpoint_of_its_step(config: Config, tmp_path: Path) -> None:
    result, reports = collect(config.replace(PAIR), tmp_path, 3, StopTraining)
    assert result is None
    assert reports[-1].step == 3
    assert torch.load(tmp_path / CHECKPOINT, weights_only=True)["step"] == 3
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_torchrun_trains_the_same_run(config: Config, tmp_path: Path) -> None:
    one, _ = collect(config, tmp_path / "one")
    changed = config.to_params().items() - preset("toy").to_params().items()
    settings = [part for name, value in changed for part in ("--set", f"{name}={value}")]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "semidavil", "train", *settings, "--out", str(tmp_path / "two")]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(f"run {config.key()}") == 1  # the first process alone speaks
    weights = tmp_path / "two" / "segmenter.safetensors"
    assert_same_weights(weights, one.artifacts["weights"])


@pytest.mark.slow
@pytest.mark.usefixtures("prepared_launch")
def test_what_happens_in_a_process_reaches_the_caller(config: Config, tmp_path: Path) -> None:
    pair = config.replace(PAIR)
    diverging = pair.replace({"training.lr": 1e25, "training.grad_clip": 0})
    with pytest.raises(NonFiniteLossError, match=r"not finite at step \d") as caught:
        train(diverging)
    assert "in process" in caught.value.__notes__[0]

    def kill_one(report: Report) -> None:
        multiprocessing.active_children()[-1].kill()

    with pytest.raises(ParallelError, match="exit code -9"):
        train(pair, kill_one)
    assert not multiprocessing.active_children()


def test_a_process_that_dies_with_an_answer_unread_is_named() -> None:
    ours, theirs = multiprocessing.Pipe()
    ours.send(True)
    theirs.close()
    with pytest.raises(ConnectionResetError):
        ours.recv()  # as the system says it, instead of the end of what was sent
    ours, theirs = multiprocessing.Pipe()
    ours.send(True)
    theirs.close()
    with pytest.raises(ParallelError, match="exit code -9"):
        _listen({ours: Mock(exitcode=-9)}, Mock())


def test_a_death_comes_before_the_error_of_a_process_that_misses_it() -> None:
    """The other process hears of it first: connections are closed before there is an exit code."""
    dying = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
    dying.start()
    (misses, theirs), (silent, _kept_open) = multiprocessing.Pipe(), multiprocessing.Pipe()
    theirs.send(("error", RuntimeError("Connection reset by peer")))
    threading.Timer(0.2, dying.kill).start()
    with pytest.raises(ParallelError, match="exit code -9"):
        _listen({misses: Mock(), silent: dying}, Mock())


def test_rows_of_a_process_in_several_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shares_of([2, 4]) == [0, 1, 2, 3, 4, 5]
    monkeypatch.setattr("semidavil.distributed.world_size", lambda: 2)
    monkeypatch.setattr("semidavil.distributed.rank", lambda: 1)
    assert shares_of([2, 4]) == [1, 4, 5]


def test_what_would_not_be_exact_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"unimatch trains in one process.*semidavil"):
        preset("paper", {"training.method": "unimatch", **PAIR})
    with pytest.raises(ConfigError, match="3 processes cannot share batches of 4"):
        preset("paper", {"runtime.world_size": 3})
    monkeypatch.setattr("semidavil.distributed.world_size", lambda: 2)
    with pytest.raises(ParallelError, match="batch normalisation"):
        require_same_start(0, torch.nn.Sequential(torch.nn.BatchNorm2d(3)))
    monkeypatch.setattr("semidavil.distributed.from_first", lambda step: 4)
    with pytest.raises(ParallelError, match="checkpoint must lie"):
        require_same_start(0, torch.nn.Linear(2, 2))
