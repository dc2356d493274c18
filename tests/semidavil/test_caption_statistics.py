"""How many captions are empty, equal or cut, and where a run says so."""

import re

import pytest
import torch

from semidavil.config import Config, preset
from semidavil.experiments.street import StreetExperiment
from semidavil.language.statistics import CaptionStatistics, caption_statistics
from semidavil.models.vlm import VLM
from semidavil.train import prepare


def test_what_is_counted(words: VLM) -> None:
    context = words.text.max_tokens
    fits, long = " ".join(["car"] * (context - 2)), " ".join(["car"] * (context - 1))
    texts = ["", "", "a road", "a road", "a road", "sky", fits, long, long]
    found = caption_statistics(texts, words.text)
    assert found == CaptionStatistics(9, empty=2, equal=5, cut=2, context=context)
    assert str(found) == (
        f"9 captions: 2 empty (22.2%), 5 equal to another (55.6%), 2 cut at {context} tokens (22.2%)"
    )
    assert str(caption_statistics([], words.text)).startswith("0 captions: 0 empty (0.0%)")


def test_the_same_captions_are_counted_once(words: VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["a road", "a car"]
    found = caption_statistics(texts, words.text)

    def refuse(texts: list[str]) -> list[int]:
        raise AssertionError("counted again")

    monkeypatch.setattr(words.text, "count_tokens", refuse)
    assert caption_statistics(texts, words.text) == found
    with pytest.raises(AssertionError, match="counted again"):  # other captions are
        caption_statistics([*texts, "sky"], words.text)


@pytest.fixture
def config(tiny_toy: dict[str, str]) -> Config:
    return preset("toy", {"data.budget": 4, **tiny_toy})


LINE = (
    r"positions, one caption per image: 22 captions: 0 empty \(0\.0%\), \d+ equal .* 0 cut at 64 "
)


def test_preparing_and_the_log_of_a_run_say_how_captions_are(
    config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    said = prepare(config, progress=False)
    assert re.search(f"^{LINE}", said, re.MULTILINE)
    capsys.readouterr()
    StreetExperiment(config, torch.device("cpu"))
    logged = capsys.readouterr().out
    assert re.match(LINE, logged)
    assert said.endswith(logged.rstrip("\n"))


def test_nothing_is_said_of_captions_that_nobody_reads(
    config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config.replace({"model.fusion": "none"})
    assert prepare(config, progress=False) == ""
    StreetExperiment(config, torch.device("cpu"))
    assert capsys.readouterr().out == ""
