"""Rare class sampling: its formula, its draws, its crops, and what it leaves as it was."""

import itertools
import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from stopped_run import train_until
from test_loading import equal, make_batches

from semidavil.config import Config, ConfigError, preset
from semidavil.data import rare_classes
from semidavil.data.decoded import open_images
from semidavil.data.rare_classes import (
    RareClasses,
    class_pixels_of_images,
    open_rare_classes,
    prepare_rare_classes,
)
from semidavil.data.transforms import weak_view
from semidavil.train import train

# Six images with pixels of five classes, of which the fourth occurs nowhere, and the last has no image with
# more than 100 pixels.
COUNTS = np.array(
    [
        [900, 50, 0, 0, 0],
        [800, 150, 0, 0, 0],
        [700, 0, 300, 0, 0],
        [950, 0, 0, 0, 40],
        [300, 300, 300, 0, 0],
        [990, 0, 0, 0, 10],
    ]
)


@pytest.fixture
def config(tiny_toy: dict[str, str]) -> Config:
    changes = {"data.store": "off", "data.budget": 5, "training.batch_size": 3}
    return preset("toy", {**changes, "data.sampling": "rare", **tiny_toy})


@pytest.mark.parametrize("temperature", [0.01, 0.5])
def test_classes_are_drawn_by_daformers_formula(temperature: float) -> None:
    rare = RareClasses(COUNTS, temperature, enough=100)
    pixels = [sum(int(row[c]) for row in COUNTS) for c in range(5)]
    scores = [math.exp((1 - n / sum(pixels)) / temperature) if n else 0.0 for n in pixels]
    expected = [score / sum(scores) for score in scores]
    assert rare.probabilities.tolist() == pytest.approx(expected, rel=1e-9)
    assert rare.probabilities.argmax() == 4


def test_images_are_those_with_enough_of_a_class_or_else_with_any() -> None:
    images = [found.tolist() for found in RareClasses(COUNTS, 0.01, enough=100).images]
    assert images == [[0, 1, 2, 3, 4, 5], [1, 4], [2, 4], [], [3, 5]]
    assert RareClasses(COUNTS, 0.01, enough=300).images[2].tolist() == [2, 4]  # none has more


def test_draws_have_the_frequencies_of_the_formula() -> None:
    rare, draws = RareClasses(COUNTS, 0.5, enough=100), 20_000
    rng = np.random.default_rng(0)
    found = np.zeros(COUNTS.shape)
    for image, index in (rare.draw(rng) for _ in range(draws)):
        found[image, index] += 1
    expected = np.zeros(COUNTS.shape)
    for index, (chance, images) in enumerate(zip(rare.probabilities, rare.images, strict=True)):
        for image in images:
            expected[image, index] = chance / len(images)
    assert expected.sum() == pytest.approx(1)
    assert not found[expected == 0].any()
    deviation = np.sqrt(draws * expected * (1 - expected))
    assert (np.abs(found - draws * expected) <= 4 * deviation).all()


def test_batches_depend_on_seed_and_step_alone(config: Config) -> None:
    batches = make_batches(config)
    expected = [batches[step] for step in range(4)]
    again = make_batches(config)
    assert all(equal(again[step], expected[step]) for step in (3, 0, 2, 2))
    assert not equal(expected[0]["source"], expected[1]["source"])
    assert not equal(make_batches(config.replace({"seed": 1}))[3]["source"], expected[3]["source"])


def test_the_source_is_drawn_by_class_and_the_target_as_ever(config: Config) -> None:
    rare, uniform = make_batches(config), make_batches(config.replace({"data.sampling": "uniform"}))
    assert set(rare.rare) == {"source"}
    assert not uniform.rare
    for step in range(3):
        ours, theirs = rare[step], uniform[step]
        assert not equal(ours["source"], theirs["source"])
        assert equal(ours["labelled"], theirs["labelled"])
        assert equal(ours["unlabelled"], theirs["unlabelled"])


def test_without_a_source_labelled_images_are_drawn_by_class(config: Config) -> None:
    alone = make_batches(config, ("labelled",))
    assert set(alone.rare) == {"labelled"}
    drawn = {sample for step in range(20) for sample, _ in alone._draw_rare("labelled", step)}
    assert drawn <= set(alone.samples["labelled"])
    assert len(drawn) > 1


