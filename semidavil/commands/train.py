"""What `python -m semidavil train` does with its options."""

import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from semidavil.benchmarks import BENCHMARKS
from semidavil.commands.endings import PLUGIN, told
from semidavil.config import Config, default_preset, parse_settings, preset, refuse_oracle
from semidavil.data.own import is_own, own_benchmark
from semidavil.describe import read_yaml, to_yaml
from semidavil.marks import BUNDLED, MEANING, REAL_WEIGHTS, mark
from semidavil.plugin_files import PLUGINS
from semidavil.plugins import in_use
from semidavil.settings import Data

LINE_SECONDS = 60.0  # between lines of progress where the output is a file, which shows no bar


def train_command(
    preset_name: Annotated[
        str | None,
        typer.Option(
            "--preset", help="toy, toy-long, small or paper. [default: toy, small with --data-root]"
        ),
    ] = None,
    benchmark: Annotated[
        str, typer.Option(help="Source and target, by name, or a benchmark.yaml or dataset.yaml.")
    ] = "",
    budget: Annotated[int | None, typer.Option(help="Labelled target images.")] = None,
    method: Annotated[str, typer.Option(help="What a training step is.")] = "",
    fusion: Annotated[str, typer.Option(help="How image and caption meet.")] = "",
    loss: Annotated[str, typer.Option(help="The supervised loss.")] = "",
    seed: Annotated[int | None, typer.Option(help="Fixes the whole run.", show_default="0")] = None,
    data_root: Annotated[
        str, typer.Option(envvar="SEMIDAVIL_DATA_ROOT", help="Folder with a folder per data set.")
    ] = "",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Any setting, e.g. training.lr=3e-4."),
    ] = None,
    plugin: Annotated[list[str] | None, typer.Option(metavar="FILE", help=PLUGIN)] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="Settings from a YAML file; other options go before.", metavar="FILE"),
    ] = None,
    print_config: Annotated[
        bool, typer.Option(help="Prints the run's settings as YAML, and stops.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Checkpoint and results. [default: a folder in checkpoints/]"),
    ] = None,
) -> None:
    """Trains one run and prints its scores; the same command goes on where it was stopped."""
    options = {
        "data.benchmark": benchmark,
        "data.budget": budget,
        "training.method": method,
        "model.fusion": fusion,
        "loss.name": loss,
        "seed": seed,
        "runtime.data_root": data_root,
    }
    changes = {name: value for name, value in options.items() if value not in ("", None)}
    told_when_stopped = "stopped; the same command goes on from the last checkpoint"
    with told(console := Console(), told_when_stopped, plugin or ()):
        name, of_file = read_yaml(config) if config else ("", {})
        own = own_benchmark(benchmark, data_root) if is_own(benchmark) else {}
        name = preset_name or name or default_preset(data_root or own.get("runtime.folders", ""))
        changes = {**of_file, **changes, **own}
        if own and "data.budget" not in changes:  # the usual hundred may be more than there are
            budgets = BENCHMARKS[own["data.benchmark"]].budgets
            changes["data.budget"] = max((n for n in budgets if n <= Data().budget), default=0)
        chosen = preset(name, {**changes, **parse_settings(settings or [])})
        refuse_oracle(chosen)
        if print_config:
            print(to_yaml(chosen, name), end="")
        else:
            _run(console, chosen, name, out or Path("checkpoints") / chosen.key())


def _run(console: Console, config: Config, name: str, folder: Path) -> None:
    from semidavil.distributed import joined, once_per_machine, rank
    from semidavil.train import Report, prepare, train

    benchmark = BENCHMARKS[config.data.benchmark]
    with joined(config):
        console.quiet = rank() > 0
        console.print(f"run [bold]{config.key()}[/] ({name} preset), checkpoint in {folder}")
        if mark(benchmark.name, config.data.toy, config.model.vlm) == BUNDLED:
            console.print(f"this trains {MEANING[BUNDLED]}. For real weights: {REAL_WEIGHTS}")
        once_per_machine(lambda: prepare(config))
        columns = (
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
            TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
        )  # fmt: skip
        with Progress(*columns, console=console) as progress:
            task = progress.add_task("training", total=config.training.steps, note="")
            said = time.monotonic()

            def show(report: Report) -> None:
                nonlocal said
                if (score := report.metrics.get(f"val/{benchmark.metric}")) is not None:
                    progress.console.print(f"step {report.step}: {benchmark.score} {score:.2f}")
                if "train/loss" in report.metrics:
                    progress.update(task, note=f"loss {report.metrics['train/loss']:.3f}")
                progress.update(task, completed=report.step)
                if not console.is_terminal and time.monotonic() - said >= LINE_SECONDS:
                    said, bar = time.monotonic(), progress.tasks[0]
                    left = timedelta(seconds=round(bar.time_remaining or 0))
                    console.print(
                        f"step {report.step}/{bar.total:.0f} {bar.fields['note']} ({left} left)"
                    )

            for each in in_use(config.plugins):  # what `predict` needs of the run
                each.write(folder / PLUGINS)
            result = train(config, show, folder)
    _print_result(console, config, result.metrics, result.absent, result.seconds)
    for name, path in result.artifacts.items():
        console.print(f"{name} {path}")


def _print_result(
    console: Console,
    config: Config,
    metrics: Mapping[str, float],
    absent: list[str],
    seconds: float,
) -> None:
    benchmark = BENCHMARKS[config.data.benchmark]
    console.print(f"{benchmark.name}, budget {config.data.budget}, {seconds:.0f} s")
    table = Table()
    table.add_column("class")
    volumes = {"dice": "Dice", "asd": "ASD (mm)", "asd_voxels": "ASD (voxels, 128 if missed)"}
    parts = {"iou": "IoU"} if benchmark.kind == "images" else volumes
    for label in parts.values():
        table.add_column(label, justify="right")
    for name in benchmark.classes:
        row = [metrics.get(f"{part}/{name}") for part in parts]
        table.add_row(name, *("-" if value is None else f"{value:.2f}" for value in row))
    table.add_section()
    table.add_row(f"[bold]{benchmark.score}[/]", f"[bold]{metrics[benchmark.metric]:.2f}[/]")
    if "pixel_accuracy" in metrics:
        table.add_row("pixel accuracy", f"{metrics['pixel_accuracy']:.2f}")
    console.print(table)
    if absent:
        console.print(f"not in the mean, as neither labelled nor predicted: {', '.join(absent)}")
