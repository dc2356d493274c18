"""Sweeps as jobs of SLURM, each with a Ray of its own: no cluster of Ray has to stand.

    python sweeps/run.py --grid attention --slurm "--partition=gpu --gpus=1 --time=4:00:00"

submits an array of the same command. Its jobs share the grid's cells by their leases, as any two sweeps do.
Shortly before a job's time is over, SLURM sends SIGUSR1: each run writes a checkpoint, and the job is put
back into the queue, from where the same command goes on. A job that is preempted is put back by SLURM itself.
"""

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from semidavil.config import ConfigError
from sweeps.stopping import NOTICE_SECONDS, TIME_IS_OVER, Stopped

JOBS = 8  # of an array, if nobody says otherwise
SECONDS = 60.0  # for SLURM's commands to answer

SCRIPT = """\
#!/bin/bash
#SBATCH --job-name=semidavil-{grid}
#SBATCH --array=1-{jobs}
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output="{logs}/%x-%A_%a.log"
#SBATCH --signal=B:USR1@{notice:.0f}
cd {folder}
# In place of the shell, so that SLURM's signals reach the sweep itself.
exec {command}
"""


def script(grid: str, given: Sequence[str], jobs: int, logs: Path) -> str:
    """What `sbatch` gets: options of an array, which those on its command line override, and the command.

    Args:
        given: the arguments of `sweeps/run.py`, without those of SLURM.
        logs: the folder of the jobs' output.
    """
    run = Path(__file__).with_name("run.py")
    return SCRIPT.format(
        grid=grid,
        jobs=jobs,
        logs=logs,
        notice=NOTICE_SECONDS,
        folder=shlex.quote(os.getcwd()),
        command=shlex.join([sys.executable, str(run), *given]),
    )


def submit(text: str, options: str, logs: Path) -> str:
    """Submits a script; returns the job's number. `options` are those of `sbatch`, as on its command line.

    Raises ConfigError with what `sbatch` says if it refuses, or is not there.
    """
    logs.mkdir(parents=True, exist_ok=True)
    try:
        arguments = ["sbatch", "--parsable", *shlex.split(options)]
        done = subprocess.run(
            arguments, input=text, capture_output=True, text=True, timeout=SECONDS
        )
    except ValueError as error:  # of shlex
        raise ConfigError(f"--slurm {options!r}: {error}") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(
            f"sbatch cannot be run here ({error}): submit on a machine of the SLURM cluster; with --list, "
            "--slurm prints the script for `sbatch` and submits nothing"
        ) from None
    if done.returncode != 0:
        raise ConfigError(f"sbatch refuses: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout.strip().partition(";")[0]  # a cluster's name may follow


def job() -> str:
    """The number of the job that this process is of, as `scontrol` takes it; empty outside of one."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    # One job of an array has the number of the whole array.
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID", "")


def in_array() -> bool:
    return "SLURM_ARRAY_TASK_ID" in os.environ


def requeue(stop: KeyboardInterrupt) -> str:
    """Puts this job back into the queue if its time is over; returns what is to be said, empty elsewhere.

    Not after SIGTERM, which also `scancel` sends, and not if no run has got on: it would go on like that.
    """
    if not (isinstance(stop, Stopped) and stop.number in TIME_IS_OVER and (number := job())):
        return ""
    if not stop.got_on:
        return (
            f"no run has made a step in this time, so job {number} does not go back into the queue: "
            "give it more with --time"
        )
    try:
        done = subprocess.run(
            ["scontrol", "requeue", number], capture_output=True, text=True, timeout=SECONDS
        )
        why = done.stderr.strip() or done.stdout.strip() if done.returncode else ""
    except (OSError, subprocess.TimeoutExpired) as error:
        why = str(error)
    if why:
        return f"job {number} cannot be put back into the queue ({why}): submit it again"
    return f"job {number} is back in the queue"


def begin_time_limit(seconds: float) -> None:
    """Has SIGALRM sent to this process shortly before `seconds` are over."""
    notice = min(NOTICE_SECONDS, seconds / 10)
    signal.setitimer(signal.ITIMER_REAL, seconds - notice)
