"""The command line: what is refused, left out and listed, how errors are told, which code runs."""

import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from slow_cases import also_slow
from tracked_runs import ANOTHER_MACHINE, finished, tracked

from semidavil.config import Config, preset
from sweeps import request, start
from sweeps.cli import main
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
        (["--grid", "attention", "--set", "training.lr=fast"], "expected a value like 0.006"),
        (["--grid", "search", "--budgets", "0", "100"], "give --budgets one, not 2"),
        (["--settings", "--grid", "atention"], "did you mean attention"),
        (["--grid", "mine.py"], "--grid mine.py:NAME"),
        (["--grid", "attention", "--set", "training.rl=1"], "training.lr"),
        (["--grid", "attention", "--set", "seed=3"], "--seeds"),
        (["--grid", "attention", "--set", "model.fusion=none"], "there are dlg, vlga"),
        (["--grid", "attention", "--only", "fusion=dgl"], "there are dlg, vlga"),
        (["--grid", "attention", "--only", "fusoin=dlg"], "did you mean fusion"),
        (["--grid", "attention", "--only", "lr=1"], "training.lr or volumes.lr"),
        (["--grid", "attention", "--only", "fusion=dlg", "budget=7"], "no run has budget=7"),
        (["--grid", "attention", "--set", "training.lr=1e-3,"], "between two commas"),
        (["--grid", "attention", "--set", "runtime.threads=1,2"], "threads"),
        (["--grid", "search", "--set", "training.lr=1e-3,1e-2"], "one value of each setting"),
        (["--grid", "my.py"], "--grid my.py:NAME"),
        (["--grid", "attention", "--plugin", "nowhere.py"], "nowhere.py cannot be read"),
        (["--grid", "attention", "--config", "nowhere.yaml"], "nowhere.yaml cannot be read"),
        (["--grid", "attention", "--preset", "toy", "--data-root", "/data"], "would leave"),
        (["--grid", "attention", "--set", "model.captions=oracle"], "--grid captions"),
        (["--rerun", "abc", "--set", "training.lr=1"], "only runtime.*"),
        ([], "--grid is missing"),
    ],
)
def test_a_wrong_command_is_refused_with_the_remedy(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", *arguments]) == 2
    assert expected in capsys.readouterr().err


def test_seeds_with_commas_are_told_to_be_separated_by_spaces(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        main(["run", "--grid", "attention", "--seeds", "0,1"])
    assert "'0,1' is not a whole number of 0 or more: several are" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "--budgets", "-5"],
        ["run", "--gpus-per-trial", "1.5"],
        ["run", "--gpus-per-trial", "inf"],
        ["run", "--gpus-per-trial", "half"],
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
    assert output.count("to do") == 8
    assert not list(tmp_path.iterdir())


def test_list_of_everything_counts_every_grid(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--list"]) == 0
    output = capsys.readouterr().out
    cells = {name: len(grid.cells(preset("toy"))) for name, grid in GRIDS.items()}
    for name, count in cells.items():
        assert re.search(rf"{name} +{count} runs to train", output), name
    total = int(re.search(r"--grid all: (\d+) runs", output)[1])
    assert max(cells.values()) < total < sum(cells.values())  # shared cells are counted once


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


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--budgets", "3000"], "a budget of 3000 labelled images .* 2975: .*4 runs"),
        (["--data-root", "{tmp}/none"], "the data root .*none does not exist .*48 runs"),
        (["--data-root", "{data}"], "gta5: the folder .*images is missing.*24 runs"),
        (["--data-root", "{data}", "--budgets", "2", "5"], "of cityscapes, 3: .*4 runs"),
        (["--benchmark", "idda-camvid"], "generated scenes imitate"),
        (["--grid", "all", "--benchmark", "gta5-cityscapes"], "synapse: .*uamt trains on volumes"),
        (["--set", "runtime.cache_dir={file}"], "data and captions cannot be kept in .*no folder"),
        (["--storage", "{file}/runs"], "checkpoints cannot be kept in .*no folder"),
        (["--seeds", "0"], "runs cannot be tracked in .*no folder"),
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
    (tmp_path / "file").touch()
    places = {"tmp": tmp_path, "data": tmp_path / "data", "file": tmp_path / "file"}
    given = [argument.format(**places) for argument in arguments]
    assert main(["run", "--grid", "attention", "--list", *given]) == 1
    assert re.search(f"left out: .*{expected}", capsys.readouterr().out)


# Running, with a stand-in for what runs the cells


class FakeSweep:
    """Takes the jobs, and leaves each cell as `ends` says, or fails."""

    jobs: Sequence[Job]
    ends: Sequence[TrackedRun]
    result: SweepResult
    error: BaseException | None

    def __init__(self, *arguments: object) -> None: ...

    def run_jobs(self, jobs: Sequence[Job]) -> SweepResult:
        FakeSweep.jobs = jobs
        if FakeSweep.error:
            raise FakeSweep.error
        plans = {j.name: make_plan(j.name, j.grid, j.configs, FakeSweep.ends) for j in jobs}
        FakeSweep.result.plans = plans
        FakeSweep.result.elsewhere = sum(len(plan.elsewhere) for plan in plans.values())
        return FakeSweep.result


@pytest.fixture
def fake_sweep(
    monkeypatch: pytest.MonkeyPatch, empty_store: Path, new_store: Path
) -> type[FakeSweep]:
    new_store.parent.mkdir()
    shutil.copyfile(empty_store, new_store)  # a sweep would create it, which takes MLflow seconds
    monkeypatch.setattr(sweep_module, "Sweep", FakeSweep)
    monkeypatch.setattr(sweep_module, "tidy", lambda store, console: None)
    FakeSweep.ends, FakeSweep.result, FakeSweep.error = [], SweepResult(), None
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
        (PermissionError(13, "Permission denied", "/x"), "/x: Permission denied", False),
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
    fake_sweep.error = error
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert main(ATTENTION) == 1
    told = capsys.readouterr().err
    assert message in told
    assert "Traceback" not in told
    files = list(tmp_path.glob("semidavil-error-*.txt"))
    assert len(files) == has_file
    for file in files:
        assert str(file) in told
        assert "Traceback" in file.read_text()
        assert "secret" not in file.read_text()


@pytest.mark.parametrize(
    ("stop", "code"),
    [(KeyboardInterrupt(), 130), (start.Stopped(signal.SIGUSR1), 128 + signal.SIGUSR1)],
)
def test_a_stop_is_a_word_and_a_code(
    stop: KeyboardInterrupt,
    code: int,
    fake_sweep: type[FakeSweep],
    capsys: pytest.CaptureFixture[str],
) -> None:
    fake_sweep.error = ImportError("half of a module")  # as a library whose import is stopped
    fake_sweep.error.__cause__ = stop
    assert main(ATTENTION) == code
    told = capsys.readouterr().out
    assert "the same command goes on" in told
    assert "python sweeps/run.py --grid attention --budgets 100" in told


# As processes


def hear_signals() -> None:
    """Tests in the background of a shell, or under nohup, ignore them, and so would what they start."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def started(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *arguments],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=hear_signals,
    )


PAUSED = """
import runpy, sys, time

class Pause:  # in the middle of an import, however fast the machine is
    def find_spec(self, name, path, target=None):
        if name == module:
            print("importing", flush=True)
            time.sleep(600)

script, module = sys.argv.pop(1), sys.argv.pop()
sys.modules.pop(module, None)
sys.meta_path.insert(0, Pause())
runpy.run_path(script, run_name="__main__")
"""


@pytest.mark.parametrize(
    ("script", "number", "module"),
    [
        ("run", signal.SIGTERM, "semidavil.config"),
        *also_slow(
            ("run", signal.SIGINT, "argparse"),
            ("status", signal.SIGINT, "semidavil.config"),
            ("deliver", signal.SIGHUP, "semidavil.config"),
        ),
    ],
)
def test_a_stop_while_modules_are_imported_is_a_word_and_no_traceback(
    script: str, number: int, module: str
) -> None:
    process = started("-c", PAUSED, str(RUN.with_stem(script)), module)
    assert process.stdout is not None
    assert process.stdout.readline() == "importing\n"
    process.send_signal(number)
    output, errors = process.communicate(timeout=600)
    assert process.returncode == 128 + number, errors
    assert "stopped" in output + errors
    assert "Traceback" not in output + errors


@pytest.mark.slow
def test_the_code_beside_the_script_runs_whichever_is_installed(tmp_path: Path) -> None:
    for package in ("sweeps", "semidavil"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("raise SystemExit('the other checkout')")
    process = started(str(RUN), "--help", PYTHONPATH=str(tmp_path))
    output, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    assert "--grid NAME" in output
    code = (
        "import atexit, os, sys; from sweeps import start; sys.argv[1:] = ['--help']; "
        "atexit.register(lambda: print(os.environ['PYTHONPATH'])); start.run('run')"
    )
    process = started("-c", code, PYTHONPATH=str(ROOT))  # what processes that it starts look into
    output, errors = process.communicate(timeout=600)
    assert output.splitlines()[-1] == f"{ROOT}{os.pathsep}{ROOT}", errors


@pytest.mark.parametrize("script", ["run", "status", "deliver"])
def test_modules_of_this_package_are_no_top_level_ones(
    script: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Python puts the script's folder on the path, and as Ray takes it over for its workers."""
    monkeypatch.setattr(sys, "path", [str(ROOT / "sweeps"), *sys.path[1:]])
    runpy.run_path(str(RUN.with_stem(script)))
    assert sys.path[0] == str(ROOT)
    assert str(ROOT / "sweeps") not in sys.path


@pytest.mark.slow
def test_characters_that_the_output_does_not_know_are_replaced() -> None:
    arguments = (*ATTENTION[1:], "--data-root", "/none/größer")
    process = started(str(RUN), *arguments, PYTHONIOENCODING="ascii")
    output, errors = process.communicate(timeout=600)
    assert process.returncode == 1, errors
    assert "left out: the data root /none/gr??er does not exist" in output


def test_another_function_may_train_on_data_of_its_own(
    fake_sweep: type[FakeSweep], monkeypatch: pytest.MonkeyPatch, store: Store
) -> None:
    monkeypatch.setenv("SEMIDAVIL_TRAIN", "my_training:train")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)
    main([*ATTENTION, "--preset", "small"])
    assert len(fake_sweep.jobs[0].configs) == 8
