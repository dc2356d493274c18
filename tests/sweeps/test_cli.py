"""The command line: what is refused, left out and listed, how errors are told, which code runs."""

import os
import re
import runpy
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from tracked_runs import ANOTHER_MACHINE, finished, tracked

from semidavil.config import Config, preset
from sweeps import request, start
from sweeps.cli import main, parser
from sweeps.plan.cells import FailedCell, make_plan
from sweeps.plan.grids import GRIDS
from sweeps.plan.spec import Job
from sweeps.run import sweep as sweep_module
from sweeps.run.sweep import SweepResult
from sweeps.track.retry import StoreAway
from sweeps.track.runs import TrackedRun
from sweeps.track.store import Store

ROOT = Path(__file__).parents[2]
RUN = ROOT / "sweeps" / "run.py"
ATTENTION = ("run", "--grid", "attention", "--budgets", "100")  # four cells


@pytest.fixture(autouse=True)
def new_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a tracking store that does not exist yet, in a folder of its own."""
    for name in ("SEMIDAVIL_DATA_ROOT", "SEMIDAVIL_STORAGE", "SEMIDAVIL_TRAIN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    database = tmp_path / "store" / "mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")
    monkeypatch.setattr(request, "ROOT", tmp_path)
    return database


# Wrong commands


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--grid", "atention"], "did you mean attention"),
        (["--grid", "attention", "--benchmark", "gta5-citiscapes"], "did you mean gta5-cityscapes"),
        (["--grid", "attention", "--preset", "huge"], "toy"),
        (["--grid", "attention", "--set", "training.rl=1"], "training.lr"),
        (["--grid", "attention", "--set", "seed=3"], "--seeds"),
        (["--grid", "attention", "--set", "model.fusion=vlga"], "varies it"),
        (["--grid", "all", "--set", "loss.name=ce"], "varies it"),
        (["--grid", "attention", "--set", "training.lr"], "NAME=VALUE"),
        (["--grid", "attention", "--benchmark", "synapse"], "uamt, urpc"),
        (["--grid", "attention", "--preset", "toy", "--data-root", "/data"], "would leave"),
        (["--grid", "attention", "--set", "model.captions=oracle"], "--grid captions"),
        (["--grid", "search", "--seeds", "0", "1"], "one value of seed"),
        (["--grid", "search", "--confirm-seeds", "0", "1"], "chooses with this seed"),
        (["--rerun", "abc", "--set", "training.lr=1"], "only runtime.*"),
        ([], "--grid is missing"),
    ],
)
def test_a_wrong_command_is_refused_with_the_remedy(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", *arguments]) == 2
    assert expected in capsys.readouterr().err


def test_lists_of_numbers_need_no_commas() -> None:
    options = parser().parse_args([*ATTENTION, "--budgets", "0", "100", "--seeds", "0", "1"])
    assert (options.budgets, options.seeds) == ([0, 100], [0, 1])


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "--budgets", "-5"],
        ["run", "--gpus-per-trial", "1.5"],
        ["run", "--gpus-per-trial", "inf"],
        ["run", "--concurrency", "0"],
        ["status", "--watch", "soon"],
        ["deliver", "--grid", "attention"],
    ],
)
def test_a_value_of_the_wrong_kind_is_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        main(arguments)
    assert refused.value.code == 2


# Listing


def test_list_starts_nothing_and_creates_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "--grid", "attention", "--list", "--budgets", "0", "100"]) == 0
    output = capsys.readouterr().out
    assert output.count("to do") == 9  # eight cells and the summary
    assert output.count("(baseline)") == 2
    assert "fusion=cross_attention" in output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [["--list"], ["--grid", "all", "--list"]])
def test_list_of_everything_counts_every_grid(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", *arguments]) == 0
    output = capsys.readouterr().out
    cells = {name: len(grid.cells(preset("toy"))) for name, grid in GRIDS.items()}
    for name, count in cells.items():
        assert re.search(rf"{name} .*{count} cells: {count} to do", output), name
    total = int(re.search(r"--grid all: (\d+) cells", output)[1])
    assert max(cells.values()) < total < sum(cells.values())  # shared cells are counted once
    assert not list(tmp_path.iterdir())


def make_listing(root: Path, dataset: str, count: int = 3) -> None:
    """Files as a data set has them, which nobody opens."""
    names = {
        "cityscapes": ("leftImg8bit/{}/a/{}_leftImg8bit.png", "gtFine/{}/a/{}_gtFine_labelIds.png"),
        "synthia": ("RGB/{1}.png", "GT/LABELS/{1}.png"),
    }
    for split in ("train", "val"):
        for i in range(count):
            for name in names[dataset]:
                path = root / dataset / name.format(split, i)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()


def file_in_the_way(tmp_path: Path) -> str:
    path = tmp_path / "file"
    path.touch()
    return str(path)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--budgets", "3000"], "a budget of 3000 labelled images .* 2975: .*4 cells"),
        (["--preset", "small"], "gta5-cityscapes needs its data sets: pass --data-root"),
        (["--data-root", "{tmp}/none"], "the data root .*none does not exist .*48 cells"),
        (["--data-root", "{data}"], "gta5: the folder .*images is missing.*24 cells"),
        (["--data-root", "{data}", "--budgets", "2", "5"], "of cityscapes, 3: .*4 cells"),
        (["--benchmark", "idda-camvid"], "generated scenes imitate"),
        (["--set", "runtime.cache_dir={file}"], "data and captions cannot be kept in .*no folder"),
        (["--storage", "{file}/runs"], "checkpoints cannot be kept in .*no folder"),
        (["--preset", "toy-long"], "runs cannot be tracked in .*no folder"),
    ],
)
def test_list_says_what_cannot_run(
    arguments: list[str],
    expected: str,
    tmp_path: Path,
    new_store: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if "tracked" in expected:
        new_store.parent.touch()
    for dataset in ("cityscapes", "synthia"):
        make_listing(tmp_path / "data", dataset)
    places = {"tmp": tmp_path, "data": tmp_path / "data", "file": file_in_the_way(tmp_path)}
    given = [argument.format(**places) for argument in arguments]
    assert main(["run", "--grid", "attention", "--list", *given]) == 1
    assert re.search(f"left out: .*{expected}", capsys.readouterr().out)


def test_of_all_grids_those_that_cannot_run_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--grid", "all", "--benchmark", "gta5-cityscapes", "--list"]) == 1
    output = capsys.readouterr().out
    assert re.search("left out: synapse: .*uamt trains on volumes", output)
    assert re.search(r"sensitivity .*cells: \d+ to do", output)


# Running, with a stand-in for what runs the cells


class FakeSweep:
    """Takes the jobs, and leaves each cell as `end` says."""

    jobs: Sequence[Job]
    ends: Sequence[TrackedRun]
    result: SweepResult

    def __init__(self, *arguments: object) -> None: ...

    def run_jobs(self, jobs: Sequence[Job]) -> SweepResult:
        FakeSweep.jobs = jobs
        plans = {j.name: make_plan(j.name, j.grid, j.configs, FakeSweep.ends) for j in jobs}
        FakeSweep.result.plans = plans
        FakeSweep.result.elsewhere = sum(len(plan.elsewhere) for plan in plans.values())
        return FakeSweep.result


@pytest.fixture
def fake_sweep(monkeypatch: pytest.MonkeyPatch) -> type[FakeSweep]:
    monkeypatch.setattr(sweep_module, "Sweep", FakeSweep)
    monkeypatch.setattr(sweep_module, "tidy", lambda store, console: None)
    FakeSweep.ends, FakeSweep.result = [], SweepResult()
    return FakeSweep


CELLS: list[Config] = GRIDS["attention"].cells(preset("toy"), budgets=[100])
DONE = [finished(cell) for cell in CELLS]
ELSEWHERE = tracked(CELLS[0].key(), "RUNNING", tags={**ANOTHER_MACHINE, "alive": "99999999999"})


@pytest.mark.parametrize(
    ("ends", "result", "code", "told"),
    [
        (DONE, SweepResult(), 0, ""),
        ([ELSEWHERE, *DONE[1:]], SweepResult(), 3, "--wait"),
        (DONE[1:], SweepResult(), 1, ""),  # a cell that nobody has, such as one that was deleted
        (DONE, SweepResult(undelivered=1), 1, ""),
        (
            [ELSEWHERE, *DONE[2:], tracked(CELLS[1].key(), "FAILED")],
            SweepResult(failed=[FailedCell("cell", "a broken image", "train.log")]),
            1,
            "retry them: python sweeps/run.py --grid attention --budgets 100\n",
        ),
        (
            [*DONE[1:], tracked(CELLS[0].key(), "FAILED", tags={"retry": "false"})],
            SweepResult(),
            1,
            "again only by python sweeps/run.py --grid attention --budgets 100 --retry-failed\n",
        ),
    ],
)
def test_the_exit_code_says_whether_every_cell_is_done(
    ends: list[TrackedRun],
    result: SweepResult,
    code: int,
    told: str,
    fake_sweep: type[FakeSweep],
    capsys: pytest.CaptureFixture[str],
) -> None:
    fake_sweep.ends, fake_sweep.result = ends, result
    assert main(ATTENTION) == code
    assert told in capsys.readouterr().out


def test_what_can_run_runs_and_the_rest_is_named(
    fake_sweep: type[FakeSweep], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for dataset in ("cityscapes", "synthia"):  # and no gta5, no scans
        make_listing(tmp_path / "data", dataset)
    budgets = ("--budgets", "0", "2", "4")
    code = main(["run", "--grid", "all", "--data-root", str(tmp_path / "data"), *budgets])
    assert code == 1
    jobs = {job.name: job.configs for job in fake_sweep.jobs}
    assert {c.data.benchmark for c in jobs["attention"]} == {"synthia-cityscapes"}
    assert {c.data.budget for c in jobs["attention"]} == {0, 2}
    assert {c.data.benchmark for c in jobs["semivl"]} == {
        "synthia-cityscapes", "cityscapes-cityscapes",
    }  # fmt: skip
    assert jobs["components"] == []  # of gta5 alone
    output = capsys.readouterr().out
    for what in ("gta5: the folder", "a budget of 4 labelled images", "synapse"):
        assert f"left out: {what}" in output


def test_a_command_of_which_nothing_can_run_starts_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "--grid", "attention", "--preset", "small"]) == 1
    assert "nothing that was asked for can run" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


# Errors


class ForeignError(Exception):
    """As libraries have them."""

    __module__ = "some_library.exceptions"


@pytest.mark.parametrize(
    ("error", "message", "has_file"),
    [
        (StoreAway("the store does not answer"), "the store does not answer", False),
        (PermissionError(13, "Permission denied", "/x"), "Permission denied: '/x'", False),
        (ForeignError("out of luck at http://me:secret@host\nmore"), "ForeignError: out of", True),
        (RuntimeError(""), "RuntimeError", True),
    ],
)
def test_an_error_is_a_message_and_what_was_not_foreseen_leaves_its_traceback_in_a_file(
    error: Exception,
    message: str,
    has_file: bool,
    fake_sweep: type[FakeSweep],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(self: FakeSweep, jobs: Sequence[Job]) -> SweepResult:
        raise error

    monkeypatch.setattr(FakeSweep, "run_jobs", fail)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    assert main(ATTENTION) == 1
    told = capsys.readouterr().err
    assert message in told
    assert "Traceback" not in told
    files = list(tmp_path.glob("semidavil-error-*.txt"))
    assert len(files) == has_file
    for file in files:
        assert str(file) in told
        text = file.read_text()
        assert "Traceback" in text
        assert "secret" not in text


@pytest.mark.parametrize(
    ("stop", "code"),
    [(KeyboardInterrupt(), 130), (start.Stopped(signal.SIGUSR1), 128 + signal.SIGUSR1)],
)
def test_a_stop_is_a_word_and_a_code(
    stop: KeyboardInterrupt,
    code: int,
    fake_sweep: type[FakeSweep],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted(self: FakeSweep, jobs: Sequence[Job]) -> SweepResult:
        try:
            raise stop
        except (
            KeyboardInterrupt
        ) as error:  # as libraries do that are stopped while they are imported
            raise ImportError("half of a module") from error

    monkeypatch.setattr(FakeSweep, "run_jobs", interrupted)
    assert main(ATTENTION) == code
    told = capsys.readouterr().out
    assert "the same command goes on" in told
    assert "python sweeps/run.py --grid attention --budgets 100" in told


def set_version(database: Path, version: str) -> None:
    with sqlite3.connect(database) as connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", (version,))
    connection.close()


@pytest.mark.parametrize("command", [["status"], [*ATTENTION, "--list"], ["deliver"]])
@pytest.mark.parametrize(
    ("version", "told"),
    [
        ("451aebb31d03", "mlflow db upgrade sqlite:///"),
        ("ffffffffffff", "newer"),
        ("", "not a database"),
    ],
)
def test_a_store_of_another_version_or_that_is_none_is_told_with_the_remedy(
    command: list[str],
    version: str,
    told: str,
    empty_store: Path,
    new_store: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    new_store.parent.mkdir()
    new_store.write_bytes(empty_store.read_bytes() if version else b"no database" * 1000)
    if version:
        set_version(new_store, version)
    if command == ["deliver"]:  # which asks the store only if something waits
        waits = new_store.parent / "checkpoints" / "run" / "ending.json"
        waits.parent.mkdir(parents=True)
        waits.write_text(
            '{"run_id": "1", "store": "", "status": "FINISHED", "step": 1, "time": 0, "seconds": 1}'
        )
    assert main(command) == 1
    output = capsys.readouterr()
    assert told in output.err
    assert "Traceback" not in output.err + output.out


@pytest.mark.parametrize("name", ["mlflow.db?timeout=30", "a%20b/mlflow.db", "a b/mlflow.db"])
def test_unusual_addresses_of_a_store_work(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/{name}")
    assert main(["status"]) == 1
    assert "no sweep of any grid" in capsys.readouterr().err


@pytest.mark.parametrize("uri", ["databricks", "file:///x", "/x"])
def test_addresses_of_no_store_are_refused(
    uri: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert main(["status"]) == 1
    told = capsys.readouterr().err
    assert "use a database (sqlite:///PATH.db), a server" in told
    assert ("Databricks" in told) == (uri == "databricks")


# As processes


def started(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *arguments],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A test run in the background of a shell ignores it, and so would this process.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # type: ignore[arg-type,return-value]
    )


@pytest.mark.parametrize("script", ["run", "status", "deliver"])
@pytest.mark.parametrize(
    ("number", "module"),
    [
        (signal.SIGINT, "sweeps"),
        (signal.SIGINT, "argparse"),
        (signal.SIGINT, "semidavil.config"),
        (signal.SIGTERM, "semidavil.config"),
    ],
)
def test_a_stop_while_modules_are_imported_is_a_word_and_no_traceback(
    script: str, number: int, module: str
) -> None:
    process = started("-X", "importtime", str(RUN.with_stem(script)), "--list")
    assert process.stderr is not None
    for line in process.stderr:
        if line.split("|")[-1].strip() == module:
            break
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number, errors
    assert "stopped" in output + errors
    assert "Traceback" not in output + errors


def test_the_code_beside_the_script_runs_whichever_is_installed(tmp_path: Path) -> None:
    for package in ("sweeps", "semidavil"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("raise SystemExit('the other checkout')")
    process = started(str(RUN), "--help", PYTHONPATH=str(tmp_path))
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "--grid NAME" in output


@pytest.mark.parametrize("script", ["run", "status", "deliver"])
def test_modules_of_this_package_are_no_top_level_ones(
    script: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Python puts the script's folder on the path, and as Ray takes it over for its workers."""
    monkeypatch.setattr(sys, "path", [str(ROOT / "sweeps"), *sys.path[1:]])
    runpy.run_path(str(RUN.with_stem(script)))
    assert sys.path[0] == str(ROOT)
    assert str(ROOT / "sweeps") not in sys.path
    monkeypatch.setenv("PYTHONPATH", "/another/checkout")
    monkeypatch.setattr(sys, "argv", ["run.py", "--help"])
    with pytest.raises(SystemExit):
        start.run(script)
    assert os.environ["PYTHONPATH"] == f"{ROOT}{os.pathsep}/another/checkout"


def test_characters_that_the_output_does_not_know_are_replaced() -> None:
    arguments = (*ATTENTION[1:], "--data-root", "/none/größer")
    process = started(str(RUN), *arguments, PYTHONIOENCODING="ascii")
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 1, errors
    assert "left out: the data root /none/gr??er does not exist" in output


def test_another_function_may_train_on_data_of_its_own(
    fake_sweep: type[FakeSweep], monkeypatch: pytest.MonkeyPatch, store: Store
) -> None:
    monkeypatch.setenv("SEMIDAVIL_TRAIN", "my_training:train")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)
    main([*ATTENTION, "--preset", "small"])
    assert len(fake_sweep.jobs[0].configs) == 8
