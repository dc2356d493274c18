"""A finished network as one file that needs nothing of this package: ONNX, or PyTorch's own format.

What is exported is the network on one window of the run's crop size, as `sliding_window` calls it: images
(B, 3, h, w) in [0, 1] to logits (B, C, h, w). A caption is part of it, or its tokens are inputs of their own.
"""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from semidavil.evaluation.latency import milliseconds
from semidavil.experiments.predictor import Predictor
from semidavil.models.segmenter import Segmenter
from semidavil.models.text import Language

FORMATS = {"onnx": ".onnx", "torch": ".pt2"}
# What ONNX calls the free axes of image, tokens and mask. Each is named where it comes first: PyTorch finds
# by itself that the inputs share them, and warns of a second name.
AXES: tuple[dict[int, str], ...] = ({0: "batch"}, {1: "tokens"}, {})


class ExportError(ValueError):
    """A network that cannot be exported as it was asked for; the message says what to choose."""


class WithCaption(nn.Module):
    """Images to logits, the caption being a constant.

    Args:
        language: of one caption.
        images: a batch's, where that is fixed; None: any.
    """

    tokens: Tensor
    mask: Tensor

    def __init__(self, network: Segmenter, language: Language, images: int | None) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("tokens", language.tokens)
        self.register_buffer("mask", language.mask)
        self.lengths = language.lengths * (images or 0)

    def forward(self, image: Tensor) -> Tensor:
        tokens, mask = (
            x.expand(image.shape[0], -1, *x.shape[2:]) for x in (self.tokens, self.mask)
        )
        return self.network(image, Language(tokens, mask, self.lengths))


class WithTokens(nn.Module):
    """Images, tokens (B, N, c_l) and their mask (B, N) to logits."""

    def __init__(self, network: Segmenter) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        return self.network(image, Language(tokens, mask, ()))


@dataclass(frozen=True)
class Exported:
    """A file, and how it compares with the network that it was made from, on the same input.

    Attributes:
        largest: the largest difference of a logit.
        own_ms, file_ms: milliseconds of one window, by PyTorch and by what reads the file.
        about: what a reader must know, as it is kept beside the file.
    """

    path: Path
    largest: float
    own_ms: float
    file_ms: float
    about: dict[str, Any]


@torch.no_grad()
def export(predictor: Predictor, path: Path, caption: str | None, image: Tensor) -> Exported:
    """Writes `path`, whose ending names the format, and `path` with `.json` added, which describes it.

    Args:
        caption: made part of the network; None: its tokens are inputs, where it reads any.
        image: (1, 3, h, w) in [0, 1], of the run's crop size; what the file is compared on.

    Raises:
        ExportError: the network cannot be exported so, or packages of `semidavil[export]` are not here.
    """
    reads_lengths = getattr(predictor.network.fusion, "reads_lengths", False)
    folded = caption is not None or not predictor.sees_captions
    if reads_lengths and not folded:
        raise ExportError(
            f"what {predictor.config.model.fusion} computes depends on the caption's length: pass --caption"
        )
    language = predictor.language(caption or "a road")
    network: nn.Module
    given: tuple[Tensor, ...]
    if folded:
        network = WithCaption(predictor.network, language, 1 if reads_lengths else None)
        given = (image,)
    else:
        network, given = WithTokens(predictor.network), (image, language.tokens, language.mask)
    network.eval()
    names = ["image", "tokens", "mask"][: len(given)]
    expected = network(*given)  # before the export, for which matrices of resizing must be there
    # An axis of length 1 would be taken for one that is always so.
    example = given if reads_lengths else tuple(torch.cat([x, x]) for x in given)
    shapes = _dynamic(names, predictor.vlm.text.max_tokens) if not reads_lengths else None
    program = torch.export.export(network, example, dynamic_shapes=shapes, strict=False)
    run = _write(program, given, names, path)
    found = run()
    about = {
        "run": predictor.config.key(), "classes": list(predictor.benchmark.classes),
        "caption": caption if folded and predictor.sees_captions else None,
        "inputs": {n: [*x.shape] for n, x in zip(names, given, strict=True)},
        "any_batch_size": not reads_lengths, "image_range": [0, 1],
        "windows": "evenly spaced, at most two thirds of a window apart; logits are averaged",
    }  # fmt: skip
    path.with_name(path.name + ".json").write_text(json.dumps(about, indent=2))
    largest = float((found - expected).abs().max())
    own, file = (milliseconds(each, image.device) for each in (lambda: network(*given), run))
    return Exported(path, largest, own, file, about)


def _dynamic(names: list[str], max_tokens: int) -> tuple[dict[int, Any], ...]:
    """Any batch size, and captions that are not as long as can be, which are computed in another way."""
    batch = torch.export.Dim("batch", min=1, max=1024)
    tokens = torch.export.Dim("tokens", min=2, max=max_tokens - 1)
    dims = {"image": {0: batch}, "tokens": {0: batch, 1: tokens}, "mask": {0: batch, 1: tokens}}
    return tuple(dims[name] for name in names)


def _write(
    program: torch.export.ExportedProgram, given: tuple[Tensor, ...], names: list[str], path: Path
) -> Callable[[], Tensor]:
    """Writes the file, and returns what computes with it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == FORMATS["torch"]:
        torch.export.save(program, str(path))
        loaded = torch.export.load(str(path)).module()
        return lambda: loaded(*given)
    logging.getLogger("onnxscript").setLevel(logging.ERROR)  # of folds that it leaves out
    try:
        import onnxruntime

        written = torch.onnx.export(
            program, given, input_names=names, output_names=["logits"], dynamo=True, verbose=False,
            dynamic_shapes=AXES[: len(names)],
        )  # fmt: skip
    except ModuleNotFoundError as error:
        raise ExportError(f"{error.name} is needed: pip install -e '.[export]'") from error
    assert written is not None
    written.save(str(path))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options)
    feed = {i.name: x.numpy() for i, x in zip(session.get_inputs(), given, strict=False)}
    return lambda: torch.from_numpy(session.run(None, feed)[0])
