"""A store that does not answer, a full disk, passwords in addresses; without a real server."""

import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from servers import away, free_port, raising

from semidavil.config import preset
from semidavil.disk import DiskFull
from sweeps import deliver, run, server, status
from sweeps.claims import Claims
from sweeps.credentials import redact, without_credentials
from sweeps.run_log import ENDING, Ending, RunLog
from sweeps.server import StoreAway, TrackingError, check_server, patience_of, patiently
from sweeps.tracking import Store
from sweeps.trial import Task, run_trial

CONFIG = preset("toy", {"data.budget": 200})


class Outage:
    """Makes the calls of a client fail, as long as it lasts."""

    def __init__(self, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.lasts = False
        for name in ("log_batch", "log_artifact", "log_artifacts", "set_terminated", "create_run"):
            monkeypatch.setattr(client, name, self._failing(getattr(client, name)))

    def _failing(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def instead(*arguments: Any, **named: Any) -> Any:
            if self.lasts:
                raise away()
            return call(*arguments, **named)

        return instead


@pytest.fixture(autouse=True)
def _short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEMIDAVIL_PATIENCE", "0.2")
    monkeypatch.setattr(server, "_given_up", False)


@pytest.fixture
def nobody() -> str:
    return f"127.0.0.1:{free_port()}"


@pytest.fixture
def answering() -> Iterator[Callable[[int], str]]:
    """Starts a server that gives every question the same status; returns its address."""
    servers = []

    def start(status: int) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.send_response(status)
                self.end_headers()
                self.wfile.write(b"<html>")

            def log_message(self, *_: Any) -> None:
                pass

        httpd = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        servers.append(httpd)
        return f"http://127.0.0.1:{httpd.server_port}"

    yield start
    for httpd in servers:
        httpd.shutdown()
        httpd.server_close()


def open_run(store: Store) -> str:
    return store.open_run(store.experiment_id("attention"), "a/b/0/s0", CONFIG, {})


def log_of(store: Store, run_id: str) -> RunLog:
    folder = store.storage.folder / CONFIG.key()
    folder.mkdir(parents=True, exist_ok=True)
    return RunLog(store.uri, run_id, folder)


# Away at the start


def credentials_in(monkeypatch: pytest.MonkeyPatch, uri: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "")  # so that what the command sets is taken back


@pytest.mark.parametrize(
    "command",
    [lambda: run.main(["--grid", "attention", "--list"]), lambda: status.main([])],
    ids=["run", "status"],
)
def test_a_server_that_is_not_there_is_an_error_with_a_remedy_and_no_password(
    nobody: str,
    command: Callable[[], int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    credentials_in(monkeypatch, f"http://ann:s3cret@{nobody}")
    monkeypatch.setenv("SEMIDAVIL_PATIENCE", "10")  # not for the first question
    assert command() == 1
    shown = "".join(capsys.readouterr())
    assert f"the tracking server http://{nobody} (MLFLOW_TRACKING_URI) cannot be used" in shown
    assert f"curl http://{nobody}/health" in shown
    assert "s3cret" not in shown
    assert os.environ["MLFLOW_TRACKING_PASSWORD"] == "s3cret"  # where MLflow looks for it


@pytest.mark.parametrize(
    ("code", "message"),
    [(401, "refuses these credentials"), (404, "not as MLflow"), (200, "not as MLflow")],
)
def test_a_server_of_another_kind_is_told_from_one_that_wants_a_password(
    answering: Callable[[int], str], code: int, message: str
) -> None:
    with pytest.raises(TrackingError, match=message):
        check_server(answering(code))


def test_a_server_that_accepts_and_says_nothing_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "PROBE_SECONDS", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(StoreAway, match="timed out"):
            check_server(f"http://127.0.0.1:{silent.getsockname()[1]}")


def test_the_users_own_settings_of_mlflow_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    import sweeps

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES")
    importlib.reload(sweeps)
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "0"


# Passwords


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://ann:pw@host:5000/x", "http://***@host:5000/x"),
        (
            "at postgresql+psycopg2://a:p@ss/w@db/x failed",
            "at postgresql+psycopg2://***@db/x failed",
        ),
        ("postgresql://db/x?user=a&password=pw&y=1", "postgresql://db/x?user=a&password=***&y=1"),
        ("abfs://a.net/x?client_secret=pw&y=1", "abfs://a.net/x?client_secret=***&y=1"),
        ("AWS_SECRET_ACCESS_KEY=pw hf_token=pw", "AWS_SECRET_ACCESS_KEY=*** hf_token=***"),
        ("http://host:5000 and ann@example.org", "http://host:5000 and ann@example.org"),
    ],
)
def test_passwords_are_taken_out_of_texts(text: str, shown: str) -> None:
    assert redact(text) == shown


def test_a_stores_address_and_its_tasks_hold_no_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    credentials_in(monkeypatch, "")
    store = Store(tmp_path, "https://ann:p%40ss@host:5000/mlflow")
    assert store.uri == "https://host:5000/mlflow"
    assert os.environ["MLFLOW_TRACKING_USERNAME"] == "ann"
    assert os.environ["MLFLOW_TRACKING_PASSWORD"] == "p@ss"
    assert without_credentials("sqlite:////a@b/x.db") == "sqlite:////a@b/x.db"


def test_a_failed_run_tells_no_password(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ValueError("cannot read https://ann:s3cret@host/data")

    monkeypatch.setattr("fake_training.train", broken)
    run_id = open_run(store)
    folder = store.storage.folder / CONFIG.key()
    task = Task(
        "c", CONFIG.to_params(), run_id, store.uri, str(folder), train="fake_training:train"
    )
    heard: list[dict[str, Any]] = []
    run_trial(task, heard.append)
    (failed,) = store.runs()
    logged = (folder / "train.log").read_text()
    assert "Traceback" in logged
    for text in (logged, failed.tags["reason"], json.dumps(heard)):
        assert "https://***@host/data" in text
        assert "s3cret" not in text


# Away later


def test_an_absent_store_is_waited_for_and_another_error_is_not(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEMIDAVIL_PATIENCE", "60")
    errors: list[Exception] = [away(), away(), away()]

    def call() -> str:
        if errors:
            raise errors.pop()
        return "done"

    assert patiently(call, pause=0.001) == "done"
    assert [record.message.split(" (")[0] for record in caplog.records] == [
        "the tracking store does not answer",
        "the tracking store answers again",
    ]
    assert "pw" not in caplog.text

    errors = [MlflowException("no such run")]
    with pytest.raises(MlflowException, match="no such run"):
        patiently(call, pause=0.001)


def test_patience_runs_out_once_and_comes_back_with_an_answer() -> None:
    calls: list[int] = []

    def call() -> None:
        calls.append(1)
        raise away()

    with pytest.raises(StoreAway, match="Connection refused"):
        patiently(call, pause=0.01)
    assert len(calls) > 1
    calls.clear()
    with pytest.raises(StoreAway):
        patiently(call, pause=0.01)
    assert len(calls) == 1  # nobody waits twice for the same absence
    assert patiently(lambda: 1) == 1
    calls.clear()
    with pytest.raises(StoreAway):
        patiently(call, pause=0.01)
    assert len(calls) > 1


def test_training_goes_on_while_the_store_is_away_and_nothing_is_lost(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = open_run(store)
    log = log_of(store, run_id)
    outage = Outage(log.client, monkeypatch)
    log.metrics(1, {"train/loss": 1.0})
    log.flush()
    outage.lasts = True
    log.tags["device"] = "a GPU"
    log.flush()
    log.metrics(2, {"train/loss": 2.0})
    log.flush()
    outage.lasts = False
    log.metrics(3, {"train/loss": 3.0})
    log.flush()
    points = store.client.get_metric_history(run_id, "train/loss")
    assert [(p.step, p.value) for p in points] == [(1, 1.0), (2, 2.0), (3, 3.0)]
    (tracked,) = store.runs()
    assert tracked.tags["device"] == "a GPU"


def finish_unheard(store: Store, monkeypatch: pytest.MonkeyPatch) -> tuple[str, RunLog, Outage]:
    """A run that ends while the store is away."""
    run_id = open_run(store)
    log = log_of(store, run_id)
    outage = Outage(log.client, monkeypatch)
    log.metrics(1, {"train/loss": 1.0})
    artifacts = log.folder / "artifacts"
    artifacts.mkdir()
    (artifacts / "config.json").write_text("{}")
    outage.lasts = True
    assert not log.finish({"final/miou": 50.0, "final/seconds": 3.0}, artifacts)
    return run_id, log, outage


def test_a_kept_run_is_delivered_once_with_its_own_end(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id, log, _ = finish_unheard(store, monkeypatch)
    ending = Ending.read(log.folder)
    assert ending is not None
    store.close(run_id, "KILLED", "the sweep was stopped")
    said: list[str] = []
    assert deliver.deliver_kept(store, said.append) == 1
    assert deliver.deliver_kept(store, said.append) == 0
    assert said == []
    (tracked,) = store.runs()
    assert tracked.status == "FINISHED"
    assert tracked.ended == ending.time
    assert tracked.tags["reason"] == ""
    assert [p.value for p in store.client.get_metric_history(run_id, "final/miou")] == [50.0]
    assert [p.value for p in store.client.get_metric_history(run_id, "train/loss")] == [1.0]
    assert [f.path for f in store.client.list_artifacts(run_id)] == ["config.json"]
    assert not log.folder.exists()


def test_a_delivery_that_is_cut_short_is_repeated_without_doubling(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id, log, outage = finish_unheard(store, monkeypatch)
    outage.lasts = False

    def lost(*_: Any, **__: Any) -> None:  # the metrics have arrived by then
        raise away()

    monkeypatch.setattr(log.client, "set_terminated", lost)
    with patience_of(0), pytest.raises(StoreAway):
        log.deliver()
    with patience_of(0), pytest.raises(StoreAway):
        log.deliver()
    assert deliver.deliver_kept(store, print) == 1
    for name in ("final/miou", "train/loss"):
        assert len(store.client.get_metric_history(run_id, name)) == 1


def test_a_cell_that_was_finished_elsewhere_keeps_that_run(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, _, _ = finish_unheard(store, monkeypatch)
    theirs = open_run(store)
    store.client.set_terminated(theirs, "FINISHED")
    said: list[str] = []
    assert deliver.deliver_kept(store, said.append) == 0
    assert "another sweep has finished it" in said[0]
    assert {r.run_id: r.status for r in store.runs()} == {mine: "KILLED", theirs: "FINISHED"}


def test_a_kept_run_of_another_store_is_left_for_it(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id, log, _ = finish_unheard(store, monkeypatch)
    store.client.delete_run(run_id)
    said: list[str] = []
    assert deliver.deliver_kept(store, said.append) == 0
    assert "is not in" in said[0]
    assert (log.folder / ENDING).exists()


def kept_task(store: Store, monkeypatch: pytest.MonkeyPatch) -> Task:
    """Of a run that has ended unheard; it cannot be trained again."""
    run_id, log, _ = finish_unheard(store, monkeypatch)
    return Task("c", CONFIG.to_params(), run_id, store.uri, str(log.folder), train="no:where")


def test_a_trial_whose_run_is_kept_is_delivered_and_not_trained(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = kept_task(store, monkeypatch)
    heard: list[dict[str, Any]] = []
    with monkeypatch.context() as still_away:
        still_away.setattr(MlflowClient, "log_batch", raising(away))
        run_trial(task, heard.append)
    run_trial(task, heard.append)
    assert [(news["state"], news["delivered"], news["score"]) for news in heard] == [
        ("done", False, "mIoU 50.00"),
        ("done", True, "mIoU 50.00"),
    ]
    assert store.runs()[0].status == "FINISHED"


def test_results_that_the_store_refuses_stay_kept(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = kept_task(store, monkeypatch)
    heard: list[dict[str, Any]] = []
    said: list[str] = []
    with monkeypatch.context() as refusing:
        too_large = MlflowException("413 Request Entity Too Large")
        refusing.setattr(MlflowClient, "log_artifacts", raising(lambda: too_large))
        run_trial(task, heard.append)
        assert store.runs()[0].status == "FAILED"
        assert deliver.deliver_kept(store, said.append) == 0
    assert "413" in heard[0]["reason"]
    assert "is refused and stays in" in said[0]
    assert deliver.deliver_kept(store, said.append) == 1
    (run,) = store.runs()
    assert (run.status, run.metrics["final/miou"]) == ("FINISHED", 50.0)


def test_a_failure_that_nobody_heard_of_is_delivered_too(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = log_of(store, open_run(store))
    outage = Outage(log.client, monkeypatch)
    outage.lasts = True
    (log.folder / "train.log").write_text("Traceback")
    assert not log.fail("ValueError: a broken image", True, [log.folder / "train.log"])
    assert deliver.deliver_kept(store, print) == 1
    (failed,) = store.runs()
    assert (failed.status, failed.tags["reason"]) == ("FAILED", "ValueError: a broken image")
    assert log.folder.exists()  # with the checkpoint


def test_a_run_that_was_created_twice_is_there_once(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = store.client.create_run
    answers = [True]

    def answer_is_lost(*arguments: Any, **named: Any) -> Any:
        run = create(*arguments, **named)
        if answers and answers.pop():
            raise away()
        return run

    experiment = store.experiment_id("attention")
    monkeypatch.setattr(store.client, "create_run", answer_is_lost)
    run_id = Claims(store).claim(experiment, "cell", CONFIG, {})
    assert [run.run_id for run in store.runs()] == [run_id]


def test_a_claim_that_was_cut_short_can_be_made_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = store.experiment_id("attention")
    outage = Outage(store.client, monkeypatch)
    create = store.client.create_run

    def and_then_away(*arguments: Any, **named: Any) -> Any:
        run = create(*arguments, **named)
        outage.lasts = True
        return run

    monkeypatch.setattr(store.client, "create_run", and_then_away)
    claims = Claims(store)
    with pytest.raises(StoreAway):
        claims.claim(experiment, "cell", CONFIG, {})
    monkeypatch.setattr(store.client, "create_run", create)
    outage.lasts = False
    run_id = claims.claim(experiment, "cell", CONFIG, {})
    assert [run.run_id for run in store.runs()] == [run_id]
    assert store.runs()[0].params  # the half one had none


# On disk


def test_a_full_disk_names_the_folder_and_what_was_logged_is_tracked(store: Store) -> None:
    run_id = open_run(store)
    log = log_of(store, run_id)
    log.metrics(1, {"train/loss": 1.0})
    log.journal = Path("/dev/full")  # every write to it fails as on a full disk
    with pytest.raises(DiskFull, match=rf"the disk is full: {log.folder}") as full:
        log.metrics(2, {"train/loss": 2.0})
    assert log.fail(f"DiskFull: {full.value}", True, [])
    (failed,) = store.runs()
    assert failed.status == "FAILED"
    assert "the disk is full" in failed.tags["reason"]
    points = store.client.get_metric_history(run_id, "train/loss")
    assert [p.step for p in points] == [1, 2]


def test_what_follows_a_torn_journal_line_is_kept(store: Store, tmp_path: Path) -> None:
    run_id = open_run(store)
    line = json.dumps({"step": 1, "time": 5, "values": {"train/loss": 1.0}})
    (tmp_path / "metrics.jsonl").write_text(f'{line}\n{{"step": 2, "ti')
    RunLog(store.uri, run_id, tmp_path).metrics(2, {"train/loss": 2.0})
    again = RunLog(store.uri, run_id, tmp_path)
    assert [entry["step"] for entry in again.waiting] == [1, 2]


@pytest.mark.parametrize("name", ["../secret.txt", "/etc/hostname"])
def test_no_file_outside_a_runs_folder_is_uploaded(store: Store, name: str) -> None:
    log = log_of(store, open_run(store))
    (store.storage.folder / "secret.txt").write_text("secret")
    ending = {"run_id": log.run_id, "store": store.uri, "status": "FINISHED", "step": 1}
    ending |= {"time": 1, "seconds": 1.0, "files": [name]}
    (log.folder / ENDING).write_text(json.dumps(ending))
    with pytest.raises(TrackingError, match="outside its folder"):
        log.deliver()
    assert store.client.list_artifacts(log.run_id) == []


def test_an_unreadable_ending_is_named(store: Store) -> None:
    folder = store.storage.folder / "key"
    folder.mkdir(parents=True)
    (folder / ENDING).write_text("{")
    with pytest.raises(TrackingError, match=r"key/ending\.json cannot be read"):
        deliver.kept_endings(store)
