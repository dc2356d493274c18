"""The commands of the package.

python -m semidavil train --benchmark gta5-cityscapes --budget 100   # one run
python -m semidavil data --data-root DIR                             # checks data sets
python -m semidavil predict RUN PICTURES --out DIR                   # what a finished run sees in them
python -m semidavil export RUN --to onnx                             # its network as one file
python -m semidavil demo RUN                                         # a page on which it looks at pictures
"""

import typer

from semidavil.commands.data import data_command
from semidavil.commands.demo import demo_command
from semidavil.commands.export import export_command
from semidavil.commands.predict import predict_command
from semidavil.commands.train import train_command

app = typer.Typer(
    help="SemiDAViL: one run, and its data. Grids of runs: `python sweeps/run.py --help`.",
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
