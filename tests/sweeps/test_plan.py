"""What cells are up to, how long they take, and what a command asks for (`sweeps.plan`)."""

import json
import math
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tracked_runs import ANOTHER_MACHINE, DEAD, finished, tracked

from semidavil.config import ConfigError, preset
from sweeps.plan.cells import Plan, State, make_plan
from sweeps.plan.checks import find_problems
from sweeps.plan.grids import GRIDS
from sweeps.plan.pace import Pace, kind_of, time_left
from sweeps.plan.spec import Selection, Spec
from sweeps.show.tables import print_grids, print_plan, print_results, summary
from sweeps.track.lease import LEASE_SECONDS

GRID = GRIDS["attention"]
CELLS = GRID.cells(preset("toy"), budgets=[100])
KEY = CELLS[0].key()
KIND = kind_of(CELLS[0].to_params())


def state_with(*runs: Any) -> State:
    return make_plan("attention", GRID, CELLS, runs).cells[0].state


def seen(seconds_ago: float, alive: bool = False) -> dict[str, str]:
    """Tags of a run on another machine that has logged a step so long ago."""
    progress = json.dumps({"step": 1, "seconds": 1.0, "time": time.time() - seconds_ago})
    sign = {"alive": str(time.time())} if alive else {}
    return {**ANOTHER_MACHINE, "progress": progress, **sign}


@pytest.mark.parametrize(
    ("status", "tags", "state"),
    [
        ("FINISHED", dict, State.DONE),
        ("KILLED", dict, State.INTERRUPTED),
        ("FAILED", dict, State.FAILED),
        ("FAILED", lambda: {"retry": "false"}, State.DIVERGED),
        ("RUNNING", dict, State.ELSEWHERE),  # this process lives
        ("RUNNING", lambda: DEAD, State.INTERRUPTED),
        ("RUNNING", lambda: {"pid": str(os.getpid()), "pid_started": "then"}, State.INTERRUPTED),
        ("RUNNING", lambda: seen(LEASE_SECONDS - 100), State.ELSEWHERE),
        ("RUNNING", lambda: seen(LEASE_SECONDS + 100), State.INTERRUPTED),
        ("RUNNING", lambda: seen(9999, alive=True), State.ELSEWHERE),  # it evaluates
    ],
)
def test_a_cells_state_follows_from_its_run(
    status: str, tags: Callable[[], dict[str, str]], state: State
) -> None:
    assert state_with() is state_with(tracked("another")) is State.TODO
    assert state_with(tracked(KEY, status, tags=tags())) is state  # as old as it is now


def test_of_several_runs_the_finished_one_counts_then_the_one_that_was_trained_last() -> None:
    assert state_with(tracked(KEY), tracked(KEY, "FAILED")) is State.DONE
    trained = tracked(KEY, "KILLED", run_id="trained", tags={"progress": '{"step": 50}'})
    created = tracked(KEY, "FAILED", run_id="created", started=9)  # and no more
    (cell, *_) = make_plan("attention", GRID, CELLS, [trained, created]).cells
    assert cell.run is trained
    later = tracked(KEY, "KILLED", run_id="later", tags={"epoch": "2"})
    (cell, *_) = make_plan("attention", GRID, CELLS, [trained, later, created]).cells
    assert cell.run is later


def test_what_waits() -> None:
    keys = [cell.key() for cell in CELLS]
    runs = [
        tracked(keys[0]),
        tracked(keys[1], "FAILED"),
        tracked(keys[2], "FAILED", tags={"retry": "false"}),
    ]
    plan = make_plan("attention", GRID, CELLS, runs)
    assert [cell.config.key() for cell in plan.waiting] == [keys[1], keys[3]]
    again = make_plan("attention", GRID, CELLS, runs, retry_diverged=True)
    assert [cell.config.key() for cell in again.waiting] == keys[1:]


