"""Readers on miniature data sets in the real formats, each with its traps."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from semidavil.benchmarks import BENCHMARKS, IGNORE_INDEX, LABEL_IDS, UNKNOWN
from semidavil.data.files import DataError
from semidavil.data.readers import READERS

REAL = os.environ.get("SEMIDAVIL_REAL_DATA", "")
needs_real_data = pytest.mark.skipif(
    not REAL, reason="SEMIDAVIL_REAL_DATA names no folder with real images"
)

Write = Callable[..., Path]


@pytest.mark.parametrize("dataset", READERS)
def test_images_and_raw_labels_come_back(dataset: str, write_dataset: Write) -> None:
    ids = sorted(LABEL_IDS[dataset])
    label = np.resize(np.array(ids, np.uint8), (16, 24))
    reader = READERS[dataset](write_dataset(dataset, lambda _: label) / dataset)
    samples = reader.samples("train")
    assert [s.image for s in samples] == sorted(s.image for s in samples)
    assert len(samples) == 3
    for sample in samples:
        with Image.open(sample.image) as file:
            assert np.array_equal(reader.read_image(sample), np.asarray(file.convert("RGB")))
        assert np.array_equal(reader.read_label(sample), label)


def test_synthia_is_read_where_pillow_sees_nothing(write_dataset: Write) -> None:
    root = write_dataset("synthia", lambda i: np.full((16, 24), 8 + i, np.uint8))
    reader = READERS["synthia"](root / "synthia")
    for index, sample in enumerate(reader.samples("train")):
        with Image.open(sample.label) as file:
            assert np.asarray(file)[..., 0].max() == 0  # the trap
        assert (reader.read_label(sample) == 8 + index).all()


def test_a_synthia_label_saved_in_8_bits_is_refused(write_dataset: Write) -> None:
    root = write_dataset("synthia")
    reader = READERS["synthia"](root / "synthia")
    sample = reader.samples("train")[0]
    with Image.open(sample.label) as file:
        again = file.convert("RGB")
    again.save(sample.label)
    with pytest.raises(DataError, match=r"0000000\.png is uint8 .* 16-bit RGB PNG"):
        reader.read_label(sample)


def test_gta5_palettes_are_not_colours(write_dataset: Write) -> None:
    label = np.resize(np.array([7, 26, 34, 33], np.uint8), (16, 24))
    reader = READERS["gta5"](write_dataset("gta5", lambda _: label) / "gta5")
    sample = reader.samples("train")[0]
    assert cv2.imread(str(sample.label), cv2.IMREAD_UNCHANGED).ndim == 3  # the trap
    assert np.array_equal(reader.read_label(sample), label)
    lookup = BENCHMARKS["gta5-cityscapes"].lookup("gta5")
    assert lookup[34] == IGNORE_INDEX


def test_a_colour_picture_in_place_of_gta5_labels_is_refused(write_dataset: Write) -> None:
    reader = READERS["gta5"](write_dataset("gta5") / "gta5")
    sample = reader.samples("train")[0]
    shutil.copy(sample.image, sample.label)
    with pytest.raises(DataError, match=r"3 channels.*colour picture of the labels"):
        reader.read_label(sample)


@pytest.mark.parametrize("dataset", ["cityscapes", "camvid", "idda"])
def test_a_colour_picture_in_place_of_labels_is_refused(dataset: str, write_dataset: Write) -> None:
    reader = READERS[dataset](write_dataset(dataset) / dataset)
    sample = reader.samples("train")[0]
    shutil.copy(sample.image, sample.label)
    with pytest.raises(DataError, match="3 channels"):
        reader.read_label(sample)


@pytest.mark.parametrize("dataset", READERS)
def test_a_missing_folder_is_named_with_the_layout(dataset: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as refusal:
        READERS[dataset](tmp_path / dataset).samples("train")
    assert str(tmp_path / dataset) in str(refusal.value)
    assert READERS[dataset].layout in str(refusal.value)
    assert "--data-root" in str(refusal.value)


@pytest.mark.parametrize("dataset", READERS)
def test_an_image_without_a_label_is_named(dataset: str, write_dataset: Write) -> None:
    reader = READERS[dataset](write_dataset(dataset) / dataset)
    sample = reader.samples("train")[1]
    sample.label.unlink()
    with pytest.raises(DataError) as refusal:
        reader.samples("train")
    assert str(sample.image) in str(refusal.value)
    assert str(sample.label) in str(refusal.value)


@pytest.mark.parametrize("dataset", READERS)
@pytest.mark.parametrize("kind", ["image", "label"])
def test_a_broken_file_is_named(dataset: str, kind: str, write_dataset: Write) -> None:
    reader = READERS[dataset](write_dataset(dataset, size=(64, 64)) / dataset)
    sample = reader.samples("train")[0]
    path: Path = getattr(sample, kind)
    read = reader.read_image if kind == "image" else reader.read_label
    whole = path.read_bytes()
    for broken in (b"", b"no picture", whole[: len(whole) // 2]):
        path.write_bytes(broken)
        with pytest.raises(DataError) as refusal:
            read(sample)
        assert str(path) in str(refusal.value)


def test_an_unknown_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="train, val, rain"):
        READERS["idda"](tmp_path).samples("test")


@pytest.mark.parametrize(
    "line", ["frame_{}", "/SegNet/train/frame_{}.png /SegNet/trainannot/x.png"]
)
def test_a_camvid_list_is_held_to_its_word(line: str, write_dataset: Write) -> None:
    root = write_dataset("camvid") / "camvid"
    listing = root / "train.txt"
    listing.write_text("".join(line.format(i) + "\n" for i in range(3)))
    assert len(READERS["camvid"](root).samples("train")) == 3
    listing.write_text("".join(line.format(i) + "\n" for i in range(5)))
    with pytest.raises(DataError, match=r"train\.txt lists 2 images .* first is frame_3"):
        READERS["camvid"](root).samples("train")


def test_camvid_has_a_test_part_where_it_was_unpacked(write_dataset: Write) -> None:
    root = write_dataset("camvid", splits=("test",)) / "camvid"
    assert len(READERS["camvid"](root).samples("test")) == 3


def test_gta5_and_cityscapes_agree_on_every_trained_class() -> None:
    benchmark = BENCHMARKS["gta5-cityscapes"]
    a, b = benchmark.lookup("gta5"), benchmark.lookup("cityscapes")
    assert np.array_equal(a[:34], b[:34])
    assert (a[34], b[34], b[255], a[255]) == (IGNORE_INDEX, UNKNOWN, IGNORE_INDEX, UNKNOWN)


@pytest.mark.parametrize(
    ("benchmark", "dataset", "expected"),
    [
        ("gta5-cityscapes", "gta5", {7: 0, 8: 1, 11: 2, 17: 5, 26: 13, 33: 18, 0: 255, 29: 255}),
        ("synthia-cityscapes", "synthia", {3: 0, 4: 1, 2: 2, 21: 3, 10: 10, 1: 9, 12: 14, 11: 15}),
        ("synthia-cityscapes", "synthia", {16: 255, 18: 255, 20: 255, 22: 255, 23: UNKNOWN}),
        ("synthia-cityscapes", "cityscapes", {22: 255, 27: 255, 31: 255, 28: 13, 33: 15}),
        ("idda-camvid", "idda", {6: 3, 7: 3, 11: 1, 14: 7, 16: 10, 17: 10, 18: 10, 19: 5, 23: 255}),
        ("idda-camvid", "camvid", {0: 0, 10: 10, 11: 255, 12: UNKNOWN}),
        ("gta5-camvid", "gta5", {19: 6, 20: 6, 27: 8, 28: 8, 25: 10, 22: 5, 31: 8}),
        ("synthia-camvid", "synthia", {15: 6, 9: 6, 19: 8, 17: 10, 16: 5, 14: 255}),
    ],
)
def test_label_tables(benchmark: str, dataset: str, expected: dict[int, int]) -> None:
    lookup = BENCHMARKS[benchmark].lookup(dataset)
    assert {raw: int(lookup[raw]) for raw in expected} == expected


def test_benchmarks_have_19_16_13_and_11_classes() -> None:
    sizes = {name: len(b.classes) for name, b in BENCHMARKS.items()}
    assert sizes["gta5-cityscapes"] == sizes["cityscapes-cityscapes"] == 19
    assert sizes["synthia-cityscapes"] == 16
    assert len(BENCHMARKS["synthia-cityscapes"].subsets["13"]) == 13
    assert {sizes[f"{s}-camvid"] for s in ("idda", "gta5", "synthia")} == {11}
    for benchmark in BENCHMARKS.values():
        if benchmark.kind == "volumes":
            continue
        for dataset in benchmark.datasets:  # every class occurs in the target, most in the source
            found = set(benchmark.lookup(dataset).tolist()) - {IGNORE_INDEX, UNKNOWN}
            assert found == set(range(len(benchmark.classes)))
        assert len({tuple(c) for c in benchmark.palette[: len(benchmark.classes)]}) == len(
            benchmark.classes
        )


@needs_real_data
@pytest.mark.parametrize(
    ("dataset", "folder"),
    [
        ("camvid", "camvid"),
        ("idda", "idda"),
        ("gta5", "formats/gta5"),
        ("synthia", "formats/synthia"),
        ("cityscapes", "formats/cityscapes_small"),
    ],
)
def test_real_files(dataset: str, folder: str) -> None:
    reader = READERS[dataset](Path(REAL) / folder)
    split = "val" if dataset == "cityscapes" else "train"
    samples = reader.samples(split)[:20]
    seen: set[int] = set()
    for sample in samples:
        image, label = reader.read_image(sample), reader.read_label(sample)
        assert image.shape[:2] == label.shape
        seen |= set(np.unique(label).tolist())
    assert len(seen) > 5
    assert seen <= set(LABEL_IDS[dataset])
