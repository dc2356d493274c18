"""What is kept of a network's predictions."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from semidavil.evaluation.pictures import LONGEST, Prediction, save_examples, save_gallery


def _prediction(name: str, size: tuple[int, int]) -> Prediction:
    rng = np.random.default_rng(len(name))
    truth, labels = rng.integers(0, 19, (2, *size)).astype(np.uint8)
    return Prediction(name, f"a road, {name}", np.full((8, 16, 3), 90, np.uint8), truth, labels)


def test_a_gallery_is_read_without_pickle_as_it_was_written(tmp_path: Path) -> None:
    small, large = _prediction("a", (8, 16)), _prediction("bb", (300, 600))
    save_gallery([small, large], tmp_path / "gallery.npz")
    with np.load(tmp_path / "gallery.npz", allow_pickle=False) as kept:
        assert kept["names"].tolist() == ["a", "bb"]
        assert kept["captions"].tolist() == ["a road, a", "a road, bb"]
        np.testing.assert_array_equal(kept["truth/0"], small.truth)
        np.testing.assert_array_equal(kept["labels/0"], small.labels)
        assert kept["labels/1"].shape == (LONGEST // 2, LONGEST)
        assert set(np.unique(kept["labels/1"])) <= set(range(19))  # no class is mixed from two
        picture = Image.open(io.BytesIO(kept["image/1"].tobytes()))
        assert picture.size == (LONGEST, LONGEST // 2)
        np.testing.assert_allclose(np.asarray(picture), 90, atol=2)


def test_examples_show_input_prediction_and_truth_of_evenly_spaced_images(tmp_path: Path) -> None:
    palette = np.arange(256, dtype=np.uint8)[:, None].repeat(3, 1)
    predictions = [_prediction("x" * n, (8, 16)) for n in range(1, 8)]
    save_examples(predictions, palette, tmp_path / "examples.png", count=2)
    sheet = np.asarray(Image.open(tmp_path / "examples.png"))
    half = sheet.shape[0] // 2
    for top, p in ((0, predictions[0]), (half, predictions[-1])):
        assert sheet[top + 80, 150].tolist() == [90, 90, 90]
        assert sheet[top + 5, 326 + 5].tolist() == [p.labels[0, 0]] * 3
        assert sheet[top + 5, 652 + 5].tolist() == [p.truth[0, 0]] * 3
