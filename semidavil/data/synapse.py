"""CT scans with 13 organs (Synapse, BTCV): which there are, which train, and what may be wrong with one.

    synapse/*.h5                        `image` (D, H, W) and `label`, as semi-supervised codes keep them
    synapse/img/*.nii.gz, label/        as the challenge distributes its training scans

Labels are 0 for the background and 1 to 13 in the order of `SYNAPSE_13`, the challenge's own. `img0001` has
the label `label0001`, or one of its own name; where there are .h5 files, these are read. NIfTI scans are
resampled to `volumes.spacing` and trained, predicted and scored at it, as GenericSSL and DHC score on the
grid that they train on; .h5 files are taken as they are, and values from 0 to 1 as scaled already.

`volumes.split` says which scans train. "seeded": the first 20 of 30 scans in order, then 4 for validation,
the rest for testing (our reading: the paper names no scans), or what `<split>.txt` files beside them list by
name; the run's seed draws the labelled ones. Others name a publication's lists (`synapse_splits`). Splits
are known to change results, and none is surely the paper's.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from semidavil.benchmarks import SYNAPSE_13
from semidavil.data.ct import WINDOW, Spacing, read_h5, read_nifti
from semidavil.data.files import DataError
from semidavil.data.folders import files_in, names_in, stem_of
from semidavil.data.splits import split_at_random
from semidavil.data.synapse_splits import NAMED_SPLITS, labelled_scans, number_of
from semidavil.settings import Volumes

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
    spacing: Spacing


class Synapse:
    """Lists and reads the scans below `root`.

    Args:
        settings: `split` and `spacing` of them; None: the defaults.
    """

    def __init__(self, root: Path, settings: Volumes | None = None) -> None:
        self.root, self.settings = root, settings or Volumes()

    def cases(self, split: str) -> list[Case]:
        """The cases of "train", "val" or "test", in a stable order.

        Raises:
            DataError: a missing folder, a scan without a label or in two files, or a scan that a list
                names and that is not there.
        """
        if split not in SHARES:
            raise DataError(f"synapse has no split {split!r}: it has {', '.join(SHARES)}")
        found = self._all()
        if self.settings.split in NAMED_SPLITS:
            return self._numbered(found, NAMED_SPLITS[self.settings.split].parts[split])
        listing = self.root / f"{split}.txt"
        if listing.is_file():
            named = {case.name: case for case in found}
            names = names_in(listing)
            for name in names:
                if name not in named:
                    raise DataError(f"synapse: {listing} lists {name}, which {self.root} lacks")
            return [named[name] for name in names]
        ends = np.round(np.cumsum([0, *SHARES.values()]) * len(found)).astype(int)
        position = list(SHARES).index(split)
        return found[ends[position] : ends[position + 1]]

    def labelled_and_not(self, budget: int, seed: int) -> tuple[list[Case], list[Case]]:
        """Labelled and unlabelled training cases, by the split's list, or nested by seed.

        Raises:
            DataError: see `cases`; or a budget of no scan, of more than there are, or without a list.
        """
        cases = self.cases("train")
        if self.settings.split in NAMED_SPLITS:
            numbers = labelled_scans(self.settings.split, budget)
            labelled = self._numbered(cases, numbers)
            return labelled, [case for case in cases if case not in labelled]
        if not 0 < budget <= len(cases):
            raise DataError(
                f"a budget of {budget} labelled scans of {len(cases)} training scans: "
                f"choose 1 to {len(cases)} (--budgets)"
            )
        chosen, rest = split_at_random(len(cases), budget, seed)
        return [cases[i] for i in chosen], [cases[i] for i in rest]

    def _numbered(self, cases: Sequence[Case], numbers: Sequence[int]) -> list[Case]:
        """The cases whose names have these numbers."""
        found: dict[int | None, Case] = {}
        for case in cases:
            number = number_of(case.name)
            other = found.setdefault(number, case)
            if number in numbers and other is not case:
                raise DataError(
                    f"synapse: {other.image} and {case.image} are both scan {number}: remove one of them"
                )
        missing = [f"{number:04d}" for number in numbers if number not in found]
        if missing:
            raise DataError(
                f"synapse: {self.root} lacks {len(missing)} of the scans that "
                f"volumes.split={self.settings.split} names: {', '.join(missing)} (in files such as "
                f"img{missing[0]}.nii.gz or case{missing[0]}.h5). Add them, or take the scans that are there "
                "with volumes.split=seeded"
            )
        return [found[number] for number in numbers]

    def _all(self) -> list[Case]:
        if not self.root.is_dir():
            raise DataError(
                f"synapse: the folder {self.root} is missing: --data-root names the folder that "
                "holds synapse/; without it, the toy preset uses generated scans"
            )
        packed = [path for path in files_in(self.root) if path.suffix.lower() == ".h5"]
        if packed:
            return [Case(name, path, path) for name, path in _by_name(packed).items()]
        scans, labels = (_by_name(_nifti_files(self.root / kind)) for kind in ("img", "label"))
        if not scans:
            raise DataError(
                f"synapse: no scan in {self.root}: expected *.h5 with `image` and `label`, or "
                "img/img*.nii.gz with label/label*.nii.gz"
            )
        lower = {name.lower(): path for name, path in labels.items()}
        cases = []
        for name, path in scans.items():
            expected = re.sub("^img", "label", name.lower())
            label = lower.get(expected) or lower.get(name.lower())
            if label is None:
                place = self.root / "label" / f"{expected}.nii.gz"
                raise DataError(f"synapse: the scan {path} has no label: {place} is missing")
            cases.append(Case(name, path, label))
        return cases

    def read(self, case: Case) -> Scan:
        """One scan, its intensities clipped to `WINDOW` and scaled unless they are in [0, 1].

        Raises:
            DataError: a file that is empty or cannot be read, an unknown label, image and label that
                differ in shape, intensities that are no Hounsfield units.
        """
        try:
            for path in (case.image, case.label):
                if not path.stat().st_size:
                    raise ValueError(f"{path.name} is empty: copy it again")
            image, label, spacing = (
                read_h5(case.image)
                if case.image == case.label
                else read_nifti(case.image, case.label, self.settings.spacing)
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


def _nifti_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return [path for path in files_in(folder) if path.name.lower().endswith((".nii", ".nii.gz"))]


def _by_name(paths: Sequence[Path]) -> dict[str, Path]:
    """Files by their names without endings.

    Raises:
        DataError: one scan in two files, which would count twice.
    """
    found: dict[str, Path] = {}
    for path in paths:
        other = found.setdefault(stem_of(path.name), path)
        if other is not path:
            raise DataError(
                f"synapse: {other} and {path.name} are one scan in two files: remove one of each"
            )
    return found
