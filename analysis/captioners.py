"""Who captioned the images of some runs, in words, and whose captions the others are compared to."""

from collections.abc import Callable, Collection

import pandas as pd

from semidavil.benchmarks import BENCHMARKS
from semidavil.config import Config
from semidavil.names import ASKED, SHUFFLED, VISION_ONLY

_WORDS = {
    "positions": "positions (CLIP zero-shot with class names)",
    "class_names": "class names, one text for all images",
    "none": "none",
    "oracle": "oracle (from the labels: a bound)",
}
MODELS = {"blip": "BLIP", "blip2": "BLIP-2", "hf": "Captioner"}
_CONSTANT = ("class_names", "none")
_CAPTIONER = ["model.captions", "model.caption_region", "asked"]
_LENGTHS = ("captions/words", "captions/tokens")
_MOST = 2  # captioners that a sentence names; more of them are the variants of a figure


def captioners_sentence(runs: pd.DataFrame) -> str:
    """`Captions: BLIP-2 (Salesforce/blip2-opt-2.7b).`; empty where no run reads any.

    Args:
        runs: rows of `load_runs`.
    """
    of_scans = {name for name, known in BENCHMARKS.items() if known.kind == "volumes"}
    # SemiVL reads definitions of the classes in the place of captions.
    unread = (
        runs["benchmark"].isin(of_scans)
        | runs["fusion"].isin(VISION_ONLY)
        | (runs["method"] == "semivl")
    )
    reading = runs[~unread]
    said = sorted(
        _in_words(*map(str, captioner)) + _length(group)
        for captioner, group in reading.groupby(_CAPTIONER)
    )
    if not said:
        return ""
    return f"Captions: {'; '.join(said) if len(said) <= _MOST else 'by variant'}."


def baseline_captions(variants: Collection[str]) -> str:
    """The captions that a caption grid compares the others to: those that it also shuffles.

    Where no such run is finished: those of the paper's captioner, or else of `positions`.
    """
    shuffled = sorted(v.removeprefix(SHUFFLED) for v in variants if v.startswith(SHUFFLED))
    usual = [Config().model.captions, "positions"]
    return next((name for name in (*shuffled, *usual) if name in variants), "positions")


def add_lengths(numbers: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """The numbers of the caption figure with columns `words`, `tokens` and `asked` of each variant.

    Words and tokens are those of a caption on average; NaN for runs from before they were counted.
    """
    runs = runs.reindex(columns=[*runs.columns, *(n for n in _LENGTHS if n not in runs)])
    found = runs.groupby(["benchmark", "captions"], as_index=False).agg(
        words=(_LENGTHS[0], "mean"), tokens=(_LENGTHS[1], "mean"), asked=("asked", "first")
    )
    return numbers.merge(found.rename(columns={"captions": "variant"}), "left")


def captioners_table(numbers: pd.DataFrame, label: Callable[[str], str]) -> str:
    """A sentence for each variant of the caption figure whose length is known: who, how long, what was asked.

    Args:
        numbers: with the columns of `add_lengths`.
        label: what a variant is called.
    """
    said = dict[str, str]()
    for row in numbers.dropna(subset=["words"]).to_dict("records"):
        asked = f", asked “{row['asked']}”" if row["asked"] else ""
        who = row["variant"].removeprefix(SHUFFLED).partition(ASKED)[0].partition(":")[2]
        name = label(row["variant"]) + (f" [{who}]" if who else "")
        said.setdefault(name, f"{name} {row['words']:.1f} ({row['tokens']:.1f}){asked}")
    return f"Words (tokens) of a caption on average: {'; '.join(said.values())}. " if said else ""


def _length(runs: pd.DataFrame) -> str:
    """`, 12.3 words on average`; empty where it was not counted, or is the same text for all images."""
    words = list(runs[_LENGTHS[0]].dropna()) if _LENGTHS[0] in runs else []
    if not words or runs["model.captions"].iloc[0] in _CONSTANT:
        return ""
    low, high = f"{min(words):.1f}", f"{max(words):.1f}"
    return f", {low if low == high else f'{low} to {high}'} words on average"


def _in_words(captions: str, region: str, asked: str) -> str:
    if captions.startswith(SHUFFLED):
        return f"of another image, by {_in_words(captions.removeprefix(SHUFFLED), region, asked)}"
    kind, _, model = captions.partition(":")
    text = f"{MODELS.get(kind, kind)} ({model})" if model else _WORDS.get(captions, captions)
    text += f", asked “{asked}”" if asked else ""
    return f"{text}, of crop-sized windows" if region == "window" else text
