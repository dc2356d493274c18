"""What a process does about a store that is away, refuses, or has lost a run; and about passwords."""

import importlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos import databricks_pb2 as codes
from servers import away
from sqlalchemy.exc import OperationalError

import sweeps
from sweeps.track.credentials import redact, without_credentials
from sweeps.track.retry import (
    Patience,
    RunGone,
    StoreAway,
    StoreRefused,
    TrackingError,
    check_server,
)
from sweeps.track.store import Store


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sweeps.track.retry.LONGEST_PAUSE_SECONDS", 0.005)


@pytest.fixture
def answering() -> Iterator[Callable[[int], str]]:
    """Starts a server that answers everything with one status."""
    servers: list[ThreadingHTTPServer] = []

    def start(status: int) -> str:
        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                self.send_response(status)
                self.end_headers()
                self.wfile.write(b"hello")

            do_GET = do_POST = answer  # noqa: N815 - the names that the library asks for

            def log_message(self, format: str, *arguments: object) -> None: ...

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def failing(error: Exception) -> Callable[[], None]:
    def call() -> None:
        raise error

    return call


def locked() -> MlflowException:
    return MlflowException(
        OperationalError("UPDATE runs", {}, Exception("database is locked")),  # type: ignore[arg-type]
        codes.TEMPORARILY_UNAVAILABLE,
    )


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (away(), StoreAway),
        (locked(), StoreAway),
        (MlflowException("slow down", codes.REQUEST_LIMIT_EXCEEDED), StoreAway),
        (MlflowException("the database server is away", codes.TEMPORARILY_UNAVAILABLE), StoreAway),
        (OSError(28, "No space left on device"), StoreAway),
        (MlflowException("Run with id=x not found", codes.RESOURCE_DOES_NOT_EXIST), RunGone),
        (
            MlflowException(
                "The run x must be in the 'active' state. Current state is deleted.",
                codes.INVALID_PARAMETER_VALUE,
            ),
            RunGone,
        ),
        (
            MlflowException(
                "The experiment 1 must be in the 'active' state.", codes.INVALID_PARAMETER_VALUE
            ),
            StoreRefused,
        ),
        (MlflowException("expired", codes.UNAUTHENTICATED), StoreRefused),
        (MlflowException("forbidden", codes.PERMISSION_DENIED), StoreRefused),
        (MlflowException("413 Request Entity Too Large"), StoreRefused),
        (MlflowException("not found", codes.ENDPOINT_NOT_FOUND), StoreRefused),
        (
            MlflowException(
                "(sqlite3.OperationalError) no such table", codes.TEMPORARILY_UNAVAILABLE
            ),
            StoreRefused,
        ),
    ],
    ids=str,
)
def test_every_error_of_the_store_is_one_of_three(error: Exception, kind: type) -> None:
    with pytest.raises(TrackingError) as found:
        Patience(0).call(failing(error))
    assert type(found.value) is kind
    assert "pw" not in str(found.value)


def test_a_fault_of_this_program_stays_what_it_is() -> None:
    with pytest.raises(TypeError):
        Patience(60).call(failing(TypeError("no such argument")))


def test_an_absent_store_is_waited_for_and_another_error_is_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    errors = [away(), away(), locked()]
    assert Patience(60).call(lambda: failing(errors.pop())() if errors else "done") == "done"
    assert [record.message.split(" (")[0] for record in caplog.records] == [
        "the tracking store does not answer",
        "the tracking store answers again",
    ]
    assert "pw" not in caplog.text


def test_patience_runs_out_once_and_comes_back_with_an_answer() -> None:
    calls: list[int] = []
    patience = Patience(0.5)

    def wait_in_vain() -> int:
        calls.clear()
        with pytest.raises(StoreAway, match="Connection refused"):
            patience.call(lambda: (calls.append(1), failing(away())()))
        return len(calls)

    assert wait_in_vain() > 1
    assert wait_in_vain() == 1  # nobody waits twice for the same absence
    assert patience.call(lambda: 1) == 1
    assert wait_in_vain() > 1


def test_the_environment_says_how_long_is_waited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEMIDAVIL_PATIENCE", "7")
    assert Patience().seconds == 7
    monkeypatch.setenv("SEMIDAVIL_PATIENCE", "long")
    with pytest.raises(TrackingError, match="SEMIDAVIL_PATIENCE=long is not a number"):
        Patience()


@pytest.mark.parametrize(
    ("code", "kind", "message"),
    [
        (401, StoreRefused, "refuses these credentials"),
        (403, StoreRefused, "refuses these credentials"),
        (404, StoreAway, "not as MLflow"),
        (200, StoreAway, "not as MLflow"),
        (503, StoreAway, "as if its database were away"),
    ],
)
def test_a_server_of_another_kind_is_told_from_one_that_wants_a_password(
    answering: Callable[[int], str], code: int, kind: type[TrackingError], message: str
) -> None:
    with pytest.raises(kind, match=message):
        check_server(answering(code))


def test_a_server_that_accepts_and_says_nothing_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(StoreAway, match="timed out"):
            check_server(f"http://127.0.0.1:{silent.getsockname()[1]}")


def test_the_users_own_settings_of_mlflow_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES")
    importlib.reload(sweeps)
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "0"


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


def test_a_stores_address_holds_no_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "")  # so that what the store sets is taken back
    store = Store(tmp_path, "https://ann:p%40ss@host:5000/mlflow")
    assert store.uri == "https://host:5000/mlflow"
    assert os.environ["MLFLOW_TRACKING_USERNAME"] == "ann"
    assert os.environ["MLFLOW_TRACKING_PASSWORD"] == "p@ss"
    assert without_credentials("sqlite:////a@b/x.db") == "sqlite:////a@b/x.db"
