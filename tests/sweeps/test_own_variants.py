"""Variants of a user's own file: on the command line, in workers, in the store, and once it is gone."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from plugin_sources import LIGHT, WORKING
from sweep_process import Sweeps
from test_steer import begin
from tracked_runs import finish

from semidavil.config import Config, preset
from semidavil.plugin_files import read
from semidavil.plugins import use
from sweeps import request
from sweeps.cli import main, parser
from sweeps.given import take_config
from sweeps.keep.workspace import LOG
from sweeps.plan.grids import GRIDS
from sweeps.plan.own_grids import own_grid
from sweeps.run.events import TRAIN, Done, Event, Failed, Failure, Task
from sweeps.run.worker import run_task
from sweeps.show.overview import open_overview
from sweeps.show.status import look, status_of
from sweeps.track.store import Store


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "my.py"
    path.write_text(LIGHT)
    return path


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: Store) -> Store:
    """The store of commands that this process does itself."""
    for name in ("SEMIDAVIL_DATA_ROOT", "SEMIDAVIL_STORAGE", "SEMIDAVIL_TRAIN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)
    monkeypatch.setattr(request, "ROOT", tmp_path)
    return store


def cells(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    """The names of the cells that a command would run."""
    assert main(["run", *arguments, "--list"]) == 0
    output = capsys.readouterr().out
    return re.findall(r"^(\S+/\d+/s\d+) ", output, re.MULTILINE)


def test_a_plugin_joins_the_grids_that_compare_its_kind(
    file: Path, place: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    def variants(grid: str) -> set[str]:
        arguments = ("--grid", grid, "--plugin", str(file), "--budgets", "100")
        return {name.split("/")[1] for name in cells(capsys, *arguments)}

    assert variants("attention") == {"dlg", "vlga", "wpct", "cross_attention", "mine"}
    assert variants("attention_controls") >= {"mine", "deaf", "blank"}
    assert "half" in variants("losses")
    assert "half-matched" in variants("loss_controls")
    assert "steady" in variants("methods")
    assert "silence" in variants("captions")
    assert "ladder" not in GRIDS  # once the command is over
    assert cells(capsys, "--grid", f"{file}:ladder", "--seeds", "1") == [
        "gta5-cityscapes/dlg/100/s1", "gta5-cityscapes/mine/100/s1",
    ]  # fmt: skip
    with pytest.raises(SystemExit):
        main(["run", "--plugin", str(file), "--help"])
    assert "ladder" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        (["model.fusion"], "no list of settings"),
        ({"variant": []}, "'variant'"),
        ([{"model.fusoin": "dlg"}], "did you mean model.fusion"),
        ([], "no list of settings"),
    ],
)
def test_a_wrong_grid_of_a_plugin_is_refused(
    entry: Any, told: str, file: Path, place: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text(f"GRIDS = {{'ladder': {entry!r}, 'other': [{{'model.fusion': 'dlg'}}]}}")
    assert main(["run", "--grid", f"{file}:ladder", "--list"]) == 2
    assert told in capsys.readouterr().err


def test_an_unknown_grid_of_a_plugin_is_refused_with_the_names_of_its_own(
    file: Path, place: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "--grid", f"{file}:lader"]) == 2
    told = capsys.readouterr().err
    assert "did you mean ladder?" in told
    assert "attention" not in told
    file.write_text("LOSSES = {}\nFUSIONS = {'mine': lambda towers, dim: None}")
    assert main(["run", "--grid", f"{file}:ladder"]) == 2
    assert "has no grids" in capsys.readouterr().err


def test_cells_that_use_none_of_a_plugin_stay_done(
    file: Path, place: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    finish(place, preset("toy"), 30.0)
    with use(read(file)):
        finish(place, preset("toy", {"model.fusion": "mine"}), 40.0)
    assert main(["run", "--grid", f"{file}:ladder", "--list"]) == 0
    assert "2 runs, all done" in capsys.readouterr().out
    file.write_text(LIGHT + "# changed")
    assert main(["run", "--grid", f"{file}:ladder", "--list"]) == 0
    assert "2 runs: 1 done, 1 to train" in capsys.readouterr().out


def test_settings_go_through_a_file_which_narrows_no_grid(
    file: Path, place: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And what the command names itself goes before."""
    change = ["--set", "training.lr=7e-3", "model.fusion=vlga", "model.dense=naclip"]
    assert main(["run", "--print-config", *change]) == 0
    (tmp_path / "mine.yaml").write_text(capsys.readouterr().out)
    given = ["--grid", "attention", "--config", str(tmp_path / "mine.yaml"), "--budgets", "100"]
    assert len(cells(capsys, *given)) == 4

    def base(*more: str) -> Config:
        options = _options(*given, *more)
        take_config(options)
        return request.spec_and_base(options, "attention")[1]

    assert (base().training.lr, base().model.dense) == (7e-3, "naclip")
    assert base("--set", "training.lr=1e-3").training.lr == 1e-3
    assert base("--preset", "toy-long").training.steps == 160  # all settings are in the file
    few = tmp_path / "few.yaml"
    few.write_text("seed: 3\ndata: {budget: 200}\ntraining: {lr: 1e-3}\n")
    names = cells(capsys, "--grid", "attention", "--config", str(few), "--only", "fusion=dlg")
    assert names == ["gta5-cityscapes/dlg/200/s3"]
    assert main(["run", "--settings"]) == 0
    assert "training.warmup_steps" in capsys.readouterr().out


