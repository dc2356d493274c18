"""The store of decoded images and labels: its pixels are those of decoding afresh, whatever happens to it."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from png_files import write_png
from small_store import BOX, EVERYTHING, afresh, fill, kept, make_config, pixels, same, samples_of

from semidavil.config import Config, preset
from semidavil.data import decoded
from semidavil.data.checks import check_data
from semidavil.data.decoded import Images, open_images
from semidavil.data.depth import disparity_path
from semidavil.data.filling import Filling
from semidavil.data.layout import open_reader
from semidavil.data.loading import EvalSet, TrainBatches
from semidavil.data.readers import Sample
from semidavil.data.store import DISPARITY, IMAGE, LABEL
from semidavil.data.streams import all_samples
from semidavil.experiments.street import prepare_street
from semidavil.language.captions import Caption


@pytest.fixture
def config(write_dataset: Callable[..., Path], tmp_path: Path) -> Config:
    return make_config(write_dataset, tmp_path)


@pytest.mark.parametrize("form", ["raw", "packed"])
def test_its_pixels_are_those_of_decoding_afresh(
    config: Config, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = afresh(config)
    config = config.replace({"data.store": form})
    monkeypatch.setattr(decoded, "_memories", {})
    said = fill(config).said
    assert f"kept {form}" in said
    assert kept(config) == EVERYTHING
    # Nothing is decoded any more but the labels at the working size that no run looks at.
    val_labels = {s.label for _, split, s in samples_of(config) if split == "val"}
    for dataset in ("synthia", "cityscapes"):
        reader = type(open_reader(config, dataset))
        original = reader.read_label
        monkeypatch.setattr(reader, "read_image", None)
        monkeypatch.setattr(
            reader,
            "read_label",
            lambda r, s, of=original: of(r, s) if s.label in val_labels else pytest.fail("decoded"),
        )
    assert same(pixels(config), expected)


def test_batches_and_validation_images_are_the_same_in_all_forms(config: Config) -> None:
    captions = {s.image: Caption(("a",)) for _, _, s in samples_of(config)}
    found = []
    for form in ("off", "raw", "packed"):
        shutil.rmtree(Path(config.runtime.cache_dir) / "store", ignore_errors=True)
        config = config.replace({"data.store": form})
        fill(config)
        streams = ("source", "labelled", "unlabelled")
        batches = TrainBatches(config, captions, lambda texts: None, streams)
        tensors = [part[name] for step in range(4) for part in batches[step].values()
                   for name in ("image", "label") if name in part]  # fmt: skip
        for item in map(EvalSet(config, captions).__getitem__, range(4)):
            tensors += [item["image"], item["label"]]
        found.append(tensors)
    assert same(found[1], found[0])
    assert same(found[2], found[0])


def test_files_are_decoded_once_in_all(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the check, the store and every run together."""
    read: list[Path] = []
    for dataset in ("synthia", "cityscapes"):
        reader = type(open_reader(config, dataset))
        original = reader.read_image
        monkeypatch.setattr(
            reader, "read_image", lambda r, s, of=original: (read.append(s.image), of(r, s))[1]
        )
    fill(config)
    pixels(config)
    fill(config)
    assert sorted(read) == sorted(sample.image for _, _, sample in samples_of(config))


def test_a_second_filling_says_and_writes_nothing(config: Config) -> None:
    assert fill(config).said
    folder = Path(config.runtime.cache_dir) / "store"
    before = {path: path.stat().st_size for path in folder.rglob("*")}
    assert fill(config).said == ""
    assert {path: path.stat().st_size for path in folder.rglob("*")} == before


