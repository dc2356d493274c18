"""How things look and what they are called, the same in every figure and table."""

import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.style import context

from analysis.captioners import MODELS
from semidavil.names import ASKED, ORACLE, SHUFFLED, captions_name

COLUMN, PAGE = 3.28, 6.875  # inches: one and two columns of a CVPR paper
STYLE = Path(__file__).with_name("semidavil.mplstyle")

# Okabe and Ito's palette, told apart with any colour vision; yellow is too faint for thin lines.
BLUE, VERMILION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY, BLACK, GREY = "#E69F00", "#56B4E9", "#000000", "#767676"


@dataclass(frozen=True)
class Look:
    """One variant: its name for readers, and a colour, marker and dash of its own."""

    label: str
    colour: str
    marker: str
    dash: Any  # matplotlib's linestyle


_SOLID, _DASHED, _DASHDOT, _DOTTED = "-", (0, (4, 1.4)), (0, (4, 1.2, 1, 1.2)), (0, (1.2, 1.2))
_LONG, _LONGDOT = (0, (7, 2)), (0, (6, 1.2, 1, 1.2, 1, 1.2))
LOOKS: dict[str, Look] = {
    # attentions
    "dlg": Look("DLG (SemiDAViL)", BLUE, "o", _SOLID),
    "vlga": Look("VLGA (SemiVL)", VERMILION, "s", _DASHED),
    "wpct": Look("WPCT (LSeg)", GREEN, "^", _DASHDOT),
    "cross_attention": Look("Cross-attention", PURPLE, "D", _DOTTED),
    "blank": Look("Blank (readout alone)", GREY, "x", _DOTTED),
    # losses
    "dyce": Look("DyCE", BLUE, "o", _SOLID),
    "ce": Look("CE", VERMILION, "s", _DASHED),
    "wce": Look("Weighted CE", GREEN, "^", _DASHDOT),
    "dce": Look("Dual CE", PURPLE, "D", _DOTTED),
    "focal": Look("Focal", ORANGE, "v", _LONG),
    "dfl": Look("Dual focal", SKY, "P", _LONGDOT),
    # methods
    "semidavil": Look("SemiDAViL", BLUE, "o", _SOLID),
    "semidavil_released": Look("SemiDAViL, released code", GREY, "h", _DASHED),
    "semivl": Look("SemiVL", VERMILION, "s", _DASHED),
    "unimatch": Look("UniMatch", PURPLE, "D", _DOTTED),
    "unimatch_v2": Look("UniMatch V2", BLACK, "p", _DASHDOT),
    "sdepth": Look("S-Depth", ORANGE, "v", _LONG),
    "supervised": Look("Source + labelled", GREEN, "^", _DASHDOT),
    "target_only": Look("Labelled target only", SKY, "P", _LONGDOT),
    "source_only": Look("Source only", GREY, "X", _DOTTED),
    "uamt": Look("UA-MT", BLUE, "o", _SOLID),
    "urpc": Look("URPC", VERMILION, "s", _DASHED),
    # captions
    "positions": Look("What is where (CLIP)", BLUE, "o", _SOLID),
    "class_names": Look("Class names", GREEN, "^", _DASHDOT),
    "none": Look("None", GREY, "X", _DOTTED),
    SHUFFLED: Look("Of another image", ORANGE, "v", _LONG),
    captions_name(ORACLE, "image"): Look("From the labels (bound)", PURPLE, "D", _DOTTED),
}
_SPARE = ((BLACK, "<", _DASHED), (SKY, "*", _LONG), (GREEN, "h", _LONGDOT), (GREY, ">", _SOLID))

DATA_SETS = {"gta5": "GTA5", "synthia": "SYNTHIA", "cityscapes": "Cityscapes", "idda": "IDDA",
             "camvid": "CamVid", "synapse": "Synapse"}  # fmt: skip


def looks(names: Sequence[str]) -> dict[str, Look]:
    """A look for each variant: those that are not known take what the known ones among them leave.

    Names that readers would take for one another are told apart by the whole name.
    """
    found = {name: look for name in names if (look := _known(name))}
    every = [(look.colour, look.marker, look.dash) for look in LOOKS.values()]
    taken = {look.colour for look in found.values()}
    free = [one for one in dict.fromkeys((*_SPARE, *every)) if one[0] not in taken] or list(_SPARE)
    unknown = [name for name in names if name not in found]
    texts = Counter(label(name) for name in names)
    for i, name in enumerate(unknown):
        text = label(name) if texts[label(name)] == 1 else name
        found[name] = Look(text, *free[i % len(free)])
    return {name: found[name] for name in names}


def label(name: str) -> str:
    """What readers call a variant; a captioner with a model's name is called by its kind, or by its model."""
    if known := _known(name):
        return known.label
    whole = name.removesuffix(" (windows)")
    if whole != name:
        return f"{label(whole)}, windows"
    name, _, quoted = name.partition(ASKED)
    prompt = quoted.strip('"')
    kind, _, model = name.partition(":")
    if kind == "hf" and model:  # which stands for any model
        text = model.rstrip("/").rpartition("/")[2]
    else:
        text = MODELS.get(kind, kind) if model else name
    return f"{text}, {textwrap.shorten(prompt, 30, placeholder=' …')}" if prompt else text


def _known(name: str) -> Look | None:
    """Shuffled captions look the same, whoever has made them."""
    return LOOKS.get(SHUFFLED if name.startswith(SHUFFLED) else name)


def setting_text(value: object) -> str:
    """A setting's value as `--set` takes it: `512x512`, `true`, `0.0001`."""
    if isinstance(value, tuple):
        return "x".join(map(str, value))
    if isinstance(value, float):
        return f"{value:g}"
    return str(value).lower() if str(value) in ("True", "False") else str(value)


def benchmark_name(benchmark: str) -> str:
    """`gta5-cityscapes` -> `GTA5 → Cityscapes`; one data set alone where both are the same."""
    parts = [DATA_SETS.get(part, part) for part in benchmark.split("-", 1) if part]
    return " → ".join(dict.fromkeys(parts))


@contextmanager
def paper_style() -> Iterator[None]:
    """This project's style and nothing of the user's own."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        with context(STYLE):
            yield
