"""Generated files of full size in the formats of Cityscapes and GTA5: what a GPU would be fed with."""

import os
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

TARGET, SOURCE = (1024, 2048), (1052, 1914)  # (height, width)
DISTINCT = 24  # pictures; further names are links to them


def write_full_size(root: Path, train: int, val: int, source: int, scale: int = 1) -> Path:
    """Writes data sets `cityscapes` and `gta5` below `root` with that many images, and returns it.

    PNGs of 3 to 4 MB, as the real ones: smooth colours with the noise of a camera. Of more images than
    `DISTINCT`, several are one file under several names, which nothing that reads them can tell.

    Args:
        scale: sides are divided by it.
    """
    rng = np.random.default_rng(0)
    plans = [
        (root / "cityscapes", TARGET, f"{split}/aachen/aachen_{{:06d}}_000019", count)
        for split, count in (("train", train), ("val", val))
    ]
    for number, (folder, (height, width), name, count) in enumerate(
        [*plans, (root / "gta5", SOURCE, "{:05d}", source)]
    ):
        of_source = number == len(plans)
        images, labels = ("images", "labels") if of_source else ("leftImg8bit", "gtFine")
        first: list[tuple[Path, Path]] = []
        for index in range(count):
            stem = name.format(index + of_source)
            image = folder / images / f"{stem}{'' if of_source else '_leftImg8bit'}.png"
            label = folder / labels / f"{stem}{'' if of_source else '_gtFine_labelIds'}.png"
            for path in (image, label):
                path.parent.mkdir(parents=True, exist_ok=True)
            if index >= DISTINCT:
                for path, known in zip((image, label), first[index % DISTINCT], strict=True):
                    os.link(known, path)
                continue
            first.append((image, label))
            size = height // scale, width // scale
            cv2.imwrite(str(image), _picture(rng, size))
            _write_label(label, _ids(rng, size), paletted=of_source)
    return root


def _picture(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    height, width = size
    small = rng.integers(0, 256, (max(1, height // 16), max(1, width // 16), 3), dtype=np.uint8)
    smooth = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.int16)
    return (smooth + rng.integers(-6, 7, (height, width, 3))).clip(0, 255).astype(np.uint8)


def _ids(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Label ids of Cityscapes, as GTA5 has them too."""
    known = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
    height, width = size
    blocks = rng.choice(known, (max(1, height // 32), max(1, width // 32))).astype(np.uint8)
    return cv2.resize(blocks, (width, height), interpolation=cv2.INTER_NEAREST)


def _write_label(path: Path, ids: np.ndarray, paletted: bool) -> None:
    if not paletted:
        cv2.imwrite(str(path), ids)
        return
    image = Image.fromarray(ids, mode="P")
    image.putpalette([value for index in range(256) for value in (index, index, index)])
    image.save(path)
