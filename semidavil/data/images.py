"""Decoding and resizing images and labels: one decoder, so that training, captioners and depth see the same.

EXIF orientation is ignored in data sets: a label lies on the bitmap that is stored. One that was drawn on the
turned picture has another size, and is refused, unless that is turned by 180 degrees or mirrored. What a
finished network is shown is turned upright (`read_upright`): it has seen no street on its side.
"""

from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from semidavil.data.files import DataError

PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
ORIENTATION = 0x0112  # the tag in EXIF
PALETTED = 3  # a PNG's colour type, its 26th byte


def read_rgb(path: Path) -> np.ndarray:
    """An image (H, W, 3) uint8 RGB, whatever channels and depth the file has.

    Raises:
        DataError: the file is missing or cannot be decoded.
    """
    return _rgb(_bytes(path), path)


def read_upright(path: Path) -> np.ndarray:
    """The same, turned as the file's EXIF orientation says.

    Raises:
        DataError: the file is missing or cannot be decoded.
    """
    data = _bytes(path)
    return turned(_rgb(data, path), _orientation(data.tobytes()))


def upright_of(data: bytes) -> np.ndarray:
    """The same of a file's contents.

    Raises:
        DataError: they cannot be decoded.
    """
    return turned(_rgb(_whole(data, "that was sent"), "that was sent"), _orientation(data))


def orientation_of(path: Path) -> int:
    """The EXIF orientation of a picture, 1 to 8; 1 is upright, and what no file says."""
    try:
        return _orientation(path.read_bytes())
    except OSError:
        return 1


def turned(values: np.ndarray, orientation: int) -> np.ndarray:
    """A picture (H, W, ...) or its labels (H, W) as EXIF's orientation says that it is to be looked at."""
    if orientation >= 5:
        values = values.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    return np.ascontiguousarray(values)


def read_unchanged(path: Path) -> np.ndarray:
    """An image as it is stored, channels in OpenCV's order (blue, green, red).

    Raises:
        DataError: the file is missing or cannot be decoded.
    """
    return _decoded(_bytes(path), path, cv2.IMREAD_UNCHANGED)


def read_indices(path: Path) -> np.ndarray:
    """Label ids (H, W): of a grey file its values, also in three channels; of a paletted one its indices.

    Raises:
        DataError: the file is missing, cannot be decoded, is a colour picture, or a JPEG by whatever name.
    """
    data = _bytes(path)
    if data[:3].tobytes() == JPEG:
        raise DataError(
            f"the label {path} is a JPEG, which makes other ids where two meet: save labels as PNG"
        )
    if data[:8].tobytes() == PNG and PALETTED in data[25:26]:
        # OpenCV turns a palette into colours; Pillow keeps the index.
        try:
            with Image.open(BytesIO(data.tobytes())) as image:
                return np.array(image)
        except (OSError, SyntaxError, ValueError) as error:
            raise DataError(f"the file {path} cannot be read: {error}") from error
    label = _decoded(data, path, cv2.IMREAD_UNCHANGED)
    if label.ndim == 3 and (label[..., 1:3] == label[..., :1]).all():
        return label[..., 0]
    if label.ndim != 2:
        raise DataError(
            f"the label {path} has {label.shape[2]} channels, expected one with label ids, or a palette "
            "whose indices are label ids: is it a colour picture of the labels?"
        )
    return label


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) uint8 to another (height, width), averaging where it shrinks."""
    height, width = size
    if image.shape[:2] == (height, width):
        return image
    shrinks = image.shape[0] >= height and image.shape[1] >= width
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(image, (width, height), interpolation=how)


def resize_nearest(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Labels or disparities (H, W) to another (height, width): each from the pixel whose centre is nearest.

    An average would invent classes between two, and surfaces between near and far.
    """
    height, width = size
    if values.shape == (height, width):
        return values
    return cv2.resize(values, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)


def _rgb(data: np.ndarray, path: Path | str) -> np.ndarray:
    image = _decoded(data, path, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _orientation(data: bytes) -> int:
    try:
        with Image.open(BytesIO(data)) as image:
            found = image.getexif().get(ORIENTATION, 1)
    except (OSError, SyntaxError, ValueError):
        return 1  # OpenCV reads kinds of pictures that Pillow does not
    return found if found in range(1, 9) else 1


def _decoded(data: np.ndarray, path: Path | str, how: int) -> np.ndarray:
    image = cv2.imdecode(data, how)
    if image is None:
        raise DataError(f"the file {path} cannot be read: it is no image, or cut short")
    return image


def _bytes(path: Path) -> np.ndarray:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"the file {path} cannot be read: {error}") from error
    return _whole(data, path)


def _whole(data: bytes, path: Path | str) -> np.ndarray:
    if not data:
        raise DataError(f"the file {path} is empty: copy it again")
    if data.startswith(b"version https://git-lfs"):
        raise DataError(
            f"the file {path} is Git LFS's word for a picture: `git lfs pull` fetches it"
        )
    if data.startswith(PNG) and not _is_whole_png(data):
        # OpenCV decodes what there is of a truncated file and only prints a warning.
        raise DataError(f"the file {path} cannot be read: the PNG is cut short")
    return np.frombuffer(data, np.uint8)


def _is_whole_png(data: bytes) -> bool:
    """Whether the last chunk, IEND, is there; what follows it is no part of the picture."""
    position = len(PNG)
    while position + 12 <= len(data):
        kind = data[position + 4 : position + 8]
        position += 12 + int.from_bytes(data[position : position + 4], "big")
        if kind == b"IEND":
            return position <= len(data)
    return False
