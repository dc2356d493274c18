"""Whole runs on a few generated scenes: determinism, resume, refusal, results."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from slow_cases import also_slow
from small_disk import SmallDisk

from semidavil.checkpoint import CHECKPOINT, PREVIOUS, OtherDataError, StopTraining, TrainingError
from semidavil.config import Config, preset
from semidavil.experiments.street import StreetExperiment
from semidavil.full_disk import DiskFull
from semidavil.memory import peak_memory_mb
from semidavil.methods.semidavil import SemiDAViL
from semidavil.models.segmenter import Segmenter
from semidavil.models.vlm import load_vlm
from semidavil.step import schedule
from semidavil.train import NonFiniteLossError, Report, Result, train

SHORT = {
    "data.budget": 4,
    "training.steps": 6,
    "training.warmup_steps": 2,
    "training.batch_size": 2,
    "runtime.eval_every": 3,
    "runtime.checkpoint_every": 2,
}


@pytest.fixture(scope="module")
def config(tiny_toy: dict[str, str]) -> Config:
    return preset("toy", {**SHORT, **tiny_toy})


class DiedError(Exception):
    """Ends a run without a word, as a kill does."""


def collect(
    config: Config,
    folder: Path | None = None,
    stop_at: int | None = None,
    stop: type[Exception] = DiedError,
):
    """Runs `config`, optionally interrupted after step `stop_at`; returns (result, reports)."""
    reports: list[Report] = []

    def report(one: Report) -> None:
        reports.append(one)
        if stop_at is not None and one.step >= stop_at:
            raise stop

    try:
        return train(config, report, folder), reports
    except stop:
        return None, reports


@pytest.fixture(scope="module")
def undisturbed(config: Config) -> tuple[Result, list[Report]]:
    """What `config` comes to where nothing happens."""
    return collect(config)


def losses(reports: list[Report]) -> list[float]:
    return [r.metrics["train/loss"] for r in reports if "train/loss" in r.metrics]


def test_a_run_goes_on_with_moved_data_and_not_with_repaired_labels(
    config: Config, tiny_root: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_root, tmp_path / "data")
    moved = tmp_path / "moved"
    config = config.replace({"runtime.data_root": str(tmp_path / "data")})
    collect(config, tmp_path / "run", stop_at=2, stop=StopTraining)
    (tmp_path / "data").rename(moved)
    config = config.replace({"runtime.data_root": str(moved)})
    _, reports = collect(config, tmp_path / "run", stop_at=4, stop=StopTraining)
    assert [one.step for one in reports] == [2, 3, 4]
    label = next((moved / "gta5" / "labels").glob("*.png"))
    with Image.open(label) as image:
        repaired = image.copy()
    repaired.putpixel((0, 0), 7 if repaired.getpixel((0, 0)) == 8 else 8)
    repaired.save(label)
    with pytest.raises(OtherDataError, match=r"not the same are gta5/train/labels\."):
        collect(config, tmp_path / "run")


def test_a_run_reports_learns_and_leaves_its_results(config: Config, tmp_path: Path) -> None:
    result, reports = collect(config.replace({"runtime.eval_all": True}), tmp_path)
    assert [r.step for r in reports if "train/loss" in r.metrics] == [1, 2, 3, 4, 5, 6]
    evaluated = [r for r in reports if "val/miou" in r.metrics]
    assert [r.step for r in evaluated] == [3, 6]
    last = evaluated[-1].metrics
    assert {"val_teacher/miou", "val_student/miou", "val/pixel_accuracy"} <= set(last)
    assert last["val/miou"] == last["val_teacher/miou"] == result.metrics["miou"]
    assert result.metrics["student_miou"] == last["val_student/miou"]
    assert all(
        value > 0
        for r in reports
        for name, value in r.metrics.items()
        if name in ("train/images_per_second", "train/peak_memory_mb")
    )
    assert result.confusion.sum() > 0
    assert result.artifacts["examples"].stat().st_size > 1000
    with safe_open(result.artifacts["weights"], "pt") as file:
        about = file.metadata()
        assert Config.from_params(json.loads(about["config"])).key() == config.key()
        assert about["key"] == config.key()
        assert about["network"] == "teacher"


@pytest.mark.slow
def test_a_full_disk_is_named_and_leaves_the_checkpoint_before(
    config: Config, small_disk: SmallDisk, undisturbed: tuple[Result, list[Report]]
) -> None:
    folder = small_disk.folder / "run"

    def fill_after_the_first_checkpoint(one: Report) -> None:
        if one.step == 3:
            small_disk.fill()

    with pytest.raises(DiskFull, match=f"the disk is full: {folder} takes no more"):
        train(config, fill_after_the_first_checkpoint, folder)
    small_disk.free()
    assert {path.name for path in folder.iterdir()} == {CHECKPOINT}
    result, reports = collect(config, folder)
    assert reports[0].step == 2  # the steps since then are repeated
    assert result.metrics == undisturbed[0].metrics


def test_one_seed_fixes_a_run_whatever_ran_before(
    config: Config, undisturbed: tuple[Result, list[Report]]
) -> None:
    first, reports = undisturbed
    torch.manual_seed(99)
    np.random.seed(99)
    torch.set_num_threads(2)
    collect(config.replace({"seed": 5, "model.fusion": "wpct"}))
    second, again = collect(config)
    assert losses(reports) == losses(again)
    assert np.array_equal(first.confusion, second.confusion)
    other, _ = collect(config.replace({"seed": 1}))
    assert not np.array_equal(first.confusion, other.confusion)


@pytest.mark.parametrize("stop_at", [3, *also_slow(1, 5, 6)])
def test_a_stopped_run_ends_with_the_numbers_of_one_never_stopped(
    config: Config, tmp_path: Path, stop_at: int
) -> None:
    whole, reports = collect(config, tmp_path / "whole")
    collect(config, tmp_path / "stopped", stop_at=stop_at)
    resumed, rest = collect(config, tmp_path / "stopped")
    assert np.array_equal(whole.confusion, resumed.confusion)
    assert resumed.metrics == whole.metrics
    checkpoint = stop_at // 2 * 2  # the step of the last one before the stop: it is reported again
    assert losses(rest) == losses(reports)[max(0, checkpoint - 1) :]
    mine, theirs = whole.artifacts["weights"], resumed.artifacts["weights"]
    with safe_open(mine, "pt") as a, safe_open(theirs, "pt") as b:
        assert all(torch.equal(a.get_tensor(name), b.get_tensor(name)) for name in a.keys())  # noqa: SIM118


@pytest.mark.slow
def test_processes_that_load_batches_change_nothing(
    config: Config, tmp_path: Path, undisturbed: tuple[Result, list[Report]]
) -> None:
    """Also where a run is stopped and goes on, and evaluates in between, with two of them."""
    expected, _ = undisturbed
    config = config.replace({"runtime.num_workers": 2})
    collect(config, tmp_path, stop_at=3)
    found, reports = collect(config, tmp_path)
    assert reports[0].step == 2
    assert found.metrics == expected.metrics
    assert np.array_equal(found.confusion, expected.confusion)


@pytest.mark.slow
def test_a_finished_run_is_only_evaluated_again(config: Config, tmp_path: Path) -> None:
    first, _ = collect(config, tmp_path)
    second, reports = collect(config, tmp_path)
    assert [r.step for r in reports] == [6]
    assert np.array_equal(first.confusion, second.confusion)


@pytest.mark.slow
@pytest.mark.parametrize("every", [3, 6])
def test_a_run_that_dies_in_an_evaluation_loses_neither_its_steps_nor_its_report(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    config = config.replace({"runtime.eval_every": every, "runtime.checkpoint_every": 3})
    whole, reports = collect(config)

    def die(self: StreetExperiment, networks: object) -> None:
        raise DiedError

    monkeypatch.setattr(StreetExperiment, "evaluate", die)
    _, before = collect(config, tmp_path)
    assert before[-1].step == every - 1
    monkeypatch.undo()
    resumed, after = collect(config, tmp_path)
    assert [r.step for r in before + after] == [1, 2, 3, 4, 5, 6]
    for mine, theirs in zip(before + after, reports, strict=True):
        speed = ("train/images_per_second", "train/data_wait_ms", "train/peak_memory_mb")
        assert {n: v for n, v in mine.metrics.items() if n not in speed} == {
            n: v for n, v in theirs.metrics.items() if n not in speed
        }
    assert resumed.metrics == whole.metrics


@pytest.mark.slow
@pytest.mark.parametrize("stop_at", [4, 3])
def test_a_stop_is_noticed_at_every_step_and_costs_none(
    config: Config, tmp_path: Path, stop_at: int
) -> None:
    config = config.replace({"training.steps": 60, "runtime.eval_every": 0})
    _, reports = collect(config, tmp_path, stop_at, StopTraining)
    with_metrics = [r.step for r in reports if r.metrics]
    assert [r.step for r in reports] == list(range(1, stop_at + 1))
    assert with_metrics == list(range(2, stop_at + 1, 2))
    assert torch.load(tmp_path / CHECKPOINT, weights_only=True)["step"] == stop_at
    # Step 4 has its regular checkpoint: a second one would push out the one before.
    assert torch.load(tmp_path / PREVIOUS, weights_only=True)["step"] == 2
    _, rest = collect(config, tmp_path, 6)
    assert [r.step for r in rest] == list(range(stop_at, 7))
    _, undisturbed = collect(config, stop_at=6)
    assert losses(rest)[-1] == losses(undisturbed)[-1]


@pytest.mark.slow
def test_peak_memory_is_the_run_s_own(config: Config) -> None:
    cpu = torch.device("cpu")
    ballast = np.ones(2**26)  # 512 MiB
    earlier = peak_memory_mb(cpu)
    del ballast
    _, reports = collect(config, stop_at=1)
    (mine,) = [r.metrics["train/peak_memory_mb"] for r in reports]
    assert 0 < mine < earlier


@pytest.mark.parametrize("method", ["target_only", *also_slow("source_only", "supervised")])
def test_the_other_methods_run(config: Config, method: str) -> None:
    result, _ = collect(config.replace({"training.method": method}))
    assert 0 <= result.metrics["miou"] <= 100
    assert "teacher_miou" not in result.metrics


@pytest.mark.parametrize("fusion", ["vlga", *also_slow("wpct", "cross_attention", "none")])
def test_the_other_fusions_run(config: Config, fusion: str) -> None:
    result, _ = collect(config.replace({"model.fusion": fusion, "training.steps": 3}))
    assert math.isfinite(result.metrics["miou"])


def test_budget_zero_learns_from_the_source_alone(config: Config) -> None:
    result, _ = collect(config.replace({"data.budget": 0, "training.steps": 3}))
    assert math.isfinite(result.metrics["miou"])


def test_a_non_finite_loss_stops_the_run_and_spares_the_checkpoint(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = Segmenter.decode
    calls = []

    def break_later(self, features, language):
        calls.append(0)
        logits = decode(self, features, language)
        return logits * float("nan") if len(calls) > 9 else logits

    # Two networks a step (teacher, student): the fifth step breaks, after the checkpoint of the
    # fourth; an evaluation at step 3 would count too, so there is none.
    monkeypatch.setattr(Segmenter, "decode", break_later)
    quiet = config.replace({"runtime.eval_every": 0})
    with pytest.raises(NonFiniteLossError, match=r"step 5 .*loss_sup = nan.*training\.lr"):
        train(quiet, checkpoint_dir=tmp_path)
    monkeypatch.undo()
    state = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    assert state["step"] == 4
    assert all(v.isfinite().all() for v in state["method"].values())


@pytest.mark.parametrize(("checkpoint_every", "last"), [(4, 7), (6, 5)])
def test_a_loss_that_breaks_between_two_readings_is_named_by_its_own_step(
    config: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    checkpoint_every: int,
    last: int,
) -> None:
    """Losses are read every four steps; the fifth breaks."""
    changes = {"training.steps": 120, "runtime.eval_every": 0}
    config = config.replace({**changes, "runtime.checkpoint_every": checkpoint_every})
    supervised, seen, reported = SemiDAViL.supervised, [], []

    def break_the_fifth(self: SemiDAViL, labelled: list, loss: object = None) -> torch.Tensor:
        seen.append(0)
        value = supervised(self, labelled, loss)
        return value * math.inf if len(seen) == 5 else value

    monkeypatch.setattr(SemiDAViL, "supervised", break_the_fifth)
    with pytest.raises(NonFiniteLossError, match=r"step 5 \(loss = inf, loss_sup = inf, loss_con"):
        train(config, reported.append, tmp_path)
    assert [one.step for one in reported] == list(range(1, last + 1))
    assert all(math.isfinite(v) for one in reported for v in one.metrics.values())
    for path in tmp_path.glob("*.pt"):
        state = torch.load(path, weights_only=True)
        assert state["step"] == 4
        assert all(value.isfinite().all() for value in state["method"].values())
    assert (tmp_path / CHECKPOINT).exists() == (checkpoint_every == 4)


def test_a_stop_between_two_readings_writes_nothing_broken(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    supervised = SemiDAViL.supervised
    monkeypatch.setattr(SemiDAViL, "supervised", lambda *given: supervised(*given) * float("nan"))
    config = config.replace({"training.steps": 120, "runtime.eval_every": 0})

    def stop(report: Report) -> None:
        raise StopTraining

    with pytest.raises(NonFiniteLossError, match="step 1 "):
        train(config, stop, tmp_path)
    assert not (tmp_path / CHECKPOINT).exists()


def test_a_foreign_checkpoint_is_refused(config: Config, tmp_path: Path) -> None:
    collect(config, tmp_path, stop_at=4)
    with pytest.raises(TrainingError, match="belongs to run"):
        train(config.replace({"seed": 3}), checkpoint_dir=tmp_path)


@pytest.mark.slow
def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(
    config: Config, tmp_path: Path, undisturbed: tuple[Result, list[Report]]
) -> None:
    whole, reports = undisturbed
    collect(config, tmp_path, stop_at=5)
    (tmp_path / CHECKPOINT).write_bytes(b"")
    with pytest.warns(UserWarning, match=r"last\.pt is damaged .* goes on after step 2"):
        resumed, rest = collect(config, tmp_path)
    assert losses(rest) == losses(reports)[1:]
    assert resumed.metrics == whole.metrics


def test_schedule_warms_up_and_decays_polynomially() -> None:
    settings = preset("toy", {"training.steps": 100, "training.warmup_steps": 3}).training
    assert schedule(0, settings) == pytest.approx(1 / 4)
    assert schedule(3, settings) == pytest.approx(0.97**0.9)
    assert schedule(60, settings) == pytest.approx(0.4**0.9)


def test_the_teacher_never_enters_the_optimiser(config: Config) -> None:
    experiment = StreetExperiment(config, torch.device("cpu"))
    groups, method = experiment.optimizer.param_groups, experiment.method
    optimised = {id(p) for group in groups for p in group["params"]}
    assert {id(p) for p in method.student.decoder.parameters()} < optimised
    assert not optimised & {id(p) for p in method.teacher.parameters()}
    vlm = load_vlm("toy", "bundled")
    assert all(p.requires_grad is False for p in vlm.text.parameters())
