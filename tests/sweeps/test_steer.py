"""The commands that steer sweeps from another terminal, and look at what they have left."""

import csv
import io
import json
import os
import time
from pathlib import Path

import pytest
from test_status import CELLS, SPEC
from tracked_runs import ANOTHER_MACHINE, DEAD, finish

from semidavil.config import Config
from sweeps.cli import main
from sweeps.keep.workspace import ENDING, JOURNAL, LOG
from sweeps.show.logs import follow
from sweeps.show.overview import open_overview
from sweeps.track.lease import Claimed, Leases
from sweeps.track.runs import TrackedRun
from sweeps.track.store import Store
from sweeps.track.wishes import Wishes

COMMAND = "python sweeps/run.py --grid attention --seeds 0"


@pytest.fixture
def here(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store that commands find, without a sweep in it."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("SEMIDAVIL_STORAGE", raising=False)
    return store


@pytest.fixture
def swept(here: Store) -> Store:
    """With a sweep of this process in it."""
    open_overview(here, SPEC, "", 2, tags={"command": COMMAND})
    return here


def begin(store: Store, config: Config, name: str) -> str:
    """The id of an open run of this process."""
    tags = {"grid": "attention"}
    claimed = Leases(store).claim(store.experiment_id("attention"), name, config, tags)
    assert isinstance(claimed, Claimed)
    return claimed.run_id


def failed_for_good(store: Store, config: Config, name: str) -> str:
    run_id = begin(store, config, name)
    store.close(run_id, "FAILED", "the loss is not finite", tags={"retry": "false"})
    return run_id


def overview(store: Store) -> TrackedRun:
    (found,) = store.overviews()
    return found


def wishes(store: Store) -> Wishes:
    return Wishes.of(overview(store).tags)


def test_a_running_sweep_is_stopped_paused_and_resumed(
    swept: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["stop", "--grid", "attention"]) == 0
    assert "told to stop" in capsys.readouterr().out
    assert "@" in wishes(swept).stopped_by
    assert main(["resume"]) == 1, "nobody has paused it"
    assert main(["pause"]) == 0
    assert main(["status"]) == 0
    assert "paused" in capsys.readouterr().out
    assert wishes(swept).paused
    assert main(["resume"]) == 0
    assert not wishes(swept).paused


def test_a_sweep_of_another_version_is_stopped_as_well(
    swept: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    """It reads the same tags, whatever its settings would give here; a dead one is asked for nothing."""
    tags = overview(swept).tags
    swept.log(overview(swept).run_id, tags={"settings": "that gave other results", **DEAD})
    assert main(["stop"]) == 1
    assert "attention, toy: of another version" in capsys.readouterr().out
    swept.log(overview(swept).run_id, tags={name: tags[name] for name in DEAD})
    for command, said in (("stop", "told to stop"), ("pause", "paused")):
        assert main([command]) == 0
        assert f"attention, toy (of another version): {said}" in capsys.readouterr().out
    assert wishes(swept).stopped_by
    assert wishes(swept).paused
    assert main(["status"]) == 0
    assert "its runs are not counted" in capsys.readouterr().out


def test_where_no_sweep_is_running_nothing_is_asked(
    swept: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    swept.log(overview(swept).run_id, tags=DEAD)
    for command in ("stop", "pause"):  # a pause would be in the next sweep's way
        assert main([command]) == 1
        assert "attention, toy: stopped" in capsys.readouterr().out
    assert wishes(swept) == Wishes()


def test_a_run_that_has_failed_for_good_is_asked_for_again(
    swept: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id = failed_for_good(swept, CELLS[0], "gta5-cityscapes/dlg/0/s0")
    assert main(["retry", "gta5-cityscapes/dlg/0/s0"]) == 0
    assert "tried again by the sweep of attention" in capsys.readouterr().out
    assert wishes(swept).keys == [CELLS[0].key()]
    assert swept.run(run_id).tags["retry"] == "asked"
    swept.log(overview(swept).run_id, tags=DEAD)
    assert main(["retry", run_id[:8]]) == 0
    assert COMMAND in capsys.readouterr().out


def test_of_cells_with_one_name_the_one_that_has_failed_is_retried(
    swept: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    """Cells of one grid with other settings have the same name."""
    name = "gta5-cityscapes/dlg/0/s0"
    stopped, other = (CELLS[0].replace({"training.steps": steps}) for steps in (20, 30))
    swept.end(begin(swept, stopped, name), "KILLED")
    assert main(["retry", name]) == 1
    assert "was stopped" in capsys.readouterr().out
    run_id = failed_for_good(swept, CELLS[0], name)
    assert main(["retry", name]) == 0
    assert swept.run(run_id).tags["retry"] == "asked"
    failed_for_good(swept, other, name)
    assert main(["retry", name]) == 1
    told = capsys.readouterr().err
    assert (told.count("FAILED"), "KILLED" in told) == (2, False)
    assert main(["logs", name]) == 1, "any of the three"


def test_what_has_not_failed_or_is_not_there_is_not_retried(
    swept: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    finish(swept, CELLS[0], 30.0)
    run_id = begin(swept, CELLS[1], "under way")

    def answer(name: str) -> str:
        assert main(["retry", name]) == 1
        return capsys.readouterr().out

    assert "cell 30.0 has finished: there is nothing" in answer("cell 30.0")
    assert "under way is running: there is nothing" in answer("under way")
    swept.end(run_id, "KILLED")
    assert "was stopped, and the command that began it goes on with it" in answer("under way")


def test_a_run_that_is_not_there_is_answered_with_what_helps(
    swept: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def answer(text: str) -> str:
        assert main(["logs", text]) == 1
        told = capsys.readouterr().err
        assert f"is called '{text}'" in told
        return told.rpartition(": ")[2].strip()

    assert answer("dlg") == "there are none yet"
    name = "gta5-cityscapes/dlg/100/s0"
    run_id = begin(swept, CELLS[1], name)
    assert answer("gta5-cityscapes/dgl/100/s0") == f"did you mean {name}?"
    assert answer(run_id[:3]) == "write at least 4 letters of the id"
    remedy = answer("what?")
    assert remedy.startswith("python -m sweeps ")
    monkeypatch.chdir(tmp_path)
    assert main(remedy.split()[3:]) == 0
    assert name in Path("runs.csv").read_text()


def test_other_settings_of_the_same_grid_are_not_asked(
    swept: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their sweep knows nothing of such a run, and was said to try it again."""
    other = CELLS[0].replace({"training.steps": 20})
    failed_for_good(swept, other, "of other steps")
    assert main(["retry", "of other steps"]) == 0
    assert "no sweep is running" in capsys.readouterr().out
    assert wishes(swept).keys == []


def test_a_name_that_several_runs_have_is_not_guessed(
    swept: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = [failed_for_good(swept, config, "same name") for config in CELLS[:2]]
    assert main(["retry", "same name"]) == 1
    error = capsys.readouterr().err
    assert all(run_id[:8] in error for run_id in ids)


def test_status_for_programs(swept: Store, capsys: pytest.CaptureFixture[str]) -> None:
    finish(swept, CELLS[0], 31.25)
    run_id = begin(swept, CELLS[1], "gta5-cityscapes/dlg/100/s0")
    assert main(["status", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    (one,) = shown["sweeps"]
    assert (one["grid"], one["state"], one["command"]) == ("attention", "running", COMMAND)
    assert one["counts"] == {
        "done": 1, "failed": 0, "running": 1, "waiting": 6, "other data": 0
    }  # fmt: skip
    assert one["best"]["gta5-cityscapes"]["score"] == 31.25
    assert [(run["run_id"], run["score"]) for run in one["running"]] == [(run_id, None)]


# Logs


def test_the_log_of_a_run_is_read_where_it_is(
    swept: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id = begin(swept, CELLS[0], "a run")
    folder = Path(swept.storage.of(CELLS[0].key()))
    assert main(["logs", "a run"]) == 1  # its worker is only beginning
    assert "printed nothing yet" in capsys.readouterr().err
    swept.log(run_id, tags=ANOTHER_MACHINE)
    assert main(["logs", "a run"]) == 1
    assert "on another machine, which trains it" in capsys.readouterr().err
    folder.mkdir(parents=True)
    (folder / LOG).write_text("step 1/10\n")
    assert main(["logs", run_id[:8]]) == 0
    assert capsys.readouterr().out == "step 1/10\n"
    swept.log_files(run_id, folder / LOG)
    (folder / LOG).unlink()
    swept.end(run_id, "FINISHED")
    assert main(["logs", "a run"]) == 0
    assert capsys.readouterr().out == "step 1/10\n"


def test_a_log_is_followed_to_the_end_of_the_run(
    swept: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = begin(swept, CELLS[0], "a run")
    folder = Path(swept.storage.of(CELLS[0].key()))
    folder.mkdir(parents=True)
    shown: list[str] = []
    log = folder / LOG

    def look(seconds: float) -> None:  # instead of waiting, the training goes on
        lines = "".join(shown).count("\n")
        if lines < 3:
            with log.open("a") as file:
                file.write(f"step {lines + 1}\n")
        elif swept.run(run_id).is_open:
            with log.open("a") as file:
                file.write("the last line\n")
            swept.log_files(run_id, log)
            swept.end(run_id, "FINISHED")
            log.unlink()

    monkeypatch.setattr(time, "sleep", look)
    ended = follow(swept, swept.run(run_id), shown.append)
    assert "".join(shown) == "step 1\nstep 2\nstep 3\nthe last line\n"
    assert ended.status == "FINISHED"


# What nobody needs


def checkpoint(store: Store, key: str) -> Path:
    folder = Path(store.storage.of(key))
    folder.mkdir(parents=True)
    (folder / "last.pt").write_bytes(bytes(1000))
    return folder


def test_cleaning_leaves_all_that_an_unfinished_run_needs(
    swept: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finish(swept, CELLS[0], 30.0)
    deleted = begin(swept, CELLS[1], "deleted")
    swept.end(deleted, "KILLED")
    swept.delete(deleted)
    interrupted = begin(swept, CELLS[2], "interrupted")
    swept.end(interrupted, "KILLED")
    failed_for_good(swept, CELLS[3], "failed")
    elsewhere = begin(swept, CELLS[4], "elsewhere")
    swept.log(elsewhere, tags=ANOTHER_MACHINE)
    finish(swept, CELLS[5], 30.0)
    finish(swept, CELLS[7], 31.0)
    running = begin(swept, CELLS[6], "running")
    folders = [checkpoint(swept, config.key()) for config in CELLS]
    (folders[5] / ENDING).write_text("{}")  # which the store does not have yet
    unknown = checkpoint(swept, "0123456789abcdef")
    cache = tmp_path / "data"
    old = cache / "store" / "gta5-1234" / "images-8x16.0.raw"
    new = cache / "store" / "gta5-5678" / "images-8x16.0.raw"
    for path in (old, new):
        path.parent.mkdir(parents=True)
        path.write_bytes(bytes(500))
    os.utime(old, (1.0, 1.0))

    command = ["clean", "--cache", str(cache)]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "3.5 kB in all; nothing was removed" in shown
    assert "1 checkpoints of runs that this MLflow does not know" in shown
    assert all(folder.exists() for folder in (*folders, unknown, old, new))

    assert main([*command, "--delete"]) == 0
    assert "3.5 kB freed" in capsys.readouterr().out
    assert [folder.exists() for folder in folders] == [
        False, False, True, True, True, True, True, False
    ]  # fmt: skip
    assert [path.exists() for path in (unknown, old, new)] == [True, False, True]
    assert swept.run(running).is_open

    assert main([*command, "--delete", "--unknown"]) == 0
    assert not unknown.exists()


def test_cleaning_leaves_what_another_store_trains_in_a_shared_folder(
    swept: Store, tmp_path: Path
) -> None:
    """Its run has the same Config as one that has finished here, and so the same folder."""
    mine, theirs = (checkpoint(swept, config.key()) for config in CELLS[:2])
    for config, folder, other in ((CELLS[0], mine, ""), (CELLS[1], theirs, "another")):
        sent_to = other or finish(swept, config, 30.0)
        if other:
            finish(swept, config, 30.0)
        lines = [{"step": 1, "seconds": 1.0, "values": {}}, {"sent_to": sent_to, "step": 1}]
        (folder / JOURNAL).write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"st')
    command = ["clean", "--cache", str(tmp_path / "data"), "--delete"]
    assert main(command) == 0
    assert (mine.exists(), theirs.exists()) == (False, True)
    assert main([*command, "--unknown"]) == 0
    assert not theirs.exists()


# A table of all runs


def test_runs_are_exported_with_all_that_is_known_of_them(
    here: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id = finish(here, CELLS[0], 30.0)
    here.log(run_id, metrics=[("val/miou", 12.5, 0, 3), ("final/iou/train", float("nan"), 0, 3)])
    begin(here, CELLS[1], "under way")
    file = tmp_path / "runs.csv"
    assert main(["export", "runs", "--csv", str(file)]) == 0
    rows = list(csv.DictReader(io.StringIO(file.read_text())))
    assert [row["status"] for row in rows] == ["FINISHED", "RUNNING"]
    assert rows[0]["run_id"] == run_id
    assert rows[0]["metrics.final/miou"] == "30.0"
    assert rows[0]["metrics.val/miou"] == "12.5"
    assert {name: rows[0][f"params.{name}"] for name in CELLS[0].to_params()} == (
        CELLS[0].to_params()
    )
    assert rows[1]["metrics.val/miou"] == ""
    capsys.readouterr()
    assert main(["export", "runs", "--json", "--grid", "attention"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found[0]["metrics.final/iou/train"] is None
    assert main(["export", "runs", "--json", "--grid", "losses"]) == 0
    assert json.loads(capsys.readouterr().out) == []


@pytest.mark.parametrize(
    "arguments",
    [["export", "runs"], ["export", "cells", "--csv"], ["retry"], ["clean", "--force"]],
)
def test_what_is_no_command_is_refused_before_anything_is_imported(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
