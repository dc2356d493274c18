"""Data as people have it: what is sound but looks odd is read, what is wrong is named before training."""

import os
import re
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path

import cv2
import h5py
import nibabel
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from semidavil.__main__ import app
from semidavil.benchmarks import CITYSCAPES_19, LABEL_IDS
from semidavil.config import Config, preset
from semidavil.data.checks import check_data
from semidavil.data.files import DataError, state_of
from semidavil.data.folders import files_below, names_in
from semidavil.data.images import read_indices, read_rgb
from semidavil.data.readers import READERS
from semidavil.data.synapse import Synapse
from semidavil.data.volumes import check_volumes
from semidavil.language.captions import read_parts

Write = Callable[..., Path]
SIZE = (16, 24)


def config_of(root: Path, benchmark: str, **changes: object) -> Config:
    settings = {"data.toy": False, "data.benchmark": benchmark, "data.budget": 1, **changes}
    places = {"runtime.data_root": str(root), "runtime.cache_dir": str(root / "cache")}
    return preset("toy", settings | places)


def names(root: Path, split: str = "train", dataset: str = "camvid") -> list[str]:
    return [sample.name for sample in READERS[dataset](root / dataset).samples(split)]


# Folders


def test_links_to_folders_are_followed(write_dataset: Write, tmp_path: Path) -> None:
    root = write_dataset("cityscapes")
    for kind in ("leftImg8bit", "gtFine"):
        for split in ("train", "val"):
            city = root / "cityscapes" / kind / split / "aachen"
            city.rename(tmp_path / f"{kind}-{split}")
            city.symlink_to(tmp_path / f"{kind}-{split}")
    assert len(names(root, dataset="cityscapes")) == 3


@pytest.mark.parametrize("target", ["train", "train/a", "."])
def test_a_link_that_leads_back_is_named(write_dataset: Write, target: str) -> None:
    root = write_dataset("camvid") / "camvid"
    (root / "train" / "a" / "b").mkdir(parents=True)
    (root / "train" / "a" / "b" / "loop").symlink_to(root / target)
    with pytest.raises(DataError, match=r"loop.* is a link to a folder that it lies in"):
        list(files_below(root / "train"))


def test_links_that_lead_to_one_another_end(tmp_path: Path) -> None:
    for here, other in (("a", "b"), ("b", "a")):
        (tmp_path / here).mkdir()
        (tmp_path / here / "across").symlink_to(tmp_path / other)
    with pytest.raises(DataError, match="across is a link"):
        list(files_below(tmp_path / "a"))


@pytest.mark.parametrize(
    "place", [".ipynb_checkpoints", "@eaDir/f.jpg", "#recycle", "__MACOSX", ".hidden/deep"]
)
def test_what_programs_put_beside_pictures_is_left_out(write_dataset: Write, place: str) -> None:
    root = write_dataset("camvid")
    before = names(root)
    folder = root / "camvid" / "train" / place
    folder.mkdir(parents=True)
    shutil.copy(root / "camvid" / "train" / "frame_0.png", folder / "frame_0-checkpoint.png")
    shutil.copy(root / "camvid" / "train" / "frame_0.png", folder.parent / "._frame_0.png")
    assert names(root) == before


def test_a_name_that_is_not_utf8_is_named(write_dataset: Write) -> None:
    root = write_dataset("camvid")
    for folder in ("train", "trainannot"):
        place = root / "camvid" / folder
        os.rename(place / "frame_1.png", os.fsencode(place) + b"/Stra\xdfe.png")
    with pytest.raises(DataError, match=r"Stra\\xdfe\.png is not UTF-8: rename it") as refusal:
        names(root)
    assert str(refusal.value).encode()  # which can be printed


@pytest.mark.parametrize("ending", [".PNG", ".JPG", ".Jpeg"])
def test_endings_in_capitals(write_dataset: Write, ending: str) -> None:
    root = write_dataset("camvid")
    before = names(root)
    for path in (root / "camvid").glob("*/*.png"):
        path.rename(path.with_suffix(".PNG" if "annot" in path.parent.name else ending))
    assert names(root) == before
    assert READERS["camvid"](root / "camvid").samples("train")[0].label.suffix == ".PNG"


def test_endings_in_capitals_of_cityscapes(write_dataset: Write) -> None:
    root = write_dataset("cityscapes")
    for path in (root / "cityscapes").rglob("*.png"):
        path.rename(path.with_suffix(".PNG"))
    assert len(names(root, dataset="cityscapes")) == 3


