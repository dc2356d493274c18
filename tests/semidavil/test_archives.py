"""Archives: what a plugin reads of a zip file, or of a format of its own, becomes files that train."""

from pathlib import Path

import numpy as np
import pytest
from harbour import write_harbour
from typer.testing import CliRunner

from semidavil.__main__ import app
from semidavil.data.archives import copy_archive
from semidavil.data.described import DescribedReader
from semidavil.data.files import DataError
from semidavil.data.first_look import write_first_description
from semidavil.data.images import read_indices, read_rgb
from semidavil.data.own import read_dataset
from semidavil.plugin_files import read
from semidavil.plugins import use

ZIPPED = """
import zipfile

def zipped(place):
    with zipfile.ZipFile(place) as archive:
        masks = {name for name in archive.namelist() if name.startswith("masks/")}
        for name in archive.namelist():
            stem = name.removeprefix("frames/").removesuffix(".jpg")
            if name.endswith(".jpg"):
                mask = f"masks/{stem}.png"
                yield stem, archive.read(name), archive.read(mask) if mask in masks else None

ARCHIVES = {"zipped": zipped}
"""
# Each row is an expression of a picture (8, 6, 3) and ids (8, 6).
GIVES = """
import numpy as np

picture, ids = np.zeros((8, 6, 3), np.uint8), np.zeros((8, 6), int)

def rows(place):
    yield from [{rows}]

ARCHIVES = {{"mine": rows}}
"""


def copied(folder: Path, text: str, place: str = "x") -> Path:
    (folder / "my.py").write_text(text)
    with use(read(folder / "my.py")):
        kind = "zipped" if text is ZIPPED else "mine"
        copy_archive(f"{kind}:{place}", folder / "copy")
    return folder / "copy"


def zip_of_a_harbour(folder: Path) -> Path:
    import shutil

    write_harbour(folder / "files", description="")
    (folder / "files/masks/seq0/000.png").unlink()
    return Path(shutil.make_archive(str(folder / "harbour"), "zip", folder / "files"))


def test_files_of_an_archive_are_copied_as_they_are_and_described(tmp_path: Path) -> None:
    copy = copied(tmp_path, ZIPPED, str(zip_of_a_harbour(tmp_path)))
    for kind, name in (("frames", "seq1/004.jpg"), ("masks", "seq1/004.png")):
        there = copy / {"frames": "images", "masks": "labels"}[kind] / name
        assert there.read_bytes() == (tmp_path / "files" / kind / name).read_bytes()
    about = read_dataset(write_first_description(copy).path)
    reader = DescribedReader(about, copy)
    assert [len(reader.samples(s)) for s in ("train", "val", "unlabelled")] == [8, 3, 1]


def test_arrays_come_back_as_they_were_given(tmp_path: Path) -> None:
    write = "(f'val/{n}', np.full((8, 6, 3), (9, 0, n), np.uint8), ids + 300 * n) for n in range(2)"
    copy = copied(tmp_path, GIVES.format(rows=f"*({write})"))
    assert read_rgb(copy / "images/val/1.png")[0, 0].tolist() == [9, 0, 1]
    assert np.unique(read_indices(copy / "labels/val/1.png")).tolist() == [300]
    assert read_indices(copy / "labels/val/0.png").dtype == np.uint8


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ("('a', picture[..., 0], ids)", r"'a': the picture is \(8, 6\) uint8 where \(H, W, 3\)"),
        ("('a', picture / 255, ids)", r"'a': the picture is \(8, 6, 3\) float64 where"),
        ("('a', 'a.png', ids)", "'a': the picture is of the kind str where"),
        ("('a', b'BM', ids)", "'a': the picture is neither PNG nor JPEG"),
        ("('a', b'', ids)", "'a': the picture is empty"),
        ("('a', picture, ids[..., None])", r"'a': the label is \(8, 6, 1\) int64 where \(H, W\)"),
        ("('a', picture, ids * 0.5)", r"'a': the label is \(8, 6\) float64 where"),
        ("('a', picture, ids.T)", r"'a': the label is \(6, 8\), its picture \(8, 6\)"),
        ("('a', picture, ids - 1)", "'a': the label holds the id -1: ids are 0 to 65535"),
        ("('a', picture, ids + 70000)", "'a': the label holds the id 70000"),
        (r"('a', picture, b'\xff\xd8\xff')", "'a': the label is a JPEG"),
        ("('a', picture, ids), ('A', picture, ids)", "gives two pictures 'A'"),
        ("('../a', picture, ids)", r"gives the name '\.\./a'"),
        ("('/a', picture, ids)", "gives the name '/a'"),
        ("(1, picture, ids)", "gives the name 1"),
        ("('a', picture)", "gives a tuple of 2 where"),
        ("", "gives no picture"),
    ],
)
def test_what_is_no_picture_or_label_is_named_with_the_plugin(
    rows: str, told: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=rf"my\.py, line 6: mine.*{told}"):
        copied(tmp_path, GIVES.format(rows=rows))
    assert not (tmp_path / "copy").exists()  # no half a copy is in the way of the next try


def test_a_wrong_kind_and_a_full_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"KIND:PLACE with a kind of .* here are hf$"):
        copy_archive("zipped:x.zip", tmp_path / "copy")
    (tmp_path / "copy").mkdir()
    kept = tmp_path / "copy" / "kept.txt"
    kept.touch()
    with pytest.raises(DataError, match="is not empty"):
        copy_archive("hf:some/where", tmp_path / "copy")
    assert kept.exists()


def test_an_error_of_the_reader_itself_is_told_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "my.py").write_text(ZIPPED)
    words = ["--plugin", str(tmp_path / "my.py"), "--from", "zipped:away.zip"]
    done = CliRunner().invoke(app, ["data", "--init", str(tmp_path / "copy"), *words])
    assert done.exit_code == 1
    assert "my.py, line 5: FileNotFoundError: " in done.output


@pytest.mark.slow
def test_a_run_trains_on_what_a_plugin_reads(tmp_path: Path) -> None:
    (tmp_path / "my.py").write_text(ZIPPED)
    place, copy = zip_of_a_harbour(tmp_path), tmp_path / "copy"

    def command(*words: object) -> str:
        done = CliRunner().invoke(app, list(map(str, words)))
        assert done.exit_code == 0, done.output
        return done.output

    plugin = ("--plugin", tmp_path / "my.py")
    command("data", "--init", copy, "--from", f"zipped:{place}", *plugin)
    cache = ("--cache-dir", tmp_path / "cache")
    assert "1 images without labels" in command("data", "--benchmark", copy, *cache)
    settings = ["training.steps=2", "training.warmup_steps=1", "data.crop=32x32"]
    settings += [f"runtime.cache_dir={tmp_path / 'cache'}", "model.captions=class_names"]
    changes = [word for one in settings for word in ("--set", one)]
    out = ("--preset", "toy", "--budget", 4, "--out", tmp_path / "run")
    assert "mIoU" in command("train", "--benchmark", copy, *out, *changes)
