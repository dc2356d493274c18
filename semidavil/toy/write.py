"""Writes the toy data: generated scenes in the exact formats of Cityscapes, GTA5 and SYNTHIA.

    python -m semidavil.toy.write data/toy

Every image is a pure function of (version, data set, split, index), so generation can be interrupted
and continued, and any number of processes may share it. 2,975 training and 500 validation images
of the target, 2,000 images of each source.
"""

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from semidavil.bars import transient_bars
from semidavil.benchmarks import CITYSCAPES_19, LABEL_IDS, PALETTE
from semidavil.machine import available_cpus
from semidavil.toy.scenes import Scene, render_scene
from semidavil.toy.styles import Look

VERSION = 2  # raise it with any change to what is drawn or written
SIZE = (64, 128)
COUNTS = {"train": 2975, "val": 500, "gta5": 2000, "synthia": 2000}
DATASETS = ("cityscapes", "gta5", "synthia")
_LOOKS: dict[str, Look] = {"cityscapes": "camera", "gta5": "gta5", "synthia": "synthia"}
_CITIES = {
    "train": ("altmark", "birkhagen", "corvensee", "dornfeld", "eichbruck", "falkenrode",
              "grauwald", "hollerau", "isenbrunn", "jorkstadt", "kaltenried", "lindmoor"),
    "val": ("morgenau", "nordquell", "ostrach"),
}  # fmt: skip


@dataclass(frozen=True)
class Item:
    """One image to write: which data set and split, and its number there."""

    dataset: str
    split: str
    index: int


def ensure_toy_data(
    root: Path,
    datasets: Sequence[str] = DATASETS,
    counts: dict[str, int] | None = None,
    size: tuple[int, int] = SIZE,
    progress: bool = True,
) -> Path:
    """Generates what is missing under `root` and returns the folder that holds the data sets.

    Args:
        datasets: of "cityscapes", "gta5", "synthia".
        counts: images per split and source, `COUNTS` by default.
        size: (height, width) in pixels.

    Raises:
        OSError: the folder cannot be written.
    """
    counts = COUNTS | (counts or {})
    folder = root.absolute() / f"v{VERSION}-{size[0]}x{size[1]}"
    wanted = [name for name in datasets if not _complete(folder, name, counts)]
    if not wanted:
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    items = [item for name in wanted for item in _items(name, counts)]
    missing = [item for item in items if not all(path.exists() for path in _files(folder, item))]
    with transient_bars(progress) as bar:
        task = bar.add_task(f"generating {' and '.join(wanted)} (toy)", total=len(items))
        bar.advance(task, len(items) - len(missing))
        for done in _write_in_parallel(folder, missing, size):
            bar.advance(task, done)
    for name in wanted:
        _write(_manifest(folder, name), json.dumps(_contents(name, counts)).encode())
    return folder


def _items(dataset: str, counts: dict[str, int]) -> list[Item]:
    splits = ("train", "val") if dataset == "cityscapes" else (dataset,)
    return [Item(dataset, split, i) for split in splits for i in range(counts[split])]


def _contents(dataset: str, counts: dict[str, int]) -> dict[str, int]:
    splits = ("train", "val") if dataset == "cityscapes" else (dataset,)
    return {split: counts[split] for split in splits}


def _manifest(folder: Path, dataset: str) -> Path:
    return folder / f"{dataset}.complete.json"


def _complete(folder: Path, dataset: str, counts: dict[str, int]) -> bool:
    manifest = _manifest(folder, dataset)
    with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
        written = json.loads(manifest.read_text())
        return all(written.get(s, 0) >= n for s, n in _contents(dataset, counts).items())
    return False


def _write_in_parallel(folder: Path, items: list[Item], size: tuple[int, int]) -> Iterator[int]:
    """Writes `items` in as many processes as there are CPUs; yields numbers of finished images.

    The processes are plain commands rather than a multiprocessing pool, so that callers need no
    `if __name__ == "__main__"` and threads of libraries already loaded are not forked.
    """
    workers = min(available_cpus(), 1 + len(items) // 50)
    if workers == 1:
        for item in items:
            write_item(folder, item, size)
            yield 1
        return
    command = [sys.executable, "-m", "semidavil.toy.write", "--worker", str(folder)]
    command += [str(size[0]), str(size[1])]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(workers)
    ]
    try:
        for number, process in enumerate(processes):
            assert process.stdin
            lines = [f"{i.dataset} {i.split} {i.index}" for i in items[number::workers]]
            process.stdin.write("\n".join(lines) + "\n")
            process.stdin.close()
        # Both write at the same pace, so reading one after the other still shows progress.
        for process in processes:
            assert process.stdout
            for _ in process.stdout:
                yield 1
            if process.wait() != 0:
                raise OSError(f"generating toy data in {folder} failed: see the message above")
    finally:
        for process in processes:
            process.kill()
            process.wait()


