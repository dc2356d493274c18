"""Synapse: listing and reading scans, splits, toy scans, patches."""

from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest
import torch
from volume_config import CLASSES, config_of

from semidavil.benchmarks import SYNAPSE_13
from semidavil.data.ct import resample
from semidavil.data.files import DataError
from semidavil.data.synapse import Case, Scan, Synapse
from semidavil.data.synapse_splits import NAMED_SPLITS
from semidavil.data.volumes import VolumeBatches, check_volumes
from semidavil.settings import Volumes
from semidavil.toy.abdomen import ensure_toy_abdomen, render_case


@pytest.fixture
def root(tiny_abdomens: Path) -> Path:
    return tiny_abdomens


def test_the_reader_scales_hounsfield_units_and_keeps_the_spacing(root: Path) -> None:
    reader = Synapse(root / "synapse")
    assert [len(reader.cases(split)) for split in ("train", "val", "test")] == [6, 1, 2]
    case = reader.cases("train")[1]
    scan = reader.read(case)
    with h5py.File(case.image) as file:
        raw, label = file["image"][()].astype(float), file["label"][()]
        assert scan.spacing == tuple(file.attrs["spacing"])
    assert np.allclose(scan.image, np.clip((raw + 75) / 350, 0, 1))
    assert np.array_equal(scan.label, label)


def write_nifti(
    root: Path, image: np.ndarray, label: np.ndarray, affine: np.ndarray, number: str = "0001"
) -> None:
    for folder, array in (("img", image), ("label", label)):
        (root / folder).mkdir(exist_ok=True)
        file = root / folder / f"{folder}{number}.nii.gz"
        nibabel.save(nibabel.Nifti1Image(array, affine), file)


