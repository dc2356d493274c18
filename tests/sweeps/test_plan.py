import json
import math
import os

import pytest
from tracked_runs import tracked

from semidavil.config import preset
from sweeps.grids import GRIDS
from sweeps.plan import State, make_plan
from sweeps.tables import summary

GRID = GRIDS["attention"]
CELLS = GRID.cells(preset("toy"), budgets=[100])
KEY = CELLS[0].key()


def state_with(*runs: object) -> State:
    return make_plan("attention", GRID, CELLS, runs).cells[0].state  # type: ignore[arg-type]


def test_states_follow_from_the_runs() -> None:
    gone = {"pid": "0", "pid_started": "never"}
    assert state_with() is State.TODO
    assert state_with(tracked("another")) is State.TODO
    assert state_with(tracked(KEY)) is State.DONE
    assert state_with(tracked(KEY, experiment="losses")) is State.DONE
    assert state_with(tracked(KEY, "KILLED")) is State.INTERRUPTED
    assert state_with(tracked(KEY, "RUNNING")) is State.ELSEWHERE  # this process lives
    assert state_with(tracked(KEY, "RUNNING", tags=gone)) is State.INTERRUPTED
    assert state_with(tracked(KEY, "FAILED")) is State.FAILED
    assert state_with(tracked(KEY, "FAILED", tags={"retry": "false"})) is State.HOPELESS
    assert state_with(tracked(KEY), tracked(KEY, "FAILED")) is State.DONE


def test_what_waits() -> None:
    keys = [cell.key() for cell in CELLS]
    runs = [
        tracked(keys[0]),
        tracked(keys[1], "FAILED"),
        tracked(keys[2], "FAILED", tags={"retry": "false"}),
    ]
    plan = make_plan("attention", GRID, CELLS, runs)
    assert [cell.config.key() for cell in plan.waiting] == [keys[1], keys[3]]
    assert plan.foreign() == []
    again = make_plan("attention", GRID, CELLS, runs, retry_hopeless=True)
    assert [cell.config.key() for cell in again.waiting] == keys[1:]


def test_a_run_of_another_grid_is_reused_and_named() -> None:
    plan = make_plan("attention", GRID, CELLS, [tracked(KEY, experiment="baselines")])
    assert [run.experiment for run in plan.foreign()] == ["baselines"]
    assert len(plan.waiting) == len(CELLS) - 1


def test_a_silent_run_on_another_machine_is_dead_after_a_while() -> None:
    fresh = {"host": "elsewhere", "progress": '{"time": 99999999999}'}
    assert state_with(tracked(KEY, "RUNNING", tags=fresh)) is State.ELSEWHERE
    stale = {"host": "elsewhere", "progress": '{"time": 1}'}
    assert state_with(tracked(KEY, "RUNNING", tags=stale)) is State.INTERRUPTED
    evaluating = {**stale, "alive": "99999999999"}
    assert state_with(tracked(KEY, "RUNNING", tags=evaluating)) is State.ELSEWHERE


def test_a_later_process_with_the_same_number_does_not_count_as_the_owner() -> None:
    reused = {"pid": str(os.getpid()), "pid_started": "another time"}
    assert state_with(tracked(KEY, "RUNNING", tags=reused)) is State.INTERRUPTED


def test_time_is_estimated_from_runs_that_are_alike() -> None:
    plan = make_plan("attention", GRID, CELLS, [])
    assert math.isnan(plan.seconds_left(2))
    steps = CELLS[0].training.steps
    done = tracked(
        KEY,
        metrics={"final/seconds": 20.0, "final/steps": steps},
        params=CELLS[0].to_params(),
    )
    plan = make_plan("attention", GRID, CELLS, [done])
    assert plan.cells[1].estimate == pytest.approx(20.0)
    assert plan.seconds_left(2) == pytest.approx(30.0)  # three cells, two at a time
    assert plan.gpu_hours(0.5) == pytest.approx(3 * 20 * 0.5 / 3600)
    assert "about 30 s, 2 at a time" in summary(plan, 2)
    assert "about 30 s and 0.00833 GPU-hours, 2 at a time" in summary(plan, 2, gpus=0.5)
    third = {"progress": json.dumps({"step": steps / 3})}
    stopped = tracked(CELLS[1].key(), "KILLED", tags=third, params=CELLS[1].to_params())
    assert make_plan("attention", GRID, CELLS, [done, stopped]).seconds_left(1) == pytest.approx(
        2 * 20 + 20 * 2 / 3
    )
    other = make_plan("attention", GRID, GRID.cells(preset("paper"), budgets=[100]), [done])
    assert math.isnan(other.cells[0].estimate)
