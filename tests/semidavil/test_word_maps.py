"""Where each word of a caption matters, as `demo` shows it: what the attentions themselves compute with."""

import math

import pytest
import torch
import torch.nn.functional as F
from small_fusions import ATTENTIONS, DIM, LANGUAGE, VISION, language_of, make, make_inputs
from torch import nn


@pytest.mark.parametrize("name", ATTENTIONS)
def test_word_maps_are_what_the_attention_computes_with(name: str) -> None:
    """Weights sum to 1 over a caption's tokens at each pixel; other maps are what the readout reads."""
    fusion = make(name)
    vision, tokens, mask = make_inputs()
    maps = fusion.word_maps(vision, language_of(tokens, mask))
    assert maps.shape == (2, 4, 3, 5)
    assert bool((maps[0, 3] == 0).all())  # padding
    if fusion.words_are_weights:
        torch.testing.assert_close(maps.sum(1), torch.ones(2, 3, 5, dtype=torch.float64))
        assert bool((maps >= 0).all())
        return
    # Of these, M is the maps themselves: reading them gives the fusion's output.
    pixels = vision.flatten(2).transpose(1, 2)
    read = fusion.readout(pixels, maps.flatten(2).transpose(1, 2))
    expected = fusion(vision, language_of(tokens, mask))
    torch.testing.assert_close(read.transpose(1, 2).reshape(vision.shape), expected)


def test_word_maps_of_dlg_are_its_softmax_over_tokens() -> None:
    fusion = make("dlg")
    vision, tokens, mask = make_inputs()
    maps = fusion.word_maps(vision, language_of(tokens, mask))
    for image, said, real, found in zip(vision, tokens, mask, maps, strict=True):
        keys = said[real] @ fusion.language_key.weight.T + fusion.language_key.bias
        for i, j in ((0, 0), (2, 4)):
            query = fusion.vision_key.weight @ image[:, i, j] + fusion.vision_key.bias
            scores = [(query @ key).item() / math.sqrt(DIM) for key in keys]
            total = sum(math.exp(score) for score in scores)
            expected = [math.exp(score) / total for score in scores]
            assert found[real][:, i, j].tolist() == pytest.approx(expected)


def test_word_maps_of_cross_attention_are_the_weights_of_pytorchs_own() -> None:
    fusion = make("cross_attention")
    vision, tokens, mask = make_inputs()
    pixels = vision.flatten(2).transpose(1, 2)
    normed = F.layer_norm(pixels, [VISION], fusion.vision_norm.weight, fusion.vision_norm.bias)
    said = F.layer_norm(tokens, [LANGUAGE], fusion.language_norm.weight, fusion.language_norm.bias)
    reference = nn.MultiheadAttention(DIM, fusion.num_heads, batch_first=True).double()
    with torch.no_grad():
        reference.in_proj_weight.copy_(torch.eye(DIM).repeat(3, 1))
        reference.in_proj_bias.zero_()
    queries, keys = fusion.query(normed), fusion.key(said)
    _, weights = reference(queries, keys, keys, key_padding_mask=~mask, need_weights=True)
    found = fusion.word_maps(vision, language_of(tokens, mask))
    torch.testing.assert_close(found.flatten(2).transpose(1, 2), weights)
