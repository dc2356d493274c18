"""UA-MT and URPC against plain computations, their network, scores of volumes, and a whole run."""

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.losses import DiceLoss
from monai.metrics import compute_average_surface_distance
from scipy.ndimage import binary_erosion
from scipy.spatial.distance import cdist
from stopped_run import train_until
from torch import Tensor, nn
from volume_config import CLASSES, config_of

from semidavil.config import Config, ConfigError
from semidavil.data.synapse import Scan
from semidavil.evaluation.surfaces import surface_distances
from semidavil.evaluation.volumes import VolumeEvaluation, score
from semidavil.losses import build_loss
from semidavil.methods.uamt import UAMT, entropy
from semidavil.methods.urpc import URPC, rectified_consistency
from semidavil.methods.volume_method import dice_loss, ramp_up
from semidavil.models.unet3d import PyramidUNet
from semidavil.train import train


@pytest.fixture
def root(tiny_abdomens: Path) -> Path:
    return tiny_abdomens


# -- formulas ----------------------------------------------------------------------------------


class Tiny(nn.Module):
    """Four predictions from one convolution each."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList([nn.Conv3d(1, 3, 1) for _ in range(4)])

    def pyramid(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return torch.stack([head(images) for head in self.heads], 1)

    def forward(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return self.pyramid(images)[:, 0]


def make(kind: type, **changes: object) -> nn.Module:
    torch.manual_seed(0)
    known = {"data.benchmark": "synapse", "data.budget": 4, "training.method": "uamt",
             "loss.name": "ce", "training.steps": 100, "volumes.weight": 0.4,
             "volumes.epoch_steps": 2, "volumes.rampup_epochs": 10}  # fmt: skip
    changes = {k.replace("__", "."): v for k, v in changes.items()}
    config = Config().replace(known | changes)
    return kind(Tiny(), build_loss(config.loss, 3), config).double()


def make_batch() -> dict:
    generator = torch.Generator().manual_seed(1)
    volumes = torch.randn(2, 2, 1, 3, 4, 5, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 3, (2, 3, 4, 5), generator=generator)
    return {"labelled": {"image": volumes[0], "label": labels}, "unlabelled": {"image": volumes[1]}}


def expected_supervised(logits: Tensor, labels: Tensor) -> Tensor:
    p = logits.softmax(1)
    truth = nn.functional.one_hot(labels, 3).movedim(-1, 1).double()
    axes = (0, 2, 3, 4)
    overlap = (p * truth).sum(axes)
    dice = 1 - (2 * overlap + 1e-5) / ((p**2).sum(axes) + truth.sum(axes) + 1e-5)
    return 0.5 * (nn.functional.cross_entropy(logits, labels) + dice.mean())


def test_dice_loss_is_monais() -> None:
    generator = torch.Generator().manual_seed(2)
    logits = (3 * torch.randn(2, 5, 4, 6, 3, generator=generator)).requires_grad_()
    labels = torch.randint(0, 4, (2, 4, 6, 3), generator=generator)  # the last class is absent
    theirs = DiceLoss(
        to_onehot_y=True,
        softmax=True,
        squared_pred=True,
        batch=True,
        smooth_nr=1e-5,
        smooth_dr=1e-5,
    )
    ours, expected = dice_loss(logits, labels), theirs(logits, labels[:, None])
    torch.testing.assert_close(ours, expected)
    gradients = [torch.autograd.grad(loss, logits)[0] for loss in (ours, expected)]
    torch.testing.assert_close(*gradients)
    assert gradients[0].abs().max() > 1e-3


@pytest.mark.parametrize("step", [0, 7, 60])
def test_uamt_term_by_term(step: int) -> None:
    method = make(UAMT, volumes__uamt_noise=0.0, volumes__uamt_passes=3)
    with torch.no_grad():  # a teacher that is sure of some voxels and not of others
        for p in method.teacher.parameters():
            p.mul_(1.5)
    batch = make_batch()
    losses = method.losses(batch, step)
    labelled, images = batch["labelled"], batch["unlabelled"]["image"]
    supervised = expected_supervised(method.student(labelled["image"]), labelled["label"])
    target = method.teacher(images).softmax(1)
    uncertainty = -(target * (target + 1e-6).log()).sum(1)
    limit = (0.75 + 0.25 * math.exp(-5 * (1 - step / 100) ** 2)) * math.log(3)
    certain = (uncertainty < limit).double()
    assert 0 < certain.mean() < 1
    squares = (method.student(images).softmax(1) - target) ** 2
    consistency = (squares.sum(1) * certain).sum() / (3 * certain.sum())
    epoch = step // 2
    weight = 0.4 * (math.exp(-5 * (1 - epoch / 10) ** 2) if epoch < 10 else 1)
    expected = supervised + weight * consistency
    assert losses["loss_con"].item() == pytest.approx(consistency.item(), rel=1e-5)
    assert losses["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    head = method.student.heads[0].weight
    ours, theirs = (
        torch.autograd.grad(x, head, retain_graph=True)[0] for x in (losses["loss"], expected)
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)


def test_uamt_noise_is_clamped_and_repeats_with_the_step() -> None:
    method = make(UAMT, volumes__uamt_noise=5.0)
    images = torch.zeros(1, 1, 8, 8, 8)
    noisy = method._noisy(images, torch.Generator().manual_seed(0))
    assert noisy.abs().max() == pytest.approx(0.2)
    batch = make_batch()
    assert method.losses(batch, 3)["loss"] == method.losses(batch, 3)["loss"]
    assert method.losses(batch, 3)["loss_con"] != method.losses(batch, 4)["loss_con"]


def expected_rectified(pyramid: Tensor) -> Tensor:
    """Term by term, with loops over scales."""
    p = [pyramid[:, s].softmax(1) for s in range(pyramid.shape[1])]
    mean = sum(p) / len(p)
    total = torch.zeros((), dtype=torch.float64)
    for one in p:
        divergence = (mean * (mean / one).log()).sum(1, keepdim=True)
        trust = (-divergence).exp()
        rectified = ((mean - one) ** 2 * trust).mean() / (trust.mean() + 1e-8)
        total = total + rectified + divergence.mean()
    return total / len(p)


def test_urpc_term_by_term() -> None:
    method, batch = make(URPC, training__method="urpc"), make_batch()
    losses = method.losses(batch, 30)
    labelled = batch["labelled"]
    scales = method.student.pyramid(labelled["image"])
    terms = [expected_supervised(scales[:, s], labelled["label"]) for s in range(4)]
    consistency = expected_rectified(method.student.pyramid(batch["unlabelled"]["image"]))
    expected = sum(terms) / 4 + 0.4 * consistency
    assert losses["loss_con"].item() == pytest.approx(consistency.item(), rel=1e-5)
    assert losses["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    for head in method.student.heads:
        ours, theirs = (
            torch.autograd.grad(x, head.weight, retain_graph=True)[0]
            for x in (losses["loss"], expected)
        )
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_scales_that_agree_cost_nothing_and_saturated_ones_stay_finite() -> None:
    one = torch.randn(1, 1, 3, 2, 2, 2)
    assert rectified_consistency(one.expand(-1, 4, -1, -1, -1, -1)).abs() < 1e-6
    wild = (80 * torch.randn(1, 4, 3, 2, 2, 2)).requires_grad_()
    value = rectified_consistency(wild)
    value.backward()
    assert value.isfinite()
    assert wild.grad.isfinite().all()


def test_ramp_up_and_entropy_by_hand() -> None:
    assert ramp_up(0, 10) == pytest.approx(math.exp(-5))
    assert ramp_up(5, 10) == pytest.approx(math.exp(-1.25))
    assert ramp_up(10, 10) == ramp_up(99, 10) == 1
    half = torch.tensor([[0.5, 0.5, 0.0]])
    assert entropy(half).item() == pytest.approx(math.log(2), abs=1e-5)


def test_dyce_takes_the_place_of_ce() -> None:
    batch = make_batch()
    method = make(URPC, training__method="urpc", loss__name="dyce", volumes__weight=0.0)
    same = make(URPC, training__method="urpc", volumes__weight=0.0, loss__name="dyce",
                loss__hard_fraction=1.0, loss__omega=1.0)  # fmt: skip
    plain = make(URPC, training__method="urpc", volumes__weight=0.0)
    values = [m.losses(batch, 0)["loss"].item() for m in (method, same, plain)]
    assert values[1] == pytest.approx(values[2], rel=1e-6)  # DyCE's neutral setting is CE
    assert values[0] > values[2] * 1.01


# -- scores and runs ---------------------------------------------------------------------------


def two_masks(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """An organ and a prediction that overlap, with ragged surfaces that touch the scan's border."""
    noise = np.random.default_rng(seed).random((2, 9, 11, 13))
    noise[0, :, :7, 4:] -= 0.7
    noise[1, 3:, :8, :9] -= 0.7
    return noise[0] < 0, noise[1] < 0


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_surface_distances_against_all_pairs_and_monai(seed: int) -> None:
    mine, theirs = two_masks(seed)
    spacing = (2.0, 1.0, 0.5)
    points = [np.argwhere(mask & ~binary_erosion(mask)) for mask in (mine, theirs)]
    symmetric, directed = surface_distances(mine, theirs, spacing)
    apart = cdist(*(p * spacing for p in points))
    both = np.concatenate([apart.min(0), apart.min(1)]).mean()
    assert symmetric == pytest.approx(both, rel=1e-12)
    assert directed == pytest.approx(cdist(*points).min(1).mean(), rel=1e-12)
    assert directed != pytest.approx(cdist(*points).min(0).mean())
    monai = compute_average_surface_distance(
        *(torch.from_numpy(mask)[None, None].float() for mask in (mine, theirs)),
        include_background=True, symmetric=True, spacing=list(spacing),
    )  # fmt: skip
    assert symmetric == pytest.approx(monai.item(), rel=1e-5)


