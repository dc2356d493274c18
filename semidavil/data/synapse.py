"""CT scans with 13 organs (Synapse, BTCV): reader of the preprocessed volumes and of the originals.

    synapse/*.h5                        `image` (D, H, W) and `label`, as semi-supervised codes keep them
    synapse/img/img*.nii.gz, label/label*.nii.gz     as the challenge distributes its training scans

Labels are 0 for the background and 1 to 13 in the order of `SYNAPSE_13`, the challenge's own.
`<split>.txt` files beside them list cases by name; without, the first 20 of 30 cases in order are for
training, 4 for validation, the rest for testing (our reading: the paper names no cases).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from semidavil.benchmarks import SYNAPSE_13
from semidavil.data.files import DataError
from semidavil.data.folders import names_in, stem_of

WINDOW = (-125.0, 275.0)  # Hounsfield units that become 0 and 1
# TransUNet's labels 1 to 8.
TRANSUNET_8 = (
    "aorta", "gallbladder", "left kidney", "right kidney", "liver", "pancreas", "spleen", "stomach",
)  # fmt: skip
SHARES = {"train": 20 / 30, "val": 4 / 30, "test": 6 / 30}


@dataclass(frozen=True)
class Case:
    """One scan: a file that holds image and label, or one file of each."""

    name: str
    image: Path
    label: Path


@dataclass(frozen=True)
class Scan:
    """Image (D, H, W) float32 in [0, 1], label (D, H, W) uint8, voxel size in millimetres."""

    image: np.ndarray
    label: np.ndarray
    spacing: tuple[float, float, float]


class Synapse:
    """Lists and reads the scans below `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def cases(self, split: str) -> list[Case]:
        """The cases of "train", "val" or "test", in a stable order.

        Raises:
            DataError: a missing folder, a scan without a label, or a case that a list names and
                that is not there.
        """
        found = {case.name: case for case in self._all()}
        listing = self.root / f"{split}.txt"
        if listing.is_file():
            names = names_in(listing)
            for name in names:
                if name not in found:
                    raise DataError(f"synapse: {listing} lists {name}, which {self.root} lacks")
            return [found[name] for name in names]
        if split not in SHARES:
            raise DataError(f"synapse has no split {split!r}: it has {', '.join(SHARES)}")
        ends = np.round(np.cumsum([0, *SHARES.values()]) * len(found)).astype(int)
        position = list(SHARES).index(split)
        return list(found.values())[ends[position] : ends[position + 1]]

    def _all(self) -> list[Case]:
        if not self.root.is_dir():
            raise DataError(
                f"synapse: the folder {self.root} is missing: --data-root names the folder that "
                "holds synapse/; without it, the toy preset uses generated scans"
            )
        packed = sorted(self.root.glob("*.h5"))
        if packed:
            return [Case(stem_of(path.name), path, path) for path in packed]
        images, labels = self.root / "img", self.root / "label"
        scans = sorted(images.glob("img*.nii*"))
        if not scans:
            raise DataError(
                f"synapse: no scan in {self.root}: expected *.h5 with `image` and `label`, or "
                "img/img*.nii.gz with label/label*.nii.gz"
            )
        cases = [Case(stem_of(p.name), p, labels / p.name.replace("img", "label")) for p in scans]
        for case in cases:
            if not case.label.is_file():
                raise DataError(
                    f"synapse: the scan {case.image} has no label: {case.label} is missing"
                )
        return cases

    def read(self, case: Case) -> Scan:
        """One scan, its intensities clipped to `WINDOW` and scaled unless they are in [0, 1].

        Raises:
            DataError: a file that cannot be read, an unknown label, image and label that differ in
                shape.
        """
        try:
            image, label, spacing = (
                _read_h5(case) if case.image == case.label else _read_nifti(case)
            )
        except (OSError, EOFError, KeyError, ValueError) as error:
            raise DataError(f"synapse: {case.image} cannot be read: {error}") from error
        if image.shape != label.shape or image.ndim != 3:
            raise DataError(
                f"synapse: image {image.shape} and label {label.shape} of {case.name} do not match "
                f"({case.image})"
            )
        unknown = [float(i) for i in np.unique(label) if i not in range(len(SYNAPSE_13) + 1)]
        if unknown:
            raise DataError(f"synapse: the label of {case.image} holds the unknown ids {unknown}")
        image = image.astype(np.float32)
        if not np.isfinite(image).all():
            raise DataError(f"synapse: {case.image} holds values that are not finite")
        if image.min() >= 0 and image.max() > 1:
            raise DataError(
                f"synapse: no value of {case.image} is below 0, the largest is {image.max():.4g}: these are "
                "no Hounsfield units, in which air is -1000. The scan's rescale intercept was lost: add it "
                "again (often -1024)"
            )
        if image.min() < 0 or image.max() > 1:
            low, high = WINDOW
            if image.max() - image.min() < high - low:
                raise DataError(
                    f"synapse: the intensities of {case.image} lie in {image.min():.3g} to "
                    f"{image.max():.3g}: expected Hounsfield units, or units clipped to "
                    f"[{low:.0f}, {high:.0f}] and scaled to [0, 1]"
                )
            image = (image.clip(low, high) - low) / (high - low)
        return Scan(image, label.astype(np.uint8), spacing)

    def voxels(self, splits: Sequence[str]) -> dict[str, np.ndarray]:
        """Voxels of each label (14,), the background's first, in the scans of each split; reads every scan.

        Raises:
            DataError: see `read`; or eight organs, in whose order the names of thirteen would be wrong.
        """
        found = {
            split: sum(
                (
                    np.bincount(self.read(case).label.ravel(), minlength=14)
                    for case in self.cases(split)
                ),
                np.zeros(14, np.int64),
            )
            for split in splits
        }
        labels = np.flatnonzero(sum(found.values(), np.zeros(14, np.int64)))
        if len(labels) and labels[-1] == len(TRANSUNET_8):
            raise DataError(
                f"synapse: no label in {self.root} is above 8: these seem to be TransUNet's files, whose "
                f"eight organs have another order ({', '.join(TRANSUNET_8)}), scaled values and no voxel "
                "size. Use the challenge's own scans with thirteen organs"
            )
        return found


def _read_h5(case: Case) -> tuple[np.ndarray, np.ndarray, tuple[float, float, float]]:
    import h5py

    with h5py.File(case.image) as file:
        spacing = file.attrs.get("spacing", (1.0, 1.0, 1.0))
        return file["image"][()], file["label"][()], _three(spacing)


def _read_nifti(case: Case) -> tuple[np.ndarray, np.ndarray, tuple[float, float, float]]:
    import nibabel

    image, label = (nibabel.Nifti1Image.from_filename(path) for path in (case.image, case.label))
    if not np.allclose(image.affine, label.affine, atol=1e-3):
        raise ValueError(f"{case.label.name} lies elsewhere in space than {case.image.name}")
    # One orientation for all scans; NIfTI's axes are (x, y, z), ours (z, y, x).
    image, label = (nibabel.as_closest_canonical(volume) for volume in (image, label))
    arrays = [np.asanyarray(volume.dataobj).T for volume in (image, label)]
    return arrays[0], arrays[1], _three(image.header.get_zooms()[2::-1])


def _three(values: Sequence[float]) -> tuple[float, float, float]:
    first, second, third = (float(value) for value in values)
    return first, second, third
