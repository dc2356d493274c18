"""What a sweep looks like from another terminal."""

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tracked_runs import ANOTHER_MACHINE, DEAD, finish, finished, tracked

from semidavil.config import Config
from sweeps.cli import main
from sweeps.plan.cells import State, make_plan
from sweeps.plan.grids import GRIDS
from sweeps.plan.spec import Selection, Spec
from sweeps.show.overview import open_overview
from sweeps.show.status import Status, in_turn, render, status_of, watch
from sweeps.track.lease import LEASE_SECONDS
from sweeps.track.outbox import Ending
from sweeps.track.retry import StoreAway
from sweeps.track.runs import TrackedRun
from sweeps.track.store import Store

NOW = time.time()
SPEC = Spec("attention", "toy", (), (Selection(budgets=(0, 100)),))  # eight cells
CELLS = SPEC.cells()
SEARCH = Spec("search", "toy", trials=6, study="a-study")


def overview(spec: Spec = SPEC, **tags: str) -> TrackedRun:
    """Of a sweep whose process lives, unless `tags` say otherwise."""
    own = {"overview": spec.grid, "settings": spec.key(), "spec": spec.to_json()}
    all_tags = {**own, "concurrency": "2", **tags}
    return tracked("", "SCHEDULED", started=int(1000 * NOW), tags=all_tags)


