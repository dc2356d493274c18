"""The text tower: token features, padding, what is remembered."""

from typing import Any

import pytest
import torch
from small_clip import WORDS

from semidavil.models.text import Language
from semidavil.models.vlm import VLM

CAPTIONS = ["a road", "a street scene with a car on the left and sky at the top", "", "sky"]


@pytest.fixture(params=["bpe", "words"])
def vlm(request: pytest.FixtureRequest, tiny: Any, words: VLM) -> VLM:
    return tiny.vlm if request.param == "bpe" else words


def test_tokens_are_the_towers_and_the_mask_ends_with_the_end_token(vlm: VLM) -> None:
    language = vlm.text(CAPTIONS)
    assert language.tokens.shape == (4, int(language.mask.sum(1).max()), 24)
    # start, words, end; the second caption has 14 words and is one token longer than the context
    assert language.mask.sum(1).tolist() == [4, 16, 2, 3]
    assert language.mask[0].tolist() == [True] * 4 + [False] * 12
    tower = vlm.text.tower
    for text, tokens, mask in zip(CAPTIONS, language.tokens, language.mask, strict=True):
        ids = vlm.text.tokenizer([text])
        x, attention_mask = tower._embeds(ids)
        expected = tower.ln_final(tower.transformer(x, attn_mask=attention_mask))[0]
        count = int(mask.sum())
        torch.testing.assert_close(tokens[:count], expected[:count], rtol=0, atol=1e-5)
        assert (tokens[count:] == 0).all()


def test_pooled_embedding_is_open_clips(tiny: Any) -> None:
    ids = tiny.vlm.text.tokenizer(["a road", "sky"])
    expected = tiny.reference.encode_text(ids, normalize=True)
    torch.testing.assert_close(tiny.vlm.text.embed(["a road", "sky"]), expected, rtol=0, atol=1e-5)


def test_a_captions_features_do_not_depend_on_the_batch_to_the_last_bit(
    vlm: VLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = [f"{word} at the top" for word in WORDS]
    together = vlm.text(many)
    batches: list[int] = []
    encode = vlm.text.tower.forward_intermediates
    monkeypatch.setattr(
        vlm.text.tower,
        "forward_intermediates",
        lambda ids, **options: batches.append(len(ids)) or encode(ids, **options),
    )
    for index in (3, 0, 17):
        alone = vlm.text([many[index]])
        count = int(alone.mask.sum())
        assert torch.equal(alone.tokens[0], together.tokens[index, :count])
    # Shapes decide how a matrix product is computed, so there is only one.
    assert batches == [vlm.text.BATCH] * 3


def test_equal_captions_of_one_call_are_encoded_once(
    vlm: VLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[str] = []
    encode = vlm.text._encode
    monkeypatch.setattr(vlm.text, "_encode", lambda texts: encoded.extend(texts) or encode(texts))
    tokens = vlm.text(["a road", "sky", "a road"]).tokens
    assert encoded == ["a road", "sky"]
    assert torch.equal(tokens[0], tokens[2])


def test_text_encoder_stays_frozen_and_serves_training(vlm: VLM) -> None:
    assert not any(parameter.requires_grad for parameter in vlm.text.parameters())
    assert not vlm.text.train().training
    plain = vlm.text(CAPTIONS).tokens
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        vlm.text(CAPTIONS)
    tokens = vlm.text(CAPTIONS).tokens
    assert torch.equal(tokens, plain)
    weight = torch.rand(24, requires_grad=True)
    (tokens * weight).square().sum().backward()  # fails on inference tensors
    assert weight.grad is not None


def test_resized_positions_from_inference_mode_serve_training(tiny: Any) -> None:
    images = torch.rand(1, 3, 72, 8)  # a size of no other test
    with torch.inference_mode():
        tiny.vlm.vision(images)
    tiny.vlm.vision(images).sum().backward()
    tiny.vlm.vision.zero_grad()


def test_token_counts_tell_what_fits(vlm: VLM) -> None:
    fits = "a street scene with a car on the left and sky at the"  # 13 words + 2
    counts = vlm.text.count_tokens(
        ["sky", fits, f"{fits} top right", f"{fits} top right bottom car"]
    )
    assert counts == [3, 15, 17, 17]


def test_language_slices_joins_and_knows_its_real_tokens() -> None:
    first = Language.of(list(torch.rand(2, 4, 2)))
    language = Language.joined([first, Language.of([torch.rand(1, 2), torch.rand(6, 2)])])
    assert language.tokens.shape == (4, 6, 2)
    assert language.lengths == (4, 4, 1, 6)
    assert torch.equal(language.mask.sum(1), torch.tensor([4, 4, 1, 6]))
    assert not language.tokens[~language.mask].any()
    assert torch.equal(language.real(), language.mask.flatten().nonzero().flatten())
    assert language[1:3].lengths == language[[1, 2]].lengths == (4, 1)
    assert language.to("cpu")[:1].mask.shape == (1, 6)
    assert language[2:3].repeat(2).lengths == (1, 1)
