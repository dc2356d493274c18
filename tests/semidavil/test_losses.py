"""Losses against their formulas, computed here in float64 with loops over pixels."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from semidavil.benchmarks import IGNORE_INDEX
from semidavil.losses import (
    LOSSES,
    DyCE,
    build_loss,
    consistency_loss,
    gradient_norm,
    pseudo_label,
)
from semidavil.settings import Loss

CLASSES = 5


def make_case(seed: int, ignored: float = 0.2, size: tuple[int, ...] = (2, 6, 7)):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(size[0], CLASSES, *size[1:], generator=generator, dtype=torch.float64)
    targets = torch.randint(0, CLASSES, size, generator=generator)
    targets[torch.rand(size, generator=generator) < ignored] = IGNORE_INDEX
    return logits.requires_grad_(), targets


def pixels(logits: Tensor, targets: Tensor) -> list[tuple[Tensor, int]]:
    """(log-probabilities (C,), label) of every valid pixel."""
    flat = logits.flatten(2).transpose(1, 2).reshape(-1, CLASSES)
    return [
        (row - row.exp().sum().log(), int(label))
        for row, label in zip(flat, targets.flatten(), strict=True)
        if label != IGNORE_INDEX
    ]


def expected_ce(logits: Tensor, targets: Tensor) -> Tensor:
    return torch.stack([-log_p[label] for log_p, label in pixels(logits, targets)]).mean()


def expected_dyce(logits: Tensor, targets: Tensor, hard_fraction: float, omega: float) -> Tensor:
    """Eq. 9 term by term."""
    losses = [(-log_p[label], label) for log_p, label in pixels(logits, targets)]
    hardest = sorted(losses, key=lambda pair: -pair[0].item())
    hard = hardest[: max(1, math.floor(round(hard_fraction * len(losses), 6)))]
    total = torch.zeros((), dtype=torch.float64)
    for c in range(CLASSES):
        members = [value for value, label in hard if label == c]
        if members:
            total = total + sum(members) / len(members) ** (1 - omega)
    return total / len(hard) ** omega


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("hard_fraction", "omega"), [(0.2, 0.5), (0.37, 0.0), (1.0, 0.25), (1, 1)])
def test_dyce_agrees_with_equation_9(seed: int, hard_fraction: float, omega: float) -> None:
    logits, targets = make_case(seed)
    loss = DyCE(CLASSES, hard_fraction=hard_fraction, omega=omega)
    actual, expected = loss(logits, targets), expected_dyce(logits, targets, hard_fraction, omega)
    assert actual.item() == pytest.approx(expected.item(), rel=1e-6)
    ours, theirs = (torch.autograd.grad(value, logits)[0] for value in (actual, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def test_dyce_by_hand() -> None:
    """Four pixels with probabilities 1/2, 1/4, 1/4, 1/8 of their classes 0, 0, 1, 2; h = 75%."""
    rows = torch.tensor(
        [[1 / 2, 1 / 2, 0], [1 / 4, 3 / 4, 0], [3 / 4, 1 / 4, 0], [0, 7 / 8, 1 / 8]]
    )
    logits = rows.clamp(min=1e-30).log().T.reshape(1, 3, 2, 2)
    targets = torch.tensor([0, 0, 1, 2]).view(1, 2, 2)
    # H drops the first pixel: one pixel of each class stays, f_H = 3.
    expected = (2 + 2 + 3) * math.log(2) / math.sqrt(3)
    value = DyCE(3, hard_fraction=0.75, omega=0.5)(logits, targets)
    assert value.item() == pytest.approx(expected, rel=1e-6)


def test_ce_is_the_mean_over_valid_pixels_and_dyce_at_its_neutral_setting() -> None:
    logits, targets = make_case(7)
    expected = expected_ce(logits, targets).item()
    assert LOSSES["ce"](CLASSES)(logits, targets).item() == pytest.approx(expected, rel=1e-6)
    neutral = DyCE(CLASSES, hard_fraction=1.0, omega=1.0)(logits, targets)
    assert neutral.item() == pytest.approx(expected, rel=1e-6)


PIXELS = (50, 30, 1, 0, 919)  # of each class in some training set


def expected_wce(logits: Tensor, targets: Tensor) -> Tensor:
    weights = [min(10.0, max(0.1, 1000 / (CLASSES * max(n, 1)))) for n in PIXELS]
    found = pixels(logits, targets)
    total = sum(weights[label] * -log_p[label] for log_p, label in found)
    return total / sum(weights[label] for _, label in found)


def expected_focal(logits: Tensor, targets: Tensor, gamma: float) -> Tensor:
    terms = [
        -((1 - log_p[label].exp()) ** gamma) * log_p[label]
        for log_p, label in pixels(logits, targets)
    ]
    return torch.stack(terms).mean()


def expected_dce(logits: Tensor, targets: Tensor, alpha: float, beta: float) -> Tensor:
    terms = []
    for log_p, label in pixels(logits, targets):
        wrong = [log_p[c].exp() for c in range(CLASSES) if c != label]
        terms.append(-log_p[label] + beta * sum((alpha + p).log() for p in wrong))
    return torch.stack(terms).mean()


def expected_dfl(
    logits: Tensor, targets: Tensor, alpha: float, beta: float, gamma: float, rho: float
) -> Tensor:
    terms = []
    for log_p, label in pixels(logits, targets):
        p = log_p.exp()
        truth = torch.eye(CLASSES, dtype=torch.float64)[label]
        focal = ((truth - p).abs() ** gamma).sum()
        repelled = sum((rho - p[c] + 1e-6).log() for c in range(CLASSES) if c != label)
        terms.append(-log_p[label] + alpha * focal - beta * repelled)
    return torch.stack(terms).mean()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (LOSSES["wce"](CLASSES, class_pixels=PIXELS), expected_wce),
        (LOSSES["focal"](CLASSES), lambda x, y: expected_focal(x, y, 2.0)),
        (LOSSES["focal"](CLASSES, gamma=0.7), lambda x, y: expected_focal(x, y, 0.7)),
        (LOSSES["dce"](CLASSES), lambda x, y: expected_dce(x, y, 1.0, 1.0)),
        (LOSSES["dce"](CLASSES, alpha=0.3, beta=2), lambda x, y: expected_dce(x, y, 0.3, 2.0)),
        (LOSSES["dfl"](CLASSES), lambda x, y: expected_dfl(x, y, 1.0, 1.0, 1.0, 1.0)),
        (
            LOSSES["dfl"](CLASSES, alpha=0.4, beta=0.7, gamma=2, rho=1.5),
            lambda x, y: expected_dfl(x, y, 0.4, 0.7, 2.0, 1.5),
        ),
        (
            LOSSES["dfl"](CLASSES, gamma=0.5),
            lambda x, y: expected_dfl(x, y, 1.0, 1.0, 0.5, 1.0),
        ),
    ],
    ids=["wce", "focal", "focal 0.7", "dce", "dce 0.3 2", "dfl", "dfl all", "dfl 0.5"],
)
def test_losses_agree_with_their_formulas(
    seed: int, loss: torch.nn.Module, expected: Callable[[Tensor, Tensor], Tensor]
) -> None:
    logits, targets = make_case(seed)
    ours, theirs = loss(logits, targets), expected(logits, targets)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
    gradients = [torch.autograd.grad(value, logits)[0] for value in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("right", [True, False])
def test_dual_cross_entropy_of_a_certain_network(right: bool) -> None:
    """Probabilities of 1 and of 1e-20 and less: what cancels out of sums must not cancel digits."""
    logits, targets = make_case(2)
    sure = targets.where(targets != IGNORE_INDEX, 0)
    hot = F.one_hot(sure if right else (sure + 1) % CLASSES, CLASSES).movedim(-1, 1)
    logits = (logits.detach() / 10 + 50 * hot).requires_grad_()
    values = (
        LOSSES["dce"](CLASSES, alpha=1e-3)(logits, targets),
        expected_dce(logits, targets, 1e-3, 1.0),
    )
    assert values[0].item() == pytest.approx(values[1].item(), rel=1e-5)
    gradients = [torch.autograd.grad(value, logits)[0] for value in values]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("name", LOSSES)
def test_no_loss_reads_a_value_or_takes_a_shape_from_the_targets(name: str) -> None:
    """On `meta` tensors, which have no values: a step that reads one back would wait for its device."""
    logits = torch.empty(2, CLASSES, 6, 7, device="meta", requires_grad=True)
    targets = torch.empty(2, 6, 7, dtype=torch.int64, device="meta")
    LOSSES[name](CLASSES).to("meta")(logits, targets).backward()
    assert logits.grad.shape == logits.shape
    confidence, labels = pseudo_label(logits.detach())
    for over in ("all", "confident"):
        consistency_loss(logits, labels, confidence, 0.9, over).backward()


def test_focal_agrees_with_torchvision_on_two_classes() -> None:
    """A softmax over (z, 0) is a sigmoid of z, for which torchvision has the loss."""
    z, truth = torch.randn(40), torch.randint(0, 2, (40,))
    logits = torch.stack([torch.zeros(40), z], 1)[..., None, None]
    ours = LOSSES["focal"](2, gamma=2.0)(logits, truth[:, None, None])
    theirs = sigmoid_focal_loss(z, truth.float(), alpha=-1, gamma=2, reduction="mean")
    torch.testing.assert_close(ours, theirs)


def test_neutral_settings_are_cross_entropy() -> None:
    logits, targets = make_case(8)
    expected = expected_ce(logits, targets).item()
    for name, neutral in (
        ("wce", {}),
        ("focal", {"gamma": 0}),
        ("dce", {"beta": 0}),
        ("dfl", {"alpha": 0, "beta": 0}),
    ):
        value = LOSSES[name](CLASSES, **neutral)(logits, targets).item()
        assert value == pytest.approx(expected, rel=1e-6), name


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "case", ["all ignored", "one class", "absent class", "saturated", "one pixel"]
)
def test_value_and_gradient_are_finite(name: str, dtype: torch.dtype, case: str) -> None:
    logits, targets = make_case(3)
    if case == "all ignored":
        targets = torch.full_like(targets, IGNORE_INDEX)
    elif case == "one class":
        targets = torch.ones_like(targets)
    elif case == "absent class":
        targets[targets == 2] = 3
    elif case == "saturated":
        logits = 80 * logits.detach().sign()
    else:
        logits, targets = logits.detach()[:1, :, :1, :1], torch.ones(1, 1, 1, dtype=torch.int64)
    logits = logits.detach().to(dtype).requires_grad_()
    value = LOSSES[name](CLASSES)(logits, targets)
    value.backward()
    assert value.shape == ()
    assert value.isfinite()
    assert logits.grad.isfinite().all()
    if case == "all ignored":
        assert value == 0
        assert (logits.grad == 0).all()


@pytest.mark.parametrize("name", LOSSES)
def test_volumes_are_images_with_one_more_axis(name: str) -> None:
    logits, targets = make_case(4, size=(1, 6, 8))
    loss = LOSSES[name](CLASSES)
    volume = loss(logits.unflatten(2, (2, 3)), targets.unflatten(1, (2, 3)))
    torch.testing.assert_close(volume, loss(logits, targets))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    ignored=st.floats(0, 0.9),
    hard_fraction=st.floats(0.01, 1),
    omega=st.floats(0, 1),
)
def test_dyce_gradient_lives_on_the_hardest_share(
    seed: int, ignored: float, hard_fraction: float, omega: float
) -> None:
    logits, targets = make_case(seed, ignored)
    targets[0, 0, 0] = 0  # at least one valid pixel
    DyCE(CLASSES, hard_fraction=hard_fraction, omega=omega)(logits, targets).backward()
    touched = logits.grad.abs().sum(1) > 0
    valid = targets != IGNORE_INDEX
    assert not (touched & ~valid).any()
    count = int(valid.sum())
    assert int(touched.sum()) == max(1, math.floor(hard_fraction * count + 1e-6))
    losses = torch.nn.functional.cross_entropy(
        logits.float(), targets, ignore_index=IGNORE_INDEX, reduction="none"
    )
    if (valid & ~touched).any():
        assert losses[touched].min() >= losses[valid & ~touched].max()


def test_dyce_mines_exactly_its_share_of_equal_pixels() -> None:
    """A constant network, as at the start of training: every pixel is as hard as every other."""
    logits = torch.zeros(1, CLASSES, 10, 10, requires_grad=True)
    targets = torch.zeros(1, 10, 10, dtype=torch.int64)
    targets[:, 6:] = IGNORE_INDEX
    value = DyCE(CLASSES, hard_fraction=0.25, omega=0.5)(logits, targets)
    value.backward()
    # 15 of 60 pixels, all of one class: 15 log 5 / (sqrt(15) sqrt(15)).
    assert value.item() == pytest.approx(math.log(CLASSES), rel=1e-6)
    touched = logits.grad.abs().sum(1) > 0
    assert int(touched.sum()) == 15
    assert not touched[:, 6:].any()


def test_dyce_does_not_grow_with_the_number_of_pixels() -> None:
    logits, targets = make_case(5, ignored=0)
    loss = DyCE(CLASSES)
    larger = loss(logits.repeat(1, 1, 10, 10), targets.repeat(1, 10, 10))
    # 84 pixels do not divide by five: 16 of 84 are mined, 1,680 of 8,400.
    assert larger.item() == pytest.approx(loss(logits, targets).item(), rel=0.05)


def test_a_pseudo_label_by_hand() -> None:
    """Logits ln 3 and 0 are 3 : 1; at half the temperature 9 : 1, at twice sqrt(3) : 1."""
    logits = torch.tensor([[math.log(3), 0.0], [0.0, math.log(3)]]).T.reshape(1, 2, 1, 2)
    for temperature, odds in ((1.0, 3.0), (0.5, 9.0), (2.0, math.sqrt(3))):
        confidence, labels = pseudo_label(logits, temperature)
        assert labels.tolist() == [[[0, 1]]]
        assert confidence.flatten().tolist() == pytest.approx(2 * [odds / (1 + odds)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("temperature", [1.0, 0.5, 3.0])
def test_pseudo_labels_agree_with_softmax_and_max(dtype: torch.dtype, temperature: float) -> None:
    logits = (30 * make_case(6)[0].detach()).to(dtype)
    confidence, labels = pseudo_label(logits, temperature)
    expected = (logits.double() / temperature).softmax(1).max(1)
    assert torch.equal(labels, expected.indices)
    torch.testing.assert_close(confidence.double(), expected.values, rtol=1e-5, atol=1e-7)


def test_of_equal_logits_the_first_class_is_the_pseudo_label() -> None:
    confidence, labels = pseudo_label(torch.zeros(1, 4, 2, 2))
    assert (labels == 0).all()
    assert (confidence == 0.25).all()


def test_a_temperature_is_not_another_threshold() -> None:
    """It changes which of two pixels is the more confident: two rivals, or many weak ones."""
    one_rival = torch.tensor([2.0, 1.0, -9.0, -9.0, -9.0, -9.0])
    many_rivals = torch.tensor([2.0, 0.5, 0.5, 0.5, 0.5, 0.5])
    logits = torch.stack([one_rival, many_rivals], 1).view(1, 6, 1, 2)
    warm, _ = pseudo_label(logits, 1.0)
    sharp, _ = pseudo_label(logits, 0.2)
    assert warm[0, 0, 0] > warm[0, 0, 1]
    assert sharp[0, 0, 0] < sharp[0, 0, 1]


def test_consistency_by_hand() -> None:
    """Four pixels; the second and the last are below the threshold."""
    logits = torch.tensor([[0.0, 0.0], [5.0, -5.0], [math.log(3), 0.0], [9.0, 0.0]])
    logits = logits.T.reshape(1, 2, 2, 2).double().requires_grad_()
    labels = torch.tensor([1, 1, 0, 1]).view(1, 2, 2)
    confidence = torch.tensor([0.95, 0.94, 0.99, 0.2]).view(1, 2, 2)
    total = math.log(2) - math.log(3 / 4)
    value = consistency_loss(logits, labels, confidence, 0.95)
    assert value.item() == pytest.approx(total / 4, rel=1e-6)
    (gradient,) = torch.autograd.grad(value, logits, retain_graph=True)
    assert gradient[0, :, 0, 0].tolist() == pytest.approx([0.5 / 4, -0.5 / 4])
    assert gradient[0, :, 1, 0].tolist() == pytest.approx([-0.25 / 4, 0.25 / 4])
    assert (gradient[0, :, 0, 1] == 0).all()
    assert (gradient[0, :, 1, 1] == 0).all()
    over_confident = consistency_loss(logits, labels, confidence, 0.95, "confident")
    assert over_confident.item() == pytest.approx(total / 2, rel=1e-6)
    (doubled,) = torch.autograd.grad(over_confident, logits)
    torch.testing.assert_close(doubled, 2 * gradient)


@pytest.mark.parametrize("over", ["all", "confident"])
def test_consistency_without_any_confident_pixel_is_zero_with_a_graph(over: str) -> None:
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    nothing = torch.zeros(1, 2, 2)
    value = consistency_loss(logits, nothing.long(), nothing, 0.5, over)
    value.backward()
    assert value == 0
    assert (logits.grad == 0).all()


def test_gradient_norm_is_the_gradients_and_leaves_the_graph_alone() -> None:
    logits, targets = make_case(4)
    doubled = logits * 2  # has a graph of its own
    norm = gradient_norm(lambda parts: LOSSES["ce"](CLASSES)(parts[0], targets), [doubled])
    valid = (targets != IGNORE_INDEX)[:, None]
    hot = F.one_hot(targets.where(targets != IGNORE_INDEX, 0), CLASSES).movedim(-1, 1)
    expected = ((doubled.softmax(1) - hot) * valid / valid.sum()).norm()
    assert norm.item() == pytest.approx(expected.item(), rel=1e-5)
    assert logits.grad is None
    assert not norm.requires_grad


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_norm_of_every_loss(name: str) -> None:
    logits, targets = make_case(9)
    loss = LOSSES[name](CLASSES)
    norm = gradient_norm(lambda parts: loss(parts[0], targets), [logits.bfloat16()])
    leaf = logits.detach().bfloat16().double().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(leaf, targets), leaf)
    assert norm.item() == pytest.approx(gradient.norm().item(), rel=1e-5)


def test_build_loss_passes_the_settings_that_the_loss_takes() -> None:
    loss = build_loss(Loss(name="dyce", hard_fraction=0.4, omega=0.1), CLASSES)
    assert (loss.hard_fraction, loss.omega, loss.num_classes) == (0.4, 0.1, CLASSES)
    assert build_loss(Loss(name="ce"), CLASSES).num_classes == CLASSES
    dual = build_loss(Loss(name="dfl", dfl_gamma=3, dce_alpha=9, focal_gamma=8), CLASSES)
    assert (dual.alpha, dual.beta, dual.gamma, dual.rho) == (1, 1, 3, 1)
    assert build_loss(Loss(name="focal"), CLASSES).gamma == 2
    weighted = build_loss(Loss(name="wce"), 2, class_pixels=lambda: [300, 100])
    assert weighted.weights.tolist() == pytest.approx([2 / 3, 2.0])
