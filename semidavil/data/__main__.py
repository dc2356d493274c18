"""`python -m semidavil.data`, the name that `python -m semidavil data` had once."""

import typer

from semidavil.commands.data import data_command

typer.run(data_command)
