"""Figures and tables say who captioned, and compare captions to those of the preset."""

import numpy as np
import pytest
from made_up_runs import Writer, settings
from slow_cases import also_slow

from analysis import style
from analysis.captioners import baseline_captions, captioners_sentence
from analysis.cells import select
from analysis.figures import FIGURES
from analysis.runs import load_runs

PROMPT = "semidavil.caption_prompt"  # the tag of a run
BLIP2 = "blip2:Salesforce/blip2-opt-2.7b"
POSITIONS = "positions (CLIP zero-shot with class names)"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ([{}], "Captions: BLIP-2 (Salesforce/blip2-opt-2.7b)."),
        (
            [{}, {"model__captions": "oracle"}],
            "Captions: BLIP-2 (Salesforce/blip2-opt-2.7b); oracle (from the labels: a bound).",
        ),
        (
            [{"model__captions": n} for n in ("none", "oracle", "positions")],
            "Captions: by variant.",
        ),
        *also_slow(
            ([{"model__captions": "positions"}], f"Captions: {POSITIONS}."),
            (
                [{"model__captions": "positions", "model__caption_region": "window"}],
                f"Captions: {POSITIONS}, of crop-sized windows.",
            ),
            ([{"model__captions": "shuffled:none"}], "Captions: of another image, by none."),
            ([{"model__fusion": "none"}], ""),
            ([{"training__method": "semivl", "model__captions": "class_names"}], ""),
        ),
    ],
)
def test_one_sentence_names_the_captioner(
    store: Writer, changes: list[dict[str, str]], sentence: str
) -> None:
    for change in changes:
        store.run("methods", settings("gta5-cityscapes", 100, 0, **change), {"miou": 30.0})
    assert captioners_sentence(load_runs(store.uri).table) == sentence


def test_scans_have_no_captions(store: Writer) -> None:
    store.run("synapse", settings("synapse", 4, 0, training__method="uamt"), {"dice": 30.0})
    assert captioners_sentence(load_runs(store.uri).table) == ""


def test_every_caption_of_a_figure_says_it(store: Writer) -> None:
    store.run("attention", settings("gta5-cityscapes", 100, 0), {"miou": 30.0})
    tracked = load_runs(store.uri)
    assert "Captions: BLIP-2 (" in select(tracked, "attention", "fusion").note()
    assert "Captions: BLIP-2 (" in FIGURES["attention"](tracked).caption


def test_the_caption_figure_compares_to_the_captions_that_it_shuffles(store: Writer) -> None:
    for name, own in ((BLIP2, 33.0), ("positions", 31.0), (f"shuffled:{BLIP2}", 30.0)):
        for seed in range(3):
            params = settings("gta5-cityscapes", 100, seed, model__captions=name)
            store.run("captions", params, {"miou": own + seed})
            if own == 33.0:
                window = {**params, "model.caption_region": "window"}
                store.run("captions", window, {"miou": own + 2 + seed})
    drawn = FIGURES["captions"](load_runs(store.uri))
    assert "paired difference to BLIP-2 with its" in drawn.caption
    found = drawn.numbers.set_index("variant")["minus_baseline"]
    assert found[f"{BLIP2} (windows)"] == pytest.approx(2.0)
    assert found["positions"] == pytest.approx(-2.0)
    assert set(drawn.numbers["n"]) == {3}  # windows and whole images are no two runs of one cell


def test_a_captioner_is_named_with_its_prompt_and_the_length_of_its_captions(store: Writer) -> None:
    for seed, words in enumerate((12.0, 14.0)):
        store.run(
            "attention",
            settings("gta5-cityscapes", 100, seed, model__captions="hf:own/chat"),
            {"miou": 30.0, "captions/words": words, "captions/tokens": 2 * words},
            tags={PROMPT: "What is where?"},  # its default
        )
    assert captioners_sentence(load_runs(store.uri).table) == (
        "Captions: Captioner (own/chat), asked “What is where?”, 12.0 to 14.0 words on average."
    )


def test_the_caption_figure_names_captioner_prompt_and_length(store: Writer) -> None:
    variants = {
        "hf:own/chat": ("", "What is where?", 12.25), "positions": ("", "", 30.0),
        'hf:own/chat, asked "Short!"': ("Short!", "Short!", 4.0), "none": ("", "", None),
    }  # fmt: skip
    for captions, (prompt, asked, words) in variants.items():
        params = settings(
            "gta5-cityscapes", 100, 0, model__captions=captions.partition(",")[0],
            model__caption_prompt=prompt,
        )  # fmt: skip
        counted = {"captions/words": words, "captions/tokens": words + 2} if words else {}
        store.run("captions", params, {"miou": 30.0, **counted}, tags={PROMPT: asked})
    drawn = FIGURES["captions"](load_runs(store.uri))
    for part in (
        "Words (tokens) of a caption on average: ",
        "chat [own/chat] 12.2 (14.2), asked “What is where?”",
        "chat, Short! [own/chat] 4.0 (6.0), asked “Short!”",
        "What is where (CLIP) 30.0 (32.0)",
    ):
        assert part in drawn.caption
    numbers = drawn.numbers.set_index("variant")
    assert set(numbers.index) == set(variants)  # two prompts are no two runs of one cell
    for name, (_, asked, words) in variants.items():
        assert numbers.loc[name, "asked"] == asked
        assert numbers.loc[name, "words"] == pytest.approx(words or np.nan, nan_ok=True)


def test_whose_captions_the_others_are_compared_to() -> None:
    assert baseline_captions(["oracle", "positions", BLIP2, "shuffled:positions"]) == "positions"
    assert baseline_captions(["oracle", "positions", BLIP2]) == BLIP2
    assert baseline_captions(["oracle", "positions"]) == "positions"
    assert baseline_captions(["hf:own", "shuffled:hf:own", "positions"]) == "hf:own"


def test_names_of_captions_for_readers() -> None:
    chat = "hf:HuggingFaceTB/SmolVLM2-2.2B-Instruct"
    long = f'{chat}, asked "Describe this scene for somebody who sees nothing" (windows)'
    names = [
        "positions", f"{BLIP2} (windows)", f"shuffled:{BLIP2}", "oracle (bound)", chat, long,
    ]  # fmt: skip
    labels = [style.looks(names)[name].label for name in names]
    assert labels == [
        "What is where (CLIP)", "BLIP-2, windows", "Of another image", "From the labels (bound)",
        "SmolVLM2-2.2B-Instruct", "SmolVLM2-2.2B-Instruct, Describe this scene for …, windows",
    ]  # fmt: skip
