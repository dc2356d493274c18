"""What is wrong with a data set is found before training, by name."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import Result
from typer.testing import CliRunner

from semidavil.__main__ import app
from semidavil.benchmarks import BENCHMARKS, LABEL_IDS
from semidavil.config import Config, preset
from semidavil.data.checks import check_data, class_pixels
from semidavil.data.files import DataError
from semidavil.data.layout import open_reader
from semidavil.data.readers import READERS
from semidavil.data.scans import scan
from semidavil.data.streams import train_samples
from semidavil.names import METHODS

Write = Callable[..., Path]


def make_config(root: Path, benchmark: str = "gta5-cityscapes", budget: int = 2) -> Config:
    return preset(
        "small",
        {
            "data.benchmark": benchmark,
            "data.budget": budget,
            "runtime.data_root": str(root),
            "runtime.cache_dir": str(root / "cache"),
        },
    )


def write_both(write: Write, **changes: Callable[[int], np.ndarray]) -> Path:
    for dataset in ("gta5", "cityscapes"):
        root = write(dataset, changes.get(dataset))
    return root


def test_good_data_pass_and_a_second_check_reads_no_image(
    write_dataset: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_both(write_dataset)
    check_data(make_config(root))
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("an image was read again"))
    check_data(make_config(root))


@pytest.mark.parametrize("dataset", ["gta5", "cityscapes"])
def test_an_unknown_label_id_is_named(dataset: str, write_dataset: Write) -> None:
    bad = lambda i: np.full((16, 24), 7 if i else 99, np.uint8)  # noqa: E731
    root = write_both(write_dataset, **{dataset: bad})
    with pytest.raises(
        DataError, match=rf"{dataset}, .*0*[01].*\.png holds the unknown ids \[99\]"
    ):
        check_data(make_config(root))


def test_gta5_labels_of_another_size_are_left_out_with_a_warning(write_dataset: Write) -> None:
    odd = lambda i: np.full((16, 24) if i else (15, 24), 7, np.uint8)  # noqa: E731
    config = make_config(write_both(write_dataset, gta5=odd))
    with pytest.warns(UserWarning, match=r"gta5: 1 of 3 images are left out, .*00001\.png"):
        check_data(config)
    assert [s.name for s in train_samples(config)["source"]] == ["00002", "00003"]


def test_other_labels_of_another_size_are_an_error(write_dataset: Write) -> None:
    odd = lambda i: np.full((16, 24) if i else (15, 24), 7, np.uint8)  # noqa: E731
    root = write_both(write_dataset, cityscapes=odd)
    with pytest.raises(DataError, match=r"aachen_000000.* has another size"):
        check_data(make_config(root))


def test_a_broken_file_is_found_and_so_is_its_repair(write_dataset: Write) -> None:
    root = write_both(write_dataset)
    config = make_config(root)
    path = READERS["cityscapes"](root / "cityscapes").samples("val")[1].image
    whole = path.read_bytes()
    check_data(config)
    path.write_bytes(whole[:60])
    with pytest.raises(DataError, match=path.name):
        check_data(config)
    path.write_bytes(whole)
    os.utime(path, ns=(1, 1))
    check_data(config)


def test_a_missing_data_set_and_a_missing_root_are_named(
    write_dataset: Write, tmp_path: Path
) -> None:
    root = write_dataset("cityscapes")
    with pytest.raises(DataError, match="gta5"):
        check_data(make_config(root))
    with pytest.raises(DataError, match="nowhere does not exist"):
        check_data(make_config(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="--data-root"):
        check_data(preset("small"))


def test_a_budget_larger_than_the_set_is_found(write_dataset: Write) -> None:
    with pytest.raises(DataError, match="budget of 4"):
        check_data(make_config(write_both(write_dataset), budget=4))


def test_what_a_listing_shows_is_found_before_any_image_is_read(
    write_dataset: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("an image was read first"))
    with pytest.raises(DataError, match="gta5: the folder"):
        check_data(make_config(write_dataset("cityscapes")))
    with pytest.raises(DataError, match="budget of 4"):
        check_data(make_config(write_both(write_dataset), budget=4))


def test_a_changed_label_table_is_checked_anew(
    write_dataset: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(write_both(write_dataset))
    check_data(config)
    table = {raw: name for raw, name in LABEL_IDS["gta5"].items() if raw != 7}
    monkeypatch.setitem(LABEL_IDS, "gta5", table)
    with pytest.raises(DataError, match=r"unknown ids \[7\]"):
        check_data(config)


def test_a_scan_counts_pixels_and_images(write_dataset: Write, tmp_path: Path) -> None:
    label = np.zeros((16, 24), np.uint8)
    label[:4] = 11
    root = write_dataset("camvid", lambda i: label if i else np.full((16, 24), 2, np.uint8))
    _, found = scan(READERS["camvid"](root / "camvid"), "train", tmp_path / "cache")
    assert found.pixels == {0: 2 * 12 * 24, 11: 2 * 4 * 24, 2: 16 * 24}
    assert found.images == {0: 2, 11: 2, 2: 1}
    assert found.sizes == {"16x24": 3}
    recalled = json.loads(next((tmp_path / "cache" / "scans").iterdir()).read_text())
    assert recalled["count"] == 3


@pytest.mark.slow
def test_the_check_command(
    write_dataset: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_dataset("idda", splits=("train", "val"))
    monkeypatch.chdir(tmp_path)

    def run(*options: str) -> Result:
        return CliRunner().invoke(app, ["data", *options])

    good = run("--data-root", str(root))
    assert good.exit_code == 0, good.stdout
    assert "idda, train: 3 images" in good.stdout
    assert "16x24 (3)" in good.stdout
    assert "100.000" in good.stdout
    mapped = run("--data-root", str(root), "--dataset", "idda", "--benchmark", "idda-camvid")
    assert mapped.exit_code == 0, mapped.stdout
    assert run("--data-root", str(root), "--benchmark", "idda-camvid").exit_code == 1  # no camvid
    assert "choose from gta5-cityscapes" in run("--benchmark", "nothing").stdout
    (root / "idda" / "val" / "labels" / "f0_T01.png").write_bytes(b"broken")
    bad = run("--data-root", str(root))
    assert bad.exit_code == 1
    assert bad.stdout.count("f0_T01.png cannot be read") == 1
    assert "wrong: idda, val: " in bad.stdout
    assert "Restore the files from the data set's archive" in bad.stdout
    assert run().exit_code == 1
    assert "--data-root" in run("--help").stdout


def test_class_pixels_count_the_labels_that_a_run_learns_from(tiny_toy: dict[str, str]) -> None:
    def counted(method: str) -> list[int]:
        changes = {"data.budget": 3, "training.method": method, **tiny_toy}
        config = preset("toy", changes)
        samples = train_samples(config)
        benchmark, total = BENCHMARKS[config.data.benchmark], np.zeros(256, int)
        streams = METHODS[method].streams & {"source", "labelled"}
        for stream in streams:
            dataset = benchmark.source if stream == "source" else benchmark.target
            assert dataset
            for sample in samples[stream]:
                raw = open_reader(config, dataset).read_label(sample)
                total += np.bincount(benchmark.lookup(dataset)[raw].ravel(), minlength=256)
        assert class_pixels(config) == total[:19].tolist()
        assert class_pixels(config) == total[:19].tolist()  # the second time from the scans' cache
        return total[:19].tolist()

    both, source, labelled = (counted(m) for m in ("semidavil", "source_only", "target_only"))
    assert np.array_equal(np.add(source, labelled), both)
