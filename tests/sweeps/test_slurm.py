"""Sweeps as jobs of SLURM: what is submitted, what becomes of a job whose time is over or that is preempted.

SLURM's commands are stand-ins; the jobs are real processes with SLURM's variables and signals.
"""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import FrameType

import pytest
from forked_commands import ROOT
from servers import assert_undisturbed
from sweep_process import Command, Sweeps, source
from tracked_runs import finish

from semidavil import machine
from semidavil.config import preset
from sweeps import slurm
from sweeps.cli import main, parser
from sweeps.plan.grids import GRIDS
from sweeps.run.driver import LOOK_SECONDS
from sweeps.run_options import seconds_of, without_option
from sweeps.stopping import NOTICE_SECONDS, AskedToStop, Stopped
from sweeps.track.store import Store

FOUR = ("--grid", "attention", "--budgets", "100", "--concurrency", "1")
SBATCH = """#!/bin/sh
printf '%s\\n' "$@" > "{folder}/options"
case "$*" in *nowhere*) echo "sbatch: error: invalid partition specified: nowhere" >&2; exit 1;; esac
cat > "{folder}/script"
echo "4711;cluster"
"""
SCONTROL = """#!/bin/sh
echo "$@" >> "{folder}/requeued"
[ -z "$SCONTROL_FAILS" ] || {{ echo "Requested operation is presently disabled" >&2; exit 1; }}
"""
# In place of Python: leaves word of what a job's script executes.
PYTHON = """#!/bin/sh
printf '%s\\0' "$PWD" "$@"
"""


