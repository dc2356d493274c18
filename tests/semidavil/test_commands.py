"""The names that commands have, and had."""

import re
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from semidavil.__main__ import app


@pytest.mark.slow
@pytest.mark.parametrize("command", ["train", "data"])
def test_the_old_name_of_a_command_takes_the_same_options(command: str) -> None:
    old = subprocess.run(
        [sys.executable, "-m", f"semidavil.{command}", "--help"], capture_output=True, text=True
    )
    new = CliRunner().invoke(app, [command, "--help"])
    options = [set(re.findall(r"--[a-z-]+", help.stdout)) for help in (new, old)]
    assert options[0] == options[1] > {"--help"}, (new.stdout, old.stdout)
