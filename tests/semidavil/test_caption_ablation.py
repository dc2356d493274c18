"""Shuffled and oracle captions."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from harbour import DESCRIPTION, write_harbour
from png_files import write_png

from semidavil.config import Config, ConfigError, preset
from semidavil.data.streams import all_samples
from semidavil.descriptions import BenchmarkFile, DataSet
from semidavil.experiments.street import load_captions
from semidavil.language.ablations import inner_captioner, oracle_captions, shuffle_captions
from semidavil.language.captions import Caption
from semidavil.models.vlm import load_vlm
from semidavil.registry import add


def test_shuffling_gives_every_image_another_ones_caption_of_its_group() -> None:
    groups = [[Path(f"{name}{i}") for i in range(9)] for name in "ab"]
    captions = {path: Caption((f"caption of {path}",)) for group in groups for path in group}
    shuffled = shuffle_captions(captions, groups)
    for group in groups:
        given, taken = ({one[path].texts for path in group} for one in (captions, shuffled))
        assert given == taken
        assert all(shuffled[path] != captions[path] for path in group)
    assert shuffled == shuffle_captions(captions, groups)


def test_captioners_inside() -> None:
    assert inner_captioner("shuffled:positions") == "positions"
    assert inner_captioner("shuffled:blip:some/model") == "blip:some/model"
    assert inner_captioner("blip2:some/model") == "blip2:some/model"


def test_the_oracle_says_what_the_label_holds(tmp_path: Path) -> None:
    root = tmp_path / "data" / "cityscapes"
    label = np.full((40, 60), 7, np.uint8)  # road
    label[:14] = 23  # sky
    label[10:30, :15] = 11  # a building on the left
    label[38:] = 0  # unlabelled
    for split in ("train", "val"):
        stem = f"{split}/town/town_000000_000019"
        write_png(root / "leftImg8bit" / f"{stem}_leftImg8bit.png", np.zeros((40, 60, 3), np.uint8))
        write_png(root / "gtFine" / f"{stem}_gtFine_labelIds.png", label)
    config = preset(
        "small",
        {"data.benchmark": "cityscapes-cityscapes", "data.budget": 1,
         "runtime.data_root": str(tmp_path / "data"), "runtime.cache_dir": str(tmp_path / "c")},
    )  # fmt: skip
    samples = all_samples(config)
    texts = oracle_captions(config, samples, tmp_path / "captions")
    expected = "a street scene with road at the bottom, sky at the top, building on the left"
    assert set(texts.values()) == {Caption((expected,))}
    assert len(texts) == 2


def test_the_oracle_of_another_map_says_other_words(tmp_path: Path) -> None:
    """Two benchmarks of one data set and of the same classes shared what was kept of the first."""
    write_harbour(tmp_path / "harbour")
    about = DataSet.model_validate(yaml.safe_load(DESCRIPTION))
    found = []
    for low, high in (("water", "sky"), ("sky", "water")):
        file = BenchmarkFile(
            name="two", target=about, classes=("low", "high"), map={low: "low", high: "high"}
        )
        config = preset(
            "small",
            {"data.benchmark": add(file), "data.budget": 1, "runtime.data_root": str(tmp_path),
             "runtime.cache_dir": str(tmp_path / "c")},
        )  # fmt: skip
        texts = oracle_captions(config, all_samples(config), tmp_path / "captions")
        found.append({text for caption in texts.values() for text in caption.texts})
    assert not found[0] & found[1]


def test_training_takes_the_ablations_captions(tiny_toy: dict[str, str]) -> None:
    vlm = load_vlm("toy", "bundled")
    config = preset("toy", {**tiny_toy, "data.budget": 4})
    plain = load_captions(config, vlm)
    shuffled = load_captions(config.replace({"model.captions": "shuffled:positions"}), vlm)
    oracle = load_captions(config.replace({"model.captions": "oracle"}), vlm)
    assert plain.keys() == shuffled.keys() == oracle.keys()
    given, taken = (sorted(c.texts for c in one.values()) for one in (plain, shuffled))
    assert given == taken
    assert sum(plain[path] == shuffled[path] for path in plain) < len(plain) / 2
    assert all("road" in c.texts[0] and "building" in c.texts[0] for c in oracle.values())


def test_the_oracle_is_refused_outside_its_grid() -> None:
    from semidavil.config import refuse_oracle

    with pytest.raises(ConfigError, match="--grid captions"):
        refuse_oracle(Config().replace({"model.captions": "oracle"}))
    refuse_oracle(Config())
