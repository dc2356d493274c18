"""`data --init`: folders as people and programs leave them become a description that trains."""

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from harbour import COLOURS, SIZE, coloured, picture, save, write_harbour
from PIL import Image
from png_files import write_png

from semidavil.data.described import DescribedReader
from semidavil.data.files import DataError
from semidavil.data.first_look import SHEET, write_first_description
from semidavil.data.images import read_rgb
from semidavil.data.own import READY, read_dataset

Layout = Callable[[Path], object]


def pairs(root: Path, image: str, label: str, numbers: range = range(10)) -> None:
    for number in numbers:
        pixels, ids = picture(number)
        save(root / image.format(number), pixels)
        save(root / label.format(number), ids)


def two_splits(root: Path, image: str, label: str) -> None:
    for split, numbers in (("train", range(6)), ("val", range(6, 9))):
        pairs(root, image.replace("SPLIT", split), label.replace("SPLIT", split), numbers)


LAYOUTS: dict[str, tuple[Layout, str, str, tuple[int, int]]] = {
    "two folders": (
        lambda r: pairs(r, "img/{:02d}.jpg", "gt/{:02d}.png"),
        "img/{stem}.jpg", "gt/{stem}.png", (8, 2),
    ),
    "names with ends": (
        lambda r: pairs(r, "a/{:02d}_rgb.png", "b/{:02d}_mask.png"),
        "a/{stem}_rgb.png", "b/{stem}_mask.png", (8, 2),
    ),
    "one folder": (
        lambda r: pairs(r, "{:02d}.jpg", "{:02d}.png"), "{stem}.jpg", "{stem}.png", (8, 2),
    ),
    "one folder, marked": (
        lambda r: pairs(r, "all/{:02d}.png", "all/{:02d}_mask.png"),
        "all/{stem}.png", "all/{stem}_mask.png", (8, 2),
    ),
    "splits within": (
        lambda r: two_splits(r, "images/SPLIT/{:02d}.jpg", "masks/SPLIT/{:02d}.png"),
        "images/{split}/{stem}.jpg", "masks/{split}/{stem}.png", (6, 3),
    ),
    "splits above": (
        lambda r: two_splits(r, "SPLIT/images/{:02d}.jpg", "SPLIT/labels/{:02d}.png"),
        "{split}/images/{stem}.jpg", "{split}/labels/{stem}.png", (6, 3),
    ),
    "camvid": (
        lambda r: two_splits(r, "SPLIT/{:02d}.png", "SPLITannot/{:02d}.png"),
        "{split}/{stem}.png", "{split}annot/{stem}.png", (6, 3),
    ),
    "sequences": (
        lambda r: write_harbour(r, description=""),
        "frames/**/{stem}.jpg", "masks/**/{stem}.png", (9, 3),
    ),
}  # fmt: skip


QUICK = ("one folder, marked", "splits above", "sequences", "CVAT's export", "COCO-panoptic")


