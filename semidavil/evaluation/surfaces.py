"""Distances between the surfaces of an organ and of its prediction."""

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import binary_erosion, distance_transform_edt

MISSED = 128.0  # voxels that GenericSSL and DHC count for an organ that only one of the two has


def surface_distances(
    mine: np.ndarray, theirs: np.ndarray, spacing: Sequence[float]
) -> tuple[float, float]:
    """Of two masks (D, H, W), neither of them empty: symmetric in millimetres, directed in voxels.

    The first is the mean over both surfaces of the distance to the other one. The second goes from `mine`
    to `theirs` alone and knows no voxel size: `medpy.metric.binary.asd`, with which GenericSSL and DHC
    score. A surface is the voxels of a mask with one of six neighbours outside of it.

    Args:
        spacing: millimetres of a voxel (z, y, x).
    """
    # Nothing lies outside the box that holds both, and a distance transform takes as long as it is large.
    both = mine | theirs
    axes = [np.flatnonzero(both.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    box = tuple(slice(where[0], where[-1] + 1) for where in axes)
    edges = [mask[box] & ~binary_erosion(mask[box]) for mask in (mine, theirs)]
    forth, back = (
        distance_transform_edt(~edge, sampling=spacing)[other]
        for edge, other in (edges[::-1], edges)
    )
    directed = distance_transform_edt(~edges[1])[edges[0]]
    return float(np.concatenate([forth, back]).mean()), float(directed.mean())