def test_scores_of_organs_that_are_missed_invented_or_absent() -> None:
    rng = np.random.default_rng(0)
    truth, guess = (np.zeros((12, 14, 16), np.uint8) for _ in range(2))
    truth[3:8, 4:10, 5:11], guess[4:9, 4:9, 6:12] = 1, 1
    truth[9:11, 2:5, 2:6] = 2  # an organ that is missed
    guess[0:2, 0:2, 0:2] = 3  # and one that is not there
    scan = Scan(rng.random(truth.shape).astype(np.float32), truth, (2.0, 1.0, 0.5))
    dice, surface, in_voxels, voxels = score(torch.from_numpy(guess).long(), scan, 4)
    mine, theirs = guess == 1, truth == 1
    assert dice[0] == pytest.approx(2 * (mine & theirs).sum() / (mine.sum() + theirs.sum()))
    assert dice[1] == dice[2] == 0
    assert np.isnan(dice[3])
    assert (surface[0], in_voxels[0]) == surface_distances(mine, theirs, scan.spacing)
    assert np.isnan(surface[1:]).all()
    assert in_voxels[1:].tolist() == [128, 128, 0]
    assert voxels.tolist() == [180, 24, 0, 0]
    rows = (dice[None], surface[None], in_voxels[None], voxels[None])
    found = VolumeEvaluation(["a"], *rows).summary("wxyz")
    assert found["dice"] == pytest.approx(100 * np.nanmean(dice))
    assert found["asd"] == found["asd/w"] == pytest.approx(surface[0])
    assert found["asd_voxels"] == pytest.approx((in_voxels[0] + 256) / 4)
    assert found["asd_voxels/x"] == 128
    assert "dice/z" not in found
    assert found["missed"] == 50  # one of the two organs that are there