def test_one_picture_under_two_endings_is_named(write_dataset: Write) -> None:
    root = write_dataset("camvid")
    path = root / "camvid" / "train" / "frame_1.png"
    Image.open(path).save(path.with_suffix(".jpg"))
    with pytest.raises(DataError, match=r"frame_1\.jpg and frame_1\.png are one picture"):
        names(root)


def test_pictures_of_one_name_in_several_folders_keep_apart(write_dataset: Write) -> None:
    root = write_dataset("camvid")
    for folder in ("val", "valannot"):
        place = root / "camvid" / folder
        (place / "night").mkdir()
        shutil.copy(place / "frame_1.png", place / "night")
    assert names(root, "val") == ["frame_0", "frame_1", "frame_2", "night/frame_1"]


@pytest.mark.parametrize(
    "text",
    [
        "frame_0\r\nframe_1\r\n", "\ufeffframe_0\nframe_1\n", "frame_0.png\n\nframe_1.jpg\n",
        "/home/My Data/train/frame_0.png /home/My Data/trainannot/frame_0.png\nframe_1.png frame_1.png\n",
        "CamVid\\train\\frame_0.png CamVid\\trainannot\\frame_0.png\r\nD:\\My Data\\frame_1.PNG\r\n",
        "train/frame_0.png,trainannot/frame_0.png\ntrain/frame_1.png;trainannot/frame_1.png\n",
        "frame_0 frame_0\nframe_1,frame_1", '"train/frame_0.png","x"\n"frame_1"\n',
        "# of spring\nframe_0\t0\nframe_1\t1\n",
    ],
)  # fmt: skip
def test_lists_as_editors_save_them(write_dataset: Write, text: str) -> None:
    root = write_dataset("camvid")
    listing = root / "camvid" / "train.txt"
    listing.write_bytes(text.encode())
    assert names_in(listing) == ["frame_0", "frame_1"]
    assert len(names(root)) == 3
    listing.write_bytes(text.replace("frame_1", "frame_7").encode())
    with pytest.raises(DataError, match=r"lists 1 images .* the first is frame_7"):
        names(root)


def test_the_heading_of_a_table_is_no_file(tmp_path: Path) -> None:
    text = "image,label\na/frame_0.png,x\na/frame_1.png,y\n"
    for ending, expected in ((".csv", 2), (".txt", 3)):
        (tmp_path / f"train{ending}").write_text(text)
        assert len(names_in(tmp_path / f"train{ending}")) == expected
    (tmp_path / "bare.csv").write_text("frame_0\nframe_1\n")  # nothing says that it has one
    assert names_in(tmp_path / "bare.csv") == ["frame_0", "frame_1"]


def test_letters_are_the_same_in_one_character_or_two(write_dataset: Write) -> None:
    """macOS stores ä as a and its dots: labels that were drawn there, beside pictures that were not."""
    root = write_dataset("camvid") / "camvid"
    for folder, form in (("train", "NFC"), ("trainannot", "NFD")):
        name = unicodedata.normalize(form, "straße_ä.png")
        (root / folder / "frame_1.png").rename(root / folder / name)
    (root / "train.txt").write_text(f"{unicodedata.normalize('NFD', 'straße_ä')}\n")
    assert len(names(root.parent)) == 3