def test_a_file_that_has_changed_is_decoded_anew(config: Config) -> None:
    fill(config)
    _, _, sample = samples_of(config)[0]
    shape = open_reader(config, "synthia").read_image(sample).shape
    write_png(sample.image, np.random.default_rng(7).integers(0, 256, shape, np.uint8))
    assert same(pixels(config), afresh(config)), "as soon as it has changed"
    fill(config)
    assert open_images(config, "synthia").store.array(IMAGE, sample.image) is not None
    assert same(pixels(config), afresh(config))
    # The time alone may tell: contents of equal size.
    first = sample.image.read_bytes()
    status = sample.image.stat()
    changed = bytearray(first)
    sample.image.write_bytes(changed)
    os.utime(sample.image, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert open_images(config, "synthia").store.array(IMAGE, sample.image) is None


def test_what_changed_files_leave_behind_is_written_over(config: Config) -> None:
    fill(config)
    folder = Path(config.runtime.cache_dir) / "store"
    size = sum(path.stat().st_size for path in folder.rglob("images-20x32.raw"))
    for dataset, _, sample in samples_of(config):
        if dataset == "synthia":
            os.utime(sample.image, ns=(1, 1))
    fill(config)
    assert sum(path.stat().st_size for path in folder.rglob("images-20x32.raw")) == size
    assert same(pixels(config), afresh(config))


def test_a_moved_data_set_has_a_store_of_its_own(config: Config, tmp_path: Path) -> None:
    """Files of the same names, sizes and times may hold something else."""
    fill(config)
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("synthia", "cityscapes"):
        shutil.copytree(tmp_path / name, moved / name)  # with their times
    other = config.replace({"runtime.data_root": str(moved)})
    assert sum(kept(other).values()) == 0


def test_a_killed_process_leaves_whole_images_alone(config: Config, tmp_path: Path) -> None:
    """Killed while it writes: what it finished counts, the rest is made by the next one."""
    code = (
        "import json, os, sys; from pathlib import Path\n"
        "from semidavil.config import Config\n"
        "from semidavil.data import arrays, filling\n"
        "from semidavil.data.checks import check_data\n"
        "filling.BATCH = 2\n"
        "written, original = [], os.pwrite\n"
        "def pwrite(file, content, offset):\n"
        "    written.append(offset)\n"
        "    if len(written) == 14:\n"
        "        original(file, content[:len(content) // 2], offset)\n"
        "        os.kill(os.getpid(), 9)\n"
        "    return original(file, content, offset)\n"
        "os.pwrite = pwrite\n"
        "filling.available_cpus = lambda: 1\n"
        "config = Config.from_params(json.loads(sys.argv[1]))\n"
        "with filling.Filling(config) as found:\n"
        "    check_data(config, filling=found)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, json.dumps(config.to_params())])
    assert done.returncode == -signal.SIGKILL
    before = sum(kept(config).values())
    assert 0 < before < sum(EVERYTHING.values())
    assert same(pixels(config), afresh(config))
    fill(config)
    assert kept(config) == EVERYTHING
    assert same(pixels(config), afresh(config))


def test_of_two_processes_one_fills_and_the_other_waits(config: Config, tmp_path: Path) -> None:
    with Filling(config) as first:
        check_data(config, filling=first)
        code = (
            "import json, sys; from pathlib import Path\n"
            "from semidavil.config import Config\n"
            "from semidavil.data import filling\n"
            "from semidavil.data.checks import check_data\n"
            "config = Config.from_params(json.loads(sys.argv[1]))\n"
            "with filling.Filling(config, progress=True) as found:\n"
            "    check_data(config, filling=found)\n"
            "    Path(sys.argv[2]).write_text(found.said)\n"
        )
        said = tmp_path / "said"
        command = [sys.executable, "-c", code, json.dumps(config.to_params()), str(said)]
        other = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert other.stdout is not None
        line = other.stdout.readline()  # it has come to the lock
        assert "waiting" in line
        time.sleep(0.2)
        assert not said.exists()
        first.finish()
    assert other.wait(60) == 0
    assert said.read_text() == "", "there was nothing left to fill"
    assert kept(config) == EVERYTHING


@pytest.mark.parametrize("form", ["raw", "packed"])
@pytest.mark.parametrize("depth", ["disparity", "hf:some/model"])
def test_disparities_are_kept_beside_the_images(config: Config, form: str, depth: str) -> None:
    """Of each source, as floats to the last bit; an estimator's are those of the images themselves."""
    rng = np.random.default_rng(3)
    maps = {}
    for dataset, split, sample in samples_of(config):
        if (dataset, split) == ("cityscapes", "train"):
            maps[sample] = rng.random((32, 66)).astype(np.float32)
            write_png(disparity_path(sample), np.zeros((32, 66), np.uint8))
    config = config.replace({"data.store": form, "data.depth": depth})
    fill(config)
    for sample in maps:  # the images' own store must not be taken for that of changed files
        os.utime(disparity_path(sample), ns=(5, 5))
    read: list[Sample] = []

    def disparities(sample: Sample) -> np.ndarray:
        read.append(sample)
        return maps[sample]

    for _ in range(2):
        with Filling(config) as found:
            found.begin_disparities(list(maps), disparities)
            found.finish()
    assert len(set(read)) == len(maps)
    assert kept(config) == EVERYTHING | {("cityscapes", DISPARITY): len(maps)}
    images = open_images(config, "cityscapes")
    images.disparities = lambda sample: pytest.fail("decoded")
    fresh = open_images(config.replace({"data.store": "off"}), "cityscapes")
    fresh.disparities = disparities
    for sample in maps:
        ours, theirs = (each.disparity_window(sample, BOX) for each in (images, fresh))
        assert ours.dtype == torch.float32
        assert torch.equal(ours, theirs)
    other = config.replace({"data.depth": "hf:another"})
    assert ("cityscapes", DISPARITY) not in kept(other)


def test_a_run_that_needs_disparities_finds_them_there(
    tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = preset("toy", {
        "data.toy": "false", "runtime.data_root": str(tiny_root), "data.budget": 4,
        "runtime.cache_dir": str(tmp_path), "training.method": "sdepth", "model.fusion": "none",
        "training.batch_size": 3,
    })  # fmt: skip
    captions = {s.image: Caption(("",)) for group in all_samples(config).values() for s in group}

    def batch() -> torch.Tensor:
        batches = TrainBatches(config, captions, list, {"unlabelled"}, disparity=True)
        return batches[2]["unlabelled"]["disparity"]

    expected = batch()
    prepare_street(config, False)
    monkeypatch.setattr("semidavil.data.depth.read_unchanged", None)
    assert torch.equal(batch(), expected)


def test_what_is_kept_is_said_once(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    for expected in (1, 0):
        with Filling(config, progress=True) as found:
            check_data(config, filling=found)
            found.finish()
        assert capsys.readouterr().out.count("kept raw; synthia: 0.00 GB raw, kept raw") == expected


def test_off_writes_nothing(config: Config) -> None:
    assert fill(config.replace({"data.store": "off"})).said == ""
    assert not (Path(config.runtime.cache_dir) / "store").exists()


def test_a_broken_label_is_named_and_never_kept(config: Config) -> None:
    _, _, sample = samples_of(config)[0]
    size = open_reader(config, "synthia").read_image(sample).shape
    label = np.zeros(size, np.uint16)
    label[..., 0] = 77
    write_png(sample.label, label)
    with pytest.raises(decoded.DataError, match="unknown ids \\[77\\]"):
        fill(config)
    images = open_images(config, "synthia")
    assert images.store.array(LABEL, sample.label) is None
    with pytest.raises(decoded.DataError, match="unknown ids \\[77\\]"):
        images.label_window(sample, BOX)


def test_it_goes_to_other_processes_without_its_pixels(config: Config) -> None:
    """As those of data loaders that are no forks."""
    fill(config)
    images, (_, _, sample) = open_images(config, "synthia"), samples_of(config)[0]
    expected = images.window(sample, BOX)
    content = pickle.dumps(images)
    assert len(content) < 10_000 + images.lookup.nbytes
    again: Images = pickle.loads(content)
    assert torch.equal(again.window(sample, BOX), expected)


def test_how_images_are_kept_is_no_part_of_a_run(config: Config) -> None:
    packed = config.replace({"data.store": "packed"})
    assert packed.key() == config.key()
    assert packed.differences(config) == {}
    assert Config.from_params(packed.to_params()) == packed