def mostly_slow(names: Iterable[str]) -> list[object]:
    return [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize("layout", mostly_slow(LAYOUTS))
def test_pairs_and_splits_are_found(layout: str, tmp_path: Path) -> None:
    write, images, labels, counts = LAYOUTS[layout]
    write(tmp_path)
    first = write_first_description(tmp_path)
    about = read_dataset(first.path)
    assert (about.images, about.labels) == (images, labels)
    reader = DescribedReader(about, tmp_path)
    assert tuple(len(reader.samples(split)) for split in ("train", "val")) == counts
    assert [c.values for c in about.classes.values()] == [(1,), (2,), (3,)]
    assert all("mask" not in s.image.name for s in reader.samples("train"))
    sheet = read_rgb(tmp_path / SHEET)  # pictures, labels over them, labels
    assert sheet.shape[1] == 3 * 320


def test_colours_that_are_known_have_names_and_black_is_ignored(tmp_path: Path) -> None:
    for number in range(5):
        image, ids = picture(number)
        label = coloured(ids)
        label[:2] = 0
        save(tmp_path / f"img/{number}.jpg", image)
        save(tmp_path / f"gt/{number}.png", label)
    about = read_dataset(write_first_description(tmp_path).path)
    assert about.encoding == "colour"
    assert about.ignored == (0,)
    values = {name: about.shown(c.values[0]) for name, c in about.classes.items()}
    assert values["sky"] == 'the colour "#4682b4"'
    assert len(values) == 3


def test_pictures_are_held_out_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    """As text, 9.jpg would be the last of twelve, and seq9 the last of twelve sequences."""
    pairs(tmp_path / "flat", "img/{}.jpg", "gt/{}.png", range(12))
    about = read_dataset(write_first_description(tmp_path / "flat").path)
    assert about.splits["val"] == ("img/10.jpg", "img/11.jpg")
    pairs(tmp_path / "deep", "img/seq{}/a.jpg", "gt/seq{}/a.png", range(12))
    about = read_dataset(write_first_description(tmp_path / "deep").path)
    assert about.splits["val"] == ("img/seq10", "img/seq11")


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    path = write_harbour(tmp_path)
    before = path.read_text()
    with pytest.raises(DataError, match=r"dataset\.yaml is there already: remove or rename it"):
        write_first_description(tmp_path)
    assert path.read_text() == before
    assert not (tmp_path / SHEET).exists()


def blurred(root: Path) -> None:
    rng = np.random.default_rng(0)
    pairs(root, "img/{:02d}.jpg", "gt/{:02d}.png")
    for number in range(10):  # 600 colours in large patches, a hundred in each
        patches = rng.integers(0, 256, (3, 20, 3), np.uint8)
        save(root / f"gt/{number:02d}.png", patches.repeat(12, 0).repeat(3, 1))


def void(root: Path) -> None:
    for number in range(3):
        save(root / f"i/{number}.jpg", picture(number)[0])
        save(root / f"l/{number}.png", np.full(SIZE, 255, np.uint8))


REFUSED: dict[str, tuple[Layout, str]] = {
    "no picture": (lambda r: (r / "a.txt").write_text(""), "has no picture"),
    "no label": (
        lambda r: [save(r / f"img/{i}.jpg", picture(i)[0]) for i in range(3)],
        r"no picture has a label that could be told by its name\. There are pictures in img \(3\)",
    ),
    "blends": (
        blurred,
        r"gt/\{stem\}\.png and img/\{stem\}\.jpg have pictures of .* neither are labels.*smoothed",
    ),
    "only void": (
        void,
        "labels hold nothing but what is usually ignored",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_guessed_is_said(case: str, tmp_path: Path) -> None:
    write, message = REFUSED[case]
    write(tmp_path)
    with pytest.raises(DataError, match=message):
        write_first_description(tmp_path)
    assert not (tmp_path / "dataset.yaml").exists()


# Formats


def cvat(root: Path) -> None:
    for number in range(5):
        image, ids = picture(number)
        save(root / f"JPEGImages/{number}.jpg", image)
        save(root / f"SegmentationClass/{number}.png", coloured(ids))
        save(root / f"SegmentationObject/{number}.png", coloured(ids))
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    (root / "ImageSets/Segmentation/default.txt").write_text("0\n1\n2\n3\n4\n")
    lines = ["# label:color_rgb:parts:actions", "background:0,0,0::"]
    names = ("no", "open water", "quay: old")  # what YAML would read as false, and as a pair
    lines += [
        f"{n}:{','.join(map(str, c))}::" for n, c in zip(names, COLOURS.values(), strict=True)
    ]
    (root / "labelmap.txt").write_text("\n".join(lines) + "\n")


def coco(root: Path) -> None:
    for split, numbers in (("train2017", range(4)), ("val2017", range(4, 6))):
        annotations = []
        for number in numbers:
            image, ids = picture(number)
            save(root / split / f"{number:012d}.jpg", image)
            zeros = np.zeros_like(ids)
            save(
                root / f"annotations/panoptic_{split}/{number:012d}.png",
                np.stack([zeros, ids, zeros], 2),
            )
            segments = [
                {"id": 256 * i, "category_id": c} for i, c in ((1, 187), (2, 178), (3, 200))
            ]
            name = f"{number:012d}.png"
            annotations.append({"file_name": name, "image_id": number, "segments_info": segments})
        names = {187: "sky-other-merged", 178: "water-other", 200: "rug-merged", 1: "person"}
        categories = [
            {"id": i, "name": n, "color": [i, 0, 0], "isthing": 0} for i, n in names.items()
        ]
        tree = {"annotations": annotations, "categories": categories, "images": []}
        (root / f"annotations/panoptic_{split}.json").write_text(json.dumps(tree))


def mapillary(root: Path) -> None:
    for split in ("training", "validation"):
        for number in range(3):
            image, ids = picture(number)
            save(root / split / f"images/{number}.jpg", image)
            save(root / split / f"v2.0/labels/{number}.png", ids)
            write_png(root / split / f"v2.0/instances/{number}.png", ids.astype(np.uint16) * 256)
    labels = [{"name": f"a--{n}", "readable": n.title(), "evaluate": n != "void", "color": [i, i, i]}
              for i, n in enumerate(("bird", "sky", "water", "void"))]  # fmt: skip
    (root / "config_v2.0.json").write_text(json.dumps({"labels": labels}))


def acdc(root: Path) -> None:
    ids = {1: 23, 2: 7, 3: 11}
    for weather, split in (("fog", "train"), ("night", "train"), ("fog", "val")):
        image, label = picture(0)
        place = f"{weather}/{split}/GOPR{weather}/GOPR_{split}_01"
        save(root / f"rgb_anon/{place}_rgb_anon.png", image)
        save(root / f"gt/{place}_gt_labelIds.png", np.vectorize(ids.get)(label).astype(np.uint8))
        save(root / f"gt/{place}_gt_labelTrainIds.png", label)
        save(root / f"gt/{place}_gt_invGray.png", label)


def bdd(root: Path) -> None:
    for split in ("train", "val"):
        image, label = picture(0)
        save(root / f"images/10k/{split}/a-b.jpg", image)
        save(root / f"labels/sem_seg/masks/{split}/a-b.png", label)
        save(root / f"labels/sem_seg/colormaps/{split}/a-b.png", coloured(label))


FORMATS: dict[str, tuple[Layout, tuple[int, int], set[str]]] = {
    "CVAT's export": (cvat, (4, 1), {"no", "open water", "quay: old"}),
    "COCO-panoptic": (coco, (4, 2), {"sky", "water", "rug"}),
    "Mapillary": (mapillary, (3, 3), {"sky", "water"}),
    "acdc": (acdc, (2, 1), {"sky", "road", "building"}),
    "bdd100k": (bdd, (1, 1), {"sidewalk", "building", "wall"}),
}


@pytest.mark.parametrize("kind", mostly_slow(FORMATS))
def test_formats_are_recognised_and_read(kind: str, tmp_path: Path) -> None:
    write, counts, classes = FORMATS[kind]
    write(tmp_path)
    first = write_first_description(tmp_path)
    assert kind in first.said[0]
    about = read_dataset(first.path)
    reader = DescribedReader(about, tmp_path)
    samples = {split: reader.samples(split) for split in ("train", "val")}
    assert tuple(map(len, samples.values())) == counts
    codes = reader.read_label(samples["val"][0])
    seen = {about.label_ids[int(code)] for code in np.unique(codes)}
    assert seen - {None} == classes


def test_a_cvat_export_without_pictures_and_a_broken_table_are_named(tmp_path: Path) -> None:
    cvat(tmp_path)
    (tmp_path / "labelmap.txt").write_text("sky;70,130,180\n")
    with pytest.raises(DataError, match=r"'sky;70,130,180' is not NAME:RED,GREEN,BLUE"):
        write_first_description(tmp_path)
    shutil.rmtree(tmp_path / "JPEGImages")
    with pytest.raises(DataError, match="no JPEGImages: export from CVAT once more with images"):
        write_first_description(tmp_path)


def test_mapillary_s_version_1_2_has_a_ready_description(tmp_path: Path) -> None:
    about = read_dataset(READY / "mapillary.yaml")
    assert len(about.classes) + len(about.ignored) == 66
    assert [about.classes[n].values[0] for n in ("bird", "road", "sky", "ego vehicle")] == [
        0,
        13,
        27,
        64,
    ]


# Hugging Face


@pytest.mark.slow
def test_a_data_set_of_hugging_face_is_copied_and_described(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    from semidavil.data.archives import copy_archive

    write_harbour(tmp_path / "files", description="")
    images = sorted(map(str, (tmp_path / "files/frames").rglob("*.jpg")))
    masks = sorted(map(str, (tmp_path / "files/masks").rglob("*.png")))

    def part(start: int, end: int) -> object:
        rows = {
            "image": images[start:end],
            "annotation": masks[start:end],
            "text": ["x"] * (end - start),
        }
        whole = datasets.Dataset.from_dict(rows)
        return whole.cast_column("image", datasets.Image()).cast_column(
            "annotation", datasets.Image()
        )

    found = datasets.DatasetDict({"train": part(0, 8), "validation": part(8, 12)})
    found.save_to_disk(str(tmp_path / "saved"))
    copy_archive(f"hf:{tmp_path / 'saved'}", tmp_path / "copy")
    # As they were: not decoded and encoded again.
    copied = tmp_path / "copy/images/train/000003.jpg"
    assert copied.read_bytes() == Path(images[3]).read_bytes()
    about = read_dataset(write_first_description(tmp_path / "copy").path)
    reader = DescribedReader(about, tmp_path / "copy")
    assert [len(reader.samples(split)) for split in ("train", "val")] == [8, 4]
    with pytest.raises(DataError, match="is not empty"):
        copy_archive(f"hf:{tmp_path / 'saved'}", tmp_path / "copy")
    bare = found.remove_columns("annotation")
    bare.save_to_disk(str(tmp_path / "bare"))
    with pytest.raises(DataError, match=r"no column of labels .* its pictures are image"):
        copy_archive(f"hf:{tmp_path / 'bare'}", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_the_colours_of_a_palette_are_taken(tmp_path: Path) -> None:
    pairs(tmp_path, "img/{}.jpg", "gt/{}.png", range(5))
    for path in (tmp_path / "gt").iterdir():
        with Image.open(path) as picture:
            picture.putpalette([0, 0, 0, 0, 0, 0, 0, 128, 192, 160, 60, 40])
            picture.save(path)
    first = write_first_description(tmp_path)
    assert 'colour: "#0080c0"' in first.path.read_text()
    about = read_dataset(first.path)
    assert about.colours == {
        "class 1": (0, 0, 0),
        "class 2": (0, 128, 192),
        "class 3": (160, 60, 40),
    }


@pytest.mark.parametrize("mode", ["L", "1", "RGB"])
def test_of_a_mask_of_two_values_both_are_classes(mode: str, tmp_path: Path) -> None:
    for number in range(5):
        image, ids = picture(number)
        save(tmp_path / f"img/{number}.jpg", image)
        mask = Image.fromarray((255 * (ids > 1)).astype(np.uint8))
        (tmp_path / "gt").mkdir(exist_ok=True)
        mask.convert(mode).save(tmp_path / f"gt/{number}.png")
    about = read_dataset(write_first_description(tmp_path).path)
    assert len(about.classes) == 2
    assert about.ignored == ()


def test_labels_that_are_jpegs_by_another_name_and_other_kinds_of_pictures_are_named(
    tmp_path: Path,
) -> None:
    pairs(tmp_path, "img/{}.jpg", "gt/{}.png", range(5))
    for path in (tmp_path / "gt").iterdir():
        with Image.open(path) as label:
            label.save(path, format="JPEG")
    with pytest.raises(DataError, match=r"gt/\d\.png is a JPEG, which blurs classes"):
        write_first_description(tmp_path)
    for path in (tmp_path / "gt").iterdir():
        path.rename(path.with_suffix(".tif"))
    with pytest.raises(
        DataError, match=r"kinds that are not looked at \(5 \.tif\): save them as PNG"
    ):
        write_first_description(tmp_path)
