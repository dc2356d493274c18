"""Every fusion against its formula, computed here a second time in float64 with loops and einsum."""

import math

import pytest
import torch
import torch.nn.functional as F
from small_fusions import (
    ATTENTIONS,
    DIM,
    LANGUAGE,
    MAX_TOKENS,
    VISION,
    language_of,
    make,
    make_inputs,
)
from torch import Tensor, nn

from semidavil.config import preset
from semidavil.models.fusion import (
    DLG,
    FUSIONS,
    VLGA,
    WPCT,
    Blank,
    BottleneckBlock,
    CrossAttention,
    masked_softmax,
)
from semidavil.models.segmenter import build_segmenter
from semidavil.models.vlm import load_vlm


def readout(fusion: nn.Module, pixel: Tensor, maps: Tensor) -> Tensor:
    """F_V + LayerNorm(W [F_V ; W_m M]) for one pixel (c_v,) and its maps (m,)."""
    part = fusion.readout
    mixed = part.mix.weight @ torch.cat([pixel, part.maps.weight @ maps + part.maps.bias])
    mixed = mixed + part.mix.bias
    centred = mixed - mixed.mean()
    normed = centred / (centred.pow(2).mean() + part.norm.eps).sqrt()
    return pixel + normed * part.norm.weight + part.norm.bias


