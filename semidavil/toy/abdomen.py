"""Generated abdomens in the format of the preprocessed Synapse scans.

Thirteen organs as deformed ellipsoids and tubes at plausible places, with the real long tail of sizes:
a liver of a fifth of the trunk, adrenal glands of a few dozen voxels. Intensities are Hounsfield-like,
overlap between organs and vary between patients; what tells organs apart is place, size and shape.
Every scan is a pure function of its index; they have the numbers of the real ones, which named splits list.
"""

import itertools
import os
from pathlib import Path

import numpy as np
from rich.progress import track

from semidavil.benchmarks import SYNAPSE_13

VERSION = 2  # raise it with any change to what is drawn or written
NUMBERS = (*range(1, 11), *range(21, 41))  # the challenge's own of its training scans
SEED = 1  # of all scans
SIZE = (32, 32, 32)  # (D, H, W): from feet to head, front to back, right to left
SPACING = (7.5, 9.0, 9.0)  # millimetres

# Organ: centre and radii as shares of (D, H, W), Hounsfield units, tilt in the (D, W) plane.
_ORGANS: dict[str, tuple[tuple[float, ...], tuple[float, ...], float, float]] = {
    "liver": ((0.66, 0.42, 0.30), (0.20, 0.21, 0.19), 105, 0.3),
    "stomach": ((0.68, 0.36, 0.64), (0.13, 0.12, 0.11), 45, -0.5),
    "spleen": ((0.68, 0.62, 0.79), (0.12, 0.09, 0.065), 115, 0.2),
    "right kidney": ((0.42, 0.66, 0.31), (0.13, 0.068, 0.068), 150, 0.15),
    "left kidney": ((0.45, 0.66, 0.69), (0.13, 0.068, 0.068), 150, -0.15),
    "pancreas": ((0.54, 0.47, 0.53), (0.035, 0.042, 0.15), 85, 0.35),
    "gallbladder": ((0.51, 0.32, 0.33), (0.055, 0.048, 0.040), 12, 0.4),
    "right adrenal gland": ((0.585, 0.60, 0.385), (0.058, 0.045, 0.050), 70, 0.6),
    "left adrenal gland": ((0.60, 0.60, 0.615), (0.058, 0.045, 0.050), 70, -0.6),
}
# Tubes: points along the axis (shares), radius (share), Hounsfield units.
_TUBES: dict[str, tuple[tuple[tuple[float, float, float], ...], float, float]] = {
    "aorta": (((0.0, 0.60, 0.53), (0.5, 0.58, 0.535), (1.0, 0.60, 0.55)), 0.032, 190),
    "inferior vena cava": (((0.0, 0.59, 0.45), (0.5, 0.57, 0.445), (0.95, 0.50, 0.42)), 0.034, 135),
    "portal and splenic veins": (((0.58, 0.50, 0.38), (0.55, 0.50, 0.52), (0.64, 0.57, 0.72)), 0.02, 160),
    "esophagus": (((0.76, 0.50, 0.555), (0.88, 0.55, 0.53), (1.0, 0.56, 0.525)), 0.026, 40),
}  # fmt: skip
# Painted in this order: later ones lie in front of earlier ones where they touch.
_ORDER = (*list(_ORGANS)[:6], *_TUBES, *list(_ORGANS)[6:])


def ensure_toy_abdomen(root: Path, progress: bool = True) -> Path:
    """Generates what is missing under `root`; returns the folder that holds `synapse/`."""
    folder = root.absolute() / f"abdomen-v{VERSION}-{'x'.join(map(str, SIZE))}"
    files = [folder / "synapse" / f"case{number:04d}.h5" for number in NUMBERS]
    missing = [(index, path) for index, path in enumerate(files) if not path.exists()]
    for index, path in track(
        missing, "generating scans (toy)", transient=True, disable=not (progress and missing)
    ):
        write_case(path, index)
    return folder


