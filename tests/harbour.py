"""Generated harbours: pictures of sky, water and a quay, with masks, as a user has them."""

from pathlib import Path

import numpy as np
from PIL import Image

SKY, WATER, QUAY = 1, 2, 3
COLOURS = {SKY: (70, 130, 180), WATER: (0, 0, 255), QUAY: (160, 60, 40)}
SIZE = (36, 54)

DESCRIPTION = """\
name: harbour
images: frames/**/*.jpg
labels: masks/**/{stem}.png
splits: {train: rest, val: frames/seq3}
classes:
  sky: 1
  water: {id: 2, synonyms: [river]}
  quay: {ids: [3, 4], colour: [160, 60, 40]}
ignored: [0]
scene: a harbour
"""


def picture(number: int) -> tuple[np.ndarray, np.ndarray]:
    """An image (H, W, 3) and its ids (H, W)."""
    rng, (height, width) = np.random.default_rng(number), SIZE
    image, ids = np.zeros((*SIZE, 3), np.uint8), np.zeros(SIZE, np.uint8)
    half, left = height // 2, int(rng.integers(0, width // 2))
    places = {
        SKY: np.s_[:half],
        WATER: np.s_[half:],
        QUAY: np.s_[half - 9 : half + 4, left : left + 15],
    }
    for value, place in places.items():
        image[place], ids[place] = COLOURS[value], value
    noisy = image + rng.integers(-12, 13, image.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8), ids


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def coloured(ids: np.ndarray) -> np.ndarray:
    out = np.zeros((*ids.shape, 3), np.uint8)
    for value, colour in COLOURS.items():
        out[ids == value] = colour
    return out


def write_harbour(root: Path, description: str = DESCRIPTION, count: int = 12) -> Path:
    """Pictures of four sequences with masks of ids, and a description; returns the description's path."""
    for number in range(count):
        image, ids = picture(number)
        name = f"seq{4 * number // count}/{number:03d}"
        save(root / "frames" / f"{name}.jpg", image)
        save(root / "masks" / f"{name}.png", ids)
    path = root / "dataset.yaml"
    if description:
        path.write_text(description)
    return path
