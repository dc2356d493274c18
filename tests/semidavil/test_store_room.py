"""What the store does where there is little room, or none."""

import errno
import itertools
import os
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from png_files import write_png
from small_store import EVERYTHING, afresh, fill, kept, make_config, pixels, same

from semidavil.config import Config, preset
from semidavil.data import filling
from semidavil.data.decoded import open_images
from semidavil.data.store import IMAGE

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def config(write_dataset: Callable[..., Path], tmp_path: Path) -> Config:
    return make_config(write_dataset, tmp_path)


@pytest.mark.parametrize(
    ("free", "store", "forms"),
    [
        # Raw: 8 images of 16x33x3 of the target, 4 labels and 4 of their own size 32x66 (23,232
        # bytes), then 4 images of 20x32 with their labels (10,240).
        (70_000, "auto", ("raw", "raw")),
        (32_000, "auto", ("raw", "")),  # random pixels cannot be packed
        (16_000, "auto", ("", "raw")),
        (1_000, "auto", ("", "")),
        (70_000, "packed", ("packed", "packed")),
        (34_000, "raw", ("raw", "raw")),
        (33_000, "raw", ("raw", "")),
    ],
)
def test_a_form_is_chosen_by_the_room_there_is(
    config: Config, monkeypatch: pytest.MonkeyPatch, free: int, store: str, forms: tuple[str, str]
) -> None:
    monkeypatch.setattr(filling, "MARGIN", 500)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, free))
    config = config.replace({"data.store": store})
    filled = fill(config)
    target, source = (
        {
            form
            for (_, form), arrays in open_images(config, name).store.files.items()
            if arrays.entries
        }
        for name in ("cityscapes", "synthia")
    )
    assert (target, source) == tuple({form} - {""} for form in forms)
    assert ("which does not fit" in filled.said) == ("" in forms)
    assert same(pixels(config), afresh(config))


def test_smooth_images_are_packed_where_raw_ones_do_not_fit(
    write_dataset: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_dataset("cityscapes", size=(32, 64))
    for path in (root / "cityscapes" / "leftImg8bit").rglob("*.png"):
        write_png(path, np.full((32, 64, 3), len(str(path)), np.uint8))
    config = preset("small", {
        "data.benchmark": "cityscapes-cityscapes", "data.budget": 1, "data.target_size": "32x64",
        "data.source_size": "32x64", "data.crop": "16x16", "runtime.data_root": str(root),
        "runtime.cache_dir": str(tmp_path / "cache"),
    })  # fmt: skip
    monkeypatch.setattr(filling, "MARGIN", 0)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, 30_000))
    said = fill(config).said  # 6 * 8192 bytes raw
    assert "GB raw or about" in said
    assert "kept packed" in said
    images, fresh = (
        open_images(config.replace({"data.store": s}), "cityscapes") for s in ("auto", "off")
    )
    sample = images.reader.samples("train")[0]
    assert images.store.array(IMAGE, sample.image) is not None
    assert torch.equal(images.image(sample), fresh.image(sample))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_takes_no_more_ends_the_filling_alone(
    config: Config, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    calls, original = itertools.count(), os.pwrite

    def pwrite(file: int, content: bytes, offset: int) -> int:
        if next(calls) >= 6:
            raise OSError(number, os.strerror(number))
        return original(file, content, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", pwrite)
        said = fill(config).said
    assert ("its disk is full" if number == errno.ENOSPC else "Read-only") in said
    assert "runtime.cache_dir=DIR" in said
    assert sum(kept(config).values()) == 6, "what was written counts"
    assert same(pixels(config), afresh(config))
    assert "kept raw" in fill(config).said  # there is room again
    assert kept(config) == EVERYTHING


def test_a_folder_that_cannot_be_written_ends_the_filling_alone(config: Config) -> None:
    (Path(config.runtime.cache_dir) / "scans").mkdir(parents=True)
    (Path(config.runtime.cache_dir) / "store").write_text("no folder")
    assert "takes no more" in fill(config).said
    assert same(pixels(config), afresh(config))
