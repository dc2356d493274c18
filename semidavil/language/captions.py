"""A caption for every image, from the image alone, computed once and kept on disk.

    captioner = build_captioner("positions", setting)
    captions = caption_images(paths, captioner, cache_dir)

Captioners are named in `captioners.CAPTIONERS`. A caption speaks of the whole image, or of one of the
overlapping windows that the image is scored by: a crop of 512x512 of an image of 512x1024 does not show
the half of what the image's caption says. The authors' released code captions each augmented crop anew;
windows are the nearest to it that can be computed once.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

from semidavil.config import Config
from semidavil.data.files import DataError, append_rows, hash_files, read_rows
from semidavil.data.images import read_rgb
from semidavil.data.layout import working_size
from semidavil.data.windows import Box, Windows, sliding_windows
from semidavil.language.base import Captioner, CaptionError, Size
from semidavil.language.captioners import Constant
from semidavil.language.mirror import flip_caption

HASHES = "hashes.jsonl"  # of the images; beside the captions


@dataclass(frozen=True)
class Caption:
    """What is said of one image."""

    texts: tuple[str, ...]  # one, or one of each window
    windows: Windows | None = None  # None: the text speaks of the whole image

    def of_crop(self, box: Box, mirrored: bool) -> str:
        """The text of the window that a crop shares most with, or of the image, mirrored with the crop."""
        text = self.texts[self.windows.nearest(box) if self.windows else 0]
        return flip_caption(text) if mirrored else text


def windows_of(config: Config, dataset: str) -> Windows | None:
    """What captions of a data set speak of: windows of the training crops' size, or None, whole images."""
    if config.model.caption_region == "image":
        return None
    return sliding_windows(working_size(config, dataset), config.data.crop)


def caption_images(
    paths: Sequence[Path],
    captioner: Captioner,
    cache_dir: Path,
    *,
    windows: Windows | None = None,
    batch_size: int = 16,
    progress: bool = False,
    of: str = "",
) -> dict[Path, Caption]:
    """The caption of every image; only those that `cache_dir` does not hold are computed.

    A caption is kept under the image's content and all that determines the caption (captioner,
    weights, prompts, classes, working size, window), so renaming images or training the VLM is harmless.
    What was computed before an interruption is kept, and processes may share a `cache_dir`.

    Args:
        windows: what the captions speak of, at the working size; None: whole images.
        of: the data set, for people who wait.

    Raises:
        CaptionError: an image that cannot be read, by name, or a model that cannot be loaded.
    """
    if isinstance(captioner, Constant):
        return dict.fromkeys(paths, Caption((captioner.text,)))
    return describe_files(
        paths, captioner, lambda path: read_parts(path, windows, captioner.size), cache_dir,
        windows=windows, batch_size=batch_size, progress=progress, of=of,
    )  # fmt: skip


def bytes_kept(cache_dir: Path) -> int:
    """Of captions there, which are only ever added: where there are more than before, some are new."""
    files = (path for path in cache_dir.glob("*.jsonl") if path.name != HASHES)
    return sum(path.stat().st_size for path in files)


class Describer(Protocol):
    """What was read from files to captions; equal identities give equal captions."""

    identity: str  # begins with the name of its kind

    def __call__(self, items: Sequence[Any], /) -> list[str]: ...


def describe_files(
    paths: Sequence[Path],
    describe: Describer,
    read: Callable[[Path], Sequence[Any]],
    cache_dir: Path,
    *,
    windows: Windows | None = None,
    batch_size: int = 16,
    progress: bool = False,
    of: str = "",
) -> dict[Path, Caption]:
    """The caption of every file; only those that `cache_dir` does not hold are computed.

    Args:
        read: a file to what `describe` takes a list of: one of the whole file, or one of each window.
    """
    hashes = hash_files(paths, cache_dir / HASHES)
    kind = describe.identity.partition(" ")[0]
    name = hashlib.blake2b(describe.identity.encode(), digest_size=8).hexdigest()
    store = cache_dir / f"{kind}-{name}.jsonl"
    known: dict[str, str] = {row["image"]: row["caption"] for row in read_rows(store)}
    marks = _marks(windows)
    missing = {
        hashes[path]: path
        for path in reversed(paths)
        if any(hashes[path] + mark not in known for mark in marks)
    }
    todo, step = list(reversed(missing.items())), max(1, batch_size // len(marks))
    bar = f"captioning {of}" if of else "captioning"
    with _bar(bar, len(todo), progress) as advance, ThreadPoolExecutor(4) as pool:
        batches = [todo[start : start + step] for start in range(0, len(todo), step)]
        loads = (pool.map(read, [path for _, path in batch]) for batch in batches)
        for batch, files in zip(batches, _ahead(loads), strict=True):
            texts = describe([part for parts in files for part in parts])
            keys = [key + mark for key, _ in batch for mark in marks]
            rows = [{"image": key, "caption": text} for key, text in zip(keys, texts, strict=True)]
            append_rows(store, rows)
            known |= {row["image"]: row["caption"] for row in rows}
            advance(len(batch))
    return {
        path: Caption(tuple(known[hashes[path] + mark] for mark in marks), windows)
        for path in paths
    }


def _marks(windows: Windows | None) -> list[str]:
    """What is added to a file's hash for each of its captions: which part of it one speaks of."""
    if windows is None:
        return [""]
    height, width = windows.size
    return [f" {h}x{w}+{top}+{left} of {height}x{width}" for top, left, h, w in windows.boxes]


def _ahead(loads: Iterator[Iterator[Any]]) -> Iterator[Iterator[Any]]:
    """Starts reading the next batch while one is being captioned."""
    pending = list(islice(loads, 2))
    while pending:
        yield pending.pop(0)
        pending.extend(islice(loads, 1))


@contextmanager
def _bar(name: str, total: int, shown: bool) -> Iterator[Callable[[int], None]]:
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, disable=not shown or not total) as bar:
        task = bar.add_task(name, total=total)
        yield lambda count: bar.advance(task, count)


def read_parts(
    path: Path, windows: Windows | None = None, size: Size | None = None
) -> list[Image.Image]:
    """An RGB image, or what each window shows of it, resized to (height, width) where that is given.

    Raises:
        CaptionError: the file is not a whole image.
    """
    try:
        image = read_rgb(path)  # the picture that is trained on
    except DataError as error:
        raise CaptionError(f"{error}; replace it or remove it") from error
    return cut_parts(image, windows, size)


def cut_parts(image: np.ndarray, windows: Windows | None, size: Size | None) -> list[Image.Image]:
    """`read_parts` of an image (H, W, 3) uint8 that has been read."""
    return [_resized(part, size) for part in (windows.cut(image) if windows else [image])]


def _resized(pixels: np.ndarray, size: Size | None) -> Image.Image:
    image = Image.fromarray(pixels)
    if size is None or image.size == (size[1], size[0]):
        return image
    return image.resize((size[1], size[0]), Image.Resampling.BILINEAR, reducing_gap=3.0)
