import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from fake_training import STEPS
from mlflow.exceptions import MlflowException
from servers import free_port
from tracked_runs import take_over

from semidavil.config import Config, preset
from sweeps.provenance import owner_tags
from sweeps.run_log import RunLog
from sweeps.sqlite_runs import Row
from sweeps.tracking import Store, TrackedRun, TrackingError, patiently

CONFIG = preset("toy", {"data.budget": 200})


def open_run(store: Store, previous: TrackedRun | None = None) -> str:
    return store.open_run(
        store.experiment_id("attention"), "a/b/0/s0", CONFIG, {"commit": "c0ffee"}, previous
    )


def test_a_run_can_be_rebuilt_from_what_is_tracked(store: Store) -> None:
    run_id = open_run(store)
    (run,) = store.runs()
    assert run.run_id == run_id
    assert run.status == "RUNNING"
    assert run.experiment == "attention"
    assert run.tags["commit"] == "c0ffee"
    assert Config.from_params(run.params) == CONFIG
    assert run.key == CONFIG.key()


def test_artifacts_lie_in_mlruns_and_nothing_there_looks_like_a_file_store(
    store: Store, tmp_path: Path
) -> None:
    log = RunLog(store.uri, open_run(store), tmp_path)
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "config.json").write_text("{}")
    log.finish({"final/miou": 50.0}, tmp_path / "kept")
    (found,) = (tmp_path / "mlruns").rglob("config.json")
    assert found.relative_to(tmp_path / "mlruns").parts[0] == "attention"
    # Such a file makes a bare `mlflow ui` ignore the database.
    assert not list((tmp_path / "mlruns").glob("*/meta.yaml"))
    (run,) = store.runs()
    assert run.status == "FINISHED"
    assert run.metrics["final/miou"] == 50.0


def test_metrics_reach_the_store_once_and_in_order_across_a_kill(
    store: Store, tmp_path: Path
) -> None:
    run_id = open_run(store)
    killed = RunLog(store.uri, run_id, tmp_path)
    for step in (1, 2, 3):
        killed.metrics(step, {"train/loss": float(step)})
    killed.flush()
    killed.metrics(4, {"train/loss": 4.0})  # in the journal, not in the store; then a SIGKILL
    (previous,) = store.runs()
    assert previous.progress["step"] == 3

    assert open_run(store, previous) == run_id
    again = RunLog(store.uri, run_id, tmp_path)  # from a checkpoint of step 2
    for step in range(3, STEPS + 1):
        again.metrics(step, {"train/loss": float(step)})
    again.flush()
    history = store.client.get_metric_history(run_id, "train/loss")
    assert [(point.step, point.value) for point in history] == [
        (step, float(step)) for step in range(1, STEPS + 1)
    ]
    (run,) = store.runs()
    assert run.tags["attempts"] == "2"


def test_a_torn_journal_line_is_passed_over(store: Store, tmp_path: Path) -> None:
    run_id = open_run(store)
    line = json.dumps({"step": 1, "time": 5, "values": {"train/loss": 1.0}})
    (tmp_path / "metrics.jsonl").write_text(f'{line}\n{{"step": 2, "ti')
    log = RunLog(store.uri, run_id, tmp_path)
    assert [entry["step"] for entry in log.waiting] == [1]


def test_what_a_dead_process_left_open_is_closed(store: Store) -> None:
    mine, theirs = open_run(store), open_run(store)
    store.client.set_tag(theirs, "semidavil.pid_started", "long ago")
    assert [run.run_id for run in store.close_dead(store.runs())] == [theirs]
    states = {run.run_id: run.status for run in store.runs()}
    assert states == {mine: "RUNNING", theirs: "KILLED"}


def test_closing_leaves_a_finished_run_finished(store: Store) -> None:
    run_id = open_run(store)
    store.client.set_terminated(run_id, "FINISHED")
    store.close(run_id, "KILLED", "too late")
    assert store.runs()[0].status == "FINISHED"


def test_a_run_that_another_sweep_has_taken_over_is_not_closed_by_the_first(store: Store) -> None:
    run_id = open_run(store)
    take_over(store, run_id)
    store.close(run_id, "KILLED", "the sweep was stopped", own=True)
    assert store.runs()[0].status == "RUNNING"
    store.client.set_tag(run_id, "semidavil.host", owner_tags()["host"])
    store.close(run_id, "KILLED", "the sweep was stopped", own=True)
    assert store.runs()[0].status == "KILLED"