class Slurm:
    """Its commands, in a folder that is first in PATH."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        for name, text in (("sbatch", SBATCH), ("scontrol", SCONTROL), ("python", PYTHON)):
            (folder / name).write_text(text.format(folder=folder))
            (folder / name).chmod(0o755)
        self.path = os.pathsep.join([str(folder), os.environ["PATH"]])
        monkeypatch.setenv("PATH", self.path)
        self.python = str(folder / "python")

    @property
    def script(self) -> str:
        return (self.folder / "script").read_text()

    @property
    def requeued(self) -> list[str]:
        file = self.folder / "requeued"
        return file.read_text().splitlines() if file.exists() else []

    def start(self, sweeps: Sweeps, task: int, restarts: int = 0) -> Command:
        """A job of the array, with all that its script says."""
        variables = {
            "SLURM_JOB_ID": str(4711 + task), "SLURM_ARRAY_JOB_ID": "4711",
            "SLURM_ARRAY_TASK_ID": str(task), "SLURM_RESTART_COUNT": str(restarts),
            "SLURM_CPUS_ON_NODE": "1", "PATH": self.path, "FAKE_STEP_SECONDS": "0.25",
        }  # fmt: skip
        environment = sweeps.environment | variables
        ran = subprocess.run(["bash", "-c", self.script], env=environment, capture_output=True)
        assert ran.returncode == 0, ran.stderr
        folder, run, *arguments = ran.stdout.decode().rstrip("\0").split("\0")
        process = source().start(Path(run), arguments, Path(folder), environment)
        sweeps.process = process
        sweeps.started.append(process)
        return process


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "200")
    folder = tmp_path / "slurm commands"
    folder.mkdir()
    return Slurm(folder, monkeypatch)


@pytest.fixture
def here(store: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)
    monkeypatch.setenv("SEMIDAVIL_TRAIN", "fake_training:train")
    return store


def submit(cluster: Slurm, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", cluster.python)
        return main(["run", *FOUR, *arguments])


# Submitting


def test_the_same_command_is_submitted_as_an_array(
    cluster: Slurm,
    here: Store,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    finish(here, GRIDS["attention"].cells(preset("toy"), (), (100,), (0,))[0], 30.0)
    options = "--partition=gpu --comment 'two words'"
    assert submit(cluster, monkeypatch, "--slurm", options, "--retries", "2") == 0
    shown = capsys.readouterr().out
    assert "submitted job 4711 for 3 runs" in shown
    assert "all machines must see this file" in shown
    given = (cluster.folder / "options").read_text().splitlines()
    assert given == ["--parsable", "--partition=gpu", "--comment", "two words"]
    lines = cluster.script.splitlines()
    assert lines[0] == "#!/bin/bash"
    assert {"#SBATCH --array=1-3", "#SBATCH --requeue", "#SBATCH --signal=B:USR1@180"} <= set(lines)
    # Without quotes, sbatch takes a folder with a space for two options.
    assert f'#SBATCH --output="{here.folder}/slurm/%x-%A_%a.log"' in lines
    command = shlex.split(lines[-1])
    assert command[0] == "exec"
    assert Path(command[2]).samefile(Path(slurm.__file__).with_name("run.py"))
    assert command[3:] == [*FOUR, "--retries", "2"]
    assert subprocess.run(["bash", "-n"], input=cluster.script, text=True).returncode == 0


def test_nothing_is_submitted_where_nothing_is_to_run_or_sbatch_refuses(
    cluster: Slurm,
    here: Store,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert submit(cluster, monkeypatch, "--slurm=", "--list") == 0
    shown = capsys.readouterr().out
    assert shown.startswith("#!/bin/bash\n")
    assert "--slurm" not in shown
    assert "--list" not in shown
    assert not (cluster.folder / "script").exists()
    assert submit(cluster, monkeypatch, "--slurm", "--partition=nowhere") == 2
    assert "invalid partition specified: nowhere" in capsys.readouterr().err
    assert submit(cluster, monkeypatch, "--slurm", "--comment='half") == 2
    assert submit(cluster, monkeypatch, "--slurm", "", "--address", "auto") == 2
    monkeypatch.setenv("PATH", "/nowhere")
    assert submit(cluster, monkeypatch, "--slurm", "") == 2
    assert "--list" in capsys.readouterr().err
    for config in GRIDS["attention"].cells(preset("toy"), (), (100,), (0,)):
        finish(here, config, 30.0)
    assert submit(cluster, monkeypatch, "--slurm", "") == 0
    assert "nothing to run" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "left"),
    [
        (["--grid", "a", "--slurm", "--time=1", "--wait"], ["--grid", "a", "--wait"]),
        (["--slurm=--time=1", "--seeds", "1"], ["--seeds", "1"]),
        (["--sl", "x"], []),
        (["--set", "a=1", "--seeds", "1"], ["--set", "a=1", "--seeds", "1"]),
    ],
)
def test_the_option_of_slurm_does_not_reach_its_jobs(given: list[str], left: list[str]) -> None:
    assert without_option(given, "--slurm") == left


# In a job


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("3:50:00", 13800.0), ("1-12:00:00", 129600.0), ("45m", 2700.0), ("8h", 28800.0)],
)
def test_times(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["45", "3:50", "soon", "0m", "-1h", "m"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(SystemExit):
        main(["run", "--grid", "attention", "--time-limit", text])


def test_a_time_limit_ends_with_a_signal_of_its_own() -> None:
    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped(number)

    before = signal.signal(signal.SIGALRM, stop)
    try:
        slurm.begin_time_limit(0.05)
        with pytest.raises(Stopped, match="its time limit"):
            time.sleep(60)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize(
    ("stop", "got_on", "requeued"),
    [
        (Stopped(signal.SIGUSR1), True, True),
        (Stopped(signal.SIGALRM), True, True),
        (Stopped(signal.SIGALRM), False, False),  # it would go on like that for ever
        (Stopped(signal.SIGTERM), True, False),  # as scancel sends
        (AskedToStop("ada@host"), True, False),
        (KeyboardInterrupt(), True, False),
    ],
)
def test_a_job_goes_back_into_the_queue_when_its_time_is_over(
    stop: KeyboardInterrupt,
    got_on: bool,
    requeued: bool,
    cluster: Slurm,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if isinstance(stop, Stopped):
        stop.got_on = got_on
    assert slurm.requeue(stop) == "", "outside of a job"
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "4711")  # the last job of an array has its number
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    said = slurm.requeue(stop)
    assert cluster.requeued == (["requeue 4711_3"] if requeued else [])
    assert ("is back in the queue" in said) == requeued
    monkeypatch.setenv("SCONTROL_FAILS", "1")
    if requeued:
        assert "presently disabled" in slurm.requeue(stop)


def test_a_job_has_no_more_cpus_than_slurm_gives_it(monkeypatch: pytest.MonkeyPatch) -> None:
    everything = 64
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(everything)))
    monkeypatch.setattr(machine, "cpu_quota", lambda: float("inf"))
    for name in ("SLURM_JOB_ID", "SLURM_CPUS_ON_NODE", "SLURM_CPUS_PER_TASK"):
        monkeypatch.delenv(name, raising=False)
    assert machine.available_cpus() == everything
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "8")
    assert machine.available_cpus() == everything, "left in the environment by another shell"
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    assert machine.available_cpus() == 8
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "4")
    assert machine.available_cpus() == 4


@pytest.mark.slow
def test_jobs_share_the_runs_and_go_on_after_their_time_and_a_preemption(
    cluster: Slurm, here: Store, sweeps: Sweeps, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two jobs on one machine, each with a Ray of its own."""
    assert submit(cluster, monkeypatch, "--slurm", "--array=1-2") == 0
    first, second = cluster.start(sweeps, 1), cluster.start(sweeps, 2)
    sweeps.wait_until(lambda: len(sweeps.trainings()) >= 2 and steps(sweeps).total() >= 4)
    first.send_signal(signal.SIGUSR1)  # its time is nearly over
    second.send_signal(signal.SIGTERM)  # it is preempted, and put back by SLURM itself
    output, _ = first.communicate(timeout=600)
    assert first.returncode == 128 + signal.SIGUSR1, output
    assert "job 4711_1 is back in the queue" in output
    output, _ = second.communicate(timeout=600)
    assert second.returncode == 128 + signal.SIGTERM, output
    assert cluster.requeued == ["requeue 4711_1"]
    assert sweeps.states()["RUNNING"] == 0

    again = [cluster.start(sweeps, task, restarts=1) for task in (1, 2)]
    outputs = [process.communicate(timeout=600)[0] for process in again]
    assert [process.returncode for process in again] == [0, 0], outputs
    assert_undisturbed(sweeps.store, 4)
    assert max(steps(sweeps).values()) == 1, "a step was trained twice"


