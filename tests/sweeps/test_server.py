"""Sweeps on a real tracking server, which is killed under them."""

import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import (
    MlflowServer,
    Postgresql,
    ServedSweeps,
    assert_undisturbed,
    on_postgresql,
    on_sqlite,
)

from semidavil.names import WEIGHTS
from sweeps.track.retry import StoreAway
from sweeps.track.store import Store

pytestmark = pytest.mark.slow

FOUR = ("--grid", "attention", "--budgets", "100")


@pytest.fixture
def deployed() -> Iterator[MlflowServer]:
    """On PostgreSQL, whose own user must be able to enter the folder: pytest's are closed to it."""
    with tempfile.TemporaryDirectory(prefix="semidavil-deployed-") as folder:
        Path(folder).chmod(0o755)
        server = on_postgresql(Path(folder))
        try:
            server.start()
            yield server
        finally:
            server.stop()


@pytest.fixture
def server(tmp_path: Path, empty_store: Path) -> Iterator[MlflowServer]:
    """On SQLite."""
    (tmp_path / "server").mkdir()
    (tmp_path / "server" / "runs.db").write_bytes(empty_store.read_bytes())
    server = on_sqlite(tmp_path / "server", tmp_path / "server" / "runs.db")
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture
def served(server: MlflowServer, tmp_path: Path) -> Iterator[ServedSweeps]:
    sweeps = ServedSweeps(tmp_path, server)
    yield sweeps
    sweeps.close()


def test_workers_share_a_server_on_postgresql_whose_database_may_be_killed(
    deployed: MlflowServer, tmp_path: Path
) -> None:
    sweeps = ServedSweeps(tmp_path, deployed)
    grid = ("--grid", "attention", "--budgets", "100", "200", "--concurrency", "4")
    code, output = sweeps.run(*grid)
    assert code == 0, output
    assert_undisturbed(sweeps.store, 8)
    assert len(sweeps.trainings()) == 8
    run = sweeps.store.runs()[0]
    # Through the server alone: the client gets a copy, not the server's file.
    weights = Path(sweeps.store.client.download_artifacts(run.run_id, WEIGHTS))
    assert weights.read_bytes() == b"weights"
    assert not weights.is_relative_to(deployed.folder)
    assert not list((tmp_path / "checkpoints").iterdir())

    password = (deployed.folder / "password").read_text()
    assert password not in (deployed.folder / "server.log").read_text()
    deployed.stop()
    assert not (deployed.folder / "postgres" / "data" / "postmaster.pid").exists()
    deployed.start()  # again: what was tracked is still there
    assert_undisturbed(sweeps.store, 8)

    # A database that is killed behind its server costs nothing either.
    database, trained = Postgresql(deployed), steps(sweeps)
    process = sweeps.start(*FOUR, "300", "--concurrency", "2", step_seconds=0.4)
    sweeps.wait_until(lambda: steps(sweeps) >= trained + 6)
    database.kill()
    before = steps(sweeps)
    sweeps.wait_until(lambda: steps(sweeps) >= before + 4)  # training goes on meanwhile
    sweeps.wait_until(lambda: ended(sweeps) == 8 + 2)
    time.sleep(2)  # until both wait at their ends, and the driver with its next cell
    assert deployed.answers()
    with pytest.raises(StoreAway, match=r"503.*database"):
        Store(tmp_path, deployed.uri).client.search_experiments()
    database.start()
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    assert_undisturbed(sweeps.store, 12)
    assert len(sweeps.trainings()) == 12  # nothing was trained twice


def steps(sweeps: ServedSweeps) -> int:
    return sum(event.startswith("step-") for event in sweeps.events())


def ended(sweeps: ServedSweeps) -> int:
    return sum(event.startswith("trained") for event in sweeps.events())


def test_a_server_that_is_killed_and_comes_back_costs_nothing(
    server: MlflowServer, served: ServedSweeps
) -> None:
    process = served.start(*FOUR, "--concurrency", "2", step_seconds=0.4)
    served.wait_until(lambda: steps(served) >= 6)
    server.kill()
    before = steps(served)
    served.wait_until(lambda: steps(served) >= before + 4)  # training goes on meanwhile
    served.wait_until(lambda: ended(served) == 2)
    time.sleep(2)  # until both wait at their ends, and the driver with its next cell
    server.start()
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    assert_undisturbed(served.store, 4)
    assert len(served.trainings()) == 4  # nothing was trained twice


def test_what_ends_while_the_server_is_away_is_delivered_later(
    server: MlflowServer, served: ServedSweeps
) -> None:
    served.environment["SEMIDAVIL_PATIENCE"] = "1"
    process = served.start(*FOUR, "--concurrency", "2", step_seconds=0.5)
    served.wait_until(lambda: len(served.trainings()) == 4)
    server.kill()
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 1, output
    assert re.search(r"2 ended runs wait in \S+checkpoints", output), output
    assert "sweeps/deliver.py" in output

    code, output = served.deliver()  # still away
    assert code == 1
    assert f"the tracking server {server.uri}" in output
    assert "2 ended runs wait" in output

    ended = time.time() * 1000
    server.start()
    assert served.states() == {"RUNNING": 2, "FINISHED": 2}
    code, output = served.deliver()
    assert code == 0, output
    assert "delivered 2 runs" in output
    assert_undisturbed(served.store, 4)
    for run in served.store.runs():
        assert served.store.client.get_run(run.run_id).info.end_time < ended
    assert not list((served.folder / "checkpoints").iterdir())

    code, output = served.run(*FOUR)
    assert code == 0, output
    assert " all done" in output
    assert len(served.trainings()) == 4


def test_a_sweep_delivers_what_waits_and_goes_on_with_the_rest(
    server: MlflowServer, served: ServedSweeps
) -> None:
    served.environment["SEMIDAVIL_PATIENCE"] = "1"
    process = served.start(*FOUR, "--concurrency", "2", step_seconds=0.3)
    served.wait_until(lambda: len(served.trainings()) == 2)
    server.kill()
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 1, output
    assert "no run begins before it answers" in output
    assert "2 ended runs wait" in output

    server.start()
    code, output = served.run(*FOUR, "--concurrency", "2")
    assert code == 0, output
    assert "delivered 2 runs" in output
    assert_undisturbed(served.store, 4)
    assert len(served.trainings()) == 4
