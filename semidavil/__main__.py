"""The commands of the package.

python -m semidavil train --benchmark gta5-cityscapes --budget 100   # one run
python -m semidavil data --data-root DIR                             # checks data sets
python -m semidavil predict RUN PICTURES --out DIR                   # what a finished run sees in them
python -m semidavil export RUN --to onnx                             # its network as one file
python -m semidavil demo RUN                                         # a page on which it looks at pictures
"""

from typing import Annotated

import typer

from semidavil import __version__
from semidavil.commands.data import data_command
from semidavil.commands.demo import demo_command
from semidavil.commands.export import export_command
from semidavil.commands.predict import predict_command
from semidavil.commands.train import train_command


def _say_version(asked: bool) -> None:
    if asked:
        print(f"semidavil {__version__}")
        raise typer.Exit


def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Say which.")
    ] = False,
) -> None:
    """Options of all commands."""


app = typer.Typer(
    help="SemiDAViL: one run, and its data. Grids of runs: `python sweeps/run.py --help`.",
    callback=options,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)
app.command("train")(train_command)
app.command("data")(data_command)
app.command("predict")(predict_command)
app.command("export")(export_command)
app.command("demo")(demo_command)


if __name__ == "__main__":
    app(prog_name="python -m semidavil")
