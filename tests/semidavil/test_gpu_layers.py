"""What layers compute on a GPU, here on the CPU: against PyTorch's own in float64, with gradients."""

from collections.abc import Callable, Sequence

import open_clip
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semidavil.losses import by_reductions, class_by_class
from semidavil.models.group_norm import channels_last_group_norm
from semidavil.models.layers import (
    LayerNorm,
    SelfAttention,
    for_gpus,
    is_channels_last,
    patch_products,
)


def with_gradients(
    function: Callable[[Tensor], Tensor], x: Tensor, parameters: Sequence[Tensor]
) -> list[Tensor]:
    """The value, and the gradients of a sum of it with fixed weights at x and the parameters."""
    x = x.detach().requires_grad_()
    y = function(x)
    probe = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return [y, *torch.autograd.grad((y * probe.to(y.dtype)).sum(), [x, *parameters])]


def maps(*size: int, dtype: torch.dtype = torch.float64) -> Tensor:
    x = torch.randn(size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (2 * x + 1).to(dtype).to(memory_format=torch.channels_last)


@pytest.mark.parametrize(("channels", "groups"), [(8, 4), (6, 1), (6, 6)])
def test_group_norm_of_adjacent_channels(channels: int, groups: int) -> None:
    norm = nn.GroupNorm(groups, channels, dtype=torch.float64)
    nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    x = maps(3, channels, 5, 7)

    def ours(x: Tensor) -> Tensor:
        return channels_last_group_norm(x, groups, norm.weight, norm.bias, norm.eps)

    found, expected = (with_gradients(f, x, [*norm.parameters()]) for f in (ours, norm))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    assert is_channels_last(found[0])
    assert is_channels_last(found[1])


def test_group_norm_of_bfloat16_is_rounded_once() -> None:
    norm = nn.GroupNorm(4, 16)
    nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    x = maps(2, 16, 20, 20, dtype=torch.bfloat16)
    found = channels_last_group_norm(x, 4, norm.weight, norm.bias, norm.eps)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), norm(x.float()), rtol=2**-8, atol=1e-5)


def test_self_attention_is_pytorchs() -> None:
    theirs = nn.MultiheadAttention(12, 3, batch_first=True, dtype=torch.float64)
    nn.init.normal_(theirs.in_proj_bias), nn.init.normal_(theirs.out_proj.bias)
    ours = SelfAttention(12, 3, batch_first=True, dtype=torch.float64)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    found = with_gradients(ours.attend, x, [*ours.parameters()])
    expected = with_gradients(
        lambda x: theirs(x, x, x, need_weights=False)[0], x, [*theirs.parameters()]
    )
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_patches_by_one_product_are_those_of_the_convolution() -> None:
    convolution = nn.Conv2d(3, 5, (4, 2), stride=(4, 2), dtype=torch.float64)
    images = torch.randn(2, 3, 8, 10, dtype=torch.float64)

    def theirs(x: Tensor) -> Tensor:
        return convolution(x).flatten(2).transpose(1, 2)

    parameters = [*convolution.parameters()]
    found = with_gradients(lambda x: patch_products(x, convolution), images, parameters)
    for one, other in zip(found, with_gradients(theirs, images, parameters), strict=True):
        torch.testing.assert_close(one, other)


def test_pseudo_labels_by_reductions_are_those_class_by_class() -> None:
    logits = torch.randn(2, 19, 6, 7)
    logits[0, 3] = logits[0, 11] = 9.0  # the first of equal classes
    for temperature in (1.0, 0.01):
        (confidence, labels), (expected, classes) = (
            of(logits, temperature) for of in (by_reductions, class_by_class)
        )
        torch.testing.assert_close(confidence, expected)
        assert torch.equal(labels, classes)
    assert bool((labels[0] == 3).all())


def test_a_towers_layers_keep_their_parameters_and_what_they_compute_on_a_cpu() -> None:
    tower = open_clip.transformer.Transformer(width=16, layers=2, heads=2)
    x = torch.randn(2, 5, 16)
    before, names = tower(x), [*tower.state_dict()]
    for_gpus(tower)
    block = tower.resblocks[0]
    assert isinstance(block.attn, SelfAttention)
    assert isinstance(block.ln_1, LayerNorm)
    assert torch.equal(tower(x), before)
    assert [*tower.state_dict()] == names
    mask = torch.full((5, 5), float("-inf")).triu(1)
    assert not torch.equal(tower(x, attn_mask=mask), before)


def test_layer_norm_in_half_precision_is_rounded_once() -> None:
    norm = LayerNorm(24)
    nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    x = torch.randn(3, 24).bfloat16()
    found = norm.rounded(x)
    expected = F.layer_norm(
        x.float(), (24,), norm.weight.bfloat16().float(), norm.bias.bfloat16().float()
    )
    torch.testing.assert_close(found.float(), expected, rtol=2**-7, atol=2**-7)
    assert found.dtype == torch.bfloat16
