"""What a sweep looks like from another terminal."""

import json
import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from tracked_runs import tracked

from semidavil.config import preset
from sweeps.provenance import owner_tags
from sweeps.run_log import Ending
from sweeps.status import main, render, status_of
from sweeps.tracking import Store, TrackedRun

START = 1_000_000.0
PARAMS = preset("toy").to_params()


def sweep(**changes: Any) -> dict[str, Any]:
    return {"started": START, "cells": 6, "concurrency": 2, **owner_tags(), **changes}


def finished(name: str, miou: float, seconds_after: float = 10) -> TrackedRun:
    metrics = {"final/miou": miou, "final/seconds": 40.0}
    ended = int(1000 * (START + seconds_after))
    return tracked(name, name=name, ended=ended, metrics=metrics, params=PARAMS)


def half_way(name: str, ended: int | None = None) -> TrackedRun:
    progress = json.dumps({"step": 75, "seconds": 20.0, "time": START + 30})
    tags = {"progress": progress}
    return tracked(name, "RUNNING", name=name, params=PARAMS, tags=tags, ended=ended)


def test_cells_are_counted_from_the_start_of_the_sweep() -> None:
    runs = [
        finished("before", 50.0, seconds_after=-5),
        finished("a", 30.0),
        finished("b", 40.0),
        tracked("c", "FAILED", ended=int(1000 * START) + 9, params=PARAMS),
        half_way("d", ended=int(1000 * START) - 9),  # continued: it was stopped before
        tracked("e", "FINISHED", experiment="losses", ended=int(1000 * START) + 9),
    ]
    status = status_of("attention", sweep(), runs, START + 60)
    assert (status.state, status.done, status.failed, status.waiting) == ("running", 2, 1, 2)
    assert [run.name for run in status.running] == ["d"]
    # Three cells are left, one of them half done, at 40 s each, two at a time.
    assert status.seconds_left == pytest.approx(2.5 * 40 / 2)
    assert status.best["gta5-cityscapes"].name == "before"


def test_a_sweep_is_running_stopped_or_finished() -> None:
    gone = sweep(pid="1", pid_started="never")
    assert status_of("attention", gone, [half_way("d")], START).state == "stopped"
    assert status_of("attention", sweep(cells=1), [finished("a", 1.0)], START).state == "finished"
    elsewhere = sweep(host="another machine")
    assert status_of("attention", elsewhere, [], START + 60).state == "running"
    assert status_of("attention", elsewhere, [], START + 1e6).state == "stopped"
    assert math.isnan(status_of("attention", sweep(), [], START).seconds_left)


def test_trials_that_were_stopped_early_are_done() -> None:
    tags = {"stopped_early": "50"}
    pruned = [
        tracked(name, "KILLED", tags=tags, ended=int(1000 * START) + 9, params=PARAMS)
        for name in "ab"
    ]
    status = status_of("attention", sweep(cells=3), [finished("c", 1.0), *pruned], START + 60)
    assert (status.state, status.done, status.waiting) == ("finished", 3, 0)


def test_before_anything_has_finished_the_pace_of_what_runs_tells_the_time_left() -> None:
    status = status_of("attention", sweep(cells=3), [half_way("a")], START + 60)
    assert status.seconds_left == pytest.approx(2.5 * 40 / 2)  # half of 150 steps took 20 s


def test_what_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    runs = [finished("gta5-cityscapes/dlg/[0]/s0", 30.0), half_way("gta5-cityscapes/vlga/0/s0")]
    Console(width=200).print(
        render([status_of("attention", sweep(), runs, START + 40)], START + 40)
    )
    shown = capsys.readouterr().out
    assert "gta5-cityscapes/dlg/[0]/s0 mIoU 30.00" in shown
    assert "75/150" in shown
    assert "10 s ago" in shown


def test_the_command_reads_the_store(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)
    monkeypatch.setenv("COLUMNS", "200")
    assert main([]) == 1
    assert "python sweeps/run.py --grid attention" in capsys.readouterr().err
    experiment = store.experiment_id("losses")
    store.announce(experiment, {"started": time.time(), "cells": 3, "concurrency": 2})
    store.open_run(experiment, "gta5-cityscapes/ce/0/s0", preset("toy"), {})
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert "losses" in shown
    assert "0/150" in shown
    assert "kept" not in shown
    assert main(["--grid", "attention"]) == 1


def test_runs_that_the_store_does_not_have_are_named(
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)
    monkeypatch.setenv("SEMIDAVIL_STORAGE", str(tmp_path / "shared"))
    monkeypatch.setenv("COLUMNS", "200")
    experiment = store.experiment_id("losses")
    store.announce(experiment, {"started": time.time(), "cells": 3, "concurrency": 2})
    for name, seconds_ago in (("old", 600), ("being-delivered", 1)):
        folder = tmp_path / "shared" / name
        folder.mkdir(parents=True)
        ended = int(1000 * (time.time() - seconds_ago))
        ending = Ending(name, store.uri, "FINISHED", 10, ended, 3.0)
        (folder / "ending.json").write_text(json.dumps(asdict(ending)))
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert f"wait in {tmp_path / 'shared'}, not counted above: 1" in shown
    assert f"deliver.py --storage {tmp_path / 'shared'}" in shown