def test_a_run_joins_further_grids(store: Store) -> None:
    open_run(store)
    for _ in range(2):
        store.add_to_grid(store.runs()[0], "losses")
    assert store.runs()[0].tags["grids"] == "losses"


def test_listing_creates_no_database(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.runs() == []
    assert not list(tmp_path.iterdir())


def test_a_folder_is_refused_as_a_store(tmp_path: Path) -> None:
    for uri in ("mlruns", tmp_path.as_uri()):
        with pytest.raises(TrackingError, match=r"sqlite:///"):
            Store(tmp_path, uri)


def test_a_deleted_experiment_is_named_with_the_remedy(store: Store) -> None:
    store.client.delete_experiment(store.experiment_id("attention"))
    with pytest.raises(TrackingError, match="mlflow experiments restore"):
        store.experiment_id("attention")


def test_a_locked_database_is_tried_again_and_another_error_is_not() -> None:
    calls: list[int] = []

    def locked_twice() -> str:
        calls.append(1)
        if len(calls) < 3:
            raise MlflowException("(sqlite3.OperationalError) database is locked")
        return "done"

    assert patiently(locked_twice, pause=0.001) == "done"
    assert len(calls) == 3

    def broken() -> None:
        calls.append(1)
        raise MlflowException("no such run")

    with pytest.raises(MlflowException, match="no such run"):
        patiently(broken, pause=0.001)
    assert len(calls) == 4


@pytest.mark.slow
def test_mlflow_ui_without_arguments_shows_the_runs(store: Store) -> None:
    run_id = open_run(store)
    port = free_port()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_TRACKING")}
    command = [sys.executable, "-m", "mlflow", "ui", "--port", str(port), "--workers", "1"]
    server = subprocess.Popen(
        command,
        cwd=store.folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        url = f"http://127.0.0.1:{port}/api/2.0/mlflow/runs/get?run_id={run_id}"
        deadline = time.monotonic() + 60
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
        server.wait(timeout=20)
    assert run["info"]["run_name"] == "a/b/0/s0"
    assert run["info"]["artifact_uri"].startswith((store.folder / "mlruns").as_uri())


def test_both_ways_of_reading_runs_agree(store: Store) -> None:
    experiment = store.experiment_id("attention")
    configs = [preset("toy"), preset("toy", {"seed": 1}), preset("toy", {"seed": 2})]
    ids = [store.open_run(experiment, f"cell {i}", c, {"a": "b"}) for i, c in enumerate(configs)]
    store.client.log_metric(ids[0], "final/miou", float("nan"))
    store.client.log_metric(ids[0], "train/loss", 2.0, step=1)
    store.client.log_metric(ids[0], "train/loss", 1.0, step=2)
    store.client.set_tag(ids[0], "a persons", "tag")
    store.close(ids[0], "FAILED", "a reason")
    store.client.delete_run(ids[2])
    store.overview(experiment, "attention", "no run of a Config")
    hidden = store.experiment_id("hidden")
    store.open_run(hidden, "cell", preset("toy", {"seed": 3}), {})
    store.client.delete_experiment(hidden)
    for key in (None, configs[0].key(), "unknown"):
        mine, theirs = store.runs(key), store._runs_by_client(key)
        assert repr(mine) == repr(theirs)  # NaN is not equal to itself
        assert len(mine) == {None: 2, configs[0].key(): 1}.get(key, 0)


def test_runs_that_share_names_have_what_is_their_own() -> None:
    places: dict[str, int] = {}
    rows = [{"a": "1", "b": "2"}, {"c": "3"}, {"b": "4", "a": "5"}, {}]
    read = [Row(places) for _ in rows]
    for row, content in zip(read, rows, strict=True):
        for name, value in content.items():
            row.put(name, value)
    assert read == rows
    assert [len(row) for row in read] == [2, 1, 2, 0]
    assert read[0].get("c") is None  # after its last
    assert read[1].get("a") is None  # before its first
    assert "d" not in read[0]


def test_where_the_tables_are_others_mlflow_is_asked(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = store.open_run(store.experiment_id("attention"), "cell", preset("toy"), {})
    monkeypatch.setattr("sweeps.sqlite_runs._RUNS", "SELECT what_is_not_there FROM runs WHERE ?")
    assert [run.run_id for run in store.runs()] == [run_id]
