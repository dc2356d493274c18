"""`python -m semidavil predict`: a finished run's network on pictures that nobody has prepared."""

import csv
import shutil
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from small_captioners import florence2, save
from typer.testing import CliRunner

from semidavil.__main__ import app
from semidavil.benchmarks import BENCHMARKS
from semidavil.config import Config, preset
from semidavil.data.described import reader_of
from semidavil.data.files import DataError
from semidavil.data.images import read_indices, read_rgb, read_upright, turned
from semidavil.data.readers import READERS
from semidavil.evaluation.written import OPACITY, confusion_of, find_sources
from semidavil.experiments.predictor import (
    WEIGHTS,
    Predictor,
    PredictorError,
    classes_at,
    find_weights,
)
from semidavil.experiments.segmenting import Segmenting
from semidavil.models.vlm import VLMError, load_vlm
from semidavil.models.weights import save_weights
from semidavil.names import PICTURES
from semidavil.train import Result, train

BENCHMARK = BENCHMARKS["gta5-cityscapes"]


@dataclass(frozen=True)
class Run:
    folder: Path
    config: Config
    result: Result

    def predict(self, *arguments: object) -> tuple[int, str]:
        done = CliRunner().invoke(app, ["predict", str(self.folder), *map(str, arguments)])
        return done.exit_code, " ".join(done.output.split())


