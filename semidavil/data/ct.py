"""Reads a CT scan with its label: HDF5 as semi-supervised codes keep them, or a pair of NIfTI files."""

import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.ndimage import affine_transform

Spacing = tuple[float, float, float]  # of voxels (z, y, x), in millimetres
# Hounsfield units that become 0 and 1, as in GenericSSL's and DHC's code. Those scale by what is left of
# the scan after clipping, which is the same wherever it shows both air and bone.
WINDOW = (-75.0, 275.0)


def read_h5(path: Path) -> tuple[np.ndarray, np.ndarray, Spacing]:
    """Image and label (D, H, W) as they are stored, and the attribute `spacing`, or 1 mm without it.

    Raises:
        OSError, KeyError, ValueError: it cannot be read.
    """
    import h5py

    with h5py.File(path) as file:
        spacing = file.attrs.get("spacing", (1.0, 1.0, 1.0))
        return file["image"][()], file["label"][()], _three(spacing)


def read_nifti(
    image: Path, label: Path, spacing: Spacing
) -> tuple[np.ndarray, np.ndarray, Spacing]:
    """Image (D, H, W) float32 and label (D, H, W), resampled to `spacing`.

    Raises:
        OSError, EOFError, ValueError: they cannot be read, or do not lie on each other.
    """
    import nibabel
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError
    from nibabel.wrapstruct import WrapStructError

    try:
        files = [nibabel.Nifti1Image.from_filename(path) for path in (image, label)]
        if files[0].shape != files[1].shape or not np.allclose(
            files[0].affine, files[1].affine, atol=1e-3
        ):
            raise ValueError(f"{label.name} lies elsewhere in space, or has another shape")
        # One orientation for all scans; NIfTI's axes are (x, y, z), ours (z, y, x).
        files = [nibabel.as_closest_canonical(file) for file in files]
        values, labels = (np.asanyarray(file.dataobj).T for file in files)
    except (ImageFileError, HeaderDataError, WrapStructError, zlib.error) as error:
        raise ValueError(f"it is no NIfTI file, or broken: {error}") from error
    if values.ndim != 3:
        raise ValueError(f"it has {values.ndim} dimensions instead of three")
    stored = _three(files[0].header.get_zooms()[2::-1])
    resampled = resample(values.astype(np.float32), stored, spacing, order=1)
    return resampled, resample(labels, stored, spacing, order=0), spacing


def resample(volume: np.ndarray, stored: Spacing, wanted: Spacing, order: int) -> np.ndarray:
    """A volume (D, H, W) with voxels of another size, which fill the same box.

    Image and label are sampled at the same points, so that they stay on each other.

    Args:
        stored: the voxels' size; `wanted`: what it shall be.
        order: 1 interpolates linearly, 0 takes the nearest voxel.
    """
    if np.allclose(stored, wanted, rtol=1e-3):
        return np.ascontiguousarray(volume)
    step = np.divide(wanted, stored)
    shape = tuple(max(1, round(n / s)) for n, s in zip(volume.shape, step, strict=True))
    # Voxel i covers i to i + 1; its centre is at i + 0.5.
    return affine_transform(volume, step, 0.5 * step - 0.5, shape, order=order, mode="nearest")


def _three(values: Sequence[float]) -> Spacing:
    first, second, third = (float(value) for value in values)
    return first, second, third
