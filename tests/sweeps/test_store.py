"""The tracking store: what is tracked, and what is said where it cannot be."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException
from servers import BARE_SERVER, free_port, raising
from sweep_process import source

from semidavil.config import Config, preset
from sweeps.track.provenance import owner_tags
from sweeps.track.retry import StoreAway, StoreRefused, TrackingError
from sweeps.track.store import Store

CONFIG = preset("toy", {"data.budget": 200})


def create_run(store: Store, config: Config = CONFIG, **tags: str) -> str:
    mine = {"key": config.key(), "commit": "c0ffee", **owner_tags(), **tags}
    return store.create_run(store.experiment_id("attention"), "a/b/0/s0", config, mine)


def test_a_run_can_be_rebuilt_from_what_is_tracked(store: Store) -> None:
    run_id = create_run(store)
    (run,) = store.runs()
    assert (run.run_id, run.status, run.experiment) == (run_id, "RUNNING", "attention")
    assert run.tags["commit"] == "c0ffee"
    assert Config.from_params(run.params) == CONFIG
    assert run.key == CONFIG.key()
    assert store.runs(CONFIG.key()) == [run]
    assert store.runs("another") == []


def test_more_settings_than_one_call_may_log_are_logged(store: Store) -> None:
    params = {f"many.{i}": str(i) for i in range(250)}
    run_id = create_run(store)
    store.log(
        run_id, [("loss", i, 0, i) for i in range(2500)], params, {f"t{i}": "x" for i in range(150)}
    )
    run = store.run(run_id)
    assert params.items() <= run.params.items()
    assert run.tags["t149"] == "x"
    assert len(store.client.get_metric_history(run_id, "loss")) == 2500


def test_tags_that_say_how_far_metrics_have_got_come_after_them(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = create_run(store)
    real, calls = store.client.log_batch, []

    def second_fails(*arguments: object, **named: object) -> None:
        calls.append(arguments)
        if len(calls) == 2:
            raise MlflowException("413")
        real(*arguments, **named)

    monkeypatch.setattr(store.client, "log_batch", second_fails)
    with pytest.raises(StoreRefused):
        store.log(run_id, [("loss", i, 0, i) for i in range(1500)], tags={"progress": "all"})
    assert "progress" not in store.run(run_id).tags


def test_metrics_do_not_pass_through_mlflows_queue(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its errors go to a log, and what was in it is lost with the process."""
    monkeypatch.setenv("MLFLOW_ENABLE_ASYNC_LOGGING", "true")
    run_id = create_run(store)
    called = []
    real = store.client.log_batch
    monkeypatch.setattr(
        store.client, "log_batch", lambda *a, **named: (called.append(named), real(*a, **named))
    )
    store.log(run_id, [("loss", 1.0, 0, 1)])
    assert [named["synchronous"] for named in called] == [True]
    assert [p.value for p in store.client.get_metric_history(run_id, "loss")] == [1.0]


