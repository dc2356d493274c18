"""Data sets of Hugging Face as files in a folder, which `--init` then describes like any other.

    python -m semidavil data --init scenes --from hf:org/scenes     # or hf:FOLDER, of `save_to_disk`

Files are written once, as they are in the data set, so that everything else treats them like own
pictures: checks,
hashes, decoded copies. Code that comes with a data set is never executed.
"""

import re
from pathlib import Path
from typing import Any

from rich.progress import track

from semidavil.data.files import DataError
from semidavil.data.pairing import SPLIT_WORDS

PICTURE_COLUMNS = ("image", "img", "pixel_values", "picture")
LABEL_COLUMNS = (
    "annotation", "label", "labels", "mask", "segmentation", "semantic", "segmentation_mask",
    "semantic_segmentation", "semseg", "annotations", "label_image",
)  # fmt: skip
_ENDINGS = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg"}


def copy_dataset(source: str, folder: Path) -> None:
    """Writes `images/SPLIT/` and `labels/SPLIT/` below a folder, which is made.

    Args:
        source: `hf:org/name`, `hf:org/name,config`, or `hf:` and a folder that `save_to_disk` has written.

    Raises:
        DataError: `datasets` is not installed, there is no such data set, or it has no column of
        pictures or labels.
    """
    kind, _, name = source.partition(":")
    if kind != "hf" or not name:
        raise DataError(f"--from {source!r}: write hf:ORGANISATION/NAME, or hf:FOLDER")
    try:
        import datasets
    except ImportError:
        raise DataError(
            "--from hf:NAME reads data sets through the package datasets: pip install datasets"
        ) from None
    if folder.exists() and any(folder.iterdir()):
        raise DataError(f"{folder} is not empty: name a new folder for the copy")
    found = _load(datasets, name)
    splits = {
        SPLIT_WORDS.get(re.split(r"\W", split)[0].lower(), split): part
        for split, part in found.items()
    }
    written = 0
    for split, part in splits.items():
        columns = [_column(datasets, part, known, what, name) for known, what in
                   ((PICTURE_COLUMNS, "pictures"), (LABEL_COLUMNS, "labels"))]  # fmt: skip
        for column in columns:  # as they are stored
            part = part.cast_column(column, datasets.Image(decode=False))
        for number, row in enumerate(track(part, f"copying {split}", transient=True)):
            for column, place in zip(columns, ("images", "labels"), strict=True):
                data = _bytes(row[column], f"{name}, {split}, row {number}, {column}")
                ending = next((e for start, e in _ENDINGS.items() if data.startswith(start)), "")
                if not ending or (place == "labels" and ending != ".png"):
                    raise DataError(
                        f"{name}, {split}, row {number}: {column} is "
                        f"{'a JPEG, which blurs classes' if ending else 'neither PNG nor JPEG'}"
                    )
                path = folder / place / split / f"{number:06d}{ending}"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
            written += 1
    if not written:
        raise DataError(f"{name} is empty")


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
