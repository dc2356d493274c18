"""How many captions are empty, equal or cut, and where a run says so."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from small_captioners import florence2, save
from typer.testing import CliRunner

from semidavil.__main__ import app
from semidavil.config import Config, preset
from semidavil.data.streams import train_samples
from semidavil.experiments.street import StreetExperiment, load_captions
from semidavil.language.asking import TASKS
from semidavil.language.report import spread
from semidavil.language.statistics import CaptionStatistics, caption_statistics
from semidavil.models.vlm import VLM, load_vlm
from semidavil.train import prepare, train


def test_what_is_counted(words: VLM) -> None:
    context = words.text.max_tokens
    fits, long = " ".join(["car"] * (context - 2)), " ".join(["car"] * (context - 1))
    texts = ["", "", "a road", "a road", "a road", "sky", fits, long, long]
    found = caption_statistics(texts, words.text)
    lengths = [0, 0, 2, 2, 2, 1, context - 2, context - 1, context - 1]
    tokens = [2, 2, 4, 4, 4, 3, context, context, context]  # with those of start and end
    assert found == CaptionStatistics(
        9, empty=2, equal=5, cut=2, context=context, words=pytest.approx(np.mean(lengths)),
        tokens=pytest.approx(np.mean(tokens)),
    )  # fmt: skip
    assert str(found) == (
        f"9 captions of {np.mean(lengths):.1f} words or {np.mean(tokens):.1f} tokens: "
        f"2 empty (22.2%), 5 equal to another (55.6%), 2 cut at {context} tokens (22.2%)"
    )
    assert found.numbers() == {
        "captions/words": found.words,
        "captions/tokens": found.tokens,
        "captions/empty": pytest.approx(200 / 9),
        "captions/equal": pytest.approx(500 / 9),
        "captions/cut": pytest.approx(200 / 9),
    }
    assert str(caption_statistics([], words.text)).endswith(
        f"0 empty (0.0%), 0 equal to another (0.0%), 0 cut at {context} tokens (0.0%)"
    )


def test_warnings_begin_above_five_per_cent() -> None:
    fine = CaptionStatistics(100, empty=5, equal=5, cut=5, context=77)
    assert fine.warnings(made=True) == []
    bad = CaptionStatistics(100, empty=6, equal=7, cut=8, context=77)
    assert bad.warnings(made=True) == [
        "warning: 6.0% of the captions are empty",
        "warning: 7.0% of the captions are equal to another",
        "warning: 8.0% of the captions are cut at 77 tokens",
    ]
    # `none` and `class_names` repeat one text, and `positions` its words, by design.
    assert bad.warnings(made=False) == ["warning: 8.0% of the captions are cut at 77 tokens"]
    assert CaptionStatistics(0, 0, 0, 0, 77).warnings(made=True) == []


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
    r"positions, one caption per image: 22 captions of [\d.]+ words or [\d.]+ tokens: "
    r"0 empty \(0\.0%\), \d+ equal .* 0 cut at 64 "
)


def test_preparing_and_the_log_of_a_run_say_how_captions_are(
    config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in Path(config.runtime.cache_dir, "captions").glob("positions-*.jsonl"):
        file.unlink()
    said, *few, rest = prepare(config, progress=False).splitlines()
    assert re.match(LINE, said)
    assert (len(few), rest.partition(":")[0]) == (3, "  more of them are in each run's log")
    assert prepare(config, progress=False) == said, "the same captions again"
    capsys.readouterr()
    experiment = StreetExperiment(config, torch.device("cpu"))
    first, *examples = capsys.readouterr().out.splitlines()
    assert first == said
    # Ten captions that are there, of every stream.
    assert len(examples) == 10
    vlm = load_vlm(config.model.vlm, config.model.weights, seed=config.seed)
    captions = {path.name: c.texts[0] for path, c in load_captions(config, vlm).items()}
    streams = train_samples(config)
    for line in (*examples, *few):
        stream, name, text = re.fullmatch(r"  (\w+), (\S+): (.*)", line).groups()
        assert text == captions[name]
        if stream != "validation":
            assert name in {sample.image.name for sample in streams[stream]}
    assert {line.split()[0] for line in examples} == {*(f"{s}," for s in streams), "validation,"}
    # What a run tracks of it.
    lengths = [len(text.split()) for text in captions.values()]
    assert experiment.constants["captions/words"] == pytest.approx(np.mean(lengths))
    assert experiment.notes == {"caption_prompt": ""}


def test_one_text_for_all_is_shown_once(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    config = config.replace({"model.captions": "class_names"})
    StreetExperiment(config, torch.device("cpu"))
    first, *examples = capsys.readouterr().out.splitlines()
    assert first.startswith("class_names, one caption per image: 22 captions")
    assert len(examples) == 1
    assert examples[0].startswith("  each: road, ")


@pytest.mark.slow
def test_what_a_captioning_model_was_asked_is_said_and_tracked(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(florence2, tmp_path / "model")
    config = config.replace({
        "model.captions": f"hf:{tmp_path / 'model'}", "model.caption_prompt": TASKS[1],
        "training.steps": 1, "training.warmup_steps": 0,
    })  # fmt: skip
    said = prepare(config, progress=False).splitlines()[:2]
    assert said[1] == f"asked: {TASKS[1]}"
    result = train(config)
    assert "\n".join(said) in capsys.readouterr().out
    assert result.notes == {"caption_prompt": TASKS[1]}
    assert 0 < result.metrics["captions/words"] <= result.metrics["captions/tokens"] <= 64


def test_images_are_spread_over_streams() -> None:
    paths = [Path(f"{i}") for i in range(100)]
    streams = {"source": paths[:60], "labelled": paths[60:61], "unlabelled": paths[61:]}
    found = spread(streams, 10)
    assert list(found) == list(streams)
    assert {name: len(some) for name, some in found.items()} == {
        "source": 5, "labelled": 1, "unlabelled": 4,
    }  # fmt: skip
    assert [int(path.name) for path in found["source"]] == [6, 18, 30, 42, 54]
    assert all(set(some) <= set(streams[name]) for name, some in found.items())
    assert spread({"validation": paths[:3]}, 10) == {"validation": paths[:3]}


def test_the_data_check_tries_a_captioner(tiny_toy: dict[str, str], tmp_path: Path) -> None:
    root = tiny_toy["runtime.data_root"]
    command = ["data", "--data-root", root, "--cache-dir", str(tmp_path), "--preset", "toy"]
    command += ["--set", "data.budget=4"]
    run = CliRunner().invoke(app, [*command, "--captions", "positions"])
    assert run.exit_code == 0, run.output
    lines = run.output.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("positions, one caption"))
    assert re.match(LINE, lines[at])
    assert len(lines[at + 1 :]) == 10
    assert all(re.match(r"  (source|labelled|unlabelled|validation), ", n) for n in lines[at + 1 :])
    for wrong, said in (("oracle", "upper bound"), ("nothing", "unknown captioner")):
        refused = CliRunner().invoke(app, [*command, "--captions", wrong])
        assert refused.exit_code == 1
        assert said in refused.output


def test_nothing_is_said_of_captions_that_nobody_reads(
    config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config.replace({"model.fusion": "none"})
    assert prepare(config, progress=False) == ""
    experiment = StreetExperiment(config, torch.device("cpu"))
    assert capsys.readouterr().out == ""
    assert experiment.constants == {}
