"""Cells whose runs saw other data than are here now, and cells whose score is no number."""

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from studies import BASE, ask, open_study
from test_driver import Sweep
from tracked_runs import ANOTHER_MACHINE, finish, finished, tracked

from semidavil.config import Config, preset
from semidavil.data import files, fingerprint
from semidavil.data.readers import READERS
from semidavil.settings import Runtime
from sweeps.cli import main
from sweeps.plan.cells import Cell, Plan, State, make_plan
from sweeps.plan.data import PresentData
from sweeps.plan.grids import GRIDS
from sweeps.plan.spec import Selection, Spec
from sweeps.run.events import Failed, Failure, Halted
from sweeps.run.search import StudySource, other_data
from sweeps.show.overview import open_overview, write_overview
from sweeps.show.status import render, status_of
from sweeps.show.tables import summary
from sweeps.track.lease import Claimed
from sweeps.track.retry import RunGone
from sweeps.track.runs import TrackedRun
from sweeps.track.store import Store

GRID = GRIDS["attention"]
BEFORE = "gta5/train/labels=00 weights=11"
NOW = BEFORE.replace("labels=00", "labels=22")


class Here(PresentData):
    """Says of every Config what the test says."""

    def __init__(self, data: str = NOW) -> None:
        super().__init__(Runtime())
        self.data = data

    def of(self, config: Config) -> str:
        return self.data


CELLS = GRID.cells(preset("toy"), budgets=[100])


def plan(*runs: TrackedRun, **more: Any) -> Plan:
    return make_plan("attention", GRID, CELLS, runs, data=Here(), **more)


# Planning


@pytest.mark.parametrize(
    ("status", "state"),
    [
        ("FINISHED", State.DONE_ON_OTHER),
        ("KILLED", State.BEGUN_ON_OTHER),
        ("FAILED", State.BEGUN_ON_OTHER),
        ("RUNNING", State.ELSEWHERE),  # whoever trains it has looked
    ],
)
def test_what_a_run_saw_is_compared_with_what_is_here(status: str, state: State) -> None:
    """A cell was done with the old numbers after its labels had been repaired."""
    run = tracked(CELLS[0].key(), status, tags={"data": BEFORE}, params=CELLS[0].to_params())
    planned = plan(run)
    cell = planned.cells[0]
    assert cell.state is state
    if state is State.ELSEWHERE:
        return
    assert cell.changed == ("gta5/train/labels",)
    assert cell not in planned.waiting
    assert [one.config for one in planned.on_other] == [CELLS[0]]
    assert f"1 {state.value}" in summary(planned, 1)
    again = plan(run, refresh=True)
    assert again.waiting[0].replaced == (run.run_id,)
    assert again.waiting[0].left == 1.0  # nothing of it is used
    assert not again.on_other
    same = replace(run, tags={**run.tags, "data": NOW})
    assert plan(same).cells[0].state not in (State.DONE_ON_OTHER, State.BEGUN_ON_OTHER)
    assert plan(replace(run, tags={"key": run.key})).cells[0].changed == ()  # nobody knows


def test_of_two_finished_runs_the_one_of_the_present_data_counts() -> None:
    old = finished(CELLS[0], 30.0, tags={"data": BEFORE}, run_id="old")
    new = finished(CELLS[0], 40.0, tags={"data": NOW}, run_id="new")
    for runs in ([old, new], [new, old]):
        cell = plan(*runs).cells[0]
        assert (cell.state, cell.run, cell.replaced) == (State.DONE, new, ())


def test_an_attempt_on_the_present_data_goes_on_whatever_older_ones_saw() -> None:
    old = tracked(CELLS[0].key(), "FAILED", tags={"data": BEFORE, "epoch": "1"}, run_id="old")
    new = tracked(CELLS[0].key(), "KILLED", tags={"data": NOW, "epoch": "2"}, run_id="new")
    cell = plan(old, new, refresh=True).cells[0]
    assert (cell.state, cell.run, cell.replaced) == (State.INTERRUPTED, new, ())


def test_a_finished_run_without_a_score_is_not_done() -> None:
    """It was done for the sweep, and missing for the figures, which sent their reader to the sweep."""
    run = finished(CELLS[0], math.nan)
    planned = plan(run)
    assert planned.cells[0].state is State.DIVERGED
    assert len(planned.waiting) == len(CELLS) - 1
    (cell, *_) = plan(run, retry_diverged=True).waiting
    assert cell.replaced == (run.run_id,)


