"""What a run saw is told apart by what its files hold, part by part, and without torch."""

import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
from small_clip import save_clip

from semidavil.config import Config, preset
from semidavil.data import files
from semidavil.data.files import DataError, NotReadYet, hash_files, recall_hashes, state_of
from semidavil.data.fingerprint import differences, fingerprint, memo_of
from semidavil.data.layout import cache_dir
from semidavil.data.readers import READERS

Write = Callable[..., Path]


@pytest.fixture
def root(write_dataset: Write) -> Path:
    """Of GTA5 and Cityscapes, whose labels hold two classes."""
    label = np.full((16, 24), 7, np.uint8)
    label[:4] = 8
    for dataset in ("gta5", "cityscapes"):
        root = write_dataset(dataset, lambda _: label)
    return root


def of(root: Path, **changes: object) -> Config:
    places = {"runtime.data_root": str(root), "runtime.cache_dir": str(root / "cache")}
    settings = {"data.benchmark": "gta5-cityscapes", "data.budget": 2, **places}
    return preset("small", settings | {k.replace("__", "."): v for k, v in changes.items()})


def names(text: str) -> set[str]:
    return {word.partition("=")[0] for word in text.split()}


def repair(label: Path) -> None:
    """Swaps two pixels: size of the file, and pixels of each class, stay what they were."""
    pixels = cv2.imread(str(label), cv2.IMREAD_UNCHANGED)
    before = label.stat().st_size
    pixels[0, 0], pixels[-1, -1] = 7, 8
    cv2.imwrite(str(label), pixels)
    content = label.read_bytes()
    label.write_bytes(content + bytes(max(0, before - len(content))))


def test_repaired_labels_are_other_data_and_a_moved_folder_is_not(
    root: Path, tmp_path: Path
) -> None:
    first = fingerprint(of(root))
    copy = tmp_path / "elsewhere"
    without_cache = shutil.ignore_patterns("cache")
    shutil.copytree(root, copy, ignore=without_cache, copy_function=shutil.copyfile)
    assert fingerprint(of(copy)) == first
    assert fingerprint(of(copy, training__lr=0.5, data__budget=1)) == first
    assert fingerprint(of(copy, model__captions="class_names")) == first

    repair(READERS["cityscapes"](copy / "cityscapes").samples("val")[0].label)
    repaired = fingerprint(of(copy))
    assert differences(first, repaired) == ["cityscapes/val/labels"]
    with READERS["gta5"](copy / "gta5").samples("train")[0].image.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"!")
    assert differences(repaired, fingerprint(of(copy))) == ["gta5/train/images"]
    file_of = READERS["gta5"](copy / "gta5").samples("train")[0]
    for path in (file_of.image, file_of.label):
        path.rename(path.with_stem("99999"))  # which changes the order, and so the draws
    assert differences(first, fingerprint(of(copy))) == [
        "cityscapes/val/labels", "gta5/train/images", "gta5/train/labels",
    ]  # fmt: skip


def test_labels_that_a_run_does_not_look_at_are_no_part(root: Path) -> None:
    unlabelled, labelled = fingerprint(of(root, data__budget=0)), fingerprint(of(root))
    assert names(labelled) - names(unlabelled) == {"cityscapes/train/labels"}
    target = of(root, training__method="target_only")
    assert names(labelled) - names(fingerprint(target)) == {"gta5/train/labels"}
    oracle = of(root, data__budget=0, model__captions="oracle")
    assert fingerprint(oracle) == labelled


def test_disparities_are_a_part_where_they_are_read(root: Path) -> None:
    config = of(root, training__method="sdepth")
    with pytest.raises(DataError, match="_disparity"):
        fingerprint(config)
    for sample in READERS["cityscapes"](root / "cityscapes").samples("train"):
        name = sample.image.name.replace("leftImg8bit", "disparity")
        path = root / "cityscapes" / "disparity" / "train" / "aachen" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"near")
    first = fingerprint(config)
    path.write_bytes(b"afar")
    assert differences(first, fingerprint(config)) == ["cityscapes/train/disparity"]
    chosen = of(root, data__selection="depth")
    assert fingerprint(chosen) == fingerprint(config)
    estimator = root / "estimator"
    estimator.mkdir()
    (estimator / "model.bin").write_bytes(b"depth")
    estimated = {"training.method": "sdepth", "data.depth": f"hf:{estimator}"}
    for base in (config, preset("toy", {"runtime.cache_dir": str(root / "cache")})):
        found = names(fingerprint(base.replace(estimated)))
        assert "depth" in found
        assert "cityscapes/train/disparity" not in found