def write_case(path: Path, index: int) -> None:
    """Renders and writes one scan; a kill leaves no half of it."""
    import h5py

    image, label = render_case(np.random.default_rng([SEED, index]))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with h5py.File(temporary, "w") as file:
        file.create_dataset("image", data=image.round().astype(np.int16), compression="gzip")
        file.create_dataset("label", data=label, compression="gzip")
        file.attrs["spacing"] = SPACING
    temporary.replace(path)


def render_case(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Image (D, H, W) float32 in Hounsfield units and label (D, H, W) uint8."""
    from scipy import ndimage  # images need none of it

    grid = np.stack(
        np.meshgrid(*[(np.arange(n) + 0.5) / n for n in SIZE], indexing="ij"), -1
    ).astype(np.float32)
    # A smooth deformation of space, a scale and a shift: no two patients are alike.
    bend = np.stack([_smooth(rng, 4) for _ in range(3)], -1) * rng.uniform(0.01, 0.022)
    where = (grid + bend - 0.5) * rng.uniform(0.92, 1.1, 3) + 0.5 + rng.normal(0, 0.012, 3)

    image = np.full(SIZE, -1000.0, np.float32)
    label = np.zeros(SIZE, np.uint8)
    trunk = np.sqrt(((where[..., 1] - 0.5) / 0.42) ** 2 + ((where[..., 2] - 0.5) / 0.47) ** 2)
    image[trunk < 1] = -95 + rng.normal(0, 8)  # fat
    image[trunk < 0.86] = 35 + rng.normal(0, 12)  # muscle and bowel
    spine = np.hypot((where[..., 1] - 0.72) / 0.07, (where[..., 2] - 0.54) / 0.075)
    image[spine < 1] = 260 + rng.normal(0, 20)
    contrast = rng.normal(1.0, 0.12)  # of the injected agent
    for name in _ORDER:
        inside = _tube(rng, name, where) if name in _TUBES else _ellipsoid(rng, name, where)
        if name == "gallbladder" and rng.random() < 0.12:
            continue  # some patients have none
        inside &= trunk < 0.95
        value = (_TUBES[name][2] if name in _TUBES else _ORGANS[name][2]) * contrast
        image[inside] = value + rng.normal(0, 9)
        label[inside] = SYNAPSE_13.index(name) + 1
    image += 14 * _smooth(rng, 6) * (trunk < 0.86)
    image = ndimage.gaussian_filter(image, 0.6) + rng.normal(0, rng.uniform(10, 20), SIZE)
    return image.astype(np.float32), label


def _ellipsoid(rng: np.random.Generator, name: str, where: np.ndarray) -> np.ndarray:
    centre, radii, _, tilt = _ORGANS[name]
    offset = where - (np.array(centre) + rng.normal(0, 0.012, 3))
    angle = tilt + rng.normal(0, 0.12)
    up, across = offset[..., 0].copy(), offset[..., 2].copy()
    offset[..., 0] = np.cos(angle) * up - np.sin(angle) * across
    offset[..., 2] = np.sin(angle) * up + np.cos(angle) * across
    scale = np.array(radii) * rng.uniform(0.85, 1.15, 3)
    return ((offset / scale) ** 2).sum(-1) + 0.25 * _smooth(rng, 8) < 1


def _tube(rng: np.random.Generator, name: str, where: np.ndarray) -> np.ndarray:
    points, radius, _ = _TUBES[name]
    path = np.array(points) + rng.normal(0, 0.008, (len(points), 3))
    radius *= rng.uniform(0.85, 1.2)
    inside = np.zeros(SIZE, bool)
    for start, end in itertools.pairwise(path):
        along = end - start
        share = (((where - start) @ along) / (along @ along)).clip(0, 1)
        distance = np.linalg.norm(where - start - share[..., None] * along, axis=-1)
        inside |= distance < radius
    return inside


def _smooth(rng: np.random.Generator, cells: int) -> np.ndarray:
    """Smooth noise (D, H, W) of unit amplitude."""
    from scipy import ndimage

    coarse, factors = rng.standard_normal((cells,) * 3), [n / cells for n in SIZE]
    noise = ndimage.zoom(coarse, factors, order=1, grid_mode=True, mode="nearest")
    return noise.astype(np.float32)
