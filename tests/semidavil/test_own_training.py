"""A benchmark of one's own from its file to a trained model that is used where the file is not."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from harbour import DESCRIPTION, SIZE, picture, save, write_harbour
from safetensors import safe_open
from typer.testing import CliRunner

from semidavil.__main__ import app
from semidavil.benchmarks import BENCHMARKS
from semidavil.config import preset
from semidavil.data.checks import stretched
from semidavil.data.own import own_benchmark
from semidavil.data.scans import Scan

ROOT = Path(__file__).parents[2]
REAL = os.environ.get("SEMIDAVIL_REAL_DATA", "")
SHORT = ["--preset", "toy", "--budget", "4", "--seed", "1"]
SETTINGS = {
    "training.steps": 3, "training.warmup_steps": 1, "training.batch_size": 2, "runtime.threads": 1,
    "runtime.device": "cpu",
}  # fmt: skip


def command(*words: str | Path, **changes: object) -> SimpleNamespace:
    """What a command prints, in one line, and its exit code."""
    sets = [w for name, v in (SETTINGS | changes).items() for w in ("--set", f"{name}={v}")]
    more = sets if words[0] == "train" else []
    done = CliRunner().invoke(app, [*map(str, words), *more])
    return SimpleNamespace(
        code=done.exit_code, text=" ".join(done.output.split()), error=done.exception
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("own")
    write_harbour(folder / "harbour", f"{DESCRIPTION}unlabelled: more\n")
    for number in range(100, 120):
        save(folder / f"harbour/more/{number}.jpg", picture(number)[0])
    place = {"runtime.cache_dir": folder / "cache"}
    words = ("train", "--benchmark", folder / "harbour", *SHORT, "--out", folder / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("semidavil.commands.train.LINE_SECONDS", 0.0)
        done = command(*words, **place)
    assert done.code == 0, done.text
    return SimpleNamespace(folder=folder, said=done.text)


@pytest.mark.slow
def test_progress_is_in_a_file_as_well(trained: SimpleNamespace) -> None:
    """Half an hour of training used to write nothing into a log."""
    assert re.search(r"step 3/3 loss \d+\.\d{3} \(0:00:00 left\)", trained.said), trained.said


@pytest.mark.slow
def test_a_run_is_used_where_nobody_has_its_description(
    trained: SimpleNamespace, tmp_path: Path
) -> None:
    """In another process, with the weights alone: classes, colours, and scores by labels in own ids."""
    weights = shutil.copy(trained.folder / "run" / "segmenter.safetensors", tmp_path)
    shutil.copytree(trained.folder / "harbour" / "frames", tmp_path / "pictures")
    shutil.copytree(trained.folder / "harbour" / "masks", tmp_path / "labels")
    words = [
        "predict",
        weights,
        tmp_path / "pictures",
        "--labels",
        tmp_path / "labels",
        "--device",
        "cpu",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "semidavil", *map(str, words), "--out", str(tmp_path / "out")],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "12 pictures with labels" in done.stdout
    rows = (tmp_path / "out" / "classes.csv").read_text().split()
    assert rows[1].startswith("0,sky,")
    assert rows[3] == "2,quay,160,60,40"


@pytest.mark.slow
def test_captions_speak_of_the_scene(trained: SimpleNamespace) -> None:
    assert ": a harbour with " in trained.said
    assert "a street" not in trained.said


@pytest.mark.slow
def test_a_training_shows_the_hash_of_its_benchmark_alone(trained: SimpleNamespace) -> None:
    """The data set's own, which is another one, used to stand beside it."""
    benchmark = own_benchmark(str(trained.folder / "harbour"))["data.benchmark"]
    assert set(re.findall(r"harbour@\w+", trained.said)) == {benchmark}
    assert "captioning harbour " in trained.said


@pytest.mark.slow
def test_pictures_without_labels_are_trained_on(trained: SimpleNamespace) -> None:
    """Captioned with the others, and part of what the run says that it has seen."""
    assert re.search(r"unlabelled, 1\d\d\.jpg: a harbour", trained.said)
    with safe_open(trained.folder / "run" / "segmenter.safetensors", "pt") as weights:
        assert re.search(r"harbour@\w+/unlabelled/images=", weights.metadata()["data"])


def test_pictures_that_are_looked_at_in_another_shape_are_named(tmp_path: Path) -> None:
    """And the settings that are told keep it, and fit the crop."""
    config = preset("toy", own_benchmark(str(write_harbour(tmp_path / "harbour"))))
    target = BENCHMARKS[config.data.benchmark].target
    phone = Scan(9, sizes={"640x360": 8, "360x640": 1})
    told = stretched(config, target, phone)
    assert "are 640 x 360 and looked at as 32 x 64, 3.6 times as wide as they are" in told
    assert "--set data.target_size=[61,34] keeps" in told
    fitting = config.replace({"data.target_size": [61, 34]})
    assert stretched(fitting, target, phone) == ""
    tall = config.replace({"data.target_size": [64, 33], "data.crop": [32, 33]})
    assert "1.9 times as tall" in stretched(tall, target, Scan(1, sizes={"512x512": 1}))