def test_artifacts_lie_in_mlruns_and_nothing_there_looks_like_a_file_store(
    store: Store, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text("{}")
    store.log_files(create_run(store), tmp_path / "config.json")
    (found,) = (tmp_path / "mlruns").rglob("config.json")
    assert found.relative_to(tmp_path / "mlruns").parts[0] == "attention"
    # Such a file makes a bare `mlflow ui` ignore the database.
    assert not list((tmp_path / "mlruns").glob("*/meta.yaml"))


def test_after_a_move_artifacts_go_to_the_new_place_and_old_runs_still_count(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old = create_run(store)
    here, there = tmp_path / "here", tmp_path / "there"
    shutil.move(tmp_path / "mlflow.db", here.mkdir() or here / "mlflow.db")
    Store(here).experiment_id("attention")  # moved once,
    here.rename(there)  # and once more
    moved = Store(there)
    (there / "a.txt").write_text("a")
    new = create_run(moved, preset("toy"))
    moved.log_files(new, there / "a.txt")
    assert list((there / "mlruns").rglob("a.txt"))
    assert not here.exists()
    assert {run.run_id for run in moved.runs()} == {old, new}
    assert "before it was moved" in caplog.text
    before = moved.experiment_id("attention")
    assert Store(there).experiment_id("attention") == before  # said and done once


@pytest.mark.parametrize("epoch", [None, 3])
def test_closing_leaves_an_ended_run_and_that_of_another_lease(
    epoch: int | None, store: Store
) -> None:
    run_id = create_run(store, epoch="3")
    assert not store.close(run_id, "KILLED", "stopped", epoch=2)
    assert store.run(run_id).is_open
    assert store.close(run_id, "FAILED", "at https://ann:pw@host", epoch, {"stopped_early": "4"})
    run = store.run(run_id)
    assert (run.status, run.tags["reason"]) == ("FAILED", "at https://***@host")
    assert run.tags["stopped_early"] == "4"
    assert not store.close(run_id, "KILLED", "stopped")


def test_a_run_joins_further_grids(store: Store) -> None:
    create_run(store)
    for grid in ("losses", "methods", "losses"):
        store.add_to(store.runs()[0], "grids", grid)
    assert store.runs()[0].tags["grids"] == "losses methods"


def test_a_driver_without_the_keys_of_the_artifacts_bucket_can_sweep(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run_id = store.create_overview("attention", "settings", "name", "about")
    monkeypatch.setattr(
        store.client, "log_text", raising(lambda: PermissionError("no credentials"))
    )
    store.update_overview(run_id, "SCHEDULED", {"cells/done": 1}, {"plan.csv": "a,b"})
    assert "tables are not kept in the store" in caplog.text
    assert store.client.get_run(run_id).data.metrics["cells/done"] == 1


def test_listing_creates_no_database(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.runs() == []
    assert store.overviews() == []
    assert list(tmp_path.iterdir()) == []


# Experiments that people change in MLflow's page


def test_a_deleted_experiment_is_named_with_the_remedy(store: Store) -> None:
    experiment = store.experiment_id("attention")
    store.client.delete_experiment(experiment)
    with pytest.raises(
        TrackingError, match=f"mlflow experiments restore --experiment-id {experiment}"
    ):
        store.experiment_id("attention")


def test_runs_of_a_renamed_experiment_still_count(store: Store) -> None:
    run_id = create_run(store)
    store.client.rename_experiment(store.experiment_id("attention"), "what we published")
    again = Store(store.folder)
    assert [run.run_id for run in again.runs(CONFIG.key())] == [run_id]
    assert again.experiment_id("attention") != store.run(run_id).experiment


# Places that cannot be a store


def old_schema(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("UPDATE alembic_version SET version_num = '0123456789ab'")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (old_schema, r"mlflow db upgrade sqlite:///.*mlflow\.db"),
        (lambda path: path.write_text("no database at all" * 100), "not a database"),
        (lambda path: (path.unlink(), path.mkdir()), "unable to open"),
    ],
    ids=["another schema", "no database", "a folder"],
)
def test_a_database_that_cannot_be_used_is_named_at_once(
    spoil: Callable[[Path], object], message: str, store: Store
) -> None:
    assert store.database is not None
    spoil(store.database)
    with pytest.raises(TrackingError, match=message):
        Store(store.folder).runs()


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("/some/folder", "is a folder, where MLflow no longer tracks runs"),
        ("file:///some/folder", "is a folder, where MLflow no longer tracks runs"),
        ("databricks", "is Databricks"),
        ("sqlite://", "names no file"),
    ],
)
def test_an_address_of_no_store_is_refused(uri: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match=message):
        Store(tmp_path, uri)


def test_a_folder_that_cannot_be_written_is_named_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(TrackingError, match=r"cannot be created: .* cannot be written"):
        Store(tmp_path).experiment_id("attention")


@pytest.mark.parametrize("name", ["a%20b", "q?z", "ü #&"])
def test_any_folder_may_hold_the_store(name: str, empty_store: Path, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "mlflow.db").write_bytes(empty_store.read_bytes())
    store = Store(tmp_path / name)
    create_run(store)
    assert store.database == tmp_path / name / "mlflow.db"
    assert len(store.runs()) == 1
    assert len(Store(tmp_path, store.uri).runs()) == 1  # as a worker opens it


def test_options_in_the_address_are_no_part_of_the_files_name(store: Store) -> None:
    same = Store(store.folder, f"{store.uri}?timeout=30")
    assert same.database == store.database
    assert not same.is_new()
    create_run(same)
    assert len(store.runs()) == 1


@pytest.mark.slow
def test_a_database_that_somebody_holds_locked_is_away_and_not_broken(store: Store) -> None:
    assert store.database is not None
    holder = sqlite3.connect(store.database)
    holder.execute("BEGIN EXCLUSIVE")
    try:
        with pytest.raises(StoreAway, match=r"holds .* locked"):
            Store(store.folder).experiment_id("attention")
    finally:
        holder.close()
    assert Store(store.folder).experiment_id("attention")


@pytest.mark.slow
def test_of_processes_that_start_at_once_on_a_new_store_one_creates_it(tmp_path: Path) -> None:
    """As the commands of a job array do."""
    script = tmp_path / "open_store.py"
    script.write_text(
        "import sys; from pathlib import Path; from sweeps.track.store import Store\n"
        "Store(Path(sys.argv[1])).experiment_id('attention')\n"
    )
    folder = tmp_path / "new"
    folder.mkdir()
    started = [source().start(script, [str(folder)], folder, os.environ) for _ in range(3)]
    ended = [(process.communicate(timeout=600)[0], process.returncode) for process in started]
    assert [code for _, code in ended] == [0, 0, 0], ended
    assert not Store(folder).is_new()


@pytest.mark.slow
def test_mlflow_ui_without_arguments_shows_the_runs(store: Store) -> None:
    run_id = create_run(store)
    port = free_port()
    common = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_TRACKING")}
    command = [sys.executable, "-m", "mlflow", "ui", "--port", str(port), "--workers", "1"]
    server = subprocess.Popen(
        command,
        cwd=store.folder,
        env=common | BARE_SERVER,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        url = f"http://127.0.0.1:{port}/api/2.0/mlflow/runs/get?run_id={run_id}"
        deadline = time.monotonic() + 300
        while True:
            try:
                with urllib.request.urlopen(url, timeout=5) as answer:
                    run = json.load(answer)["run"]
                break
            except OSError:
                assert server.poll() is None, "the server has ended"
                assert time.monotonic() < deadline, "the server did not answer"
                time.sleep(0.3)
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(timeout=120)
    assert run["info"]["run_name"] == "a/b/0/s0"
    assert run["info"]["artifact_uri"].startswith((store.folder / "mlruns").as_uri())