def test_a_bare_name_with_a_dot_has_no_ending(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("frame.0\nframe.1.png\nframe.2 frame.2\n")
    assert names_in(tmp_path / "train.txt") == ["frame.0", "frame.1", "frame.2"]


def test_a_list_that_is_no_text_is_named(write_dataset: Write) -> None:
    root = write_dataset("camvid")
    (root / "camvid" / "train.txt").write_bytes("frame_0\n".encode("utf-16"))
    with pytest.raises(DataError, match=r"train\.txt is not UTF-8 text"):
        names(root)


# Files


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("dataset", ["camvid", "idda", "cityscapes", "gta5"])
def test_paletted_labels_are_read_by_index(dataset: str, bits: int, tmp_path: Path) -> None:
    ids = np.resize(np.arange(min(2**bits, 12), dtype=np.uint8), SIZE)
    picture = Image.fromarray(ids, mode="P")
    picture.putpalette(list(range(255, -1, -1)) * 3)
    picture.save(tmp_path / "label.png", bits=bits)
    assert np.array_equal(read_indices(tmp_path / "label.png"), ids)


@pytest.mark.parametrize("tail", [b"\0" * 512, b"\n", b"IEND", bytes(range(256))])
def test_bytes_after_a_pngs_end_are_no_part_of_it(tail: bytes, tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
    path = tmp_path / "image.png"
    Image.fromarray(image).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole + tail)
    assert np.array_equal(read_rgb(path), image)
    for cut in (len(whole) - 1, len(whole) - 12, len(whole) // 2, 20):
        path.write_bytes(whole[:cut])
        with pytest.raises(DataError, match=r"image\.png cannot be read: the PNG is cut short"):
            read_rgb(path)


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_an_empty_file_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    for read in (read_rgb, read_indices):
        with pytest.raises(DataError, match=rf"{name} is empty: copy it again"):
            read(tmp_path / name)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_grey_labels_that_were_saved_with_more_channels_are_ids(mode: str, tmp_path: Path) -> None:
    ids = np.resize(np.arange(12, dtype=np.uint8), SIZE)
    Image.fromarray(ids).convert(mode).save(tmp_path / "label.png")
    assert np.array_equal(read_indices(tmp_path / "label.png"), ids)
    colours = np.stack([ids, ids, ids + 1], 2)
    Image.fromarray(colours).convert("RGB").save(tmp_path / "label.png")
    with pytest.raises(DataError, match="has 3 channels"):
        read_indices(tmp_path / "label.png")


def test_a_jpeg_is_no_label_whatever_it_is_called(tmp_path: Path) -> None:
    Image.fromarray(np.zeros(SIZE, np.uint8)).save(tmp_path / "label.png", format="JPEG")
    with pytest.raises(DataError, match=r"label\.png is a JPEG, which makes other ids"):
        read_indices(tmp_path / "label.png")


def test_what_stands_for_a_picture_that_is_not_here_is_named(tmp_path: Path) -> None:
    place = tmp_path / "a.png"
    place.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(DataError, match=r"a\.png .* `git lfs pull` fetches it"):
        read_rgb(place)
    place.unlink()
    place.symlink_to(tmp_path / "away.png")
    with pytest.raises(DataError, match=r"a\.png, which is a link to .*away\.png, cannot be read"):
        state_of([place], "")


@pytest.mark.parametrize("orientation", range(2, 9))
def test_image_and_captioner_see_the_bitmap_that_labels_lie_on(
    orientation: int, tmp_path: Path
) -> None:
    image = np.kron(np.arange(6, dtype=np.uint8).reshape(2, 3) * 40, np.ones((8, 8), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.stack([image] * 3, -1)).save(tmp_path / "a.jpg", quality=100, exif=exif)
    found = read_rgb(tmp_path / "a.jpg")
    assert np.abs(found[..., 0].astype(int) - image).max() <= 2
    assert np.array_equal(np.asarray(read_parts(tmp_path / "a.jpg")[0]), found)


@pytest.mark.parametrize("kind", ["grey16", "grey8", "rgba", "rgb16"])
def test_training_and_captioner_see_the_same_picture(kind: str, tmp_path: Path) -> None:
    grey = np.random.default_rng(0).integers(0, 256, SIZE, np.uint8)
    colour, path = np.stack([grey] * 3, -1), str(tmp_path / "a.png")
    alpha = np.full((*SIZE, 1), 99, np.uint8)
    stored = {"grey16": grey.astype(np.uint16) * 257, "grey8": grey, "rgb16": colour.astype(np.uint16) * 257,
              "rgba": np.concatenate([colour, alpha], -1)}[kind]  # fmt: skip
    assert cv2.imwrite(path, stored)
    assert np.array_equal(read_rgb(tmp_path / "a.png"), colour)
    assert np.array_equal(np.asarray(read_parts(tmp_path / "a.png")[0]), colour)


# Whole sets


def to_train_ids(label: np.ndarray) -> np.ndarray:
    table = np.full(256, 255, np.uint8)
    for raw, name in LABEL_IDS["cityscapes"].items():
        if name:
            table[raw] = CITYSCAPES_19.index(name)
    return table[label]


def street(_: int) -> np.ndarray:
    """Sky, building, road, a car and void, in Cityscapes' ids."""
    label = np.full(SIZE, 7, np.uint8)
    label[:5], label[5:8], label[10:13, 3:8], label[15:] = 23, 11, 26, 1
    return label


@pytest.mark.parametrize("wrong", ["cityscapes", "gta5"])
def test_train_ids_are_refused(write_dataset: Write, wrong: str) -> None:
    for dataset in ("cityscapes", "gta5"):
        root = write_dataset(dataset, street)
    check_data(config_of(root, "gta5-cityscapes"))
    shutil.rmtree(root / wrong)
    write_dataset(wrong, lambda index: to_train_ids(street(index)))
    with pytest.raises(DataError, match=rf"{wrong}, train: .*train ids \(labelTrainIds\)"):
        check_data(config_of(root, "gta5-cityscapes"))


@pytest.mark.parametrize("split", ["train", "val"])
def test_labels_that_are_void_everywhere_are_refused_where_they_are_used(
    write_dataset: Write, split: str
) -> None:
    write_dataset("idda", lambda _: np.full(SIZE, 6, np.uint8))
    root = write_dataset("camvid")
    for path in (root / "camvid" / f"{split}annot").iterdir():
        Image.fromarray(np.full(SIZE, 11, np.uint8)).save(path)
    said = rf"camvid, {split}: no label in {root}/camvid holds a class of idda-camvid: .* \(11\)\. Use "
    with pytest.raises(DataError, match=said):
        check_data(config_of(root, "idda-camvid"))
    command = ["data", "--data-root", str(root), "--cache-dir", str(root / "cache")]
    done = CliRunner().invoke(app, [*command, "--benchmark", "idda-camvid"])
    assert done.exit_code == (split == "val"), done.output
    assert bool(re.search(f"wrong: {said}", done.output)) == (split == "val")
    assert ("suspicious: camvid, train: no label holds a class" in done.output) == (
        split == "train"
    )
    without_labels = config_of(root, "idda-camvid", **{"data.budget": 0})
    if split == "train":  # as they may be where nobody has labelled the target
        check_data(without_labels)
    else:
        with pytest.raises(DataError, match="camvid, val"):
            check_data(without_labels)


def write_scans(folder: Path, image: np.ndarray, label: np.ndarray, count: int = 6) -> None:
    folder.mkdir(parents=True)
    for case in range(count):
        with h5py.File(folder / f"case{case:04d}.npy.h5", "w") as file:
            file["image"], file["label"] = image, label


def test_transunets_eight_organs_are_refused(tmp_path: Path) -> None:
    image, label = np.full((32, 32, 32), 0.1, np.float32), np.zeros((32, 32, 32), np.uint8)
    label[:8, 0, 0] = range(1, 9)
    write_scans(tmp_path / "eight" / "synapse", image, label)
    config = config_of(tmp_path / "eight", "synapse", **{"training.method": "uamt"})
    with pytest.raises(DataError, match=r"TransUNet's files.*another order \(aorta, gallbladder"):
        check_volumes(config, Synapse(tmp_path / "eight" / "synapse"))
    label[9, 0, 0] = 13
    write_scans(tmp_path / "all" / "synapse", image, label)
    check_volumes(config, Synapse(tmp_path / "all" / "synapse"))


def test_a_list_of_scans_names_them_with_or_without_endings(tmp_path: Path) -> None:
    write_scans(tmp_path / "s", np.zeros((4, 4, 4)), np.zeros((4, 4, 4)))
    (tmp_path / "s" / "train.txt").write_text("\ufeffcase0002\r\ncase0001.npy.h5\r\n")
    assert [case.name for case in Synapse(tmp_path / "s").cases("train")] == [
        "case0002",
        "case0001",
    ]


@pytest.mark.parametrize(("shift", "header"), [(0, False), (1024, True), (1024, False)])
def test_ct_without_its_intercept_is_refused_and_the_headers_is_applied(
    shift: int, header: bool, tmp_path: Path
) -> None:
    hounsfield = np.full((20, 20, 20), -1000, np.int16)
    hounsfield[4:16, 4:16, 4:16] = 110
    for kind, values in (("img", hounsfield + shift), ("label", np.zeros_like(hounsfield))):
        (tmp_path / kind).mkdir()
        volume = nibabel.Nifti1Image(values.astype(np.int16), np.eye(4))
        if header and kind == "img":
            volume.header.set_slope_inter(1, -1024)
        nibabel.save(volume, tmp_path / kind / f"{kind}0001.nii.gz")
    reader = Synapse(tmp_path)
    (case,) = reader._all()
    if shift and not header:
        with pytest.raises(DataError, match=r"img0001.*no Hounsfield units.*intercept was lost"):
            reader.read(case)
    else:
        scan = reader.read(case)
        assert (scan.image.min(), scan.image.max()) == (0, pytest.approx((110 + 75) / 350))