def test_nifti_scans_are_read_in_the_challenges_layout(tmp_path: Path) -> None:
    image = np.random.default_rng(0).normal(0, 300, (5, 6, 7)).astype(np.int16)
    label = np.zeros((5, 6, 7), np.uint8)
    label[1:3] = 6
    affine = np.diag([0.8, 0.9, 3.0, 1.0])
    mirrored = np.diag([-0.8, 0.9, 3.0, 1.0])
    write_nifti(tmp_path, image, label, affine)
    (tmp_path / "train.txt").write_text("img0001\n")
    reader = Synapse(tmp_path, Volumes(spacing=(3.0, 0.9, 0.8)))
    scan = reader.read(reader.cases("train")[0])
    assert scan.image.shape == (7, 6, 5)
    assert scan.spacing == pytest.approx((3.0, 0.9, 0.8))
    assert np.allclose(scan.image, np.clip((image.T + 75) / 350, 0, 1), atol=1e-6)
    assert np.array_equal(scan.label, label.T)
    # A label that is stored from the other side is no match; a scan stored so is turned round.
    nibabel.save(nibabel.Nifti1Image(label, mirrored), tmp_path / "label" / "label0001.nii.gz")
    with pytest.raises(DataError, match="lies elsewhere in space"):
        reader.read(reader.cases("train")[0])
    nibabel.save(nibabel.Nifti1Image(image, mirrored), tmp_path / "img" / "img0001.nii.gz")
    turned = reader.read(reader.cases("train")[0])
    assert np.array_equal(turned.image, scan.image[:, :, ::-1])
    whole = (tmp_path / "img" / "img0001.nii.gz").read_bytes()
    for broken in (
        whole[: len(whole) // 2],
        whole[:20] + bytes(100) + whole[120:],
        b"no NIfTI" * 99,
        b"",
    ):
        (tmp_path / "img" / "img0001.nii.gz").write_bytes(broken)
        why = "cannot be read" if broken else r"cannot be read: img0001\.nii\.gz is empty"
        with pytest.raises(DataError, match=rf"img0001\.nii\.gz {why}"):
            reader.read(reader.cases("train")[0])


@pytest.mark.parametrize("stored", [(3.0, 0.8, 0.8), (1.0, 0.7, 0.9)])
def test_scans_of_all_spacings_get_one(stored: tuple[float, float, float], tmp_path: Path) -> None:
    """An image that is linear in space, and an organ behind a plane, stay where they are in millimetres."""
    shape, wanted = (21, 40, 50), (2.0, 1.5, 1.5)
    slope = np.array([10.0, -5.0, 3.7])  # Hounsfield units per millimetre

    def place(shape: tuple[int, ...], spacing: tuple[float, ...]) -> np.ndarray:
        """Millimetres from the corner of the box to the centre of each voxel."""
        axes = [(np.arange(n) + 0.5) * size for n, size in zip(shape, spacing, strict=True)]
        return np.stack(np.meshgrid(*axes, indexing="ij"), -1)

    where = place(shape, stored)
    image, label = where @ slope + 20, (where[..., 1] > 13.1).astype(np.uint8)
    write_nifti(tmp_path, image.T, label.T, np.diag([*stored[::-1], 1.0]))
    (tmp_path / "train.txt").write_text("img0001")
    reader = Synapse(tmp_path)
    scan = reader.read(reader.cases("train")[0])
    assert scan.spacing == wanted
    box = np.multiply(shape, stored)
    assert np.abs(np.multiply(scan.label.shape, wanted) - box).max() <= max(wanted) / 2
    there = place(scan.image.shape, wanted)
    # Beyond the outermost centres there is nothing to interpolate between.
    inside = ((there > np.divide(stored, 2)) & (there < box - np.divide(stored, 2))).all(-1)
    expected = ((there @ slope + 20 + 75) / 350).clip(0, 1)
    assert np.abs(scan.image - expected)[inside].max() < 1e-5
    nearest = np.floor(there[..., 1] / stored[1]).clip(0, shape[1] - 1)  # the voxel that it lies in
    assert np.array_equal(scan.label, ((nearest + 0.5) * stored[1] > 13.1).astype(np.uint8))


def test_the_same_spacing_changes_nothing() -> None:
    volume = np.random.default_rng(0).normal(size=(3, 4, 5))
    assert np.array_equal(resample(volume, (2.0, 1.5, 1.5), (2.0, 1.5, 1.5000001), 1), volume)


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


def write_scan(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["image"], file["label"] = np.zeros((4, 4, 4)), np.zeros((4, 4, 4), np.uint8)
    return path


def test_what_programs_leave_beside_scans_is_no_scan(tmp_path: Path) -> None:
    for name in (
        "case0001.h5",
        "case0002.H5",
        ".ipynb_checkpoints/case0001.h5",
        "@eaDir/case0002.h5",
    ):
        write_scan(tmp_path / "h5" / name)
    (tmp_path / "h5" / "._case0001.h5").write_bytes(b"Mac OS X")
    (tmp_path / "h5" / "case0003.h5").symlink_to(write_scan(tmp_path / "elsewhere" / "scan.h5"))
    (tmp_path / "linked").symlink_to(tmp_path / "h5")
    for folder in ("h5", "linked"):
        reader = Synapse(tmp_path / folder)
        assert [case.name for case in reader._all()] == ["case0001", "case0002", "case0003"]
        assert reader.read(reader._all()[2]).image.shape == (4, 4, 4)
    for kind in ("img", "label"):
        (tmp_path / "nifti" / kind).mkdir(parents=True)
        for name in (
            f"{kind}0001.nii",
            f"{kind.upper()}0002.NII.GZ",
            "0003.nii.gz",
            f"._{kind}0001.nii.gz",
        ):
            (tmp_path / "nifti" / kind / name).touch()
    cases = Synapse(tmp_path / "nifti")._all()
    assert [(case.name, case.label.name) for case in cases] == [
        ("0003", "0003.nii.gz"), ("IMG0002", "LABEL0002.NII.GZ"), ("img0001", "label0001.nii"),
    ]  # fmt: skip


def test_one_scan_in_two_files_is_named(tmp_path: Path) -> None:
    for name in ("case0001.h5", "case0001.npy.h5"):
        write_scan(tmp_path / "h5" / name)
    with pytest.raises(
        DataError, match=r"case0001\.h5 and case0001\.npy\.h5 are one scan in two files"
    ):
        Synapse(tmp_path / "h5").cases("train")
    for name in ("img/img0001.nii", "img/img0001.nii.gz", "label/label0001.nii"):
        (tmp_path / "nifti" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "nifti" / name).touch()
    with pytest.raises(
        DataError, match=r"img0001\.nii and img0001\.nii\.gz are one scan in two files"
    ):
        Synapse(tmp_path / "nifti").cases("train")


def test_budgets_are_nested_and_bounded(root: Path) -> None:
    reader = Synapse(root / "synapse")
    few, more = (reader.labelled_and_not(n, seed=0) for n in (2, 4))
    assert {c.name for c in few[0]} < {c.name for c in more[0]}
    assert len(few[1]) == 4
    with pytest.raises(DataError, match="7 labelled scans of 6"):
        check_volumes(config_of(root, data__budget=7), reader)


@pytest.fixture(scope="module")
def thirty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Empty files with the challenge's thirty numbers, named in three ways."""
    root = tmp_path_factory.mktemp("thirty")
    for position, number in enumerate((*range(1, 11), *range(21, 41))):
        (root / f"{('', 'img', 'case')[position % 3]}{number:04d}.h5").touch()
    return root


@pytest.mark.parametrize(
    ("split", "budget", "labelled", "test"),
    [
        ("genericssl", 4, [9, 21, 25, 34], [8, 27, 29, 33, 37, 39]),
        ("dhc", 2, [23, 28], [4, 7, 10, 33, 35, 36]),
        ("dhc", 4, [2, 23, 34, 39], [4, 7, 10, 33, 35, 36]),
        ("dhc", 8, [2, 9, 21, 23, 27, 31, 32, 37], [4, 7, 10, 33, 35, 36]),
    ],
)
def test_named_splits_label_what_they_list_whatever_the_seed(
    split: str, budget: int, labelled: list[int], test: list[int], thirty: Path
) -> None:
    def numbers(cases: list[Case]) -> list[int]:
        return [int(case.name[-4:]) for case in cases]

    reader = Synapse(thirty, Volumes(split=split))
    parts = {part: numbers(reader.cases(part)) for part in ("train", "val", "test")}
    assert [len(part) for part in parts.values()] == [20, 4, 6]
    everything = [number for part in parts.values() for number in part]
    assert sorted(everything) == [*range(1, 11), *range(21, 41)]
    assert parts["test"] == test
    for seed in (0, 1):
        found = [numbers(cases) for cases in reader.labelled_and_not(budget, seed)]
        assert found[0] == labelled
        assert sorted(found[0] + found[1]) == parts["train"]


def test_named_splits_say_what_they_lack(thirty: Path, tmp_path: Path) -> None:
    reader = Synapse(thirty, Volumes(split="genericssl"))
    with pytest.raises(DataError, match=r"genericssl has no list of 8.*only of 4: choose.*seeded"):
        reader.labelled_and_not(8, seed=0)
    with pytest.raises(DataError, match=r"no list of 3 labelled scans, only of 2 and 4 and 8"):
        Synapse(thirty, Volumes(split="dhc")).labelled_and_not(3, seed=0)
    for name in ("0002", "img0003", "case0023_v2"):
        (tmp_path / f"{name}.h5").touch()
    with pytest.raises(
        DataError, match=r"lacks 4 of the scans .*: 0001, 0007, 0023, 0030 .*case0001\.h5"
    ):
        Synapse(tmp_path, Volumes(split="genericssl")).cases("val")
    for name in ("0001", "img0007", "0023", "case0030", "img0030"):
        (tmp_path / f"{name}.h5").touch()
    with pytest.raises(DataError, match=r"case0030\.h5 and .*img0030\.h5 are both scan 30"):
        Synapse(tmp_path, Volumes(split="genericssl")).cases("val")


def test_configurations_and_lists_have_the_same_splits() -> None:
    names = Volumes.model_fields["split"].annotation.__args__
    assert names == ("seeded", *NAMED_SPLITS)


@pytest.mark.slow
def test_toy_scans_have_the_numbers_that_named_splits_list(tmp_path: Path) -> None:
    folder = ensure_toy_abdomen(tmp_path, progress=False) / "synapse"
    for name in NAMED_SPLITS:
        assert len(Synapse(folder, Volumes(split=name)).cases("train")) == 20


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


def test_patches_are_cut_out_before_they_are_padded(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = VolumeBatches(config_of(root, volumes__patch=[32, 48, 64]), Synapse(root / "synapse"))
    rng = np.random.default_rng(0)
    pad, sizes = np.pad, []
    for shape in ((40, 50, 70), (20, 48, 90), (31, 33, 35)):
        scan = Scan(
            rng.random(shape).astype(np.float32), rng.integers(0, 14, shape, np.uint8), (1.0,) * 3
        )
        missing = [max(0, p - n) for p, n in zip((32, 48, 64), shape, strict=True)]
        padded = pad(scan.image, [(m // 2, m - m // 2) for m in missing])
        draws = np.random.default_rng(5)
        starts = [
            draws.integers(n - p + 1) for n, p in zip(padded.shape, (32, 48, 64), strict=True)
        ]
        expected = padded[tuple(slice(s, s + p) for s, p in zip(starts, (32, 48, 64), strict=True))]
        with monkeypatch.context() as patch:
            patch.setattr(np, "pad", lambda x, width: (sizes.append(x.size), pad(x, width))[1])
            image, label = batches._patch(scan, np.random.default_rng(5))
        assert np.array_equal(image[0], expected)
        assert label.shape == expected.shape
    assert max(sizes) <= 32 * 48 * 64
