"""What is no folder of pictures (a zip file, LMDB, a hub, a format of one's own) copied into one.

    python -m semidavil data --init scenes --from hf:org/scenes
    python -m semidavil data --init quay --from zipped:quay.zip --plugin zipped.py     # its `ARCHIVES`

A reader gives `(name, picture, label)` of each picture of a place. All is written once, so that everything
else treats it like own pictures: checks, hashes, captions, decoded copies, workers, reruns.
"""

import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeAlias, TypeGuard

import cv2
import numpy as np
from rich.progress import track

from semidavil.data import hugging_face
from semidavil.data.files import DataError
from semidavil.plugins import Table, home_of, provider

# Its path below the folders of pictures and of labels, without ending (`train/003`); the picture (H, W, 3)
# uint8 RGB, or the contents of a PNG or JPEG; ids (H, W), the contents of a PNG, or None without a label.
Row: TypeAlias = tuple[str, np.ndarray | bytes, np.ndarray | bytes | None]
Read: TypeAlias = Callable[[str], Iterable[Row]]  # of the place, what follows the colon

ARCHIVES: Table[Read] = Table("ARCHIVES", {"hf": hugging_face.rows})
MOST_ID = 65535
_NAME = re.compile(r"[^/\\.][^/\\]*(/[^/\\.][^/\\]*)*")  # no file is hidden, or above the folder
_ENDINGS = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg"}


def copy_archive(source: str, folder: Path) -> None:
    """Writes `images/` and `labels/` below a folder, which is made; nothing is left of what cannot be copied.

    Args:
        source: `KIND:PLACE`, the kind of `ARCHIVES`.

    Raises:
        DataError: no such kind, a folder that is not empty, or what a reader gives is no picture or label.
    """
    kind, _, place = source.partition(":")
    if kind not in ARCHIVES or not place:
        raise DataError(
            f"--from {source!r}: write hf:ORGANISATION/NAME, hf:FOLDER, or KIND:PLACE with a kind of the "
            f"ARCHIVES of a --plugin; here are {', '.join(ARCHIVES)}"
        )
    if folder.exists() and any(folder.iterdir()):
        raise DataError(f"{folder} is not empty: name a new folder for the copy")
    read = ARCHIVES[kind]
    by = home_of(read) or provider("ARCHIVES", kind)
    where = f"{by}: {kind}" if by else source
    try:
        _write(read(place), folder, where)
    except BaseException:  # half a copy would be in the way of the next try
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _write(rows: Iterable[Row], folder: Path, where: str) -> None:
    written = set[str]()
    for row in track(rows, f"copying into {folder}", transient=True):
        if not (isinstance(row, tuple) and len(row) == 3):
            raise DataError(f"{where} gives {_kind(row)} where (name, picture, label) is wanted")
        name, picture, label = row
        if not (isinstance(name, str) and _NAME.fullmatch(name)):
            raise DataError(
                f"{where} gives the name {name!r}: write a path such as train/003, of which no part begins "
                "with a dot"
            )
        if name.lower() in written:  # file systems differ in whether case counts
            raise DataError(f"{where} gives two pictures {name!r}: give each a name of its own")
        written.add(name.lower())
        one = f"{where}, {name!r}"
        _save(folder / "images" / name, *_picture(picture, one))
        if label is not None:
            _save(folder / "labels" / name, *_label(label, picture, one))
    if not written:
        raise DataError(f"{where} gives no picture")


def _picture(picture: object, where: str) -> tuple[bytes, str]:
    """The contents and the ending of a file."""
    if isinstance(picture, bytes):
        return picture, _ending(picture, f"{where}: the picture")
    if _is_array(picture, np.uint8, 3) and picture.shape[2] == 3:
        return _png(picture[..., ::-1]), ".png"
    raise DataError(
        f"{where}: the picture is {_kind(picture)} where (H, W, 3) uint8 in RGB, or the bytes of a PNG or "
        "JPEG, is wanted"
    )


def _label(label: object, picture: object, where: str) -> tuple[bytes, str]:
    if isinstance(label, bytes):
        ending = _ending(label, f"{where}: the label")
        if ending != ".png":
            raise DataError(f"{where}: the label is a JPEG, which blurs classes")
        return label, ending
    if not _is_array(label, np.integer, 2) or not label.size:
        raise DataError(
            f"{where}: the label is {_kind(label)} where (H, W) of whole numbers, the bytes of a PNG, or "
            "None is wanted"
        )
    if isinstance(picture, np.ndarray) and label.shape != picture.shape[:2]:
        raise DataError(f"{where}: the label is {label.shape}, its picture {picture.shape[:2]}")
    least, most = int(label.min()), int(label.max())
    if least < 0 or most > MOST_ID:
        raise DataError(
            f"{where}: the label holds the id {least if least < 0 else most}: ids are 0 to {MOST_ID}, and "
            "255 is what usually stands for no class"
        )
    return _png(label.astype(np.uint8 if most < 256 else np.uint16)), ".png"


def _is_array(thing: object, kind: type, axes: int) -> TypeGuard[np.ndarray]:
    return isinstance(thing, np.ndarray) and np.issubdtype(thing.dtype, kind) and thing.ndim == axes


def _ending(data: bytes, what: str) -> str:
    for start, ending in _ENDINGS.items():
        if data.startswith(start):
            return ending
    raise DataError(f"{what} is neither PNG nor JPEG" if data else f"{what} is empty")


def _png(array: np.ndarray) -> bytes:
    return cv2.imencode(".png", np.ascontiguousarray(array))[1].tobytes()


def _save(path: Path, data: bytes, ending: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_name(path.name + ending).write_bytes(data)


def _kind(thing: object) -> str:
    if isinstance(thing, np.ndarray):
        return f"{thing.shape} {thing.dtype}"
    if isinstance(thing, tuple):
        return f"a tuple of {len(thing)}"
    return f"of the kind {type(thing).__name__}"
