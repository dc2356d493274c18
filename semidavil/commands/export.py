"""What `python -m semidavil export` does: a finished network as one file."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from semidavil.commands.endings import PLUGIN, told

console = Console()


class Format(StrEnum):
    """Of the file."""

    onnx = "onnx"
    torch = "torch"


def export_command(
    run: Annotated[
        str, typer.Argument(help="A run's id, its folder, or its segmenter.safetensors.")
    ],
    to: Annotated[
        Format, typer.Option(help="ONNX, or what torch.export.load reads.")
    ] = Format.onnx,
    out: Annotated[
        Path | None, typer.Option(help="The file. [default: segmenter.onnx or segmenter.pt2 here]")
    ] = None,
    caption: Annotated[
        str | None,
        typer.Option(help="Made part of the network. [default: its tokens are inputs]"),
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(help="What the file is compared on. [default: noise]")
    ] = None,
    plugin: Annotated[list[str] | None, typer.Option(metavar="FILE", help=PLUGIN)] = None,
) -> None:
    """Writes a finished run's network, on one window of its crops' size, and compares the file with it."""
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
