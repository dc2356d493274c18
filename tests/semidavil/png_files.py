"""Writes label maps and images of the tests."""

from pathlib import Path

import cv2
import numpy as np


def write_png(path: Path, array: np.ndarray) -> None:
    """uint8 or uint16, (H, W) or (H, W, 3) in RGB order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = array[..., ::-1] if array.ndim == 3 else array
    assert cv2.imwrite(str(path), np.ascontiguousarray(stored))