def steps(sweeps: Sweeps) -> Counter[tuple[str, ...]]:
    return Counter(tuple(e.split()[:3]) for e in sweeps.events() if e.startswith("step-"))


@pytest.mark.slow
def test_a_running_sweep_is_paused_resumed_and_stopped_from_elsewhere(
    here: Store, sweeps: Sweeps, capsys: pytest.CaptureFixture[str]
) -> None:
    assert LOOK_SECONDS > 1
    sweeps.constants["sweeps.run.driver:LOOK_SECONDS"] = 0.1
    arguments = (*FOUR[:-1], "2")
    process = sweeps.start(*arguments, step_seconds=0.4)
    sweeps.wait_until(lambda: len(sweeps.trainings()) == 2)
    assert main(["pause"]) == 0
    sweeps.wait_until(lambda: sweeps.states() == {"KILLED": 2})
    begun = len(sweeps.trainings())
    assert process.poll() is None
    assert main(["resume"]) == 0
    sweeps.wait_until(lambda: len(sweeps.trainings()) == begun + 2)
    assert main(["stop"]) == 0
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 4, output
    assert "paused by" in output
    assert "told to stop by" in output
    assert "the same command goes on" in output
    assert sweeps.states()["RUNNING"] == 0

    code, output = sweeps.run(*arguments)
    assert code == 0, output
    assert_undisturbed(sweeps.store, 4)
    assert max(steps(sweeps).values()) == 1, "a step was trained twice"


def test_the_script_to_change_by_hand_is_one_that_is_accepted(cluster: Slurm) -> None:
    ready = ROOT / "deploy" / "slurm" / "sweep.sbatch"
    wanted = {"SEMIDAVIL_SHARED": "/a shared folder", "MLFLOW_TRACKING_URI": "http://head:5000"}
    ran = subprocess.run(
        ["bash", str(ready)], env=os.environ | wanted | {"PYTHON": cluster.python},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    _, script, *arguments = ran.stdout.rstrip("\0").split("\0")
    options = parser().parse_args([Path(script).stem, *arguments])
    assert options.storage == "/a shared folder/runs"
    asked = {line for line in ready.read_text().splitlines() if line.startswith("#SBATCH")}
    for line in ("--requeue", "--open-mode=append", f"--signal=B:USR1@{NOTICE_SECONDS:.0f}"):
        assert f"#SBATCH {line}" in asked
