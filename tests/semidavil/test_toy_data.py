"""The generated scenes: formats, statistics, determinism."""

import hashlib
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from semidavil.benchmarks import BENCHMARKS, CITYSCAPES_19
from semidavil.data.readers import READERS
from semidavil.toy.scenes import Scene, render_scene
from semidavil.toy.styles import LOOKS
from semidavil.toy.write import COUNTS, ensure_toy_data

SMALL = {"train": 5, "val": 3, "gta5": 4, "synthia": 4}


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def make(root: Path, **changes: int) -> Path:
    return ensure_toy_data(root, counts={**SMALL, **changes}, progress=False)


def test_the_real_formats(tmp_path: Path) -> None:
    folder = make(tmp_path)
    for name, split, count in (
        ("cityscapes", "train", 5), ("cityscapes", "val", 3), ("gta5", "train", 4),
        ("synthia", "train", 4),
    ):  # fmt: skip
        reader = READERS[name](folder / name)
        samples = reader.samples(split)
        assert len(samples) == count
        benchmark = BENCHMARKS["synthia-cityscapes" if name == "synthia" else "gta5-cityscapes"]
        lookup = benchmark.lookup(name)
        for sample in samples:
            assert reader.read_image(sample).shape == (64, 128, 3)
            classes = lookup[reader.read_label(sample)]
            assert classes.shape == (64, 128)
            assert (classes[classes < 254] < len(benchmark.classes)).all()
            assert (classes != 254).all()
    with Image.open(folder / "gta5" / "labels" / "00001.png") as label:
        assert label.mode == "P"
    synthia = cv2.imread(str(folder / "synthia/GT/LABELS/0000000.png"), cv2.IMREAD_UNCHANGED)
    assert synthia.dtype == np.uint16
    disparity = next((folder / "cityscapes" / "disparity").rglob("*.png"))
    assert cv2.imread(str(disparity), cv2.IMREAD_UNCHANGED).dtype == np.uint16


def test_the_full_size_is_that_of_cityscapes() -> None:
    assert (COUNTS["train"], COUNTS["val"]) == (2975, 500)
    assert min(COUNTS["gta5"], COUNTS["synthia"]) >= 2000


def test_generation_is_deterministic_and_continues_where_it_stopped(tmp_path: Path) -> None:
    first = digests(make(tmp_path / "a"))
    again = make(tmp_path / "b")
    for path in list(again.rglob("*"))[::3]:
        if path.is_file():
            path.unlink()
    (again / "gta5.complete.json").unlink(missing_ok=True)
    (again / "cityscapes.complete.json").write_text("{")
    (again / "synthia.complete.json").unlink(missing_ok=True)
    assert digests(make(tmp_path / "b")) == first
    shutil.rmtree(again / "gta5" / "images")  # complete sets are trusted, not searched
    assert make(tmp_path / "b") == again
    assert not (again / "gta5" / "images").exists()


def test_more_images_are_added_to_those_there(tmp_path: Path) -> None:
    first = digests(make(tmp_path))
    grown = digests(make(tmp_path, gta5=6))
    assert {k: v for k, v in first.items() if "complete" not in k}.items() <= grown.items()
    assert sum("gta5/images" in name for name in grown) == 6


@pytest.mark.slow
def test_processes_write_what_one_would(tmp_path: Path) -> None:
    many = make(tmp_path / "many", train=120)
    sample = READERS["cityscapes"](many / "cityscapes").samples("train")[77]
    few = make(tmp_path / "few", train=12)
    names = {s.name: s for s in READERS["cityscapes"](few / "cityscapes").samples("train")}
    assert names
    same = [s for s in READERS["cityscapes"](many / "cityscapes").samples("train")
            if s.name in names]  # fmt: skip
    assert all(s.image.read_bytes() == names[s.name].image.read_bytes() for s in same)
    assert sample.image.stat().st_size > 1000
    assert not list(many.rglob("*.tmp"))


def rendered(look: str, count: int) -> list[Scene]:
    return [render_scene(np.random.default_rng([9, i]), look) for i in range(count)]


@pytest.fixture(scope="module")
def worlds() -> dict[str, list[Scene]]:
    return {look: rendered(look, 120) for look in LOOKS}


@pytest.mark.slow
def test_all_classes_occur_with_a_long_tail(worlds: dict[str, list[Scene]]) -> None:
    lookup = BENCHMARKS["gta5-cityscapes"].lookup("gta5")
    for look, scenes in worlds.items():
        pixels = np.zeros(256)
        for scene in scenes:
            pixels += np.bincount(lookup[scene.label].ravel(), minlength=256)
        shares = pixels[:19] / pixels.sum()
        assert (shares > 0).all(), dict(zip(CITYSCAPES_19, shares, strict=True))
        assert pixels[254] == 0
        assert shares.max() > 0.2, look
        assert shares.max() / shares.min() > 50, look
        assert (shares < 0.01).sum() >= 7, look


@pytest.mark.slow
def test_looks_differ_in_colour_and_noise(worlds: dict[str, list[Scene]]) -> None:
    road = 7
    means, noise = {}, {}
    for look, scenes in worlds.items():
        pixels = np.concatenate([s.image[s.label == road] for s in scenes])
        means[look] = pixels.mean(0)
        flat = [s.image[48:56, 56:72].astype(float) for s in scenes]
        noise[look] = np.median([np.abs(np.diff(x, axis=1)).mean() for x in flat])
    for a, b in (("camera", "gta5"), ("camera", "synthia"), ("gta5", "synthia")):
        assert np.abs(means[a] - means[b]).max() > 8
    assert noise["camera"] > 1.2 * max(noise["gta5"], noise["synthia"])


def test_nearer_things_have_larger_disparity_and_the_sky_none() -> None:
    for scene in rendered("camera", 40):
        assert (scene.disparity[scene.label == 23] == 0).all()
        road = scene.label == 7
        rows = [scene.disparity[row][road[row]].mean() for row in (40, 48, 56) if road[row].any()]
        assert rows == sorted(rows)
        cars = scene.label == 26
        if cars.sum() > 100:  # a car is nearer than the road that it hides
            bottom = np.flatnonzero(cars.any(1)).max()
            assert scene.disparity[cars].max() > 0
            assert bottom > 20