@pytest.mark.parametrize(
    ("experiment", "tags", "foreign"),
    [
        ("attention", {}, []),
        ("baselines", {}, ["baselines"]),
        ("baselines", {"grids": "losses attention"}, []),  # it says so already
        ("renamed by somebody", {"grid": "attention"}, []),
    ],
)
def test_a_run_of_another_grid_is_reused_and_told_so_once(
    experiment: str, tags: dict[str, str], foreign: list[str]
) -> None:
    plan = make_plan("attention", GRID, CELLS, [tracked(KEY, experiment=experiment, tags=tags)])
    assert [run.experiment for run in plan.foreign()] == foreign
    assert len(plan.waiting) == len(CELLS) - 1


def test_a_plan_is_timed_by_runs_that_are_alike() -> None:
    plan = make_plan("attention", GRID, CELLS, [])
    assert math.isnan(plan.seconds_left(2))
    assert "time unknown" in summary(plan, 2)
    done = finished(CELLS[0], seconds=20.0)
    plan = make_plan("attention", GRID, CELLS, [done])
    assert plan.seconds_left(2) == pytest.approx(30.0)  # three cells, two at a time
    assert "2 at a time, about 30 s" in summary(plan, 2)
    assert "2 at a time, about 30 s and 0.00833 GPU-hours" in summary(plan, 2, gpus=0.5)
    third = {"progress": json.dumps({"step": CELLS[1].training.steps / 3})}
    stopped = tracked(CELLS[1].key(), "KILLED", tags=third, params=CELLS[1].to_params())
    plan = make_plan("attention", GRID, CELLS, [done, stopped])
    assert plan.seconds_left(1) == pytest.approx(2 * 20 + 20 * 2 / 3)
    paper = make_plan("attention", GRID, GRID.cells(preset("paper"), budgets=[100]), [done])
    assert math.isnan(paper.cells[0].estimate)


def test_pace_is_of_one_machine_and_of_its_last_runs() -> None:
    runs = [finished(CELLS[0], seconds=10.0 if i < 20 else 30.0) for i in range(40)]
    there = finished(CELLS[0], seconds=99.0, tags=ANOTHER_MACHINE)
    assert Pace([*runs, there]).seconds(KIND) == 30.0
    assert Pace([*runs, there], host="another machine").seconds(KIND) == 99.0


def test_running_runs_tell_the_pace_until_one_has_finished() -> None:
    half = json.dumps({"step": CELLS[0].training.steps / 2, "seconds": 20.0})
    pace = Pace([tracked(KEY, "RUNNING", tags={"progress": half}, params=CELLS[0].to_params())])
    assert pace.seconds(KIND) == pytest.approx(40.0)
    pace.running(KIND, "hardly begun", 0.001, 5.0)  # most of it was its start
    assert pace.seconds(KIND) == pytest.approx(40.0)
    pace.finished(KIND, 50.0)
    assert pace.seconds(KIND) == 50.0


@pytest.mark.parametrize(
    ("cells", "concurrency", "seconds"),
    [
        ([], 2, 0.0),
        ([(10.0, 1.0)] * 4, 2, 20.0),
        ([(10.0, 1.0)] * 4, 100, 10.0),
        ([(10.0, 0.5), (math.nan, 1.0)], 1, 15.0),  # as long as the others
        ([(100.0, 1.0), (1.0, 1.0)], 2, 100.0),  # not before the longest
        ([(math.nan, 1.0)], 1, math.nan),
    ],
)
def test_time_left(cells: list[tuple[float, float]], concurrency: int, seconds: float) -> None:
    assert time_left(cells, concurrency) == pytest.approx(seconds, nan_ok=True)


# What a command asks for


def spec(settings: tuple[str, ...] = (), *selections: Selection) -> Spec:
    return Spec("attention", "toy", settings, selections or (Selection(),))


def test_a_spec_brings_back_its_cells() -> None:
    one = spec(("training.lr=1e-3",), Selection(("gta5-cityscapes",), (0, 100), (0, 1)))
    again = Spec.from_json(one.to_json())
    assert again == one
    cells = again.cells()
    assert len(cells) == 4 * 2 * 2
    assert {cell.training.lr for cell in cells} == {1e-3}
    with pytest.raises(ConfigError, match="another version"):
        Spec.from_json('{"grid": "attention", "colour": "blue"}')


