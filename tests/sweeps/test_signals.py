"""Signals that ask to stop, in this process and in those that it starts."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sweeps.run.signals import deaf_processes, killed_when_asked, stopping_signals
from sweeps.stopping import Stopped


def sleeping() -> subprocess.Popen[bytes]:
    return subprocess.Popen(["sleep", "60"])


@pytest.fixture
def deaf() -> Iterator[subprocess.Popen[bytes]]:
    with deaf_processes() as processes:
        process = sleeping()
    assert processes == {process.pid}
    yield process
    process.kill()
    process.wait()


def test_signals_are_recorded_and_then_raised_and_handlers_are_restored() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stopping_signals() as signals:
        signals.raise_first()  # none so far
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGUSR1)
    assert signal.getsignal(signal.SIGTERM) is before
    with pytest.raises(Stopped) as stop:
        signals.raise_first()
    assert stop.value.number == signal.SIGTERM


@pytest.mark.parametrize("seconds", [0.0, 60.0])
def test_a_signal_that_is_sent_twice_at_once_is_one_request(
    seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sweeps.run.signals.ONCE_SECONDS", seconds)
    with stopping_signals() as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.repeated == (seconds == 0)


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with stopping_signals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
        assert signals.first is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_process_that_was_started_deaf_hears_no_signal(deaf: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        deaf.send_signal(number)
    with pytest.raises(subprocess.TimeoutExpired):
        deaf.wait(0.5)
    hearing = sleeping()
    hearing.terminate()
    assert hearing.wait(60) == -signal.SIGTERM


def test_a_deaf_process_that_is_asked_to_end_is_killed(deaf: subprocess.Popen[bytes]) -> None:
    with killed_when_asked({deaf.pid}):
        deaf.terminate()
        assert deaf.wait(60) == -signal.SIGKILL


def test_a_signal_from_before_does_not_count_as_being_asked(deaf: subprocess.Popen[bytes]) -> None:
    deaf.terminate()  # by a batch system, to all processes of the job
    with killed_when_asked({deaf.pid}), pytest.raises(subprocess.TimeoutExpired):
        deaf.wait(0.5)


def test_what_tests_start_hears_a_ctrl_c() -> None:
    process = sleeping()
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == -signal.SIGINT


@pytest.mark.slow
def test_what_tests_start_hears_a_ctrl_c_although_they_run_in_the_background_of_a_shell() -> None:
    """Which ignores it for them, and so for what they start."""
    name = f"{Path(__file__).name}::{test_what_tests_start_hears_a_ctrl_c.__name__}"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", name],
        cwd=Path(__file__).parent,
        env={k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "COV_"))},
        capture_output=True,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),  # type: ignore[arg-type,return-value]
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
