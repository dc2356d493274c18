"""Who captioned the images of some runs, in words, and whose captions the others are compared to."""

from collections.abc import Collection

import pandas as pd

from semidavil.benchmarks import BENCHMARKS
from semidavil.config import Config
from semidavil.names import SHUFFLED, VISION_ONLY

_WORDS = {
    "positions": "positions (CLIP zero-shot with class names)",
    "class_names": "class names, one text for all images",
    "none": "none",
    "oracle": "oracle (from the labels: a bound)",
}
MODELS = {"blip": "BLIP", "blip2": "BLIP-2", "hf": "Captioner"}
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
    pairs = set(zip(reading["model.captions"], reading["model.caption_region"], strict=True))
    said = sorted(_in_words(captions, region) for captions, region in pairs)
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


def _in_words(captions: str, region: str) -> str:
    if captions.startswith(SHUFFLED):
        return f"of another image, by {_in_words(captions.removeprefix(SHUFFLED), region)}"
    kind, _, model = captions.partition(":")
    text = f"{MODELS.get(kind, kind)} ({model})" if model else _WORDS.get(captions, captions)
    return f"{text}, of crop-sized windows" if region == "window" else text