def test_only_what_changes_a_result_tells_specs_apart() -> None:
    same = [spec((), Selection(seeds=(3,))), spec(("training.lr=6e-3",))]  # the preset's own
    assert {one.key() for one in same} == {spec().key()}
    others = [spec(("training.steps=20",)), Spec("losses", "toy"), Spec("attention", "toy-long")]
    assert len({one.key() for one in [spec(), *others]}) == 4


def test_specs_of_one_key_join_to_the_cells_of_both() -> None:
    part = spec((), Selection(budgets=(0,), seeds=(1,)))
    both = part.with_earlier(spec())
    assert len(both.cells()) == 24 + 4
    assert part.with_earlier(both) == both


def test_budgets_without_a_list_in_a_named_split_of_scans_are_named_before_anything_runs() -> None:
    base = preset("toy", {"volumes.split": "dhc"})
    cells = GRIDS["synapse"].cells(base, budgets=[2, 3, 4])
    (problem,) = find_problems(cells)
    assert (
        "volumes.split=dhc has no list of 3 labelled scans, only of 2 and 4 and 8" in problem.reason
    )
    assert problem.cells == {cell.key() for cell in cells if cell.data.budget == 3}
    assert not find_problems(GRIDS["synapse"].cells(preset("toy"), budgets=[3]))


def test_scans_that_a_named_split_lacks_are_named_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "synapse").mkdir()
    for number in range(1, 31):
        (tmp_path / "synapse" / f"case{number:04d}.h5").touch()
    here = {"data.toy": False, "runtime.data_root": str(tmp_path)}
    cells = {
        split: GRIDS["synapse"].cells(preset("toy", here | {"volumes.split": split}))
        for split in ("seeded", "genericssl")
    }
    (problem,) = find_problems([*cells["seeded"], *cells["genericssl"]])
    assert "volumes.split=genericssl names: 0031, 0032, 0034" in problem.reason
    assert problem.cells == {cell.key() for cell in cells["genericssl"]}


def test_lists_fit_a_terminal_and_names_can_be_copied(capsys: pytest.CaptureFixture[str]) -> None:
    def listed(grid: str, show: Callable[[Console, Plan], None]) -> list[str]:
        spec = Spec(grid, "toy", (), (Selection(budgets=(1000,)),))
        base = spec.base()
        plan = make_plan(grid, spec.around(base), spec.cells(base), [])
        show(Console(width=80, soft_wrap=True), plan)
        lines = capsys.readouterr().out.splitlines()
        assert max(len(line) for line in lines if not line.startswith("whole names")) <= 80
        return lines

    def show(console: Console, plan: Plan) -> None:
        print_plan(console, plan, "toy", 2)

    attention = "\n".join(listed("attention", show))
    assert "gta5-cityscapes/cross_attention/1000/s0  to do" in attention
    assert attention.startswith("grid attention, preset toy, 4 runs\n")
    components = "\n".join(listed("components", show))  # of which the names do not say all
    assert components.count("(baseline)") == 1
    assert "fusion=none, loss=ce" in components
    assert "gta5-cityscapes/VL+DLG+CT+DyCE/1000/s0  " in components
    sensitivity = listed("sensitivity", show)  # whose names list ten settings
    assert len(sensitivity) == 25 + 4, "a line for each run"
    assert any(
        line.split()[:2] == ["gta5-cityscapes/.../1000/s0", "ema=0.9"] for line in sensitivity
    )
    assert re.fullmatch(
        r"whole names.*: gta5-cityscapes/hard_fraction=\S+/1000/s0", sensitivity[-2]
    )
    rows = listed("sensitivity", print_results)
    assert any(line.split()[1] == "ema=0.9" for line in rows if "ema" in line)


def test_a_list_of_grids_is_wrapped_once(capsys: pytest.CaptureFixture[str]) -> None:
    """Docstrings have the lines of an editor, of which a terminal would wrap each."""
    spec = Spec("attention_controls", "toy", (), (Selection(budgets=(100,)),))
    plan = make_plan(spec.grid, spec.around(spec.base()), spec.cells(), [])
    print_grids(Console(width=80), [plan], "toy", 2, 0)
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert "the image's features, `blank` adds the layer that reads" in lines
    assert any(line.startswith("Feeds: ") for line in lines)
    assert "" in lines[:-1], "paragraphs stay"
