"""What `python -m semidavil train` does with its options."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from semidavil.benchmarks import BENCHMARKS
from semidavil.commands.endings import told
from semidavil.config import Config, default_preset, parse_settings, preset, refuse_oracle
from semidavil.data.own import is_file, own_benchmark
from semidavil.marks import BUNDLED, MEANING, REAL_WEIGHTS, mark
from semidavil.settings import Data


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
    seed: Annotated[int, typer.Option(help="Fixes the whole run.")] = 0,
    data_root: Annotated[
        str, typer.Option(envvar="SEMIDAVIL_DATA_ROOT", help="Folder with a folder per data set.")
    ] = "",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Any setting, e.g. training.lr=3e-4."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Checkpoint and results. [default: checkpoints/<key>]")
    ] = None,
) -> None:
    """Trains one run and prints its scores; the same command goes on where it was stopped."""
    chosen = {
        "data.benchmark": benchmark,
        "data.budget": budget,
        "training.method": method,
        "model.fusion": fusion,
        "loss.name": loss,
        "seed": seed,
        "runtime.data_root": data_root,
    }
    changes = {name: value for name, value in chosen.items() if value not in ("", None)}
    _run(preset_name, changes, settings or [], out)


def _run(
    preset_name: str | None, changes: Mapping[str, Any], settings: Sequence[str], out: Path | None
) -> None:
    from semidavil.distributed import joined, once_per_machine, rank
    from semidavil.train import Report, prepare, train

    console = Console()
    with told(console, "stopped; the same command goes on from the last checkpoint"):
        place, root = changes.get("data.benchmark", ""), changes.get("runtime.data_root", "")
        own = own_benchmark(place, root) if is_file(place) else {}
        name = preset_name or default_preset(root or own.get("runtime.folders", ""))
        chosen = {**changes, **own}
        if own and "data.budget" not in chosen:  # the usual hundred may be more than there are
            budgets = BENCHMARKS[own["data.benchmark"]].budgets
            chosen["data.budget"] = max((n for n in budgets if n <= Data().budget), default=0)
        config = preset(name, {**chosen, **parse_settings(settings)})
        refuse_oracle(config)
        benchmark = BENCHMARKS[config.data.benchmark]
        folder = out or Path("checkpoints") / config.key()
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

                def show(report: Report) -> None:
                    if (score := report.metrics.get(f"val/{benchmark.metric}")) is not None:
                        progress.console.print(f"step {report.step}: {benchmark.score} {score:.2f}")
                    if "train/loss" in report.metrics:
                        progress.update(task, note=f"loss {report.metrics['train/loss']:.3f}")
                    progress.update(task, completed=report.step)

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
    table = Table(title=f"{benchmark.name}, budget {config.data.budget}, {seconds:.0f} s")
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