@pytest.fixture(scope="module")
def run(tiny_toy: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Run:
    short = {"training.steps": 4, "training.warmup_steps": 1, "training.batch_size": 2}
    config = preset("toy", {**short, "data.budget": 4, "runtime.eval_every": 0, **tiny_toy})
    folder = tmp_path_factory.mktemp("run")
    return Run(folder, config, train(config, None, folder))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Three pictures of sizes that no data set has."""
    rng = np.random.default_rng(0)
    for name, size in (("wide.jpg", (37, 101)), ("tall.png", (90, 31)), ("deep/small.bmp", (9, 9))):
        path = tmp_path / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), rng.integers(0, 255, (*size, 3), dtype=np.uint8))
    return tmp_path / "pictures"


def table(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "predictions.csv").open(newline="") as file:
        return {row["name"]: row for row in csv.DictReader(file)}


def test_validation_images_get_the_scores_that_the_run_reported(
    run: Run, tiny_root: Path, tmp_path: Path
) -> None:
    root = tiny_root / "cityscapes"
    code, output = run.predict(
        root / "leftImg8bit" / "val", "--labels", root / "gtFine" / "val", "--out", tmp_path
    )
    assert code == 0, output
    assert f"mIoU │ {run.result.metrics['miou']:.2f}" in output
    assert f"pixel accuracy │ {run.result.metrics['pixel_accuracy']:.2f}" in output
    rows = table(tmp_path)
    assert len(rows) == 4
    for name, row in rows.items():
        truth = read_indices(
            root / "gtFine" / "val" / name.replace("_leftImg8bit", "_gtFine_labelIds.png")
        )
        classes = BENCHMARK.lookup("cityscapes")[truth]
        right = (read_indices(tmp_path / f"{name}_ids.png") == classes)[classes < 19]
        assert float(row["pixel_accuracy"]) == pytest.approx(100 * right.mean(), abs=0.01)


@pytest.mark.slow
def test_a_stretched_run_s_pictures_get_the_scores_that_it_reported(
    run: Run, tiny_root: Path, tmp_path: Path
) -> None:
    """Its pictures are 2:1 and its working size 1:1; what has another shape is stretched by as much."""
    crop = {"data.target_size": [32, 32], "runtime.cache_dir": str(tmp_path / "cache")}
    config = run.config.replace({**crop, "training.steps": 1, "training.warmup_steps": 0})
    result = train(config, None, tmp_path)
    weights = find_weights(tmp_path / WEIGHTS)
    found = find_sources([tiny_root / "cityscapes" / "leftImg8bit" / "val"])
    work = Segmenting(Predictor.load(weights, "cpu"), tmp_path / "out", ["ids"], None)
    for source in found:
        work.segment(source, lambda _: None)
    scores, problems = work.score(found, tiny_root / "cityscapes" / "gtFine" / "val")
    assert not problems
    assert scores.together["miou"] == pytest.approx(result.metrics["miou"], abs=1e-9)
    assert work.predictor.working_size((64, 64)) == (45, 23)  # half as wide, as many pixels


def test_a_phone_s_picture_is_looked_at_upright(tmp_path: Path) -> None:
    """And its labels may lie on what is stored, or on what one sees."""
    rng = np.random.default_rng(0)
    shown = rng.integers(0, 255, (40, 24, 3), dtype=np.uint8)
    for orientation in range(1, 9):
        stored = turned(shown, {6: 8, 8: 6}.get(orientation, orientation))  # back
        image, exif = Image.fromarray(stored), Image.Exif()
        exif[0x0112] = orientation
        path = tmp_path / f"{orientation}.png"
        image.save(path, exif=exif)
        assert np.array_equal(read_upright(path), shown), orientation
        assert np.array_equal(np.asarray(ImageOps.exif_transpose(Image.open(path))), shown)
        assert np.array_equal(read_rgb(path), stored)
    predicted = shown[..., 0] % 19
    ids = BENCHMARK.lookup("cityscapes")
    raw = np.array([np.flatnonzero(ids == index)[0] for index in range(19)], np.uint8)[predicted]
    reader = reader_of("cityscapes", tmp_path)
    for on_file in (raw, turned(raw, 8)):
        cv2.imwrite(str(tmp_path / "label.png"), on_file)
        found = confusion_of(predicted, tmp_path / "label.png", reader, ids, 19, orientation=6)
        assert np.array_equal(found, np.diag(np.bincount(predicted.flatten(), minlength=19)))


def test_a_captioner_is_asked_as_in_the_run(run: Run, tmp_path: Path) -> None:
    save(florence2, tmp_path / "model")
    image = np.random.default_rng(0).integers(0, 255, (32, 64, 3), dtype=np.uint8)
    said = set()
    for prompt in ("<CAPTION>", "<MORE_DETAILED_CAPTION>"):
        config = run.config.replace({
            "model.captions": f"hf:{tmp_path / 'model'}", "model.caption_prompt": prompt,
            "runtime.cache_dir": str(tmp_path),
        })  # fmt: skip
        predictor = Predictor(
            config, run.folder / WEIGHTS, {"network": "teacher"}, torch.device("cpu")
        )
        said.add(predictor(image).captions)
    assert len(said) == 2


def test_what_is_written_of_pictures_of_any_size(run: Run, pictures: Path, tmp_path: Path) -> None:
    code, output = run.predict(pictures, "--out", tmp_path / "out", "--caption", "a road")
    assert code == 0, output
    assert list(table(tmp_path / "out")) == ["deep/small", "tall", "wide"]
    for path in (pictures / "wide.jpg", pictures / "tall.png", pictures / "deep" / "small.bmp"):
        image, name = read_rgb(path), path.relative_to(pictures).with_suffix("").as_posix()
        seen = Predictor.load(find_weights(run.folder), "cpu")(image, "a road")
        ids = read_indices(tmp_path / "out" / f"{name}_ids.png")
        assert np.array_equal(ids, seen.labels)
        assert ids.shape == image.shape[:2]
        colours = read_rgb(tmp_path / "out" / f"{name}_colours.png")
        assert np.array_equal(colours, BENCHMARK.palette[ids])
        over = read_rgb(tmp_path / "out" / f"{name}_overlay.png").astype(float)
        mixed = (1 - OPACITY) * image.astype(float) + OPACITY * colours
        assert np.abs(over - mixed).max() <= 0.5 + 1e-9
        confidence = read_indices(tmp_path / "out" / f"{name}_confidence.png") / 255
        assert np.abs(confidence - seen.confidence).max() <= 0.5 / 255 + 1e-6
    with (tmp_path / "out" / "classes.csv").open(newline="") as file:
        assert [row["class"] for row in csv.DictReader(file)] == list(BENCHMARK.classes)


def test_classes_one_by_one_are_those_of_all_at_once() -> None:
    logits = 4 * torch.randn(1, 19, 5, 7, generator=torch.Generator().manual_seed(0))
    logits[0, 2] = logits[0, 7] = 30.0  # the first of equal ones
    logits[0, :, 0] = torch.randn(19, 7)
    for size in ((5, 7), (33, 64)):
        large = torch.nn.functional.interpolate(logits.double(), size, mode="bilinear")
        expected = large.softmax(1).max(1)
        labels, confidence = classes_at(logits, size)
        torch.testing.assert_close(confidence.double(), expected.values[0], rtol=1e-4, atol=1e-5)
        unsure = (large.sort(1).values[0, -1] - large.sort(1).values[0, -2]) < 1e-4
        assert bool(((labels == expected.indices[0]) | unsure).all())
    assert bool((classes_at(logits, (5, 7))[0][1:] == 2).all())


def test_a_repetition_does_what_is_left(run: Run, pictures: Path, tmp_path: Path) -> None:
    out, said = tmp_path / "out", ("--caption", "a road", "--write", "ids")
    assert run.predict(pictures / "wide.jpg", "--out", out, *said)[0] == 0
    first = (out / "wide_ids.png").stat().st_mtime_ns
    code, output = run.predict(pictures, "--out", out, *said)
    assert code == 0
    assert "1 of them done before" in output
    assert not list(out.rglob("*_overlay.png"))
    code, output = run.predict(pictures, "--out", out, *said)
    assert "3 of them done before" in output
    assert (out / "tall_ids.png").exists()
    (pictures / "wide.jpg").write_bytes((pictures / "tall.png").read_bytes())  # another picture
    code, output = run.predict(pictures, "--out", out, *said)
    assert "2 of them done before" in output
    assert (out / "wide_ids.png").stat().st_mtime_ns > first
    code, output = run.predict(pictures, "--out", out, "--caption", "a wall", "--write", "ids")
    assert "done before" not in output  # it is told something else


def test_broken_pictures_are_named_and_the_others_done(
    run: Run, pictures: Path, tmp_path: Path
) -> None:
    (pictures / "torn.png").write_bytes((pictures / "tall.png").read_bytes()[:50])
    (pictures / "no.mp4").write_bytes(b"no video")
    (pictures / ".hidden.png").write_bytes(b"")
    code, output = run.predict(pictures, "--out", tmp_path / "out", "--caption", "")
    assert code == 1
    assert f"left out: the file {pictures / 'torn.png'}" in output
    assert f"left out: the video {pictures / 'no.mp4'} cannot be read" in output
    assert sorted(table(tmp_path / "out")) == ["deep/small", "tall", "wide"]
    code, output = run.predict(
        pictures / "wide.jpg", "--out", tmp_path / "out", "--caption", "", "--labels", tmp_path
    )
    assert code == 1
    assert f"has no label {tmp_path / 'wide.png'}" in output


def test_labels_that_do_not_fit_are_named(run: Run, pictures: Path, tmp_path: Path) -> None:
    for wrong, message in (
        (np.zeros((3, 3), np.uint8), "is (3, 3), its picture (90, 31) pixels"),
        (np.full((90, 31), 77, np.uint8), "has unknown ids: 77"),
    ):
        cv2.imwrite(str(tmp_path / "tall.png"), wrong)
        code, output = run.predict(
            pictures / "tall.png", "--out", tmp_path / "o", "--caption", "", "--labels", tmp_path
        )
        assert code == 1
        assert message in output


def test_a_confusion_by_hand(tmp_path: Path) -> None:
    """Of Cityscapes' ids, 7 is road, 26 car, 0 ignored; the network says road, car, car, road."""
    cv2.imwrite(str(tmp_path / "label.png"), np.array([[7, 7, 26, 0]], np.uint8))
    road, car = BENCHMARK.classes.index("road"), BENCHMARK.classes.index("car")
    labels = np.array([[road, car, car, road]], np.uint8)
    found = confusion_of(
        labels,
        tmp_path / "label.png",
        READERS["cityscapes"](tmp_path),
        BENCHMARK.lookup("cityscapes"),
        19,
    )
    assert found.sum() == 3
    assert found[road, road] == found[road, car] == found[car, car] == 1


def test_a_video_is_one_with_the_classes_over_it(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "drive.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 48))
    for shade in (0, 100, 200):
        writer.write(np.full((48, 64, 3), shade, np.uint8))
    writer.release()
    code, output = run.predict(path, "--out", tmp_path / "out")
    assert code == 0, output
    video = cv2.VideoCapture(str(tmp_path / "out" / "drive_overlay.mp4"))
    frames = []
    while (read := video.read())[0]:
        frames.append(read[1])
    assert [frame.shape for frame in frames] == 3 * [(48, 64, 3)]
    brightness = [frame.mean() for frame in frames]
    assert brightness[0] < brightness[1] < brightness[2]
    assert not list((tmp_path / "out").glob(".*"))
    assert "a street scene" in table(tmp_path / "out")["drive"]["caption"]  # the run's captioner


def test_weights_are_found_by_file_folder_and_run(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    weights = run.folder / WEIGHTS
    assert find_weights(weights) == find_weights(run.folder) == weights
    kept = Path("mlruns") / "attention" / "0123abcd" / "artifacts"
    shutil.copytree(run.folder, kept)
    assert find_weights("0123abcd") == find_weights("0123a") == kept / WEIGHTS
    shutil.copytree(run.folder, Path("mlruns") / "losses" / "0123beef" / "artifacts")
    with pytest.raises(PredictorError, match="2 runs begin with 0123: write more"):
        find_weights("0123")
    with pytest.raises(PredictorError, match="mlflow artifacts download --run-id 4567"):
        find_weights("4567")
    shutil.copytree(run.folder, Path("mlruns") / "attention" / "other")
    with pytest.raises(PredictorError, match="weights of 3 runs"):
        find_weights("mlruns")
    Path("empty").mkdir()
    with pytest.raises(PredictorError, match="has the run finished"):
        find_weights("empty")


def test_weights_that_cannot_be_used_are_named(run: Run, tmp_path: Path) -> None:
    predictor = Predictor.load(run.folder / WEIGHTS, "cpu")
    (tmp_path / "torn.safetensors").write_bytes((run.folder / WEIGHTS).read_bytes()[:99])
    with pytest.raises(PredictorError, match="cannot be read"):
        Predictor.load(tmp_path / "torn.safetensors", "cpu")
    volumes = run.config.replace({"data.benchmark": "synapse", "training.method": "uamt"})
    gone = run.config.replace({"model.vlm": "ViT-B-16", "model.weights": str(tmp_path / "gone.pt")})
    oracle = run.config.replace({"model.captions": "oracle"})
    for config, error, message in (
        (volumes, PredictorError, "volumes"),
        (gone, VLMError, "gone.pt"),
        (oracle, PredictorError, "pass --caption"),
    ):
        path = tmp_path / "other.safetensors"
        save_weights(path, predictor.network, config, "teacher")
        with pytest.raises(error, match=message):
            Predictor.load(path, "cpu")(np.zeros((8, 8, 3), np.uint8))
    path.write_bytes((run.folder / WEIGHTS).read_bytes().replace(b"training.ema", b"training.eme"))
    with pytest.raises(PredictorError, match="does not know"):
        Predictor.load(path, "cpu")


def test_a_network_that_reads_no_captions_needs_no_vlm(run: Run, tmp_path: Path) -> None:
    blind = run.config.replace(
        {"model.fusion": "none", "training.steps": 2, "training.warmup_steps": 0}
    )
    train(blind, None, tmp_path)
    image = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    own = Predictor.load(tmp_path / WEIGHTS, "cpu")
    gone = blind.replace({"model.weights": str(tmp_path / "gone.safetensors")})
    save_weights(tmp_path / "gone", own.network, gone, "teacher")
    assert np.array_equal(Predictor.load(tmp_path / "gone", "cpu")(image).labels, own(image).labels)


def test_captions_are_those_of_the_vlm_before_training(run: Run, tmp_path: Path) -> None:
    """The network of a method without a teacher is trained from the VLM's own image tower."""
    train(run.config.replace({"training.method": "supervised"}), None, tmp_path)
    predictor = Predictor.load(tmp_path / WEIGHTS, "cpu")
    vlm = load_vlm("toy", "bundled")
    assert predictor.vlm.fingerprint() == vlm.fingerprint()


def test_what_is_no_picture_is_refused(pictures: Path, tmp_path: Path) -> None:
    assert [s.name for s in find_sources([pictures])] == ["deep/small", "tall", "wide"]
    (tmp_path / "text.txt").write_text("")
    (tmp_path / "none").mkdir()
    shutil.copy(pictures / "tall.png", tmp_path / "wide.jpg")
    for given, message in (
        ([tmp_path / "text.txt"], "neither a picture nor a video"),
        ([tmp_path / "gone.png"], "there is no"),
        ([tmp_path / "none"], "no picture or video in"),
        ([pictures / "wide.jpg", tmp_path / "wide.jpg"], "would both be written as wide"),
    ):
        with pytest.raises(DataError, match=message):
            find_sources(given)


def test_options_that_are_wrong_say_so(run: Run, pictures: Path, tmp_path: Path) -> None:
    code, output = run.predict(pictures, "--out", tmp_path, "--write", "ids,depth")
    assert code == 1
    assert f"knows no 'depth': choose from {', '.join(PICTURES)}" in output
    code, output = run.predict(pictures, "--out", tmp_path, "--labels", tmp_path / "gone")
    assert code == 1
    assert "there is no folder" in output
