"""Strong views and CutMix of a whole batch against torchvision's of one image at a time."""

import pytest
import torch
import torchvision.transforms.v2.functional as TF
from torch import Tensor

from semidavil.data.augment import (
    BLUR,
    HUE,
    JITTER,
    StrongViews,
    blur,
    boxes_to_masks,
    draw_strong_views,
    finish,
    gaussian_kernels,
    shift_hue,
    strong_views,
)


@pytest.fixture
def images() -> Tensor:
    """Noise, a grey image, and colours in which two channels are equal."""
    noise = torch.rand(3, 3, 24, 32, generator=torch.Generator().manual_seed(0))
    noise[1] = noise[1, :1]
    noise[2, 1, :12], noise[2, 2, 12:] = noise[2, 0, :12], noise[2, 1, 12:]
    return noise


def one_view(image: Tensor, views: StrongViews, view: int, number: int, sigma: float) -> Tensor:
    """The same by torchvision's functions of one image and one factor, in the order of the view."""
    brightness, contrast, saturation = views.factors[view, number].tolist()
    for operation in views.orders[view]:
        if operation == 0:
            image = TF.adjust_brightness(image, brightness)
        elif operation == 1:
            image = TF.adjust_contrast(image, contrast)
        elif operation == 2:
            image = TF.adjust_saturation(image, saturation)
        else:
            image = TF.adjust_hue(image, views.hue[view, number].item())
    if views.grey[view, number]:
        image = TF.rgb_to_grayscale(image, num_output_channels=3)
    if sigma:
        image = TF.gaussian_blur(image, [2 * -int(-2 * sigma // 1) + 1] * 2, [sigma, sigma])
    return image


def test_strong_views_are_torchvisions(images: Tensor) -> None:
    sigma = torch.tensor([[0.3, 0.0, 1.9], [2.0, 0.7, 0.0]])
    generator = torch.Generator().manual_seed(1)
    views = StrongViews(
        factors=0.5 + torch.rand(2, 3, 3, generator=generator),
        hue=torch.tensor([[0.25, -0.1, 0.0], [-0.25, 0.2, 0.13]]),
        grey=torch.tensor([[False, False, True], [False, True, False]]),
        kernels=gaussian_kernels(sigma, 4),
        orders=((3, 0, 2, 1), (1, 2, 3, 0)),
    )
    made = strong_views(images, views)
    for view in range(2):
        for number in range(3):
            expected = one_view(images[number], views, view, number, sigma[view, number].item())
            torch.testing.assert_close(made[view, number], expected, rtol=0, atol=2e-5)


def test_a_turn_of_the_hue_goes_round(images: Tensor) -> None:
    turned = images
    for turns in (0.2, 0.5, 0.3):
        turned = shift_hue(turned, torch.full((3,), turns))
    torch.testing.assert_close(turned, images, rtol=0, atol=1e-5)


def test_what_is_not_drawn_changes_nothing(images: Tensor) -> None:
    none = torch.zeros(1, 3)
    kernels = gaussian_kernels(none, 3)
    views = StrongViews(torch.ones(1, 3, 3), none, none.bool(), kernels, ((0, 1, 2, 3),))
    torch.testing.assert_close(strong_views(images, views)[0], images, rtol=0, atol=1e-6)
    assert torch.equal(blur(images, kernels[0]), images)


def test_draws_have_umatchs_ranges_and_shares() -> None:
    torch.manual_seed(0)
    views = draw_strong_views(2, 4000, (320, 320))
    factors, hue = views.factors.flatten(0, 1), views.hue.flatten()
    plain = (factors == 1).all(1)
    assert plain.float().mean() == pytest.approx(0.2, abs=0.02)
    assert torch.equal(plain, hue == 0)
    assert views.grey.float().mean() == pytest.approx(0.2, abs=0.02)
    jittered = factors[~plain]
    for values, low, high in ((jittered, 1 - JITTER, 1 + JITTER), (hue[~plain], -HUE, HUE)):
        assert low <= values.min() < low + 0.01
        assert high - 0.01 < values.max() <= high
        assert values.mean() == pytest.approx((low + high) / 2, abs=0.02)
    sharp = (
        views.kernels.amax(-1) == 1
    )  # no blur, or one of less than half a pixel that rounds away
    assert 0.45 < sharp.float().mean() < 0.56
    # The widest kernel is that of the largest deviation: its weights give its variance back.
    offsets = torch.arange(-4, 5.0)
    deviation = (views.kernels * offsets**2).sum(-1).sqrt().max()
    assert BLUR[1] * 0.85 < deviation < BLUR[1]
    assert views.orders[0] != views.orders[1] or sorted(views.orders[0]) == [0, 1, 2, 3]
    assert all(sorted(order) == [0, 1, 2, 3] for order in views.orders)


def test_smaller_crops_are_blurred_less() -> None:
    torch.manual_seed(0)
    small = draw_strong_views(1, 400, (64, 64)).kernels
    assert small.shape[-1] == 3
    large = draw_strong_views(1, 400, (512, 512)).kernels
    assert large.shape[-1] == 9
    assert small.amax(-1).min() > large.amax(-1).min()


def test_a_finished_batch_is_what_methods_take(images: Tensor) -> None:
    pixels = (images * 255).byte()
    boxes = torch.tensor([[[2, 3, 4, 5], [0, 0, 0, 0], [20, 28, 4, 4]]])
    torch.manual_seed(0)
    strong = draw_strong_views(1, 3, (24, 32))
    label = torch.tensor([[0, 255]], dtype=torch.uint8)
    batch = {
        "source": {"image": pixels, "label": label, "language": "words"},
        "unlabelled": {"image": pixels, "strong": strong, "cutmix": boxes},
    }
    done = finish(batch)
    assert torch.equal(done["source"]["image"], pixels.float() / 255)
    assert done["source"]["label"].tolist() == [[0, 255]]
    assert done["source"]["label"].dtype == torch.int64
    assert done["source"]["language"] == "words"
    part = done["unlabelled"]
    assert torch.equal(part["strong"], strong_views(pixels.float() / 255, strong))
    expected = torch.zeros(3, 24, 32, dtype=torch.bool)
    expected[0, 2:6, 3:8] = True
    expected[2, 20:, 28:] = True
    assert torch.equal(part["cutmix"][0], expected)
    assert not boxes_to_masks(torch.zeros(2, 4, dtype=torch.int64), (5, 6)).any()
    assert batch["unlabelled"]["image"].dtype == torch.uint8  # as it was: it may be used again
