"""Synapse: reader, toy scans, UA-MT and URPC against plain computations, and a whole run."""

import copy
import math
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest
import torch
from scipy.ndimage import binary_erosion, distance_transform_edt
from stopped_run import train_until
from torch import Tensor, nn

from semidavil.benchmarks import SYNAPSE_13
from semidavil.config import Config, ConfigError, preset
from semidavil.data.files import DataError
from semidavil.data.synapse import Case, Scan, Synapse
from semidavil.data.volumes import VolumeBatches, check_volumes, split_cases
from semidavil.evaluation.volumes import VolumeEvaluation, score
from semidavil.losses import build_loss
from semidavil.methods.uamt import UAMT, entropy
from semidavil.methods.urpc import URPC, rectified_consistency
from semidavil.methods.volume_method import ramp_up
from semidavil.models.unet3d import PyramidUNet
from semidavil.toy.abdomen import render_case
from semidavil.train import train

CLASSES = 14


@pytest.fixture
def root(tiny_abdomens: Path) -> Path:
    return tiny_abdomens


def config_of(root: Path, **changes: object) -> Config:
    known = {
        "data.benchmark": "synapse", "data.budget": 2, "data.toy": False,
        "training.method": "uamt", "loss.name": "ce", "training.steps": 4,
        "training.warmup_steps": 0, "volumes.width": 4, "runtime.data_root": str(root),
    }  # fmt: skip
    return preset("toy", known | {k.replace("__", "."): v for k, v in changes.items()})


# -- data --------------------------------------------------------------------------------------


def test_the_reader_scales_hounsfield_units_and_keeps_the_spacing(root: Path) -> None:
    reader = Synapse(root / "synapse")
    assert [len(reader.cases(split)) for split in ("train", "val", "test")] == [6, 1, 2]
    case = reader.cases("train")[1]
    scan = reader.read(case)
    with h5py.File(case.image) as file:
        raw, label = file["image"][()].astype(float), file["label"][()]
        assert scan.spacing == tuple(file.attrs["spacing"])
    assert np.allclose(scan.image, np.clip((raw + 125) / 400, 0, 1))
    assert np.array_equal(scan.label, label)


