"""What files of labels hold: ids of one channel, colours, and the codes that stand for them."""

from functools import lru_cache
from pathlib import Path

import numpy as np

from semidavil.data.files import DataError
from semidavil.data.images import read_unchanged

UNKNOWN_CODE = 2**16 - 1  # of a value that the description does not have


@lru_cache(8)
def table(codes: tuple[tuple[int, int], ...], is_colour: bool) -> np.ndarray | None:
    """Code by value; None where both are the same."""
    if all(value == code for value, code in codes):
        return None
    found = np.full(2**24 if is_colour else 2**16, UNKNOWN_CODE, np.uint16)
    for value, code in codes:
        found[value] = code
    return found


def packed_colours(title: str, path: Path) -> np.ndarray:
    """The colours (H, W) of a picture as 0xRRGGBB; transparency is left out."""
    label = read_unchanged(path)
    if label.dtype != np.uint8:
        raise DataError(
            f"{title}: the label {path} has {label.dtype} values, not colours of a byte"
        )
    if label.ndim == 2:
        label = np.repeat(label[..., None], 3, 2)
    blue, green, red = (label[..., channel].astype(np.uint32) for channel in range(3))
    return red << 16 | green << 8 | blue


def first_channel(title: str, path: Path) -> np.ndarray:
    """The first channel (H, W) of a 16-bit RGB picture, the last in OpenCV's order.

    Pillow would keep the high byte of each value, which is always zero.
    """
    label = read_unchanged(path)
    if label.dtype != np.uint16 or label.ndim != 3:
        raise DataError(
            f"{title}: the label {path} is {label.dtype} of shape {label.shape}, expected a 16-bit RGB PNG "
            "whose first channel is the class: files that another program has saved again have lost it"
        )
    return label[..., 2]
