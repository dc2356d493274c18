"""Pictures and labels of data sets of Hugging Face, which `archives` writes into a folder.

    python -m semidavil data --init scenes --from hf:org/scenes     # or hf:FOLDER, of `save_to_disk`

Code that comes with a data set is never executed.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from semidavil.data.files import DataError
from semidavil.data.pairing import SPLIT_WORDS

PICTURE_COLUMNS = ("image", "img", "pixel_values", "picture")
LABEL_COLUMNS = (
    "annotation", "label", "labels", "mask", "segmentation", "semantic", "segmentation_mask",
    "semantic_segmentation", "semseg", "annotations", "label_image",
)  # fmt: skip


def rows(place: str) -> Iterator[tuple[str, bytes, bytes]]:
    """Name (`train/000003`), picture and label of each row, as they are stored.

    Args:
        place: `org/name`, `org/name,config`, or a folder that `save_to_disk` has written.

    Raises:
        DataError: `datasets` is not installed, there is no such data set, or it has no column of
        pictures or labels.
    """
    try:
        import datasets
    except ImportError:
        raise DataError(
            "--from hf:NAME reads data sets through the package datasets: pip install datasets"
        ) from None
    for called, part in _load(datasets, place).items():
        split = SPLIT_WORDS.get(re.split(r"\W", called)[0].lower(), called)
        columns = [_column(datasets, part, known, what, place) for known, what in
                   ((PICTURE_COLUMNS, "pictures"), (LABEL_COLUMNS, "labels"))]  # fmt: skip
        for column in columns:
            part = part.cast_column(column, datasets.Image(decode=False))
        for number, row in enumerate(part):
            picture, label = (
                _bytes(row[column], f"{place}, {called}, row {number}, {column}")
                for column in columns
            )
            yield f"{split}/{number:06d}", picture, label


def _load(datasets: Any, name: str) -> dict[str, Any]:
    try:
        if Path(name).expanduser().is_dir():
            found = datasets.load_from_disk(str(Path(name).expanduser()))
        else:
            name, _, config = name.partition(",")
            found = datasets.load_dataset(name, config or None)
    except Exception as error:  # of its own kinds, of the network, of files
        text = " ".join(str(error).split())
        raise DataError(f"the data set hf:{name} cannot be had: {text[:300]}") from error
    return dict(found) if isinstance(found, dict) else {"train": found}


def _column(datasets: Any, part: Any, known: tuple[str, ...], what: str, name: str) -> str:
    pictures = [n for n, kind in part.features.items() if isinstance(kind, datasets.Image)]
    for column in known:
        if column in pictures:
            return column
    raise DataError(
        f"{name} has no column of {what} ({', '.join(known)}): its pictures are "
        f"{', '.join(pictures) or 'none'}, of the columns {', '.join(part.features)}"
    )


def _bytes(cell: Any, where: str) -> bytes:
    if not cell:
        raise DataError(f"{where} is empty")
    if cell.get("bytes"):
        return bytes(cell["bytes"])
    return Path(cell["path"]).read_bytes()
