"""What `python -m semidavil predict` does: pictures and videos to classes, by a finished run."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from semidavil.commands.endings import PLUGIN, told
from semidavil.data.files import DataError
from semidavil.names import PICTURES

if TYPE_CHECKING:  # seconds to import
    from semidavil.evaluation.written import Source
    from semidavil.experiments.segmenting import Scores, Segmenting

console = Console()


def predict_command(
    run: Annotated[
        str, typer.Argument(help="A run's id, its folder, or its segmenter.safetensors.")
    ],
    pictures: Annotated[list[Path], typer.Argument(help="Files, folders of them, videos.")],
    out: Annotated[Path, typer.Option(help="Folder that is written into.")],
    caption: Annotated[
        str | None,
        typer.Option(help="Said of every picture. [default: what the run's captioner says]"),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            help="Folder of PNGs with the pictures' names and the target data set's ids, for scores."
        ),
    ] = None,
    write: Annotated[str, typer.Option(help="What is written of each picture.")] = ",".join(
        PICTURES
    ),
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    plugin: Annotated[list[str] | None, typer.Option(metavar="FILE", help=PLUGIN)] = None,
) -> None:
    """Segments pictures of any size with a finished run; the same command goes on where it was stopped."""
    from semidavil.evaluation.written import find_sources
    from semidavil.experiments.predictor import Predictor, find_weights
    from semidavil.experiments.segmenting import Segmenting

    with told(console, "stopped; the same command goes on with what is left", plugin or ()):
        kinds = _kinds(write, labels)
        sources = find_sources(pictures)
        if labels and not labels.is_dir():
            raise DataError(f"there is no folder {labels} (--labels)")
        predictor = Predictor.load(find_weights(run), device)
        count = f"{len(sources)} picture{'s' * (len(sources) > 1)}"
        console.print(f"run [bold]{predictor.name}[/]: {count} into {out}", soft_wrap=True)
        work = Segmenting(predictor, out, kinds, caption)
        problems = _segment(work, sources)
        scores = None
        if labels:
            scores, unscored = work.score(sources, labels)
            problems += unscored
        table = work.write_table(sources, scores)
    if scores and scores.per_picture:
        _print_scores(scores, work.benchmark.classes)
    console.print(f"written: {table}", soft_wrap=True, highlight=False)
    for problem in problems:
        console.print(f"[bold red]left out:[/] {problem}", soft_wrap=True, highlight=False)
    if problems:
        raise typer.Exit(1)


def _kinds(write: str, labels: Path | None) -> list[str]:
    kinds = [kind.strip() for kind in write.split(",") if kind.strip()]
    if unknown := [kind for kind in kinds if kind not in PICTURES]:
        raise ValueError(f"--write knows no {unknown[0]!r}: choose from {', '.join(PICTURES)}")
    if labels and "ids" not in kinds:  # they are what is scored
        kinds = ["ids", *kinds]
    return kinds


def _segment(work: "Segmenting", sources: Sequence["Source"]) -> list[str]:
    """Segments what is not done yet; returns what could not be."""
    todo, problems = [source for source in sources if not work.done.has(source)], []
    if len(todo) < len(sources):
        console.print(f"{len(sources) - len(todo)} of them done before")
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, disable=not todo) as progress:
        task = progress.add_task("pictures", total=len(todo))
        for number, source in enumerate(todo):
            try:
                work.segment(source, lambda share: progress.advance(task, share))
            except DataError as error:
                problems.append(str(error))
            progress.update(task, completed=number + 1)
    return problems


def _print_scores(scores: "Scores", classes: Sequence[str]) -> None:
    table = Table(title=f"{len(scores.per_picture)} pictures with labels")
    table.add_column("class")
    table.add_column("IoU", justify="right")
    for name in classes:
        value = scores.together.get(f"iou/{name}")
        table.add_row(name, "-" if value is None else f"{value:.2f}")
    table.add_section()
    for title, name in (("mIoU", "miou"), ("pixel accuracy", "pixel_accuracy")):
        table.add_row(f"[bold]{title}[/]", f"[bold]{scores.together[name]:.2f}[/]")
    console.print(table)