def test_values_of_a_grids_own_setting_are_chosen_and_said_to_be(
    file: Path, place: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    options = _options("--grid", "losses", "--set", "loss.name=ce,dyce", "--budgets", "100")
    asked_for = request.requested(options)
    assert {config.loss.name for config in asked_for.configs} == {"ce", "dyce"}
    assert "of its runs, those with ce,dyce" in asked_for.notes[0]
    short = _options("--grid", "losses", "--set", "training.steps=5")
    assert "training.warmup_steps is 0" in request.requested(short).notes[0]


# In a worker, without Ray


def task_of(store: Store, file: Path, changes: dict[str, Any]) -> Task:
    source = read(file)
    with use(source):
        config = preset("toy", changes)
    tags = {"key": config.key(), "epoch": "1"}
    run_id = store.create_run(store.experiment_id("attention"), "cell", config, tags)
    where = store.storage.of(config.key())
    return Task(
        "cell", config.to_params(), run_id, 1, store.uri, where, train="fake_training:train",
        plugins={source.name: dict(source.files)},
    )  # fmt: skip


def ended(task: Task) -> Event:
    events: list[Event] = []
    run_task(Task.from_json(task.to_json()), lambda event: bool(events.append(event)))
    return events[-1]


@pytest.fixture
def fake_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_TRAINING", str(tmp_path))
    monkeypatch.setenv("FAKE_STEP_SECONDS", "0")


@pytest.mark.slow
def test_a_worker_gets_the_source_with_the_task_and_keeps_it_with_the_run(
    store: Store, file: Path, fake_training: None
) -> None:
    for text in (LIGHT, LIGHT + "# another version"):  # one after the other in this process
        file.write_text(text)
        task = task_of(store, file, {"model.fusion": "mine"})
        file.unlink()  # as on another machine
        assert isinstance(ended(task), Done)
        kept = store.client.download_artifacts(task.run_id, "plugins/my.py")
        assert Path(kept).read_text() == text
    plain = task_of(store, Path(kept), {})
    assert isinstance(ended(plain), Done)
    assert not store.client.list_artifacts(plain.run_id, "plugins")


def test_a_plugin_that_a_worker_cannot_import_is_the_cells_failure_and_no_other(
    store: Store, file: Path, fake_training: None
) -> None:
    task = task_of(store, file, {"model.fusion": "mine"})
    sources = {"my.py": {"my.py": "import only_on_the_laptop\n" + LIGHT}}
    failed = ended(Task(**{**json.loads(task.to_json()), "plugins": sources}))
    assert isinstance(failed, Failed)
    assert failed.failure is Failure.INPUT
    assert "line 1: ModuleNotFoundError" in failed.reason
    assert "installed on each machine" in failed.reason


# Once the file is gone


def test_status_counts_the_runs_of_a_plugin_that_is_not_here(
    file: Path, place: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    source = read(file)
    with use(source):
        (job,) = request.requested(_options("--grid", "ladder")).jobs
        open_overview(place, job.spec, "about", 1)
        finish(place, job.configs[0], 30.0, "ladder")
        mine = begin(place, job.configs[1], "mine")
        (overview,) = place.overviews()
        whole = status_of(overview, place.runs(), 0.0)
    gone = status_of(overview, place.runs(), 0.0)
    assert (gone.state, gone.counts, gone.best) == ("running", whole.counts, whole.best)
    log = Path(place.storage.of(job.configs[1].key())) / LOG
    log.parent.mkdir(parents=True)
    log.write_text("step 1\n")
    for command in (
        ["status", "--grid", "ladder"], ["status", "--json"], ["stop"], ["pause", "--grid", "ladder"],
        ["resume"], ["logs", "mine"], ["export", "runs", "--csv"], ["clean"], ["retry", "mine"],
    ):  # fmt: skip
        if command[0] == "retry":
            place.close(mine, "FAILED", "the loss is not finite")
        assert main(command) == 0, command
        told = capsys.readouterr()
        assert "give --plugin" not in told.out + told.err
    place.log(overview.run_id, tags={"cells": ""})  # they were too many for a tag
    (many,) = look(place).sweeps
    assert (many.state, many.is_live) == ("running", True)
    assert source.id in many.needs
    assert main(["status"]) == 0
    assert "give --plugin" in " ".join(capsys.readouterr().out.split())


def _options(*given: str) -> request.Options:
    options = request.Options(given=list(given), from_file={})
    return parser().parse_args(["run", *given], options)


# Through Ray, by the command itself


@pytest.mark.slow
def test_own_attention_loss_and_method_in_a_grid_of_their_own(
    sweeps: Sweeps, few_images: Path, tmp_path: Path
) -> None:
    sweeps.environment["SEMIDAVIL_TRAIN"] = TRAIN
    file = tmp_path / "my.py"
    file.write_text(WORKING)
    places = (f"runtime.data_root={few_images}", f"runtime.cache_dir={tmp_path / 'cache'}")
    tiny = ("data.toy=false", "training.steps=4", "training.batch_size=2", "model.decoder_dim=16")
    ladder = ("--grid", f"{file}:ladder", "--concurrency", "1", "--set", *places, *tiny)
    code, output = sweeps.run(*ladder)
    assert code == 0, output
    assert "training.warmup_steps is 0" in output
    assert "all words" in output
    runs = {run.params["model.fusion"]: run for run in sweeps.store.runs()}
    assert runs.keys() == {"dlg", "nearest"}
    nearest = runs["nearest"]
    assert json.loads(nearest.params["plugins"]) == [read(file).id]
    assert "plugins" not in runs["dlg"].params

    file.unlink()
    code, output = sweeps.run("--rerun", nearest.run_id)
    assert code == 1
    assert "mlflow artifacts download" in output
    (downloads := tmp_path / "downloads").mkdir()
    artifacts = Path(sweeps.store.client.download_artifacts(nearest.run_id, "", str(downloads)))
    kept = artifacts / "plugins" / "my.py"
    again = ("--rerun", nearest.run_id, "--plugin", str(kept), "--set", *places)
    code, output = sweeps.run(*again)
    assert code == 0, output
    assert "mIoU is reproduced" in output

    predict(artifacts, few_images, kept, tmp_path / "seen")


def predict(run: Path, images: Path, plugin: Path, out: Path) -> None:
    from typer.testing import CliRunner

    from semidavil.__main__ import app

    shutil.copytree(images / "cityscapes" / "leftImg8bit" / "val", out.parent / "pictures")
    command = ["predict", str(run), str(out.parent / "pictures"), "--out", str(out)]
    command += ["--caption", "a street"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 1
    assert f"--plugin {plugin}" in " ".join(done.output.split())
    done = CliRunner().invoke(app, [*command, "--plugin", str(plugin)])
    assert done.exit_code == 0, done.output
    assert (out / "predictions.csv").is_file()


def test_a_variant_that_leaves_settings_as_they_are_has_its_own_name() -> None:
    """Both have two settings, which hold in the run of the last: it has the default's fusion."""
    variants = {
        "none": {"model.fusion": "none", "loss.name": "ce"},
        "ce + DLG": {"model.fusion": "dlg", "loss.name": "ce"},
        "supervised": {"training.method": "supervised", "loss.name": "ce"},
        "plain": {},
    }
    grid = own_grid("ladder", {"variants": variants}).around(preset("toy"))
    assert [grid.variant(cell) for cell in grid.cells(preset("toy"))] == list(variants)