def half_way(config: Config, name: str = "half", **tags: str) -> TrackedRun:
    progress = json.dumps({"step": config.training.steps // 2, "seconds": 20.0, "time": NOW - 10})
    return tracked(
        config.key(), "RUNNING", run_id=name, name=name, params=config.to_params(),
        tags={"progress": progress, **tags},
    )  # fmt: skip


def look(runs: Sequence[TrackedRun], spec: Spec = SPEC, **tags: str) -> Status:
    return status_of(overview(spec, **tags), runs, NOW)


def test_cells_are_counted_as_the_sweep_counts_them() -> None:
    runs = [
        finished(CELLS[0], 30.0, name="a"),
        finished(CELLS[1], 40.0, name="b", experiment="losses"),  # another grid's
        tracked(CELLS[2].key(), "FAILED"),
        tracked(CELLS[3].key(), "FAILED", tags={"retry": "false"}),
        tracked(CELLS[4].key(), "KILLED"),
        half_way(CELLS[5]),
        half_way(CELLS[6], **DEAD),
        finished(CELLS[0].replace({"training.steps": 20}), 99.0, name="of other settings"),
    ]
    status = look(runs)
    assert status.counts == make_plan("attention", GRIDS["attention"], CELLS, runs).counts()
    assert status.counts[State.DONE] == status.counts[State.INTERRUPTED] == 2
    assert [run.name for run in status.running] == ["half"]
    assert status.state == "running"
    # Two cells to begin, one of them elsewhere half done and two half done here, at 40 s each.
    assert status.seconds_left == pytest.approx((2 + 0.5 + 0.5) * 40 / 2)
    assert status.best["gta5-cityscapes"].name == "b"


@pytest.mark.parametrize(
    ("tags", "runs", "state"),
    [
        ({}, [], "running"),
        ({"prepares": "workers"}, [], "preparing"),
        ({"prepares": "workers"}, [half_way(CELLS[0])], "running"),
        ({"prepares": "workers", "wish_paused": "ada@host"}, [], "paused"),
        ({"prepares": "workers", **DEAD}, [], "stopped"),
        (DEAD, [], "stopped"),
        (DEAD, [half_way(CELLS[0])], "running"),  # another sweep goes on
        (ANOTHER_MACHINE, [], "running"),
        ({}, [finished(cell) for cell in CELLS], "finished"),
        (DEAD, [finished(CELLS[0]), *(tracked(c.key(), "FAILED") for c in CELLS[1:])], "failed"),
        ({"settings": "that gave other results"}, [], "of another version"),
    ],
)
def test_the_state_of_a_sweep(tags: dict[str, str], runs: list[TrackedRun], state: str) -> None:
    assert look(runs, **tags).state == state


def test_grids_that_wait_for_their_turn_are_told_from_the_one_that_runs() -> None:
    """Of one command; a moment without a run is no turn of another one, and another command has its own."""
    losses = Spec("losses", "toy", (), (Selection(budgets=(100,)),))
    runs = [half_way(CELLS[0])]
    found = [look(runs), look(runs, losses), look(runs, losses, **ANOTHER_MACHINE)]
    assert [len(one.running) for one in found] == [1, 0, 0]
    assert [one.state for one in in_turn(found)] == ["running", "waiting", "running"]
    assert in_turn(found)[1].is_live, "it can be stopped"
    assert [one.state for one in in_turn([look([]), look([], losses)])] == ["running", "running"]


def test_a_sweep_on_another_machine_has_stopped_when_its_lease_would_have_expired() -> None:
    there = overview(**ANOTHER_MACHINE)
    later = NOW + LEASE_SECONDS + 1
    assert status_of(there, [], later).state == "stopped"
    assert status_of(overview(**ANOTHER_MACHINE, alive=str(later)), [], later).state == "running"
    assert math.isnan(status_of(there, [], NOW).seconds_left)


def test_trials_of_a_search_are_counted_and_those_stopped_early_are_done() -> None:
    base = SEARCH.base()
    trials = [base.replace({"training.lr": lr}) for lr in (1e-3, 2e-3, 4e-3, 5e-3)]
    mine = {"study": "a-study"}
    runs = [
        finished(trials[0], 35.0, name="trial-0", tags=mine),
        tracked(trials[1].key(), "KILLED", tags=mine | {"stopped_early": "50"}),
        half_way(trials[2], **mine),
        tracked(trials[3].key(), "FAILED", tags=mine),
        finished(base, 50.0, tags={"study": "another"}),
        finished(base.replace({"seed": 1}), 20.0, tags={"studies": "another a-study"}),  # reused
    ]
    status = look(runs, SEARCH)
    assert status.counts == {
        State.DONE: 3, State.FAILED: 1, State.ELSEWHERE: 1, State.TODO: 1
    }  # fmt: skip
    assert status.best["gta5-cityscapes"].name == "trial-0"
    assert status.settings == "a-study"


def test_what_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    runs = [finished(CELLS[0], 30.0, name="gta5-cityscapes/dlg/[0]/s0"), half_way(CELLS[1])]
    variant = Spec("attention", "toy", ("training.steps=20",), SPEC.selections)
    both = [look(runs), look(runs, variant)]
    Console(width=200).print(render(both, NOW))
    shown = capsys.readouterr().out
    assert "gta5-cityscapes/dlg/[0]/s0 mIoU 30.00" in shown
    assert "attention, toy training.steps=20\n" in shown
    assert "80/160 steps, seen 10 s ago" in shown


def test_what_is_prepared_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """A sweep that captions for hours used to be `running`, with nothing that ran."""
    preparing = look([], prepares="data of gta5-cityscapes, captions by positions")
    assert preparing.is_live
    Console(width=80).print(render([preparing], NOW))
    assert "prepares  data of gta5-cityscapes, captions by positions" in capsys.readouterr().out


# The command


@pytest.fixture
def swept(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store that the command finds, with a sweep of this process in it."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)
    monkeypatch.setenv("SEMIDAVIL_STORAGE", str(tmp_path / "shared"))
    monkeypatch.setenv("COLUMNS", "200")
    open_overview(store, SPEC, "", 2)
    finish(store, CELLS[0], 31.25)
    return store


def test_the_command_reads_the_store(swept: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status"]) == 0
    shown = capsys.readouterr().out
    assert "31.25" in shown
    assert "wait in" not in shown
    assert main(["status", "--grid", "losses"]) == 1
    assert "python sweeps/run.py --grid losses" in capsys.readouterr().err


def test_runs_that_the_store_does_not_have_are_named(
    swept: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, seconds_ago in (("old", 600), ("being-delivered", 1)):
        folder = tmp_path / "shared" / name
        folder.mkdir(parents=True)
        ended = int(1000 * (time.time() - seconds_ago))
        ending = Ending(name, swept.uri, "FINISHED", 10, ended, 3.0)
        (folder / "ending.json").write_text(json.dumps(asdict(ending)))
    assert main(["status"]) == 0
    shown = capsys.readouterr().out
    assert f"1 ended runs wait in {tmp_path / 'shared'} " in shown
    assert f"deliver.py --storage {tmp_path / 'shared'}" in shown


def test_watching_survives_an_outage(capsys: pytest.CaptureFixture[str]) -> None:
    answers: list[Any] = ["first", StoreAway("it does not answer"), "second", KeyboardInterrupt()]

    def show() -> str:
        answer = answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return str(answer)

    with pytest.raises(KeyboardInterrupt):
        watch(Console(force_terminal=True), show, 0.01)
    shown = capsys.readouterr().out
    assert "it does not answer; trying again" in shown
    assert "second" in shown