def write_item(folder: Path, item: Item, size: tuple[int, int] = SIZE) -> None:
    """Renders and writes one image with its labels (and, for the target, its disparity)."""
    seed = [VERSION, DATASETS.index(item.dataset), ("train", "val").index(item.split)
            if item.dataset == "cityscapes" else 0, item.index]  # fmt: skip
    scene = render_scene(np.random.default_rng(seed), _LOOKS[item.dataset], size)
    # The image comes last: where it is, all of the item is.
    for path, content in zip(_files(folder, item), _encode(item, scene), strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, content)


def _files(folder: Path, item: Item) -> list[Path]:
    root = folder / item.dataset
    if item.dataset == "gta5":
        name = f"{item.index + 1:05d}.png"
        return [root / "labels" / name, root / "images" / name]
    if item.dataset == "synthia":
        name = f"{item.index:07d}.png"
        return [root / "GT" / "LABELS" / name, root / "RGB" / name]
    cities = _CITIES[item.split]
    city = cities[item.index % len(cities)]
    stem = f"{city}_{item.index:06d}_000019"
    return [
        root / kind / item.split / city / f"{stem}_{ending}.png"
        for kind, ending in (
            ("gtFine", "gtFine_labelIds"),
            ("disparity", "disparity"),
            ("leftImg8bit", "leftImg8bit"),
        )
    ]


def _encode(item: Item, scene: Scene) -> list[bytes]:
    image = _png(scene.image[..., ::-1])
    if item.dataset == "gta5":
        return [_paletted_png(scene.label), image]
    if item.dataset == "synthia":
        # 16 bits a channel: red is the class, green the instance (not told apart here), blue zero.
        label = np.zeros((*scene.label.shape, 3), np.uint16)
        label[..., 2] = _TO_SYNTHIA[scene.label]  # OpenCV orders channels blue, green, red
        return [_png(label), image]
    # Cityscapes: p = 256 d + 1, and 0 where there is no measurement.
    disparity = np.where(scene.disparity > 0, scene.disparity * 256 + 1, 0).round()
    return [_png(scene.label), _png(disparity.astype(np.uint16)), image]


def _png(array: np.ndarray) -> bytes:
    done, data = cv2.imencode(".png", array, [cv2.IMWRITE_PNG_COMPRESSION, 2])
    assert done
    return data.tobytes()


def _paletted_png(label: np.ndarray) -> bytes:
    image = Image.fromarray(label, mode="P")
    image.putpalette(_GTA5_PALETTE)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _to_synthia() -> np.ndarray:
    table = np.zeros(256, np.uint16)
    by_name = {name: raw for raw, name in LABEL_IDS["synthia"].items() if name}
    for raw, name in LABEL_IDS["cityscapes"].items():
        if name in by_name:
            table[raw] = by_name[name]
    return table


def _gta5_palette() -> list[int]:
    colours = np.zeros((256, 3), np.uint8)
    for raw, name in LABEL_IDS["gta5"].items():
        if name in CITYSCAPES_19:
            colours[raw] = PALETTE[name]
    colours[34] = (0, 0, 142)
    return colours.ravel().tolist()


_TO_SYNTHIA = _to_synthia()
_GTA5_PALETTE = _gta5_palette()


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content)
    temporary.replace(path)


def _work(folder: Path, size: tuple[int, int]) -> None:
    """A generating process: items come line by line on standard input."""
    cv2.setNumThreads(1)
    for line in sys.stdin:
        dataset, split, index = line.split()
        write_item(folder, Item(dataset, split, int(index)), size)
        print(flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
            _work(Path(sys.argv[2]), (int(sys.argv[3]), int(sys.argv[4])))
    elif len(sys.argv) == 2:
        print(ensure_toy_data(Path(sys.argv[1])))
    else:
        sys.exit("usage: python -m semidavil.toy.write FOLDER")