def test_the_data_check_writes_a_page(tmp_path: Path) -> None:
    path = write_harbour(tmp_path / "harbour")
    page = tmp_path / "page.html"
    words = ["data", "--benchmark", path, "--cache-dir", tmp_path / "cache", "--page", page]
    done = command(*words)
    assert done.code == 0, done.text
    assert "suspicious: harbour: the bundled CLIP does not know the words water, quay" in done.text
    assert f"page: {page}" in done.text
    html = page.read_text()
    assert html.count("<figure>") == 8  # half of ten pictures of each split, of which one has three
    assert html.count('class="bar"') == 6
    assert "suspicious</b> harbour, val: a score over 3 images" in html
    path.write_text(DESCRIPTION.replace("sky: 1", "'a <b> sky': 1").replace("3, 4", "4"))
    done = command(*words)
    assert done.code == 1
    assert "wrong: harbour, train: labels hold the ids 3, which harbour's description" in done.text
    assert done.text.count("Add what is missing to classes or to ignored in its dataset.yaml") == 1
    assert done.text.count("holds the unknown ids") == 2  # once for each split
    html = page.read_text()
    assert "a &lt;b&gt; sky" in html
    assert html.count('<li class="bad">') == 2


def test_a_check_refuses_training_labels_that_are_all_ignored(tmp_path: Path) -> None:
    """Nothing could be learnt from them: without a source, no budget is of use."""
    write_harbour(tmp_path / "harbour")
    for mask in (tmp_path / "harbour/masks").glob("seq[012]/*"):
        save(mask, np.zeros(SIZE, np.uint8))
    page = tmp_path / "page.html"
    words = ["data", "--benchmark", tmp_path / "harbour", "--cache-dir", tmp_path / "cache"]
    done = command(*words, "--page", page)
    assert done.code == 1
    wrong = f"harbour, train: no label in {tmp_path / 'harbour'} holds a class of harbour: all pixels have"
    assert f"wrong: {wrong} ignored ids (0). Use the split's real labels" in done.text
    assert "give the classes their ids in its dataset.yaml" in done.text
    assert "suspicious: harbour, train" not in done.text
    assert wrong in page.read_text()


def test_init_then_check_tells_the_next_command(tmp_path: Path) -> None:
    write_harbour(tmp_path / "harbour", description="")
    done = command("data", "--init", tmp_path / "harbour")
    assert done.code == 0, done.text
    assert f"python -m semidavil data --benchmark {tmp_path / 'harbour/dataset.yaml'}" in done.text
    assert command("data", "--init", tmp_path / "harbour").code == 1
    assert "name it with --init" in command("data", "--from", "hf:a/b").text
    wrong = command("data", "--init", tmp_path / "new", "--from", "a/b").text
    assert "write hf:ORGANISATION/NAME" in wrong


def test_commands_name_what_is_wrong_with_a_description(tmp_path: Path) -> None:
    path = write_harbour(tmp_path, DESCRIPTION.replace("classes:", "klasses:"))
    for words in (["data"], ["train", *SHORT]):
        done = command(*words, "--benchmark", path)
        assert done.code == 1
        assert "no entry 'klasses': did you mean classes?" in done.text.replace("- ", "")
    assert "or name a benchmark.yaml" in command("data", "--benchmark", "harbour").text


@pytest.mark.slow
@pytest.mark.skipif(not REAL, reason="SEMIDAVIL_REAL_DATA names no folder with real images")
def test_twenty_real_pictures_are_described_checked_and_trained_on(tmp_path: Path) -> None:
    camvid = Path(REAL) / "camvid"
    for split, count in (("train", 16), ("val", 4)):
        for path in sorted((camvid / split).iterdir())[:count]:
            for kind, source in (
                ("photos", path),
                ("masks", camvid / f"{split}annot" / f"{path.stem}.png"),
            ):
                target = tmp_path / "street" / kind / split / source.name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, target)
    assert command("data", "--init", tmp_path / "street").code == 0
    path = tmp_path / "street" / "dataset.yaml"
    text = (
        path.read_text()
        .replace("class 11: 11", "# class 11: 11")
        .replace("ignored: []", "ignored: [11]")
    )
    for number, name in enumerate(("sky", "building", "pole", "road", "pavement", "tree")):
        text = text.replace(f"class {number}:", f"{name}:")
    path.write_text(text)
    known = BENCHMARKS[own_benchmark(str(path))["data.benchmark"]]
    assert (known.classes[3], len(known.classes), known.budgets) == ("road", 11, (2, 4, 8, 16))
    place = {"runtime.cache_dir": tmp_path / "cache"}
    words = ["train", "--benchmark", path, *SHORT, "--out", tmp_path / "run"]
    done = command(*words, **place)
    assert done.code == 0, done.text
    assert (tmp_path / "run" / "examples.png").exists()