def test_nifti_scans_are_read_in_the_challenges_layout(tmp_path: Path) -> None:
    image = np.random.default_rng(0).normal(0, 300, (5, 6, 7)).astype(np.int16)
    label = np.zeros((5, 6, 7), np.uint8)
    label[1:3] = 6
    affine = np.diag([0.8, 0.9, 3.0, 1.0])
    mirrored = np.diag([-0.8, 0.9, 3.0, 1.0])
    for folder, array in (("img", image), ("label", label)):
        (tmp_path / folder).mkdir()
        file = tmp_path / folder / f"{folder}0001.nii.gz"
        nibabel.save(nibabel.Nifti1Image(array, affine), file)
    (tmp_path / "train.txt").write_text("img0001\n")
    reader = Synapse(tmp_path)
    scan = reader.read(reader.cases("train")[0])
    assert scan.image.shape == (7, 6, 5)
    assert scan.spacing == pytest.approx((3.0, 0.9, 0.8))
    assert np.array_equal(scan.label, label.T)
    # A label that is stored from the other side is no match; a scan stored so is turned round.
    nibabel.save(nibabel.Nifti1Image(label, mirrored), tmp_path / "label" / "label0001.nii.gz")
    with pytest.raises(DataError, match="lies elsewhere in space"):
        reader.read(reader.cases("train")[0])
    nibabel.save(nibabel.Nifti1Image(image, mirrored), tmp_path / "img" / "img0001.nii.gz")
    turned = reader.read(reader.cases("train")[0])
    assert np.array_equal(turned.image, scan.image[:, :, ::-1])
    whole = (tmp_path / "img" / "img0001.nii.gz").read_bytes()
    (tmp_path / "img" / "img0001.nii.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"img0001\.nii\.gz cannot be read"):
        reader.read(reader.cases("train")[0])


def test_real_scans_are_read_where_they_are() -> None:
    folder = Path(__file__).resolve().parents[3] / "shared" / "data" / "ct" / "volumes"
    image = folder / "example_ct.nii.gz"
    if not image.exists():
        pytest.skip("no real CT scan beside this checkout")
    with pytest.raises(DataError, match="unknown ids"):  # its labels are another program's
        Synapse(folder).read(Case("ct", image, folder / "example_seg_fast_force_split.nii.gz"))


def test_bad_scans_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is missing: --data-root"):
        Synapse(tmp_path / "nowhere").cases("train")
    with pytest.raises(DataError, match=r"no scan in .*expected \*\.h5"):
        Synapse(tmp_path).cases("train")

    def write(name: str, image: np.ndarray, label: np.ndarray | None) -> Case:
        with h5py.File(tmp_path / name, "w") as file:
            file["image"] = image
            if label is not None:
                file["label"] = label
        return Case(name, tmp_path / name, tmp_path / name)

    cube = np.zeros((4, 4, 4), np.float32)
    reader = Synapse(tmp_path)
    for case, words in (
        (write("a.h5", cube, None), r"a\.h5 cannot be read"),
        (write("b.h5", cube, cube[:3].astype(np.uint8)), r"\(3, 4, 4\).*b\.h5"),
        (write("c.h5", cube, np.full((4, 4, 4), 14)), r"c\.h5 holds the unknown ids \[14"),
        (write("f.h5", cube, cube + 1.5), r"f\.h5 holds the unknown ids \[1\.5"),
        (write("g.h5", cube - 2, cube.astype(np.uint8)), r"expected Hounsfield units"),
        (write("d.h5", cube * np.nan, cube.astype(np.uint8)), r"d\.h5 holds values"),
    ):
        with pytest.raises(DataError, match=words):
            reader.read(case)
    (tmp_path / "e.h5").write_bytes(b"no HDF5")
    with pytest.raises(DataError, match=r"e\.h5 cannot be read"):
        reader.read(Case("e", tmp_path / "e.h5", tmp_path / "e.h5"))
    (tmp_path / "test.txt").write_text("zz")
    with pytest.raises(DataError, match="lists zz"):
        reader.cases("test")


def test_budgets_are_nested_and_bounded(root: Path) -> None:
    reader = Synapse(root / "synapse")
    few, more = (split_cases(config_of(root, data__budget=n), reader) for n in (2, 4))
    assert {c.name for c in few["labelled"]} < {c.name for c in more["labelled"]}
    assert len(few["unlabelled"]) == 4
    with pytest.raises(DataError, match="7 labelled scans of 6"):
        check_volumes(config_of(root, data__budget=7), reader)


def test_toy_abdomens_are_deterministic_and_long_tailed() -> None:
    first = render_case(np.random.default_rng([1, 3]))
    second = render_case(np.random.default_rng([1, 3]))
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    counts = np.zeros(CLASSES)
    for index in range(12):
        counts += np.bincount(
            render_case(np.random.default_rng([1, index]))[1].ravel(), minlength=14
        )
    share = dict(zip(SYNAPSE_13, counts[1:] / counts[1:].sum(), strict=True))
    assert max(share, key=share.get) == "liver"
    assert share["liver"] > 0.4
    assert 0 < share["left adrenal gland"] < 0.01
    assert all(value > 0 for value in share.values())


def test_patches_depend_on_seed_and_step_alone(root: Path) -> None:
    reader = Synapse(root / "synapse")
    batches = VolumeBatches(config_of(root), reader)
    first = batches[3]
    assert batches[2]["labelled"]["image"].shape == (2, 1, 32, 32, 32)
    again = VolumeBatches(config_of(root), reader)[3]
    assert torch.equal(first["labelled"]["image"], again["labelled"]["image"])
    assert torch.equal(first["labelled"]["label"], again["labelled"]["label"])
    assert "label" not in first["unlabelled"]
    other = VolumeBatches(config_of(root, seed=1), reader)[3]
    assert not torch.equal(first["unlabelled"]["image"], other["unlabelled"]["image"])


# -- formulas ----------------------------------------------------------------------------------


class Tiny(nn.Module):
    """Four predictions from one convolution each."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList([nn.Conv3d(1, 3, 1) for _ in range(4)])

    def pyramid(self, images: Tensor) -> Tensor:
        return torch.stack([head(images) for head in self.heads], 1)

    def forward(self, images: Tensor) -> Tensor:
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


def test_dice_and_surface_distance_against_scipy() -> None:
    rng = np.random.default_rng(0)
    truth, guess = (np.zeros((12, 14, 16), np.uint8) for _ in range(2))
    truth[3:8, 4:10, 5:11], guess[4:9, 4:9, 6:12] = 1, 1
    truth[9:11, 2:5, 2:6] = 2  # an organ that is missed
    guess[0:2, 0:2, 0:2] = 3  # and one that is not there
    spacing = (2.0, 1.0, 0.5)
    scan = Scan(rng.random(truth.shape).astype(np.float32), truth, spacing)
    dice, surface, voxels = score(torch.from_numpy(guess).long(), scan, 4)
    mine, theirs = guess == 1, truth == 1
    assert dice[0] == pytest.approx(2 * (mine & theirs).sum() / (mine.sum() + theirs.sum()))
    assert dice[1] == dice[2] == 0
    assert np.isnan(dice[3])
    assert np.isnan(surface[1:]).all()
    assert voxels.tolist() == [180, 24, 0, 0]
    edges = [mask & ~binary_erosion(mask) for mask in (mine, theirs)]
    apart = [distance_transform_edt(~edge, sampling=spacing) for edge in edges]
    both = np.concatenate([apart[1][edges[0]], apart[0][edges[1]]])
    assert surface[0] == pytest.approx(both.mean(), rel=1e-4)
    found = VolumeEvaluation(["a"], dice[None], surface[None], voxels[None]).summary("wxyz")
    assert found["dice"] == pytest.approx(100 * np.nanmean(dice))
    assert found["asd"] == found["asd/w"] == pytest.approx(surface[0])
    assert "dice/z" not in found
    assert found["missed"] == 50  # one of the two organs that are there


def test_the_pyramid_has_four_scales_of_full_size_in_both_modes() -> None:
    network = PyramidUNet(CLASSES, 4)
    images = torch.randn(1, 1, 32, 32, 32)
    assert network.train().pyramid(images).shape == (1, 4, CLASSES, 32, 32, 32)
    network.eval()
    with torch.no_grad():
        assert network.pyramid(images).shape == (1, 4, CLASSES, 32, 32, 32)
        assert torch.equal(network(images), network.pyramid(images)[:, 0])
    assert copy.deepcopy(network) is not network


def test_images_and_volumes_do_not_mix(root: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"holds volumes: choose training\.method from uamt, urpc"
    ):
        config_of(root, training__method="semidavil")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["uamt", "urpc"])
def test_a_run_learns_and_resumes_exactly(method: str, root: Path, tmp_path: Path) -> None:
    changes = {"training__method": method, "training__steps": 12, "runtime__checkpoint_every": 4}
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
