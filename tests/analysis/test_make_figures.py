"""The command that makes the figures."""

import re
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from unittest.mock import Mock

import pytest
import requests
from click.testing import Result
from made_up_runs import Writer, evaluation_of, settings
from typer.testing import CliRunner

from analysis.make_figures import app
from analysis.runs import AnalysisError, Tracked, load_runs

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, str(ROOT / "analysis" / "make_figures.py")]
pytestmark = pytest.mark.slow


def start(*options: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """The command as a process of its own, which takes seconds to begin."""
    command = [*COMMAND, *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=env)


def run(*options: str) -> Result:
    """The command in this process."""
    return CliRunner().invoke(app, options)


def test_the_command_writes_the_same_bytes_twice(attention: Tracked, tmp_path: Path) -> None:
    options = ("--tracking-uri", attention.uri, "--out")
    done = start(*options, str(tmp_path / "a"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "not run yet: 20 runs" in done.stdout
    (waiting,) = re.findall("left out, for want of a finished run: (.*)", done.stdout)
    assert {"losses", "baselines", "search_history"} <= set(waiting.split(", "))
    assert "ranks is left out: ranks are compared from" in done.stdout  # which takes more runs
    assert run(*options, str(tmp_path / "b")).exit_code == 0
    files = [p for p in (tmp_path / "a").rglob("*") if p.is_file()]
    names = sorted(str(p.relative_to(tmp_path / "a")) for p in files)
    assert {"attention.pdf", "attention_table.tex", "report.html"} <= set(names)
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    assert b"/FontFile2" in (tmp_path / "a" / "attention.pdf").read_bytes()  # embedded


def test_one_figure_in_one_format(attention: Tracked, tmp_path: Path) -> None:
    run("--tracking-uri", attention.uri, "--only", "attention", "--format", "pdf",
        "--out", str(tmp_path / "out"))  # fmt: skip
    assert {p.suffix for p in (tmp_path / "out").iterdir()} == {".pdf", ".csv", ".md", ".tex"}


def test_watch_draws_again_when_a_run_is_added(store: Writer, tmp_path: Path) -> None:
    store.run("attention", settings("gta5-cityscapes", 0, 0), {"miou": 5.0})
    options = ["--only", "attention", "--tracking-uri", store.uri, "--out", str(tmp_path / "out")]
    process = subprocess.Popen([*COMMAND, "--watch", "1", *options], stdout=subprocess.DEVNULL)
    try:
        numbers = tmp_path / "out" / "attention.csv"
        assert _soon(lambda: numbers.exists() and "5," in numbers.read_text())
        store.run("attention", settings("gta5-cityscapes", 0, 1), {"miou": 7.0})
        assert _soon(lambda: ",6," in numbers.read_text())
    finally:
        process.kill()
        process.wait()


def _soon(condition, seconds: float = 60) -> bool:  # type: ignore[no-untyped-def]
    end = time.time() + seconds
    while time.time() < end:
        if condition():
            return True
        time.sleep(0.2)
    return False


def test_without_runs_it_says_what_to_run(tmp_path: Path) -> None:
    nothing = run("--tracking-uri", f"sqlite:///{tmp_path / 'none.db'}")
    assert nothing.exit_code == 1
    assert "python sweeps/run.py --grid attention" in nothing.stdout


def test_unknown_names_are_refused(attention: Tracked) -> None:
    assert "choose from attention" in run("--only", "magic", "--tracking-uri", attention.uri).stdout


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (("--only", "attention", "losses", "ssl"), "--only losses --only ssl?"),
        (("--format", "pdf", "png"), "--format png?"),
    ],
)
def test_a_second_name_behind_an_option_is_refused_with_the_remedy(
    given: tuple[str, ...], meant: str
) -> None:
    done = run(*given)
    assert done.exit_code == 2
    assert done.stdout.endswith(f"did you mean {meant}\n")


def test_evaluations_are_read(store: Writer) -> None:
    made = evaluation_of("gta5-cityscapes", 0.7, 0)
    with_it = store.run(
        "methods", settings("gta5-cityscapes", 100, 0), {"miou": 1.0}, evaluation=made
    )
    without = store.run("methods", settings("gta5-cityscapes", 100, 1), {"miou": 1.0})
    tracked = load_runs(store.uri)
    found = tracked.evaluation(with_it)
    assert found is not None
    assert (found.confusion == made["per_image"].sum(0)).all()
    assert tracked.evaluation(without) is None


def test_a_server_that_is_away_is_named_with_a_remedy_and_no_password(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    done = run("--tracking-uri", f"http://ann:s3cret@{address}", "--out", str(tmp_path))
    assert done.exit_code == 1
    assert f"the tracking server http://{address} (MLFLOW_TRACKING_URI) cannot be" in done.stdout
    assert "s3cret" not in done.output


def test_a_server_that_goes_away_while_runs_are_read_is_an_error(
    attention: Tracked, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracked = load_runs(attention.uri)
    lost = requests.exceptions.ConnectionError("[Errno 111] Connection refused")
    monkeypatch.setattr("analysis.runs.PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(tracked.client._client, "get_metric_history", Mock(side_effect=lost))
    with pytest.raises(AnalysisError, match=r"does not answer: .*refused; draw again"):
        tracked.history(tracked.table["run_id"][0], "train/loss")


def test_figures_need_no_torch(
    everything: str, without_torch: dict[str, str], tmp_path: Path
) -> None:
    options = ["--only", "methods", "--only", "losses", "--format", "png"]
    place = ["--tracking-uri", everything, "--out", str(tmp_path / "out")]
    done = start(*options, *place, env=without_torch)
    assert done.returncode == 0, done
    assert {"methods.png", "losses.png"} <= {path.name for path in (tmp_path / "out").iterdir()}