def expected_dlg(fusion: DLG, vision: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    """Eq. 2-3 one image at a time over its real tokens alone, so there is nothing to mask."""
    rows = []
    for image, words, real in zip(vision, tokens, mask, strict=True):
        pixels, words = image.flatten(1).T, words[real]
        linear = lambda layer, x: torch.einsum("oi,ni->no", layer.weight, x) + layer.bias  # noqa: E731
        attention = linear(fusion.vision_key, pixels) @ linear(fusion.language_key, words).T
        attention = attention / math.sqrt(DIM)
        by_token = attention.exp() / attention.exp().sum(1, keepdim=True)
        by_pixel = attention.exp() / attention.exp().sum(0, keepdim=True)
        vision_attended = by_token @ linear(fusion.language_value, words)
        language_attended = by_pixel.T @ linear(fusion.vision_value, pixels)
        multimodal = vision_attended @ language_attended.T / math.sqrt(DIM)
        padded = torch.zeros(len(pixels), MAX_TOKENS, dtype=torch.float64)
        slots = real.nonzero().flatten()
        padded = padded.index_copy(1, slots, multimodal)
        maps = torch.cat([vision_attended, padded], dim=1)
        out = torch.stack([readout(fusion, p, m) for p, m in zip(pixels, maps, strict=True)])
        rows.append(out.T.reshape(image.shape))
    return torch.stack(rows)


def expected_cross_attention(
    fusion: CrossAttention, vision: Tensor, tokens: Tensor, mask: Tensor
) -> Tensor:
    """PyTorch's own multi-head attention with the fusion's weights, normalised before, read after."""
    pixels = vision.flatten(2).transpose(1, 2)
    normed = F.layer_norm(pixels, [VISION], fusion.vision_norm.weight, fusion.vision_norm.bias)
    words = F.layer_norm(tokens, [LANGUAGE], fusion.language_norm.weight, fusion.language_norm.bias)
    queries = F.linear(normed, fusion.query.weight, fusion.query.bias)
    keys = F.linear(words, fusion.key.weight, fusion.key.bias)
    values = F.linear(words, fusion.value.weight, fusion.value.bias)
    reference = nn.MultiheadAttention(DIM, fusion.num_heads, batch_first=True).double()
    with torch.no_grad():  # its own projections become identities
        reference.in_proj_weight.copy_(torch.eye(DIM).repeat(3, 1))
        reference.in_proj_bias.zero_()
        reference.out_proj.weight.copy_(torch.eye(DIM))
        reference.out_proj.bias.zero_()
    attended, _ = reference(queries, keys, values, key_padding_mask=~mask)
    rows = [
        torch.stack([readout(fusion, p, m) for p, m in zip(image, maps, strict=True)])
        for image, maps in zip(pixels, attended, strict=True)
    ]
    return torch.stack(rows).transpose(1, 2).reshape(vision.shape)


def expected_blank(fusion: Blank, vision: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    nothing = torch.zeros(MAX_TOKENS, dtype=torch.float64)
    rows = [
        torch.stack([readout(fusion, pixel, nothing) for pixel in image.flatten(1).T])
        for image in vision
    ]
    return torch.stack(rows).transpose(1, 2).reshape(vision.shape)


def cosine(fusion: nn.Module, pixel: Tensor, word: Tensor) -> Tensor:
    image = fusion.similarity.vision.weight @ pixel
    text = fusion.similarity.language.weight @ word + fusion.similarity.language.bias
    return image @ text / (image.norm() * text.norm())


def similarity_maps(fusion: nn.Module, image: Tensor, words: Tensor) -> Tensor:
    """(N, h, w) cosine similarities, entry by entry."""
    _, height, width = image.shape
    return torch.stack(
        [
            torch.stack(
                [
                    torch.stack([cosine(fusion, image[:, i, j], word) for j in range(width)])
                    for i in range(height)
                ]
            )
            for word in words
        ]
    )


def read_maps(fusion: nn.Module, image: Tensor, maps: Tensor, real: Tensor) -> Tensor:
    """The common readout of one map (h, w) per real token."""
    padded = torch.zeros(MAX_TOKENS, *maps.shape[1:], dtype=torch.float64)
    padded = padded.index_copy(0, real.nonzero().flatten(), maps).flatten(1).T
    pixels = image.flatten(1).T
    out = torch.stack([readout(fusion, p, m) for p, m in zip(pixels, padded, strict=True)])
    return out.T.reshape(image.shape)


def expected_wpct(fusion: WPCT, vision: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    rows = []
    for image, words, real in zip(vision, tokens, mask, strict=True):
        maps = similarity_maps(fusion, image, words[real]) * fusion.log_temperature.exp()
        kernel = fusion.block.depthwise
        for lowest in (0.0, -math.inf):  # LSeg's last application has no activation
            smoothed = torch.stack(
                [F.conv2d(m[None, None], kernel.weight, kernel.bias, padding=1) for m in maps]
            )[:, 0, 0]
            maps = (smoothed + maps.max(0).values).clamp(min=lowest)
        rows.append(read_maps(fusion, image, maps, real))
    return torch.stack(rows)


def normalised(maps: Tensor, norm: nn.GroupNorm) -> Tensor:
    """ReLU of group norm over (N, d, h, w), group by group."""
    rows = []
    for one in maps:
        groups = []
        for group in one.chunk(norm.num_groups):
            centred = group - group.mean()
            groups.append(centred / (centred.pow(2).mean() + norm.eps).sqrt())
        rows.append(torch.cat(groups))
    scaled = torch.stack(rows) * norm.weight.view(-1, 1, 1) + norm.bias.view(-1, 1, 1)
    return scaled.clamp(min=0)


def expected_aspp(aspp: nn.Module, maps: Tensor) -> Tensor:
    branches = []
    for branch, rate in zip(aspp.branches, (1, 6, 12, 18), strict=True):
        weight = branch.conv.weight
        padding = 0 if rate == 1 else rate
        assert weight.shape[-1] == (1 if rate == 1 else 3)
        branches.append(
            normalised(F.conv2d(maps, weight, padding=padding, dilation=rate), branch.norm)
        )
    mean = F.conv2d(maps.mean((2, 3), keepdim=True), aspp.pooled.conv.weight)
    branches.append(normalised(mean, aspp.pooled.norm).expand(maps.shape))
    return maps + normalised(F.conv2d(torch.cat(branches, 1), aspp.fuse.weight), aspp.norm)


def expected_reasoning(layer: nn.Module, x: Tensor, text: Tensor) -> Tensor:
    """One transformer layer over the N maps (N, d) of one pixel."""
    normed = F.layer_norm(x, x.shape[-1:], layer.norm.weight, layer.norm.bias)
    guided = torch.cat([normed, text], dim=1)
    q, k, v = layer.query(guided), layer.key(guided), layer.value(normed)
    size = q.shape[1] // layer.num_heads
    heads = []
    for part in (slice(h * size, (h + 1) * size) for h in range(layer.num_heads)):
        weights = (q[:, part] @ k[:, part].T / math.sqrt(size)).softmax(1)
        heads.append(weights @ v[:, part])
    x = x + layer.project(torch.cat(heads, dim=1))
    return x + layer.mlp(x)


def expected_vlga(fusion: VLGA, vision: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    """One image at a time over its real tokens; pooled windows and heads by explicit loops."""
    rows = []
    assert len(fusion.layers) == 2
    for image, words, real in zip(vision, tokens, mask, strict=True):
        words = words[real]
        _, height, width = image.shape
        maps = similarity_maps(fusion, image, words)[:, None]  # (N, 1, h, w)
        maps = F.conv2d(maps, fusion.embed.weight, fusion.embed.bias, padding=3)
        maps = expected_aspp(fusion.aspp, maps)
        joint = words @ fusion.similarity.language.weight.T + fusion.similarity.language.bias
        text = fusion.text(joint / joint.norm(dim=1, keepdim=True))
        for layer in fusion.layers:
            windows = [
                [
                    expected_reasoning(layer, maps[:, :, t : t + 4, x : x + 4].mean((2, 3)), text)
                    for x in range(0, width, 4)
                ]
                for t in range(0, height, 4)
            ]
            reasoned = torch.stack([torch.stack(row, dim=-1) for row in windows], dim=-2)
            maps = maps + F.interpolate(reasoned, (height, width), mode="bilinear")
        per_token = torch.einsum("ndhw,d->nhw", maps, fusion.to_map.weight[0]) + fusion.to_map.bias
        rows.append(read_maps(fusion, image, per_token, real))
    return torch.stack(rows)


EXPECTED = {
    "dlg": expected_dlg,
    "vlga": expected_vlga,
    "wpct": expected_wpct,
    "cross_attention": expected_cross_attention,
    "blank": expected_blank,
}


@pytest.mark.parametrize("name", EXPECTED)
def test_values_and_gradients_agree_with_the_formula(name: str) -> None:
    fusion = make(name)
    vision, tokens, mask = make_inputs()
    probe = torch.randn(vision.shape, generator=torch.Generator().manual_seed(2)).double()

    def gradients(output: Tensor) -> list[Tensor]:
        leaves = [vision, tokens, *fusion.parameters()]
        return torch.autograd.grad(
            (output * probe).sum(), leaves, allow_unused=True, materialize_grads=True
        )

    actual, expected = (
        fusion(vision, language_of(tokens, mask)),
        EXPECTED[name](fusion, vision, tokens, mask),
    )
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)
    for ours, theirs in zip(gradients(actual), gradients(expected), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", FUSIONS)
def test_padding_tokens_change_nothing(name: str) -> None:
    fusion = make(name)
    vision, tokens, mask = make_inputs()
    garbage = tokens.detach().clone()
    garbage[~mask] = 1e3
    longer = F.pad(garbage, (0, 0, 0, 2), value=-50.0)
    longer_mask = F.pad(mask, (0, 2))
    torch.testing.assert_close(
        fusion(vision, language_of(tokens, mask)), fusion(vision, language_of(garbage, mask))
    )
    torch.testing.assert_close(
        fusion(vision, language_of(tokens, mask)), fusion(vision, language_of(longer, longer_mask))
    )


@pytest.mark.parametrize("name", ATTENTIONS)
def test_the_caption_matters(name: str) -> None:
    fusion = make(name)
    vision, tokens, mask = make_inputs()
    assert not torch.allclose(
        fusion(vision, language_of(tokens, mask)), fusion(vision, language_of(tokens.flip(0), mask))
    )


@pytest.mark.parametrize("name", FUSIONS)
def test_a_caption_without_any_token_gives_finite_features_and_gradients(name: str) -> None:
    fusion = make(name)
    vision, tokens, mask = make_inputs()
    output = fusion(vision, language_of(tokens, torch.zeros_like(mask)))
    output.sum().backward()
    assert output.isfinite().all()
    assert vision.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in fusion.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", FUSIONS)
def test_shape_is_kept_and_images_do_not_mix(name: str) -> None:
    fusion = make(name)
    vision, tokens, mask = make_inputs(height=9, width=6)
    together = fusion(vision, language_of(tokens, mask))
    assert together.shape == vision.shape
    alone = fusion(vision[1:], language_of(tokens[1:], mask[1:]))
    torch.testing.assert_close(together[1:], alone)


@pytest.mark.parametrize("name", ["dlg", "vlga", "wpct"])
def test_more_tokens_than_channels_are_refused(name: str) -> None:
    vision, tokens, mask = make_inputs(num_tokens=MAX_TOKENS + 1)
    with pytest.raises(
        ValueError, match=r"a map of (8|72) channels .* made for (7|71) \(map_dim\).*fewer classes"
    ):
        make(name)(vision, language_of(tokens, mask))


@pytest.mark.parametrize("name", [name for name in FUSIONS if name != "none"])
def test_one_readout_reads_them_all(name: str) -> None:
    """Nothing but the map differs between two attentions: none reads it in a way of its own."""
    fusion = make(name)
    vision, tokens, mask = make_inputs()
    with torch.no_grad():  # a map that is not read leaves what `blank` gives
        for other in (fusion, blank := make("blank")):
            other.readout.maps.weight.zero_()
            other.readout.maps.bias.zero_()
            other.readout.mix.weight.copy_(torch.eye(VISION, VISION + DIM))
            other.readout.mix.bias.zero_()
    torch.testing.assert_close(
        fusion(vision, language_of(tokens, mask)), blank(vision, language_of(tokens, mask))
    )


@pytest.mark.parametrize("name", ["vlga", "wpct"])
def test_similarity_starts_in_the_joint_space_of_clip(name: str) -> None:
    """Before any training, a map is the cosine of CLIP's own embeddings of pixel and word."""
    vlm = load_vlm("toy", "bundled")
    student = build_segmenter(preset("toy", {"model.fusion": name}).model, vlm, 19)
    images, language = torch.rand(2, 3, 64, 64), vlm.text(["a road", "sky at the top"])
    tower, text = vlm.vision.tower, vlm.text.tower
    with torch.no_grad():
        pixels = vlm.vision(images).flatten(2).transpose(1, 2)
        image = F.normalize(pixels @ tower.proj, dim=-1)
        words = F.normalize(language.tokens @ text.text_projection, dim=-1)
        found = student.fusion.similarity(pixels, language.tokens)
    torch.testing.assert_close(found, image @ words.mT)
    # The end token's embedding is the sentence's.
    last = language.mask.sum(1) - 1
    torch.testing.assert_close(
        words[torch.arange(2), last], vlm.text.embed(["a road", "sky at the top"])
    )
    assert all(p.requires_grad for p in student.fusion.similarity.parameters())


def test_none_is_the_vision_features() -> None:
    vision, tokens, mask = make_inputs()
    assert torch.equal(make("none")(vision, language_of(tokens, mask)), vision)


def test_both_attended_features_of_dlg_are_convex_combinations() -> None:
    fusion = make("dlg")
    vision, tokens, mask = make_inputs()
    pixels = vision.flatten(2).transpose(1, 2)
    with torch.no_grad():  # constant values come back unchanged if the weights sum to one
        fusion.language_value.weight.zero_()
        fusion.language_value.bias.fill_(2.0)
        fusion.vision_value.weight.zero_()
        fusion.vision_value.bias.fill_(3.0)
    by_token, by_pixel, multimodal = fusion.attend(pixels, tokens, mask)
    torch.testing.assert_close(by_token, torch.full_like(by_token, 2.0))
    torch.testing.assert_close(by_pixel[mask], torch.full_like(by_pixel[mask], 3.0))
    assert (by_pixel[~mask] == 0).all()
    torch.testing.assert_close(multimodal[1], torch.full_like(multimodal[1], 6.0 * DIM))


def test_the_last_block_of_wpct_has_no_activation() -> None:
    """Maps that fall below zero at the end are read as they are; LSeg's earlier blocks cut them off."""
    fusion = make("wpct")
    vision, tokens, mask = make_inputs()
    with torch.no_grad():
        fusion.block.depthwise.bias.fill_(-100.0)
    found, expected = (
        fusion(vision, language_of(tokens, mask)),
        expected_wpct(fusion, vision, tokens, mask),
    )
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    with torch.no_grad():  # all zeros, had it been cut off at the end as well
        fusion.readout.maps.weight.zero_()
    assert not torch.allclose(fusion(vision, language_of(tokens, mask)), found)


def test_bottleneck_maximum_is_over_real_tokens() -> None:
    block = BottleneckBlock().double()
    with torch.no_grad():
        block.depthwise.weight.zero_()
        block.depthwise.bias.zero_()
    maps = torch.tensor([1.0, 2.0, 9.0]).double().view(1, 3, 1, 1).expand(1, 3, 2, 2)
    mask = torch.tensor([[True, True, False]])
    assert (block(maps, mask) == 2.0).all()


def test_masked_softmax_sums_to_one_over_the_mask() -> None:
    scores = torch.tensor([[1.0, 2.0, 300.0]])
    weights = masked_softmax(scores, torch.tensor([[True, True, False]]), dim=1)
    expected = torch.tensor([[1.0, math.e, 0.0]]) / (1 + math.e)
    torch.testing.assert_close(weights, expected)


@pytest.mark.parametrize("name", ["dlg", "cross_attention"])
def test_a_caption_without_any_token_is_attended_as_zero(name: str) -> None:
    """As `blank`, whose map is 0: no softmax over nothing leaves anything behind."""
    fusion, blank = make(name), make("blank")
    with torch.no_grad():
        blank.readout.maps.bias.copy_(fusion.readout.maps.bias)
        for part in ("mix", "norm"):
            getattr(blank.readout, part).load_state_dict(getattr(fusion.readout, part).state_dict())
    vision, tokens, mask = make_inputs()
    nothing = language_of(tokens, torch.zeros_like(mask))
    torch.testing.assert_close(fusion(vision, nothing), blank(vision, nothing))
