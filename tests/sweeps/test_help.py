"""What a command answers to somebody who has not read its code."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from forked_commands import hear_signals

from sweeps.cli import parser
from sweeps.commands import COMMANDS

RUN = Path(__file__).parents[2] / "sweeps" / "run.py"


def test_an_unknown_option_names_the_one_that_was_meant(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        parser().parse_args(["run", "--grid", "attention", "--bugdets", "100"])
    told = capsys.readouterr().err
    assert left.value.code == 2
    assert "did you mean --budgets?" in told
    assert "all options: python sweeps/run.py --help" in told
    assert len(told.splitlines()) == 2, "nobody finds the reason below a long usage"


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help_fits_a_terminal_and_has_no_words_of_this_code(
    command: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        parser().parse_args([command, "--help"] if command else ["--help"])
    told = capsys.readouterr().out
    assert max(map(len, told.splitlines())) <= 80
    assert len(told.splitlines()) <= 105
    assert not re.findall(r"(?i)\b(?:cells?|leases?|outbox|claims?|wish(?:es)?|store)\b", told)


@pytest.mark.slow
@pytest.mark.parametrize("option", ["--settings", "--print-config"])  # by rich, and by `print`
def test_output_that_nobody_reads_any_more_ends_a_command_quietly(option: str) -> None:
    """`python sweeps/run.py --settings | head -1`."""
    process = subprocess.Popen(
        [sys.executable, str(RUN), option],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hear_signals,
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    assert process.wait(timeout=600) == 1