def test_a_crop_is_the_first_of_ten_that_shows_enough_of_its_class(config: Config) -> None:
    config = config.replace({"data.rare_share": 0.05})
    batches = make_batches(config)
    images, crop = batches.images["source"], config.data.crop
    samples, tries = batches.samples["source"], []
    for number, index in itertools.product(range(3), range(19)):
        torch.manual_seed(31 * number + index)
        found = batches._view(images, samples[number], index)
        torch.manual_seed(31 * number + index)
        label = images.label(samples[number]).tolist()
        for attempt in range(10):  # noqa: B007 - how many it took is looked at below
            view = weak_view(images.size, crop)
            top, left, height, width = view.box
            rows = [row[left : left + width] for row in label[top : top + height]]
            share = sum(row.count(index) for row in rows) / (height * width)
            if share > 0.05:
                break
        assert found == view
        tries.append(attempt)
    assert 0 in tries
    assert 9 in tries
    assert set(tries) & set(range(1, 9)), "some crop is found on the way"


def test_uniform_views_draw_nothing_more(config: Config) -> None:
    batches = make_batches(config)
    images, sample = batches.images["source"], batches.samples["source"][0]
    torch.manual_seed(0)
    view = batches._view(images, sample, None)
    state = torch.get_rng_state()
    torch.manual_seed(0)
    assert view == weak_view(images.size, config.data.crop)
    assert torch.equal(torch.get_rng_state(), state)


def test_pixels_are_counted_at_the_working_size_once(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare_rare_classes(config, progress=False)
    batches = make_batches(config)
    samples, images = batches.samples["source"], open_images(config, "gta5")
    counts = batches.rare["source"].counts
    for row, sample in zip(counts, samples, strict=True):
        label = images.label(sample).flatten().tolist()
        assert row.tolist() == [label.count(c) for c in range(19)]
    assert batches.rare["source"].enough == pytest.approx(0.0057 * 32 * 32)

    def unread(sample: object) -> None:
        raise AssertionError("labels were counted before")

    monkeypatch.setattr(images, "label", unread)
    assert np.array_equal(class_pixels_of_images(config, images, samples), counts)
    status = os.stat(samples[0].label)
    os.utime(samples[0].label, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    with pytest.raises(AssertionError, match="counted before"):
        class_pixels_of_images(config, images, samples)
    os.utime(samples[0].label, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_only_what_is_drawn_by_class_is_counted(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[tuple[str, int]] = []

    def note(config: Config, dataset: str, samples: list[object], progress: bool) -> None:
        opened.append((dataset, len(samples)))

    monkeypatch.setattr(rare_classes, "open_rare_classes", note)
    prepare_rare_classes(config.replace({"data.sampling": "uniform"}), False)
    assert not opened
    prepare_rare_classes(config, False)
    prepare_rare_classes(config.replace({"training.method": "target_only"}), False)
    assert [dataset for dataset, _ in opened] == ["gta5", "cityscapes"]
    assert opened[1][1] == 5  # labels of unlabelled images are not looked at


def test_the_temperature_and_the_share_are_the_runs_own(config: Config) -> None:
    samples = make_batches(config).samples["source"]
    changed = config.replace({"data.rare_temperature": 0.2, "data.rare_share": 0.5})
    ours, theirs = (open_rare_classes(c, "gta5", samples) for c in (config, changed))
    assert theirs.enough == 0.5 * 32 * 32
    expected = replace(ours, temperature=0.2).probabilities
    assert theirs.probabilities.tolist() == expected.tolist()
    assert ours.probabilities.max() > theirs.probabilities.max()


def test_volumes_have_no_rare_classes_to_draw_by() -> None:
    with pytest.raises(ConfigError, match=r"data\.sampling=rare .* no volumes"):
        preset(
            "toy",
            {"data.benchmark": "synapse", "training.method": "uamt", "data.sampling": "rare"},
        )


@pytest.mark.slow
def test_a_run_goes_on_with_the_same_draws(tiny_toy: dict[str, str], tmp_path: Path) -> None:
    changes = {
        "data.sampling": "rare", "data.budget": 4, "training.steps": 6, "training.warmup_steps": 0,
        "training.method": "supervised", "runtime.checkpoint_every": 3, **tiny_toy,
    }  # fmt: skip
    config = preset("toy", changes)
    whole = train(config, checkpoint_dir=tmp_path / "whole")
    train_until(config, 4, tmp_path / "parts")
    resumed = train(config, checkpoint_dir=tmp_path / "parts")
    ours, theirs = (load_file(run.artifacts["weights"]) for run in (whole, resumed))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    uniform = train(
        config.replace({"data.sampling": "uniform"}), checkpoint_dir=tmp_path / "uniform"
    )
    others = load_file(uniform.artifacts["weights"])
    assert not all(torch.equal(ours[name], others[name]) for name in ours)
