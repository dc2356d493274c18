"""Where each word of a caption matters to a finished network."""

from pathlib import Path

import numpy as np
import pytest
import torch

from semidavil.config import preset
from semidavil.data.augment import as_floats
from semidavil.experiments.attention import REST, owners, why_no_words, word_maps
from semidavil.experiments.predictor import Predictor
from semidavil.experiments.street import build_method, vlm_of
from semidavil.models.layers import upsample
from semidavil.models.weights import save_weights
from semidavil.names import WEIGHTS
from semidavil.plugin_files import read
from semidavil.plugins import use

CAPTION = "a road with cars, left"


def untrained(folder: Path, **changes: str) -> Predictor:
    config = preset("toy", {name.replace("__", "."): value for name, value in changes.items()})
    network = build_method(config, vlm_of(config), 19).student
    save_weights(folder / WEIGHTS, network, config, "student")
    return Predictor.load(folder / WEIGHTS, "cpu")


def test_tokens_belong_to_the_words_that_they_are_of(tmp_path: Path) -> None:
    text = untrained(tmp_path).vlm.text

    def of(caption: str) -> tuple[tuple[str, ...], tuple[str, ...], list[int]]:
        return owners(text, caption, text([caption]).lengths[0])

    words, cut, owner = of(CAPTION)  # the comma is a token of its own
    assert (words, cut) == (("a", "road", "with", "cars,", "left", REST), ())
    assert owner == [5, 0, 1, 2, 3, 3, 4, 5]
    assert of("") == ((REST,), (), [0, 0])
    words, cut, owner = of(" ".join(["road"] * 100))
    assert len(words) - 1 + len(cut) == 100
    assert len(owner) == text.max_tokens
    assert owner.count(len(words) - 1) == 2


def test_maps_of_words_are_the_attentions_own(tmp_path: Path) -> None:
    """Of one window: tokens' maps, summed up by word, at the picture's size. Weights sum to 1 over words."""
    predictor = untrained(tmp_path, model__fusion="dlg", data__target_size="32x32")
    image = np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)
    found = word_maps(predictor, image, CAPTION)
    assert found.are_weights
    assert np.allclose(found.maps.sum(0), 1, atol=1e-5)
    language = predictor.language(CAPTION)
    with torch.no_grad():
        vision = predictor.network.encode(
            as_floats(torch.tensor(image).permute(2, 0, 1)[None])
        ).vision
        tokens = predictor.network.fusion.word_maps(vision, language)
    large = upsample(tokens, (32, 32))[0].numpy()
    assert np.allclose(found.maps[1], large[2], atol=1e-6)  # road
    assert np.allclose(found.maps[3], large[4] + large[5], atol=1e-6)  # "cars" and its comma
    assert np.allclose(found.maps[5], large[0] + large[7], atol=1e-6)  # start and end


@pytest.mark.parametrize("fusion", ["cross_attention", "wpct", "vlga"])
def test_windows_of_a_picture_of_any_size_are_joined(fusion: str, tmp_path: Path) -> None:
    predictor = untrained(tmp_path, model__fusion=fusion)
    image = np.random.default_rng(0).integers(0, 255, (45, 130, 3), np.uint8)
    found = word_maps(predictor, image, CAPTION)
    assert found.maps.shape == (6, *predictor.working_size((45, 130)))
    assert np.isfinite(found.maps).all()
    assert found.are_weights == (fusion == "cross_attention")
    if found.are_weights:
        assert np.allclose(found.maps.sum(0), 1, atol=1e-5)


ODD = """
from torch import nn
class Odd(nn.Module):
    words_are_weights = True
    def __init__(self, towers, dim):
        super().__init__()
    def forward(self, vision, language):
        return vision{forward}
    def word_maps(self, vision, language):
        return {maps}
FUSIONS = {{"odd": Odd}}
"""


@pytest.mark.parametrize(
    ("forward", "maps", "told"),
    [
        (".flatten(2)", "None", r"forward of the attention Odd returns \(1, 96, 16\) where \(1, 96, 4, 4\)"),
        (", None", "None", r"forward of the attention Odd returns a tuple where \(1, 96, 4, 4\)"),
        ("", "vision", r"word_maps of the attention Odd returns \(1, 96, 4, 4\) where \(1, 8, 4, 4\)"),
    ],
)  # fmt: skip
def test_a_plugins_attention_of_another_shape_is_named(
    forward: str, maps: str, told: str, tmp_path: Path
) -> None:
    (tmp_path / "my.py").write_text(ODD.format(forward=forward, maps=maps))
    with use(read(tmp_path / "my.py")):
        predictor = untrained(tmp_path, model__fusion="odd", data__target_size="32x32")
        image = np.zeros((32, 32, 3), np.uint8)
        look = word_maps if told.startswith("word_maps") else Predictor.__call__
        with pytest.raises(ValueError, match=rf"my\.py, line 3: {told} is wanted, as to_grid"):
            look(predictor, image, CAPTION)


def test_networks_that_read_no_words_say_why(tmp_path: Path) -> None:
    blind = untrained(tmp_path, model__fusion="blank")
    assert why_no_words(blind) == "The attention blank reads no caption."
    with pytest.raises(ValueError, match="reads no caption"):
        word_maps(blind, np.zeros((8, 8, 3), np.uint8), "a road")
    (tmp_path / "my.py").write_text(
        ODD.format(forward="", maps="vision").replace("words_are_weights = True", "pass")
    )
    with use(read(tmp_path / "my.py")):
        assert "does not say whether" in why_no_words(untrained(tmp_path, model__fusion="odd"))
    released = untrained(tmp_path, training__method="semidavil_released")
    assert "reads no words" in why_no_words(released)
