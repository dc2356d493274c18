"""Layers against PyTorch's own: what differs is how they are computed, or the type that they return."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from semidavil.models.layers import (
    SMALL,
    GroupNorm,
    LayerNorm,
    by_products,
    resize_matrix,
    upsample,
)

SIZES = [
    ((5, 7), (10, 14)),
    ((5, 7), (9, 31)),
    ((6, 4), (6, 13)),
    ((8, 9), (3, 4)),  # downwards
    ((3, 4, 5), (6, 8, 10)),
    ((3, 4, 5), (3, 11, 7)),
]


@pytest.mark.parametrize(
    ("old", "new", "channels_last"),
    [(*sizes, False) for sizes in SIZES] + [(*s, True) for s in SIZES if len(s[0]) == 2],
)
def test_products_with_matrices_are_linear_interpolation(
    old: tuple[int, ...], new: tuple[int, ...], channels_last: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, *old, generator=generator)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    x.requires_grad_()
    mode = "bilinear" if len(old) == 2 else "trilinear"
    ours, theirs = by_products(x, new), F.interpolate(x, new, mode=mode, align_corners=False)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    probe = torch.randn(theirs.shape, generator=generator)
    gradients = [torch.autograd.grad((y * probe).sum(), x)[0] for y in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(upsample(x, new), theirs, rtol=1e-5, atol=1e-5)
    if channels_last and old[0] != new[0]:
        assert ours.is_contiguous(memory_format=torch.channels_last)


def test_autocast_does_not_round_what_is_upsampled() -> None:
    x = torch.randn(1, 2, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        found = by_products(x, (7, 9))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, F.interpolate(x, (7, 9), mode="bilinear"))


@pytest.mark.parametrize(("mode", "antialias"), [("bilinear", False), ("bicubic", True)])
def test_a_resize_matrix_resizes_columns(mode: str, antialias: bool) -> None:
    columns = torch.randn(1, 1, 9, 4)
    expected = F.interpolate(columns, (5, 4), mode=mode, antialias=antialias)
    matrix = resize_matrix(9, 5, mode.replace("bilinear", "linear"), columns.device, columns.dtype)
    torch.testing.assert_close(matrix @ columns[0, 0], expected[0, 0])


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(GroupNorm(2, 6), nn.GroupNorm(2, 6)), (LayerNorm(6), nn.LayerNorm(6))],
    ids=["group", "layer"],
)
def test_norms_are_pytorchs_and_keep_the_type_of_their_input(
    ours: nn.Module, theirs: nn.Module
) -> None:
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.uniform_(-2, 2)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(3, 6, 6, 6)
    assert torch.equal(ours(x), theirs(x))
    rounded = x.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = ours(rounded)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), theirs(rounded.float()), rtol=1e-2, atol=1e-2)


def test_large_maps_on_a_cpu_are_pytorchs_own() -> None:
    """Products with matrices would take longer than what the network computes."""
    x = torch.randn(1, 1, SMALL + 1, 3)
    assert torch.equal(upsample(x, (140, 7)), F.interpolate(x, (140, 7), mode="bilinear"))
