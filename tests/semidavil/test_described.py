"""The reader of described data sets: layouts, splits, encodings, and what is wrong with files."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from harbour import DESCRIPTION, QUAY, SIZE, coloured, picture, save, write_harbour
from PIL import Image
from png_files import write_png

from semidavil.benchmarks import BENCHMARKS
from semidavil.config import preset
from semidavil.data.checks import check_data, unknown_words
from semidavil.data.described import DescribedReader
from semidavil.data.files import DataError
from semidavil.data.fingerprint import differences, fingerprint
from semidavil.data.images import ORIENTATION
from semidavil.data.own import own_benchmark
from semidavil.data.patterns import Pattern, is_in
from semidavil.data.readers import READERS
from semidavil.data.scans import describe
from semidavil.data.streams import train_samples
from semidavil.data.suspicions import suspicions
from semidavil.descriptions import DataSet


def reader(root: Path, **changes: object) -> DescribedReader:
    return DescribedReader(DataSet.model_validate({**yaml.safe_load(DESCRIPTION), **changes}), root)


def names(found: DescribedReader, split: str) -> list[str]:
    return [sample.name for sample in found.samples(split)]


def config_of(root: Path, **changes: object) -> object:
    place = {"runtime.cache_dir": str(root.parent / "cache"), "data.budget": 2}
    return preset("toy", {**own_benchmark(str(root)), **place, **changes})


@pytest.mark.parametrize(
    ("pattern", "path", "stem"),
    [
        ("frames/*.jpg", "frames/a.b.jpg", "a.b"),
        ("frames/*.jpg", "frames/a.JPG", "a"),
        ("frames/*.jpg", "frames/deep/a.jpg", None),
        ("frames/**/*.jpg", "frames/a.jpg", "a"),
        ("frames/**/*.jpg", "frames/b/c/a.jpg", "a"),
        ("frames/**/*.jpg", "frames/b/c/a.png", None),
        ("**/{stem}_rgb.*", "a/x_rgb.jpeg", "x"),
        ("{place}/{stem}_rgb.*", "a/x_rgb.png", "x"),
        ("{place}/{stem}_rgb.*", "a/x.png", None),
        ("a+b/*.png", "a+b/x.png", "x"),
    ],
)
def test_patterns(pattern: str, path: str, stem: str | None) -> None:
    found = Pattern(pattern).find(path)
    assert (found.words["stem"] if found else None) == stem


def test_a_label_s_pattern_repeats_words_and_folders() -> None:
    image = Pattern("rgb/{weather}/{split}/**/{stem}_rgb.png", "train").find(
        "rgb/fog/train/a/b/7_rgb.png"
    )
    assert image
    assert (
        Pattern("gt/{split}/{weather}/**/{stem}_ids.png", "train").of(image)
        == "gt/train/fog/a/b/7_ids.png"
    )


@pytest.mark.parametrize(
    "pattern", ["frames/seq1", "frames/seq1/", "frames/seq1/**", "frames/*1", "**/seq1"]
)
def test_a_split_may_be_a_folder(pattern: str) -> None:
    assert is_in(pattern, "frames/seq1/a.jpg")
    assert not is_in(pattern, "frames/seq10x/a.jpg")


def test_splits_are_rest_folders_patterns_and_lists(tmp_path: Path) -> None:
    write_harbour(tmp_path)
    every = [f"{i:03d}" for i in range(12)]
    assert names(reader(tmp_path), "train") == every[:9]
    assert names(reader(tmp_path), "val") == every[9:]
    (tmp_path / "val.txt").write_text(
        "\ufeffframes\\seq0\\001.jpg\r\n\r\nelsewhere/seq2/007.png other\r\n"
    )
    listed = reader(tmp_path, splits={"train": "rest", "val": "val.txt"})
    assert names(listed, "val") == ["001", "007"]
    assert len(listed.samples("train")) == 10
    single = reader(
        tmp_path, splits={"train": "frames/seq*", "val": ["frames/seq0/000.jpg", "frames/seq1"]}
    )
    assert names(single, "val") == ["000", "003", "004", "005"]
    by_folder = reader(
        tmp_path, images="frames/{split}/*.jpg", labels="masks/{split}/{stem}.png",
        splits={"train": "seq0", "val": "seq1"},
    )  # fmt: skip
    assert [names(by_folder, split) for split in ("train", "val")] == [every[:3], every[3:6]]


def test_one_name_in_several_folders_is_told_apart_by_its_path(tmp_path: Path) -> None:
    write_harbour(tmp_path, count=4)
    for kind, ending in (("frames", "jpg"), ("masks", "png")):
        for number in range(1, 4):
            folder = tmp_path / kind / f"seq{number}"
            (folder / f"00{number}.{ending}").rename(folder / f"000.{ending}")
    (tmp_path / "val.txt").write_text("seq2/000\n")
    found = reader(tmp_path, splits={"train": "rest", "val": "val.txt"})
    assert names(found, "train") == ["seq0/000", "seq1/000", "seq3/000"]
    assert found.samples("val")[0].label == tmp_path / "masks/seq2/000.png"
    (tmp_path / "val.txt").write_text("000\n")
    with pytest.raises(DataError, match=r"names 000, which is frames/seq0/000\.jpg as well as"):
        found.samples("val")


def drop(place: str) -> Callable[[Path], object]:
    return lambda root: (root / place).unlink()


WRONG: list[tuple[Callable[[Path], object], dict[str, object], str]] = [
    (drop("masks/seq0/001.png"), {}, r"1 of 9 images of train have no label; .*frames/seq0/001\.jpg, whose"),
    (lambda root: shutil.rmtree(root / "masks"), {}, "masks is missing, in which harbour's description"),
    (lambda root: shutil.rmtree(root / "frames"), {}, "frames is missing"),
    (lambda root: None, {"images": "frames/*.jpg"}, r"no image is in 'frames/seq3'"),
    (
        lambda root: None,
        {"splits": {"train": "rest", "val": "v.txt"}},
        r"the list .*v\.txt of val is missing",
    ),
    (
        lambda root: (root / "v.txt").write_text("001.jpg\n099.jpg\n"),
        {"splits": {"train": "rest", "val": "v.txt"}},
        "lists 1 images that are not there, the first is 099",
    ),
    (
        lambda root: shutil.copy(root / "frames/seq0/001.jpg", root / "frames/seq0/001.jpeg"),
        {"images": "frames/**/{stem}.*"},
        r"001\.jpeg and 001\.jpg are one picture in two files",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "changes", "message"), WRONG, ids=[m for *_, m in WRONG])
def test_files_that_are_wrong_are_named(
    spoil: Callable[[Path], object], changes: dict[str, object], message: str, tmp_path: Path
) -> None:
    write_harbour(tmp_path)
    spoil(tmp_path)
    with pytest.raises(DataError, match=message):
        reader(tmp_path, **changes).samples("train")


def test_pictures_and_masks_in_one_folder(tmp_path: Path) -> None:
    for number in range(3):
        image, ids = picture(number)
        save(tmp_path / f"{number}.png", image)
        save(tmp_path / f"{number}_mask.PNG", ids)
    found = reader(tmp_path, images="*.png", labels="{stem}_mask.png", splits={"train": "rest"})
    assert names(found, "train") == ["0", "1", "2"]
    assert found.left_over() == []


def one_label(root: Path, write: Callable[[Path], object], **changes: object) -> np.ndarray:
    save(root / "frames" / "0.png", picture(0)[0])
    (root / "masks").mkdir()
    write(root / "masks" / "0.png")
    about = {"images": "frames/*.png", "labels": "masks/{stem}.png", "splits": {"train": "rest"}}
    found = reader(root, **{**about, **changes})
    classes = list(found.about.classes)
    codes = found.read_label(found.samples("train")[0])
    index = {
        code: classes.index(name) if name else 255 for code, name in found.about.label_ids.items()
    }
    return np.vectorize(lambda code: index.get(int(code), 254))(codes)


def paletted(path: Path) -> None:
    image = Image.fromarray(picture(0)[1], mode="P")
    image.putpalette([255 - i // 3 for i in range(768)])
    image.save(path)


AS_COLOURS = {
    "sky": [70, 130, 180],
    "water": "#0000ff",
    "quay": {"colours": [[160, 60, 40], [1, 1, 1]]},
}
ENCODINGS: dict[str, tuple[Callable[[Path], object], dict[str, object]]] = {
    "grey": (lambda path: write_png(path, picture(0)[1]), {}),
    "paletted": (paletted, {}),
    "16 bit": (lambda path: write_png(path, picture(0)[1].astype(np.uint16)), {}),
    "large ids": (
        lambda path: write_png(path, picture(0)[1].astype(np.uint16) * 1000),
        {"classes": {"sky": 1000, "water": 2000, "quay": 3000}},
    ),
    "divided": (
        lambda path: write_png(path, picture(0)[1].astype(np.uint16) * 1000 + 7),
        {"divide": 1000},
    ),
    "16-bit RGB": (
        lambda path: write_png(path, np.stack([picture(0)[1].astype(np.uint16), np.full(SIZE, 300, np.uint16),
                                               np.zeros(SIZE, np.uint16)], 2)),
        {"encoding": "red"},
    ),
    "colours": (
        lambda path: save(path, coloured(picture(0)[1])),
        {"encoding": "colour", "classes": AS_COLOURS, "ignored": []},
    ),
    "transparent": (
        lambda path: save(path, np.dstack([coloured(picture(0)[1]), np.zeros(SIZE, np.uint8)])),
        {"encoding": "colour", "classes": AS_COLOURS, "ignored": []},
    ),
}  # fmt: skip


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_encoding_gives_the_same_classes(encoding: str, tmp_path: Path) -> None:
    write, changes = ENCODINGS[encoding]
    truth = picture(0)[1].astype(int) - 1
    assert (one_label(tmp_path, write, **changes) == truth).all()


def test_coco_s_segments_are_read_by_their_json(tmp_path: Path) -> None:
    ids = picture(0)[1].astype(np.uint32)
    segment = {1: 70_001, 2: 300, 3: 3}  # of which one needs three bytes
    packed = np.vectorize(segment.get)(ids).astype(np.uint32)
    packed[0, 0] = 0  # no segment
    colours = np.stack([packed & 255, packed >> 8 & 255, packed >> 16], 2).astype(np.uint8)
    segments = [{"id": segment[i], "category_id": 10 * i, "iscrowd": 0} for i in (1, 2, 3)]
    tree = {"annotations": [{"file_name": "0.png", "image_id": 0, "segments_info": segments}]}
    (tmp_path / "p.json").write_text(json.dumps(tree))
    changes = {
        "encoding": "panoptic", "segments": "p.json", "ignored": [0],
        "classes": {"sky": 10, "water": 20, "quay": 30},
    }  # fmt: skip
    truth = picture(0)[1].astype(int) - 1
    truth[0, 0] = 255
    assert (one_label(tmp_path, lambda path: save(path, colours), **changes) == truth).all()


def test_unknown_colours_and_blends_are_named(tmp_path: Path) -> None:
    write_harbour(tmp_path / "h", DESCRIPTION.replace("ignored: [0]", "encoding: colour").replace(
        "sky: 1", "sky: [70, 130, 180]").replace("{id: 2, syn", '{colour: "#0000ff", syn').replace(
        "ids: [3, 4], colour", "colour"))  # fmt: skip
    for number, path in enumerate(sorted((tmp_path / "h/masks").rglob("*.png"))):
        label = coloured(picture(number)[1])
        label[0, :3] = (9, 9, number % 2)
        save(path, label)
    with pytest.raises(
        DataError,
        match=r'harbour, train: labels hold the colours "#090900", "#090901", '
        r"which harbour's description does "
        r"not have; .*Add what is missing to classes or to ignored in its dataset\.yaml",
    ):
        check_data(config_of(tmp_path / "h"))
    small = cv2.resize(coloured(picture(0)[1]), (200, 200), interpolation=cv2.INTER_CUBIC)
    (tmp_path / "one").mkdir()
    changes = {"encoding": "colour", "classes": AS_COLOURS, "ignored": []}
    with pytest.raises(DataError, match="so many are blends at borders"):
        one_label(tmp_path / "one", lambda path: save(path, small), **changes)


def test_unknown_ids_are_named_all_at_once(tmp_path: Path) -> None:
    path = write_harbour(tmp_path / "h")
    path.write_text(path.read_text().replace("quay: {ids: [3, 4]", "quay: {ids: [4]"))
    with pytest.raises(
        DataError, match=r"labels hold the ids 3, which harbour's description does not have"
    ):
        check_data(config_of(tmp_path / "h"))


def test_a_moved_folder_is_the_same_data_and_a_changed_label_is_not(tmp_path: Path) -> None:
    write_harbour(tmp_path / "here")
    before = config_of(tmp_path / "here")
    check_data(before)
    first = fingerprint(before)
    shutil.move(tmp_path / "here", tmp_path / "there" / "harbour")
    after = config_of(tmp_path / "there" / "harbour")
    assert (after.key(), fingerprint(after)) == (before.key(), first)
    with pytest.raises(DataError, match=r"harbour: its folder .*here is not there: .*--data-root"):
        train_samples(before)
    # Elsewhere, where nobody has the description: below the folder of all data sets.
    params = {**before.to_params(), "runtime.data_root": str(tmp_path / "there")}
    assert fingerprint(type(before).from_params(params)) == first
    save(tmp_path / "there/harbour/masks/seq0/000.png", np.full(SIZE, QUAY, np.uint8))
    assert differences(first, fingerprint(after)) == ["harbour/train/labels"]


def test_words_that_the_bundled_clip_does_not_know_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_harbour(tmp_path / "h")
    config = config_of(tmp_path / "h")
    assert "does not know the words water, quay:" in unknown_words(config)
    check_data(config)
    assert capsys.readouterr().err == ""  # of a run: its command has said so
    check_data(config, progress=True)
    assert "note: the bundled CLIP does not know the words water, quay" in capsys.readouterr().err
    assert unknown_words(config.replace({"model.captions": "none"})) == ""


def test_links_hidden_folders_and_capitals_are_read_as_for_built_in_sets(tmp_path: Path) -> None:
    root = tmp_path / "h"
    write_harbour(root)
    (root / "frames/seq0").rename(tmp_path / "elsewhere")
    (root / "frames/seq0").symlink_to(tmp_path / "elsewhere")
    (root / "frames/seq1/003.jpg").rename(root / "frames/seq1/003.JPG")
    (root / "masks/seq2/006.png").rename(root / "masks/seq2/006.PNG")
    hidden = root / "frames/.ipynb_checkpoints/000-checkpoint.jpg"
    hidden.parent.mkdir()
    shutil.copy(root / "frames/seq3/009.jpg", hidden)
    assert names(reader(root), "train") == [f"{i:03d}" for i in range(9)]


def test_labels_without_any_class_are_refused(tmp_path: Path) -> None:
    write_harbour(tmp_path / "h")
    for path in (tmp_path / "h/masks/seq3").iterdir():
        save(path, np.zeros(SIZE, np.uint8))
    with pytest.raises(
        DataError, match=r"harbour, val: no label in .*h holds a class of harbour: "
    ):
        check_data(config_of(tmp_path / "h"))


def test_what_is_odd_is_said(tmp_path: Path) -> None:
    root = tmp_path / "h"
    write_harbour(root)
    for kind, ending in (("frames", "jpg"), ("masks", "png")):
        shutil.copy(root / f"{kind}/seq0/000.{ending}", root / f"{kind}/seq3/099.{ending}")
    save(root / "masks/seq0/alone.png", picture(0)[1])
    save(root / "masks/seq1/003.png", np.zeros(SIZE, np.uint8))
    settings = own_benchmark(str(root))
    known = BENCHMARKS[settings["data.benchmark"]]
    found = reader(root)
    said = "\n".join(suspicions(known, found, describe(found, tmp_path), tmp_path / "memo"))
    assert "one picture is in two splits" in said
    assert "1 labels have no class at all; the first is that of" in said
    assert "1 labels have no picture" in said
    assert "harbour, val: a score over 4 images says little" in said
    for path in (root / "masks/seq3").iterdir():
        save(path, np.full(SIZE, 1, np.uint8))
    said = "\n".join(suspicions(known, found, describe(found, tmp_path), tmp_path / "memo"))
    assert "harbour, val: no label holds water, quay" in said


def test_disparities_lie_where_the_description_says(tmp_path: Path) -> None:
    root = tmp_path / "h"
    write_harbour(root, DESCRIPTION + "disparity: near/**/{stem}_d.png\n")
    for number in range(12):
        path = root / f"near/seq{number // 3}/{number:03d}_d.png"
        write_png(path, np.full(SIZE, 257, np.uint16))
    config = config_of(root, **{"training.method": "sdepth", "model.captions": "none"})
    assert BENCHMARKS[config.data.benchmark].has_disparity
    from semidavil.data.streams import disparities

    samples = train_samples(config)["unlabelled"]
    assert (disparities(config, samples)(samples[0]) == 1).all()
    assert "harbour@" in fingerprint(config)
    assert "/train/disparity=" in fingerprint(config)
    (root / "near/seq0/000_d.png").unlink()
    with pytest.raises(DataError, match=r"the disparity .*seq0/000_d\.png"):
        disparities(config, [s for stream in train_samples(config).values() for s in stream])


@pytest.mark.parametrize("dataset", ["camvid", "gta5"])
def test_a_description_of_a_built_in_layout_lists_and_reads_as_its_reader(
    dataset: str, write_dataset: Callable[..., Path]
) -> None:
    root = write_dataset(dataset)
    said: dict[str, object] = {
        "camvid": {"images": "{split}/**/{stem}.*", "labels": "{split}annot/**/{stem}.png"},
        "gta5": {
            "images": "images/**/{stem}.*",
            "labels": "labels/**/{stem}.png",
            "splits": {"train": "rest"},
        },
    }[dataset]
    splits = {"splits": ["train", "val"]} if "splits" not in said else {}
    ours = reader(root / dataset if (root / dataset).is_dir() else root, **{**said, **splits})
    theirs = READERS[dataset](ours.root)
    assert ours.samples("train") == theirs.samples("train")
    for sample in theirs.samples("train"):
        assert (ours.read_label(sample) == theirs.read_label(sample)).all()
        assert (ours.read_image(sample) == theirs.read_image(sample)).all()


def test_turned_pictures_and_a_class_alone_are_suspicious(tmp_path: Path) -> None:
    root, alone = tmp_path / "h", {"classes": {"quay": 3}, "ignored": [0, 1, 2]}
    write_harbour(root, yaml.safe_dump({**yaml.safe_load(DESCRIPTION), **alone}))
    for path in sorted(root.rglob("*.jpg"))[:3]:
        with Image.open(path) as image:
            exif = image.getexif()
            exif[ORIENTATION] = 3
            image.save(path, exif=exif)
    known, found = BENCHMARKS[own_benchmark(str(root))["data.benchmark"]], reader(root, **alone)
    said = "\n".join(suspicions(known, found, describe(found, tmp_path), tmp_path / "memo"))
    assert "harbour: 3 of 12 pictures that were looked at are shown turned or mirrored" in said
    assert "one class alone" in said


def test_an_empty_list_is_named(tmp_path: Path) -> None:
    write_harbour(tmp_path / "h")
    (tmp_path / "h/val.txt").write_text("\n# nothing yet\n")
    with pytest.raises(DataError, match=r"harbour: the list .*val\.txt of val is empty"):
        reader(tmp_path / "h", splits={"train": "rest", "val": "val.txt"}).samples("val")
