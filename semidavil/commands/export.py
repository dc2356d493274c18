"""What `python -m semidavil export` does: a finished network as one file, or as a folder for a hub."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from semidavil.commands.endings import PLUGIN, told

console = Console()


class Format(StrEnum):
    """Of the file, or a folder with weights, settings and a model card."""

    onnx = "onnx"
    torch = "torch"
    hub = "hub"


def export_command(
    run: Annotated[
        str, typer.Argument(help="A run's id, its folder, or its segmenter.safetensors.")
    ],
    to: Annotated[
        Format,
        typer.Option(
            help="ONNX, what torch.export.load reads, or a folder for a hub, with a model card."
        ),
    ] = Format.onnx,
    out: Annotated[
        Path | None,
        typer.Option(
            help="The file, or the hub's folder. [default: segmenter.onnx, segmenter.pt2 or segmenter-hub]"
        ),
    ] = None,
    caption: Annotated[
        str | None,
        typer.Option(help="Made part of the network. [default: its tokens are inputs]"),
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(help="What the file is compared on. [default: noise]")
    ] = None,
    plugin: Annotated[list[str] | None, typer.Option(metavar="FILE", help=PLUGIN)] = None,
    name: Annotated[
        str, typer.Option(help="Of the model, on a hub. [default: the folder's name]")
    ] = "",
    licence: Annotated[
        str, typer.Option("--license", help="Of the weights, on a hub, such as apache-2.0.")
    ] = "",
) -> None:
    """Writes a finished run's network: as a file, which it compares with the network, or for a hub."""
    if to is Format.hub:
        with told(console, "stopped; repeat the command", plugin or ()):
            if caption is not None or picture:
                raise ValueError(
                    "--caption and --picture are for --to onnx and --to torch: leave them out"
                )
            _publish(run, out or Path("segmenter-hub"), name, licence)
        return
    if name or licence:
        with told(console, ""):
            raise ValueError("--name and --license are of a model card: add --to hub")
    import torch

    from semidavil.data.augment import as_floats
    from semidavil.data.images import read_rgb, resize_image
    from semidavil.experiments.exporting import FORMATS, export
    from semidavil.experiments.predictor import Predictor, find_weights

    with told(console, "stopped; repeat the command", plugin or ()):
        path = out or Path("segmenter").with_suffix(FORMATS[to])
        if path.suffix != FORMATS[to]:
            raise ValueError(
                f"a file for {to.value} ends with {FORMATS[to]}: rename {path} (--out)"
            )
        predictor = Predictor.load(find_weights(run), "cpu")
        height, width = predictor.config.data.crop
        if picture:
            pixels = torch.from_numpy(resize_image(read_rgb(picture), (height, width)))
            image = as_floats(pixels.permute(2, 0, 1)[None])
        else:
            image = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))
        console.print(
            f"run [bold]{predictor.name}[/], windows of {height} x {width}", soft_wrap=True
        )
        with console.status("exporting, which can take a minute"):
            made = export(predictor, path, caption, image)
    console.print(f"written: {made.path} and {made.path}.json, which describes it", soft_wrap=True)
    for name, shape in made.about["inputs"].items():
        console.print(f"  input {name} {shape}")
    console.print(f"logits differ from the network's by at most {made.largest:.1e}")
    console.print(f"one window takes {made.file_ms:.1f} ms, by PyTorch {made.own_ms:.1f} ms")


def _publish(run: str, out: Path, name: str, licence: str) -> None:
    from semidavil.experiments.predictor import find_weights
    from semidavil.experiments.publishing import CARD, FinishedRun, publish

    if out.is_file():
        raise ValueError(f"{out} is a file: name a folder (--out)")
    name = name or out.resolve().name
    missing = publish(FinishedRun.read(find_weights(run)), out, name, licence)
    console.print(f"written: {out} with its card {out / CARD}", soft_wrap=True, highlight=False)
    console.print(
        f"to look at it: python -m semidavil predict {out} PICTURES --out seen\n"
        f"to publish it: hf upload OWNER/{name} {out}",
        soft_wrap=True, highlight=False,
    )  # fmt: skip
    if not licence:
        console.print("the card says that no licence is stated: choose one with --license")
    for place in missing:
        console.print(f"[bold red]others need it too:[/] {place}", soft_wrap=True, highlight=False)