def test_weights_and_captioners_are_parts_by_what_their_files_hold(
    root: Path, tmp_path: Path
) -> None:
    for name in ("one", "two", "captioner"):
        (tmp_path / name).mkdir()
    save_clip(tmp_path / "one")
    save_clip(tmp_path / "two")
    bundled = fingerprint(of(root))
    folder = partial(of, root, model__weights="bundled")
    one, two = (fingerprint(folder(model__vlm=str(tmp_path / n))) for n in ("one", "two"))
    assert one == two != bundled
    assert differences(bundled, one) == ["weights"]
    file = next((tmp_path / "one").glob("*.safetensors"))
    loose = of(root, model__vlm="ViT-B-16", model__weights=str(file))
    first = fingerprint(loose)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert differences(first, fingerprint(loose)) == ["weights"]
    assert "weights" not in names(
        fingerprint(of(root, model__vlm="ViT-B-16", model__weights="openai"))
    )

    model = tmp_path / "captioner" / "model.safetensors"
    model.write_bytes(b"some words")
    captioned = of(root, model__captions=f"blip:{model.parent}")
    first = fingerprint(captioned)
    assert names(first) - names(bundled) == {"captioner"}
    model.write_bytes(b"other word")
    assert differences(first, fingerprint(captioned)) == ["captioner"]
    assert differences(
        first, fingerprint(of(root, model__captions=f"shuffled:blip:{model.parent}"))
    )
    unread = of(root, model__captions=f"blip:{model.parent}", model__fusion="none")
    assert fingerprint(unread) == bundled
    with pytest.raises(DataError, match="nobody/model is not here"):
        fingerprint(of(root, model__captions="blip:nobody/model"))


def test_generated_data_are_known_by_their_generator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenes = preset("toy", {"runtime.cache_dir": str(tmp_path)})
    scans = scenes.replace(
        {"data.benchmark": "synapse", "data.budget": 4, "training.method": "uamt"}
    )
    for module, config in (("write", scenes), ("abdomen", scans)):
        first = fingerprint(config, recall_hashes)
        monkeypatch.setattr(f"semidavil.toy.{module}.VERSION", 99)
        assert differences(first, fingerprint(config, recall_hashes)) == ["generated"]
    assert not list(tmp_path.iterdir())


def test_scans_are_a_part(tiny_abdomens: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_abdomens, tmp_path / "data")
    config = preset(
        "small",
        {"data.benchmark": "synapse", "training.method": "uamt", "data.budget": 2,
         "runtime.data_root": str(tmp_path / "data"), "runtime.cache_dir": str(tmp_path)},
    )  # fmt: skip
    first = fingerprint(config)
    (tmp_path / "data" / "synapse" / "train.txt").write_text("case0000\n")
    assert differences(first, fingerprint(config)) == ["synapse/scans"]


def test_what_is_known_is_not_read_and_what_is_much_is_not_read_at_once(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = of(root)
    quick = fingerprint(config, recall_hashes)
    assert not cache_dir(config).exists()
    monkeypatch.setattr(files, "FEW_BYTES", 100)
    with pytest.raises(NotReadYet, match=r"\d+ files, the first is .*_leftImg8bit\.png"):
        fingerprint(config, recall_hashes)
    assert fingerprint(config) == quick
    assert memo_of(cache_dir(config)).exists()
    monkeypatch.setattr(files, "_hash_file", lambda path: pytest.fail(f"{path} was read again"))
    assert fingerprint(config, recall_hashes) == fingerprint(config) == quick
    known: dict = {}
    fingerprint(config, hash_files, known)
    monkeypatch.setattr(files, "_keys", lambda paths: pytest.fail("files were looked at again"))
    fingerprint(config.replace({"training.lr": 0.5}), hash_files, known)


def test_the_state_of_files_is_their_names_sizes_times_and_what_it_is_about(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for file in (one, other):
        file.write_bytes(b"abc")
        os.utime(file, ns=(0, 1))
    before = state_of([one, other], "about")
    assert state_of([one, other], "about") == before
    found = [
        state_of([one, other], "else"),
        state_of([other, one], "about"),
        state_of([one], "about"),
    ]
    os.utime(one, ns=(0, 2))  # repaired, and as long as before
    found.append(state_of([one, other], "about"))
    one.write_bytes(b"abcd")
    os.utime(one, ns=(0, 1))
    found.append(state_of([one, other], "about"))
    assert len({before, *found}) == 6
