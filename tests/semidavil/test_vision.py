"""The image tower against open_clip itself and against a computation from the weights alone."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_clip import MEAN, RESNET, STD, save_clip
from torch import Tensor

from semidavil.models.vision import resize_positions
from semidavil.models.vlm import VLM, load_vlm


def by_hand(state: dict[str, Tensor], images: Tensor, heads: int, mask_clip: bool) -> Tensor:
    """Normalised patch tokens (B, hw, c) of a ViT, or MaskCLIP embeddings, from weights alone."""

    def get(name: str) -> Tensor:
        return state[f"visual.{name}"].double()

    def norm(x: Tensor, name: str) -> Tensor:
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        return x * get(f"{name}.weight") + get(f"{name}.bias")

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ get(f"{name}.weight").T + get(f"{name}.bias")

    mean, std = (torch.tensor(value).double().view(3, 1, 1) for value in (MEAN, STD))
    x = (images - mean) / std
    weight = get("conv1.weight")
    size = weight.shape[-1]
    patches = x.unfold(2, size, size).unfold(3, size, size)  # (B, 3, h, w, size, size)
    x = torch.einsum("bchwij,ocij->bhwo", patches, weight).flatten(1, 2)
    x = torch.cat([get("class_embedding").expand(len(x), 1, -1), x], 1)
    x = norm(x + get("positional_embedding"), "ln_pre")
    layers = sum(name.endswith("ln_1.weight") and "visual" in name for name in state)
    for layer in range(layers):
        block = f"transformer.resblocks.{layer}"
        y = norm(x, f"{block}.ln_1")
        y = y @ get(f"{block}.attn.in_proj_weight").T + get(f"{block}.attn.in_proj_bias")
        q, k, v = y.unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
        if mask_clip and layer == layers - 1:
            weights = torch.eye(x.shape[1]).double()  # each token attends to itself
        x = x + linear((weights @ v).transpose(1, 2).flatten(2), f"{block}.attn.out_proj")
        y = linear(norm(x, f"{block}.ln_2"), f"{block}.mlp.c_fc")
        y = 0.5 * y * (1 + torch.erf(y / math.sqrt(2)))
        x = x + linear(y, f"{block}.mlp.c_proj")
    x = norm(x, "ln_post")[:, 1:]
    return F.normalize(x @ get("proj"), dim=-1) if mask_clip else x


@pytest.mark.parametrize("mask_clip", [False, True])
def test_values_and_gradients_match_a_computation_by_hand(tiny: Any, mask_clip: bool) -> None:
    encoder = copy.deepcopy(tiny.vlm.vision).double()
    images = torch.rand(2, 3, 32, 32).double().requires_grad_()
    state = {k: v.double().requires_grad_() for k, v in tiny.reference.state_dict().items()}
    expected = by_hand(state, images, heads=2, mask_clip=mask_clip)
    ours = encoder.embed(images) if mask_clip else encoder(images)
    assert ours.shape == (2, 20 if mask_clip else 32, 4, 4)
    ours = ours.flatten(2).transpose(1, 2)
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-10)
    direction = torch.randn_like(expected)
    (image_gradient,) = torch.autograd.grad((expected * direction).sum(), images, retain_graph=True)
    (ours_gradient,) = torch.autograd.grad((ours * direction).sum(), images, retain_graph=True)
    torch.testing.assert_close(ours_gradient, image_gradient, rtol=1e-8, atol=1e-9)
    (expected * direction).sum().backward()
    (ours * direction).sum().backward()
    for name in ("positional_embedding", "conv1.weight", "transformer.resblocks.2.mlp.c_fc.weight"):
        expected_gradient = state[f"visual.{name}"].grad
        got = dict(encoder.tower.named_parameters())[name].grad
        torch.testing.assert_close(got, expected_gradient, rtol=1e-8, atol=1e-9)


def test_features_at_native_size_are_open_clips_own_tokens(tiny: Any) -> None:
    images = torch.rand(2, 3, 32, 32)
    visual = tiny.reference.visual
    normalised = (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    theirs = visual.forward_intermediates(
        normalised, normalize_intermediates=True, intermediates_only=True
    )["image_intermediates"]
    torch.testing.assert_close(tiny.vlm.vision(images), theirs[-1], rtol=0, atol=1e-5)
    plain = visual.forward_intermediates(normalised, intermediates_only=True)["image_intermediates"]
    first, last = tiny.vlm.vision.forward_features(images, [-1, 0])
    torch.testing.assert_close(first, plain[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(last, theirs[-1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(16, 16), (48, 64), (40, 24)])
def test_any_size_works_as_if_the_position_embeddings_had_been_loaded_at_it(
    tiny: Any, size: tuple[int, int]
) -> None:
    encoder = tiny.vlm.vision
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    images = torch.rand(2, 3, *size)
    ours = encoder(images)
    resized = copy.deepcopy(tiny.reference.visual)
    grid = resized.positional_embedding[1:].reshape(1, 4, 4, -1).permute(0, 3, 1, 2)
    new = (size[0] // 8, size[1] // 8)
    grid = F.interpolate(grid, new, mode="bicubic", antialias=True).flatten(2)[0].T
    resized.positional_embedding = torch.nn.Parameter(
        torch.cat([resized.positional_embedding[:1], grid]).detach()
    )
    normalised = (images - encoder.mean) / encoder.std
    theirs = resized.forward_intermediates(
        normalised, indices=1, normalize_intermediates=True, intermediates_only=True
    )["image_intermediates"][0]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    ours.sum().backward()
    assert encoder.tower.positional_embedding.grad.abs().sum() > 0
    encoder.zero_grad()
    for name, value in encoder.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_positions_at_the_native_grid_are_the_parameter_itself() -> None:
    positions = torch.rand(1 + 12, 5)
    assert resize_positions(positions, (3, 4), (3, 4)) is positions
    expected = F.interpolate(
        positions[1:].T.reshape(1, 5, 3, 4), (7, 2), mode="bicubic", antialias=True
    )[0].permute(1, 2, 0)
    torch.testing.assert_close(
        resize_positions(positions, (3, 4), (7, 2))[1:], expected.flatten(0, 1)
    )


def test_a_size_that_is_no_multiple_of_the_stride_is_refused(tiny: Any) -> None:
    with pytest.raises(ValueError, match=r"30x32 is not a multiple .* 8"):
        tiny.vlm.vision(torch.rand(1, 3, 30, 32))


def test_average_pooled_patch_embeddings_average_to_open_clips_image_embedding(words: VLM) -> None:
    tower = words.vision.tower
    images = torch.rand(2, 3, 32, 32)
    patches = words.vision(images).flatten(2).mean(2) @ tower.proj
    expected = tower((images - words.vision.mean) / words.vision.std)
    torch.testing.assert_close(patches, expected, rtol=1e-4, atol=1e-5)
    embedded = words.vision.embed(images)
    each = F.normalize(words.vision(images).permute(0, 2, 3, 1) @ tower.proj, dim=-1)
    torch.testing.assert_close(embedded, each.permute(0, 3, 1, 2), rtol=1e-4, atol=1e-6)


def test_resnet_features_and_value_path(tmp_path: Path) -> None:
    reference = save_clip(tmp_path, **RESNET).visual
    encoder = load_vlm(str(tmp_path), "bundled").vision
    assert (encoder.dim, encoder.stride) == (256, 32)
    images = torch.rand(2, 3, 64, 96)
    x = (images - encoder.mean) / encoder.std
    x = reference.layer4(reference.layer3(reference.layer2(reference.layer1(reference.stem(x)))))
    torch.testing.assert_close(encoder(images), x, rtol=1e-4, atol=1e-5)
    pool = reference.attnpool
    # With one location and only itself to attend to, attention pooling is the value path.
    one = torch.rand(2, 3, 32, 32)
    small = encoder(one)
    positions = pool.positional_embedding[1:].T.reshape(1, -1, 2, 2)
    position = F.interpolate(positions, (1, 1), mode="bicubic", antialias=True).flatten()
    token = small.flatten(1) + position
    value, _ = F.multi_head_attention_forward(
        token[None], token[None], token[None], 256, pool.num_heads, None,
        torch.cat([pool.q_proj.bias, pool.k_proj.bias, pool.v_proj.bias]), None, None, False, 0.0,
        pool.c_proj.weight, pool.c_proj.bias, use_separate_proj_weight=True,
        q_proj_weight=pool.q_proj.weight, k_proj_weight=pool.k_proj.weight,
        v_proj_weight=pool.v_proj.weight, training=False,
    )  # fmt: skip
    expected = F.normalize(value[0], dim=-1)
    torch.testing.assert_close(encoder.embed(one)[..., 0, 0], expected, rtol=1e-4, atol=1e-5)
    assert encoder.embed(images).shape == (2, 20, 2, 3)
    stages = encoder.forward_features(images, [1, 4])
    assert [stage.shape[-1] for stage in stages] == [24, 3]
    assert not any(p.requires_grad for p in encoder.tower.attnpool.parameters())


def test_trainable_parameters_are_those_that_features_depend_on(tiny: Any) -> None:
    encoder = copy.deepcopy(tiny.vlm.vision)
    encoder(torch.rand(1, 3, 32, 32)).square().sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.requires_grad == (parameter.grad is not None), name
    assert not encoder.tower.proj.requires_grad


def test_state_dict_is_the_towers_and_copies_are_independent(tiny: Any) -> None:
    encoder = tiny.vlm.vision
    names = {f"tower.{name}" for name in tiny.reference.visual.state_dict()}
    assert set(encoder.state_dict()) == names
    teacher = copy.deepcopy(encoder)
    images = torch.rand(1, 3, 32, 32)
    before = encoder(images)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.mul_(0.5)
    torch.testing.assert_close(encoder(images), before, rtol=0, atol=0)
    assert not torch.equal(teacher(images), before)
