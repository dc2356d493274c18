"""A caption for every image, from the image alone, computed once and kept on disk.

    captions = caption_images(paths, "positions", vlm, classes, cache_dir)

Captioners are named in `captioners.CAPTIONERS`: `positions` (what the VLM sees and where; the default),
`class_names`, `none`, and `blip:`, `blip2:`, `hf:` followed by a Hugging Face model or its folder.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

from semidavil.data.files import DataError, append_rows, hash_files, read_rows
from semidavil.data.images import read_rgb
from semidavil.language.base import CaptionError, Size
from semidavil.language.captioners import Constant, Setting, build_captioner
from semidavil.models.vlm import VLM


def caption_images(
    paths: Sequence[Path],
    captioner: str,
    vlm: VLM | None,
    classes: Sequence[str],
    cache_dir: Path,
    *,
    size: Size | None = None,
    batch_size: int = 16,
    device: torch.device | None = None,
    progress: bool = False,
) -> dict[Path, str]:
    """The caption of every image; only those that `cache_dir` does not hold are computed.

    A caption is kept under the image's content and all that determines the caption (captioner,
    weights, prompts, classes, working size), so renaming images or training the VLM is harmless.
    What was computed before an interruption is kept, and processes may share a `cache_dir`.

    Args:
        captioner: a name that `build_captioner` knows.
        classes: the benchmark's class names, for the captioners that use them.
        size: (height, width) that `positions` resizes images to; None: the VLM's own.
        device: for transformers' captioners; None: the VLM's. `positions` runs where the VLM is.

    Raises:
        CaptionError: see `build_captioner`; or an image that cannot be read, by name.
    """
    if device is None:
        device = vlm.device if vlm is not None else torch.device("cpu")
    memo = cache_dir / "hashes.jsonl"
    describe = build_captioner(captioner, Setting(vlm, classes, size, device, memo))
    if isinstance(describe, Constant):
        return dict.fromkeys(paths, describe.text)
    kind, working_size = captioner.partition(":")[0], describe.size
    return describe_files(
        paths, describe, kind, lambda path: read_image(path, working_size), cache_dir,
        batch_size=batch_size, progress=progress,
    )  # fmt: skip


class Describer(Protocol):
    """What was read from files to captions; equal identities give equal captions."""

    identity: str

    def __call__(self, items: Sequence[Any], /) -> list[str]: ...


def describe_files(
    paths: Sequence[Path],
    describe: Describer,
    kind: str,
    read: Callable[[Path], Any],
    cache_dir: Path,
    *,
    batch_size: int = 16,
    progress: bool = False,
) -> dict[Path, str]:
    """The caption of every file; only those that `cache_dir` does not hold are computed.

    Args:
        kind: the name of the table in `cache_dir`.
        read: a file to what `describe` takes a list of.
    """
    hashes = hash_files(paths, cache_dir / "hashes.jsonl")
    name = hashlib.blake2b(describe.identity.encode(), digest_size=8).hexdigest()
    store = cache_dir / f"{kind}-{name}.jsonl"
    known: dict[str, str] = {row["image"]: row["caption"] for row in read_rows(store)}
    missing = {hashes[path]: path for path in reversed(paths) if hashes[path] not in known}
    todo = list(reversed(missing.items()))
    with _bar("captions", len(todo), progress) as advance, ThreadPoolExecutor(4) as pool:
        batches = [todo[start : start + batch_size] for start in range(0, len(todo), batch_size)]
        loads = (pool.map(read, [path for _, path in batch]) for batch in batches)
        for batch, items in zip(batches, _ahead(loads), strict=True):
            texts = describe(list(items))
            rows = [
                {"image": key, "caption": text} for (key, _), text in zip(batch, texts, strict=True)
            ]
            append_rows(store, rows)
            known |= {row["image"]: row["caption"] for row in rows}
            advance(len(batch))
    return {path: known[hashes[path]] for path in paths}


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


def read_image(path: Path, size: Size | None = None) -> Image.Image:
    """An RGB image, resized to (height, width) where that is given.

    Raises:
        CaptionError: the file is not a whole image.
    """
    try:
        image = Image.fromarray(read_rgb(path))  # the picture that is trained on
    except DataError as error:
        raise CaptionError(f"{error}; replace it or remove it") from error
    if size is not None and image.size != (size[1], size[0]):
        image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR, reducing_gap=3.0)
    return image