def test_the_pyramid_has_four_scales_of_full_size_in_both_modes() -> None:
    network = PyramidUNet(CLASSES, 4, [0.5] * 5)
    images = torch.randn(1, 1, 32, 32, 32)
    assert network.train().pyramid(images).shape == (1, 4, CLASSES, 32, 32, 32)
    network.eval()
    with torch.no_grad():
        assert network.pyramid(images).shape == (1, 4, CLASSES, 32, 32, 32)
        assert torch.equal(network(images), network.pyramid(images)[:, 0])
        assert torch.equal(
            network(images), network.net(images)
        )  # MONAI's own path through the blocks
    assert copy.deepcopy(network) is not network


@pytest.mark.parametrize(
    ("method", "places"), [(UAMT, {0: 0.5, 4: 0.5}), (URPC, {1: 0.5, 2: 0.3, 3: 0.2, 4: 0.1})]
)
def test_dropout_is_where_the_methods_own_networks_have_it(
    method: type[UAMT | URPC], places: dict[int, float]
) -> None:
    """Against MONAI's own forward pass, with hooks behind the blocks and masks drawn here."""
    torch.manual_seed(0)
    network = PyramidUNet(CLASSES, 4, method.dropout(Config().volumes))
    images = torch.randn(2, 1, 32, 32, 32)
    masks = torch.Generator().manual_seed(3)
    blocks = [network.net.bottleneck, *network.net.upsamples]
    dropped = []

    def hook(share: float):
        def drop(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            kept = torch.rand(output.shape[:2], generator=masks) >= share
            dropped.append(1 - kept.double().mean().item())
            return torch.einsum("bcdhw,bc->bcdhw", output, kept / (1 - share))

        return drop

    handles = [blocks[i].register_forward_hook(hook(share)) for i, share in places.items()]
    expected = network.net.eval()(images)
    for handle in handles:
        handle.remove()
    assert dropped == pytest.approx(list(places.values()), abs=0.3)
    found = network(images, torch.Generator().manual_seed(3))
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, network(images), atol=1e-2)
    pyramid = network.pyramid(images, torch.Generator().manual_seed(3))
    torch.testing.assert_close(pyramid[:, 0], expected)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [UAMT, URPC])
