"""What describes images: CLIP's own patches, fixed texts, or captioning models of Hugging Face.

`blip2:Salesforce/blip2-opt-2.7b` is the paper's. `positions` and `class_names` name the benchmark's
classes, which the paper's captions do not.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from semidavil.benchmarks import Benchmark
from semidavil.language.base import Captioner, CaptionError, Size
from semidavil.language.positions import Positions
from semidavil.language.pretrained import Pretrained
from semidavil.models.vlm import VLM
from semidavil.plugins import Table, provider

CONTEXT = 77  # tokens of CLIP's text encoder, where none is given


class Constant:
    """The same text for every image."""

    size: Size | None = None
    prompt = ""

    def __init__(self, text: str) -> None:
        self.text = text
        self.identity = f"constant {text}"

    def __call__(self, images: Sequence[Image.Image]) -> list[str]:
        return [self.text] * len(images)


@dataclass(frozen=True)
class Setting:
    """What a captioner may draw on."""

    vlm: VLM | None
    classes: Sequence[str]
    size: Size | None  # (height, width) that `positions` works at; None: the VLM's own
    device: torch.device  # of the captioners that are not the VLM
    memo: Path  # remembers the hashes of model files
    prompt: str  # what a captioning model is asked; empty: its family's default
    words: Mapping[str, Sequence[str]] = field(default_factory=dict)  # what classes are also called
    scene: str = Benchmark.scene  # what `positions` begins with


def _pretrained(kind: str, name: str, setting: Setting) -> Pretrained:
    context = setting.vlm.text.max_tokens if setting.vlm else CONTEXT
    fits = context - 2  # besides the tokens of start and end
    return Pretrained(kind, name, setting.device, setting.memo, setting.prompt, fits)


_CAPTIONERS: dict[str, Callable[[str, Setting], Captioner]] = {
    "positions": lambda _, setting: Positions(
        setting.vlm, setting.classes, setting.size, setting.words, setting.scene
    ),
    "class_names": lambda _, setting: Constant(", ".join(setting.classes)),
    "none": lambda _, setting: Constant(""),
    "blip": partial(_pretrained, "blip"),
    "blip2": partial(_pretrained, "blip2"),
    "hf": partial(_pretrained, "hf"),
}
CAPTIONERS = Table("CAPTIONERS", _CAPTIONERS)


class _OfPlugin:
    """A plugin's captioner. Captions are kept by its identity, which another version of the plugin changes.

    Args:
        captioner: (images) -> texts; `size` and `prompt` where it has them, and what its captions depend on
            beside the plugin as `identity`.
    """

    def __init__(self, kind: str, plugin: str, captioner: Any) -> None:
        self.identity = f"{kind} {plugin} {getattr(captioner, 'identity', '')}".rstrip()
        self.size: Size | None = getattr(captioner, "size", None)
        self.prompt: str = getattr(captioner, "prompt", "")
        self._captioner = captioner

    def __call__(self, images: Sequence[Image.Image]) -> list[str]:
        return list(self._captioner(images))


def build_captioner(name: str, setting: Setting) -> Captioner:
    """The captioner called `name`, such as "positions" or "blip2:Salesforce/blip2-opt-2.7b".

    Raises:
        CaptionError: an unknown name, or a model that is not here.
    """
    kind, _, argument = name.partition(":")
    if (plugin := provider("CAPTIONERS", kind)) is not None:
        return _OfPlugin(kind, plugin, CAPTIONERS[kind](argument, setting))
    if kind not in CAPTIONERS or bool(argument) != (kind in Pretrained.MODELS):
        known = [f"{each}:NAME" if each in Pretrained.MODELS else each for each in CAPTIONERS]
        raise CaptionError(
            f"unknown captioner {name!r}: choose from {', '.join(known)}, NAME being a Hugging "
            "Face model or its folder"
        )
    return CAPTIONERS[kind](argument, setting)
