"""Writes label maps and images of the tests."""

from pathlib import Path

import cv2
import numpy as np
from PIL import Image


def write_png(path: Path, array: np.ndarray) -> None:
    """uint8 or uint16, (H, W) or (H, W, 3) in RGB order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = array[..., ::-1] if array.ndim == 3 else array
    assert cv2.imwrite(str(path), np.ascontiguousarray(stored))


def write_images(folder: Path, count: int, size: tuple[int, int] = (48, 24)) -> list[Path]:
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{index:04}.png" for index in range(count)]
    for path in paths:
        Image.fromarray(rng.integers(0, 255, (*size[::-1], 3), dtype=np.uint8)).save(path)
    return paths