def test_dropout_depends_on_seed_and_step_alone(kind: type[UAMT | URPC]) -> None:
    config = Config().replace({"data.benchmark": "synapse", "data.budget": 4, "loss.name": "ce",
                               "training.method": kind.__name__.lower()})  # fmt: skip
    torch.manual_seed(0)
    images, labels = torch.rand(2, 1, 32, 32, 32), torch.randint(0, 14, (1, 32, 32, 32))
    batch = {
        "labelled": {"image": images[:1], "label": labels},
        "unlabelled": {"image": images[1:]},
    }

    def run(step: int, seed: int = 0) -> float:
        torch.manual_seed(0)
        settings = config.replace({"seed": seed, "volumes.uamt_passes": 1})
        network = PyramidUNet(14, 4, kind.dropout(config.volumes))
        method = kind(network, build_loss(config.loss, 14), settings)
        torch.manual_seed(step)
        before = torch.get_rng_state()
        value = method.losses(batch, step)["loss_sup"].item()
        assert torch.equal(torch.get_rng_state(), before), "a draw from the global generator"
        return value

    assert run(3) == run(3)
    assert run(3) != run(4)
    assert run(3) != run(3, seed=1)


def test_teacher_and_student_of_uamt_drop_channels_in_every_pass() -> None:
    method = make(UAMT, volumes__uamt_noise=0.0, volumes__uamt_passes=3)
    passes: list[tuple[str, Tensor]] = []

    def count(name: str, network: nn.Module) -> None:
        def forward(images: Tensor, generator: torch.Generator | None = None) -> Tensor:
            assert generator is not None, f"a pass of the {name} without dropout"
            passes.append((name, torch.rand(4, generator=generator)))
            return type(network).forward(network, images)

        network.forward = forward

    count("student", method.student)
    count("teacher", method.teacher)
    method.losses(make_batch(), 3)
    assert [name for name, _ in passes] == ["student", *["teacher"] * 4]
    masks = torch.stack([mask for _, mask in passes])
    assert len(masks.unique(dim=0)) == 5, "two passes with one mask"


def test_images_and_volumes_do_not_mix(root: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"holds volumes: choose training\.method from uamt, urpc"
    ):
        config_of(root, training__method="semidavil")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["uamt", "urpc"])
def test_a_run_learns_and_resumes_exactly(method: str, root: Path, tmp_path: Path) -> None:
    changes = {"training__method": method, "training__steps": 8, "runtime__checkpoint_every": 4}
    config = config_of(root, **changes)
    losses: list[float] = []
    whole = train(
        config, lambda r: losses.append(r.metrics.get("train/loss", math.nan)), tmp_path / "whole"
    )
    assert np.nanmean(losses[-3:]) < np.nanmean(losses[:3])
    assert set(whole.artifacts) == {"weights", "examples", "evaluation"}
    assert all(path.stat().st_size > 100 for path in whole.artifacts.values())
    assert 0 <= whole.metrics["dice"] <= 100

    train_until(config, 6, tmp_path / "parts")
    resumed = train(config, checkpoint_dir=tmp_path / "parts")
    assert resumed.metrics == whole.metrics
    assert np.array_equal(resumed.evaluation.dice, whole.evaluation.dice, equal_nan=True)
