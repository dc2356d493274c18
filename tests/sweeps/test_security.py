"""What no code of ours may do: run what it reads, or open a port to others."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sweeps.run import connection, engine
from sweeps.run.resources import Resources

CHECKOUT = Path(__file__).parents[2]
SOURCES = [path for name in ("semidavil", "sweeps", "analysis", "benchmarks")
           for path in sorted((CHECKOUT / name).rglob("*.py"))]  # fmt: skip
# Reads that can run code, and the argument that forbids it.
SAFE = {"torch.load": ("weights_only", True), "np.load": ("allow_pickle", False)}
PICKLES = {"pickle", "cloudpickle", "dill", "joblib", "shelve"}


def unsafe(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.partition(".")[0] in PICKLES)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in PICKLES:
            yield str(node.module)
        elif isinstance(node, ast.Call) and (name := ast.unparse(node.func)) in SAFE:
            argument, safe = SAFE[name]
            given = {k.arg: ast.unparse(k.value) for k in node.keywords}
            if given.get(argument) != str(safe):
                yield f"line {node.lineno}: {name} without {argument}={safe}"


@pytest.mark.slow
def test_nothing_that_is_read_can_run_code() -> None:
    assert len(SOURCES) > 50
    found = {str(path): list(unsafe(path.read_text())) for path in SOURCES}
    assert not {path: faults for path, faults in found.items() if faults}
    for bad in ("import pickle", "torch.load(p)", "np.load(p, allow_pickle=True)"):
        assert list(unsafe(bad)), bad


def test_a_sweep_opens_no_dashboard(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr(connection.ray, "init", lambda *_, **options: asked.update(options))
    with engine.started_ray(Resources(1, 1, 0), "fake_training:train"):
        pass
    assert asked["include_dashboard"] is False


def test_the_tracking_server_listens_to_this_machine_alone_unless_asked() -> None:
    compose = (CHECKOUT / "deploy" / "docker-compose.yml").read_text()
    assert '"${MLFLOW_BIND:-127.0.0.1}:${MLFLOW_PORT:-5000}:5000"' in compose
    assert compose.count("ports:") == 1  # the database has none
    script = (CHECKOUT / "deploy" / "start.sh").read_text()
    assert '--host "${MLFLOW_BIND:-127.0.0.1}"' in script
    assert "listen_addresses=127.0.0.1" in script
