"""What can be chosen by name, and what each method draws from; imports nothing but `plugins`.

What a name stands for is in a table of the same names beside the code: `models.fusion.FUSIONS`,
`losses.LOSSES`, `language.captioners.CAPTIONERS`, `methods.table.METHODS`. A test compares them. All of them
hold the variants of the plugins in use, too.
"""

from dataclasses import dataclass
from typing import Literal

from semidavil.plugins import Names, Table

FUSIONS = Names("FUSIONS", ("dlg", "vlga", "wpct", "cross_attention", "none", "blank"))
# Of the fusions: controls, which read no caption.
VISION_ONLY = Names("VISION_ONLY", ("none", "blank"))
LOSSES = Names("LOSSES", ("ce", "wce", "focal", "dce", "dfl", "dyce"))
CAPTIONERS = Names("CAPTIONERS", ("positions", "class_names", "none", "blip", "blip2", "hf"))
ENCODERS = Names("ENCODERS", ())  # beside the VLM's own and timm's
# Not captioners: they take captions from other images or from labels (`language.ablations`).
SHUFFLED, ORACLE = "shuffled:", "oracle"  # the first before a captioner
ASKED = ", asked "  # before a prompt that is not the default
CAPTION_KINDS = Names("CAPTIONERS", (*CAPTIONERS, ORACLE, f"{SHUFFLED}CAPTIONER"))
TIMM = "timm:"  # before the name of an encoder of timm's
# How the VLM labels patches, see `models.dense`.
DENSE = ("maskclip", "clearclip", "naclip")
PICTURES = ("ids", "colours", "overlay", "confidence")  # that `predict` writes
STREAMS = ("source", "labelled", "unlabelled")
WEIGHTS = "segmenter.safetensors"  # the file of a finished run that holds its network


@dataclass(frozen=True)
class Traits:
    """What the harness must know of a method without loading it.

    Attributes:
        kind: what it trains on.
        streams: the data streams that it draws from.
        strong_views: strong views of each unlabelled image.
        data_parallel: whether several processes can share its batches.
        disparity: whether its target images come with their disparity.
        consistency_only: whether unlabelled images serve its consistency loss alone.
    """

    kind: Literal["images", "volumes"]
    streams: frozenset[str]
    strong_views: int = 0
    data_parallel: bool = False
    disparity: bool = False
    consistency_only: bool = False


_ALL = frozenset(STREAMS)
_VOLUMES = Traits("volumes", frozenset({"labelled", "unlabelled"}))
_METHODS = {
    "source_only": Traits("images", frozenset({"source"}), data_parallel=True),
    "target_only": Traits("images", frozenset({"labelled"}), data_parallel=True),
    "supervised": Traits("images", frozenset({"source", "labelled"}), data_parallel=True),
    "semidavil": Traits("images", _ALL, strong_views=1, data_parallel=True, consistency_only=True),
    # What the released code would do if it ran: its text, one pooled sentence, says nothing of places.
    "semidavil_released": Traits("images", _ALL, data_parallel=True),
    "unimatch": Traits("images", _ALL, strong_views=2),
    "unimatch_v2": Traits("images", _ALL, strong_views=2, data_parallel=True),
    "semivl": Traits("images", _ALL, strong_views=2),
    "sdepth": Traits("images", _ALL, strong_views=1, disparity=True),
    "uamt": _VOLUMES,
    "urpc": _VOLUMES,
}
METHODS = Table("TRAITS", _METHODS)


def captions_name(captions: str, region: str, prompt: str = "") -> str:
    """What captions are called: `positions (windows)`, `oracle (bound)`, `hf:NAME, asked "..."`."""
    if prompt:
        captions = f'{captions}{ASKED}"{prompt}"'
    marks = ["bound"] * (captions == ORACLE) + ["windows"] * (region == "window")
    return f"{captions} ({', '.join(marks)})" if marks else captions
