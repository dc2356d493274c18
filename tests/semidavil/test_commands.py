"""The names that commands have, and had."""

import re
import subprocess
import sys

import pytest


@pytest.mark.slow
@pytest.mark.parametrize("command", ["train", "data"])
def test_the_old_name_of_a_command_takes_the_same_options(command: str) -> None:
    helps = [
        subprocess.run([sys.executable, "-m", *name, "--help"], capture_output=True, text=True)
        for name in (["semidavil", command], [f"semidavil.{command}"])
    ]
    new, old = (set(re.findall(r"--[a-z-]+", help.stdout)) for help in helps)
    assert new == old > {"--help"}, helps