def test_thousands_of_cells_cost_one_look_at_their_data(
    few_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = of(few_images, tmp_path)
    cells = GRID.cells(base, ["gta5-cityscapes"], [0, 2, 4], range(40))
    present, looks = PresentData(base.runtime), []
    listed = fingerprint._listed
    monkeypatch.setattr(
        fingerprint, "_listed", lambda *about: looks.append(about) or listed(*about)
    )
    assert len({present.of(cell) for cell in cells}) == 2  # with labels of the target, and without
    assert len(looks) == 6  # images and labels of each split
    assert present.unknown == {}


def test_what_cannot_be_compared_is_said(
    few_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = of(few_images, tmp_path)
    run = finished(config, tags={"data": BEFORE})
    monkeypatch.setattr(files, "FEW_BYTES", 0)
    for present, why in (
        (PresentData(config.runtime), "files, the first is"),
        (PresentData(Runtime(data_root=str(tmp_path / "none"))), "none does not exist"),
        (PresentData(None), "on other machines"),
    ):
        assert not present.unknown
        (cell,) = make_plan("attention", GRID, [config], [run], data=present).cells
        assert cell.state is State.DONE
        assert why in "".join(present.unknown)
    read = PresentData(config.runtime, read=True)
    (cell,) = make_plan("attention", GRID, [config], [run], data=read).cells
    assert cell.state is State.DONE_ON_OTHER


# The driver


def replacing(store: Store, sweep: Sweep, tmp_path: Path) -> tuple[str, Path]:
    """The run that the driver's one cell replaces, and the folder that it has left."""
    (cell,) = sweep.source.queue
    old = finish(store, cell.config, 30.0)
    folder = Path(store.storage.of(cell.config.key()))
    folder.mkdir(parents=True)
    (folder / "last.pt").write_text("6")
    (folder / "journal.jsonl").write_text("")
    sweep.source.queue[0] = replace(cell, replaced=(old,))
    return old, folder


def test_a_run_of_other_data_gives_way_to_a_new_one(store: Store, tmp_path: Path) -> None:
    sweep = Sweep(store)
    old, folder = replacing(store, sweep, tmp_path)
    task = sweep.next()
    assert task.run_id != old
    assert (task.logged_step, task.seconds) == (0, 0.0)
    assert not folder.exists()
    with pytest.raises(RunGone):
        store.run(old)
    assert store.client.get_run(old).data.metrics == {"final/miou": 30.0}  # it can be restored
    assert task.epoch == 1


def test_a_run_that_has_replaced_another_keeps_its_own_checkpoint(
    store: Store, tmp_path: Path
) -> None:
    """After a pause, or tried again, it began anew: the folder was emptied once more."""
    sweep = Sweep(store)
    _, folder = replacing(store, sweep, tmp_path)
    task = sweep.next()
    folder.mkdir()
    (folder / "last.pt").write_text("2")
    sweep.driver.on_event(task, Halted(2))
    again = sweep.next()
    assert again.run_id == task.run_id
    assert (folder / "last.pt").read_text() == "2"


def test_of_two_sweeps_that_replace_a_run_one_trains(store: Store, tmp_path: Path) -> None:
    first, second = Sweep(store), Sweep(store)
    _, folder = replacing(store, first, tmp_path)
    second.source.queue[0] = first.source.queue[0]
    task = first.next()
    folder.mkdir()
    (folder / "last.pt").write_text("2")
    second.until(lambda: second.driver.next_task() or second.driver.finished())
    assert second.source.heard == [("taken", "cell 0")]
    assert (folder / "last.pt").read_text() == "2"  # of the one that trains
    assert store.run(task.run_id).status == "RUNNING"


@pytest.mark.parametrize("refresh", [False, True])
def test_a_checkpoint_of_other_data_is_named_or_replaced(store: Store, refresh: bool) -> None:
    """Where the driver's machine has no data, only the worker finds out."""
    sweep = Sweep(store)
    context = sweep.driver.context
    sweep.driver.context = replace(context, options=replace(context.options, refresh=refresh))
    task = sweep.next()
    store.end(task.run_id, "FAILED")
    sweep.driver.on_event(task, Failed("OtherDataError: not the same", Failure.OTHER_DATA, True))
    if refresh:
        assert sweep.next().run_id != task.run_id
    else:
        sweep.until(sweep.driver.finished)
        assert "--refresh" in sweep.driver.outcome.failed[0].reason


# The commands, against real files


def of(root: Path, folder: Path) -> Config:
    places = {"runtime.data_root": str(root), "runtime.cache_dir": str(folder / "data")}
    return preset("small", {"data.benchmark": "gta5-cityscapes", "data.budget": 2, **places})


@pytest.fixture
def data(few_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data root of one's own, for commands with a store and a cache in `tmp_path`."""
    for name in ("SEMIDAVIL_DATA_ROOT", "SEMIDAVIL_STORAGE", "SEMIDAVIL_TRAIN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "250")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.setattr("sweeps.request.ROOT", tmp_path)
    shutil.copytree(few_images, tmp_path / "root", copy_function=shutil.copyfile)
    return tmp_path / "root"


def command(data: Path, *more: str) -> int:
    which = ("--grid", "attention", "--benchmark", "gta5-cityscapes", "--budgets", "2")
    return main(["run", *which, "--data-root", str(data), *more])


def repair(data: Path) -> None:
    label = READERS["cityscapes"](data / "cityscapes").samples("val")[0].label
    content = bytearray(label.read_bytes())
    content[-20] ^= 1
    label.write_bytes(content)


def test_repaired_labels_another_root_and_a_moved_folder(
    store: Store, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = of(data, tmp_path)
    cells = GRID.cells(base, ["gta5-cityscapes"], [2])
    seen = PresentData(base.runtime).of(cells[0])
    for config in cells:
        store.log(finish(store, config, 31.25), tags={"data": seen})
    assert command(data) == 0
    shown = capsys.readouterr().out
    assert "4 runs, all done" in shown
    assert "31.25" in shown
    moved = data.rename(tmp_path / "moved")
    assert command(moved) == 0

    repair(moved)
    capsys.readouterr()
    assert command(moved, "--list") == 0
    listed = capsys.readouterr().out
    assert listed.count("not the same: cityscapes/val/labels") == len(cells) + 1
    assert "4 runs: 4 done on other data\n" in listed
    assert command(moved) == 1
    shown = capsys.readouterr().out
    assert "4 runs are of other data than are here now" in shown
    assert f"--data-root {moved} --refresh" in shown
    assert "31.25" not in shown
    assert command(moved, "--list", "--refresh") == 0
    assert "4 runs to train (4 done on other data)" in capsys.readouterr().out


@pytest.mark.slow
def test_status_compares_where_the_data_are(store: Store, data: Path, tmp_path: Path) -> None:
    spec = Spec("attention", "small", (), (Selection(("gta5-cityscapes",), (2,)),))
    present = PresentData(of(data, tmp_path).runtime)
    overview = open_overview(store, spec, "", 2, present)
    seen = present.of(spec.cells()[0])
    for config in spec.cells():
        store.log(finish(store, config, 31.25), tags={"data": seen})
    repair(data)

    def look(**tags: str) -> tuple[str, str]:
        (run,) = store.overviews()
        run = replace(run, tags={**run.tags, **tags})
        found = status_of(run, store.runs(), 0.0, PresentData.of_overview(run))
        console = Console(width=250, record=True)
        console.print(render([found], 0.0))
        return found.state, console.export_text()

    state, shown = look()
    assert state == "other data"
    assert "small (bundled CLIP)" in shown
    assert "not the same data as runs saw: cityscapes/val/labels" in shown
    assert look(**ANOTHER_MACHINE)[0] == "finished"
    write_overview(store, replace(overview, data=PresentData(present.runtime)), store.runs())
    assert store.client.get_run(overview.run_id).info.status == "FAILED"


def test_the_bundled_clip_is_named_once_with_the_way_to_real_weights(
    store: Store, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for config in GRID.cells(of(data, tmp_path), ["gta5-cityscapes"], [2]):
        finish(store, config, 31.25)
    assert command(data) == 0
    shown = capsys.readouterr().out
    assert shown.count("0.6 million parameters") == 1
    assert "model.vlm=ViT-B-16 model.weights=openai" in shown
    assert "gta5-cityscapes (bundled CLIP): mIoU" in shown
    assert command(data, "--list") == 0
    assert "4 runs, bundled CLIP" in capsys.readouterr().out


# Searches


@pytest.mark.slow
def test_a_study_of_other_data_is_named_and_begun_anew(store: Store) -> None:
    study = open_study(store)
    one = ask(study)
    run_id = finish(store, one.config, 30.0, "search")
    store.log(run_id, tags={"data": BEFORE, "study": study.name})
    study.tell(one.name, run_id, score=30.0)
    assert other_data(study, store.runs(), Here(BEFORE)) == []
    assert other_data(study, store.runs(), Here()) == ["gta5/train/labels"]
    study.begin_anew()
    assert study.finished() == []
    assert other_data(study, store.runs(), Here()) == []  # whatever runs it has left in the store
    assert ask(study).config.key() == BASE.key()  # the preset comes first again


@pytest.mark.parametrize("refresh", [False, True])
def test_a_trial_takes_no_result_of_other_data(store: Store, refresh: bool) -> None:
    run_id = finish(store, BASE, 30.0)
    store.log(run_id, tags={"data": BEFORE})
    said: list[str] = []
    study = open_study(store, trials=1)
    source = StudySource(study, store, said.append, data=Here(), refresh=refresh)
    cell = source.next()
    if refresh:
        assert isinstance(cell, Cell)
        assert cell.replaced == (run_id,)
    else:
        assert cell is None
        assert len(study.failed("other")) == 1
        assert "not the same: gta5/train/labels. --refresh" in said[0]


def test_a_lease_after_a_replaced_run_has_a_later_epoch(store: Store) -> None:
    """Its worker, if it lives, must not write into the new run's place."""
    sweep = Sweep(store)
    (cell,) = sweep.source.queue
    leases, experiment = sweep.driver.leases, store.experiment_id("attention")
    first = leases.claim(experiment, cell.name, cell.config, {})
    assert isinstance(first, Claimed)
    store.end(first.run_id, "FINISHED")
    sweep.source.queue[0] = replace(cell, replaced=(first.run_id,))
    assert sweep.next().epoch > first.epoch
