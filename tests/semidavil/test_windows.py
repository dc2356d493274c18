"""Captions of windows: where windows lie, and that a crop's caption speaks of what the crop shows."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from png_files import write_png
from torch import Tensor, nn

from semidavil.config import Config, preset
from semidavil.data.loaders import evaluation_loader
from semidavil.data.loading import EvalSet, TrainBatches
from semidavil.data.streams import all_samples
from semidavil.data.windows import Box, Windows, sliding_windows
from semidavil.evaluation.street import evaluate
from semidavil.experiments.street import load_captions
from semidavil.language import captions as captions_module
from semidavil.language.captions import Caption, caption_images, windows_of
from semidavil.models.text import Language
from semidavil.models.vlm import load_vlm
from semidavil.train import train

ROWS, COLUMNS, STEP = (
    2,
    8,
    15,
)  # fields of one colour each; the red of neighbouring ones differs by STEP


@pytest.mark.parametrize(("size", "window"), [(128, 64), (64, 64), (30, 64), (100, 33), (65, 64)])
def test_windows_cover_the_axis_and_overlap(size: int, window: int) -> None:
    for turned in (False, True):
        sizes, windows = ((size, 50), (window, 50)), slice(None, None, -1 if turned else 1)
        boxes = sliding_windows(*(pair[windows] for pair in sizes)).boxes
        parts = [box.slices[turned] for box in boxes]
        covered = np.zeros(size, bool)
        for part in parts:
            covered[part] = True
        assert covered.all()
        assert all(part.stop - part.start == min(size, window) for part in parts)
        assert parts[-1].stop == size
        assert all(b.start - a.start <= window * 2 // 3 + 1 for a, b in pairwise(parts))


def test_windows_of_the_papers_sizes() -> None:
    target = sliding_windows((512, 1024), (512, 512))
    assert target.boxes == tuple(Box(0, left, 512, 512) for left in (0, 256, 512))
    assert len(sliding_windows((760, 1280), (512, 512)).boxes) == 8
    assert [target.nearest(Box(0, left, 400, 400)) for left in (0, 150, 300, 500, 624)] == [
        0, 0, 1, 2, 2,
    ]  # fmt: skip
    assert target.nearest(Box(-80, 200, 683, 683)) == 1


def test_windows_are_cut_from_images_of_any_size() -> None:
    windows = sliding_windows((4, 8), (4, 4))  # at 0, 2, 4
    for scale in (1, 3):
        image = np.arange(8).repeat(scale)[None].repeat(4 * scale, 0)
        shown = [sorted(set(part.ravel().tolist())) for part in windows.cut(image)]
        assert shown == [[0, 1, 2, 3], [2, 3, 4, 5], [4, 5, 6, 7]]
        assert all(part.shape == (4 * scale, 4 * scale) for part in windows.cut(image))


class Colours:
    """A captioner that names the colours that it sees."""

    identity = "colours 1"
    size = None

    def __call__(self, images: Sequence[Image.Image]) -> list[str]:
        return [" ".join(f"colour{c}" for c in colours(np.asarray(i)[..., 0])) for i in images]


def colours(red: np.ndarray) -> list[int]:
    """Those that cover 3% of an area."""
    counts = np.bincount(red.ravel(), minlength=256) / red.size
    return [c for c in range(ROWS * COLUMNS) if counts[c * STEP] >= 0.03]


def fields(size: tuple[int, int]) -> np.ndarray:
    """An image (H, W, 3) whose every field has a colour of its own."""
    numbers = np.arange(ROWS * COLUMNS).reshape(ROWS, COLUMNS) * STEP
    red = np.kron(numbers, np.ones((size[0] // ROWS, size[1] // COLUMNS)))
    return np.repeat(red[..., None], 3, 2).astype(np.uint8)


@pytest.fixture
def config(write_dataset: Callable[..., Path], tmp_path: Path) -> Config:
    """Photographs of 64x128 and rendered images of 96x192, of fields of one colour each."""
    sizes = {"camvid": (64, 128), "idda": (96, 192)}
    for dataset, size in sizes.items():
        root = write_dataset(dataset, size=size)
        for path in (root / dataset).rglob("*.png"):
            if path.parent.name not in ("trainannot", "valannot", "labels"):
                write_png(path, fields(size))
    return preset(
        "small",
        {
            "data.benchmark": "idda-camvid",
            "data.budget": 2,
            "data.source_size": "48x96",
            "data.target_size": "32x64",
            "data.crop": "32x32",
            "model.caption_region": "window",
            "runtime.data_root": str(root),
            "runtime.cache_dir": str(tmp_path / "cache"),
        },
    )


def coloured(config: Config, cache: Path) -> dict[Path, Caption]:
    captions: dict[Path, Caption] = {}
    for (dataset, _), samples in all_samples(config).items():
        paths = [sample.image for sample in samples]
        windows = windows_of(config, dataset)
        captions |= caption_images(paths, Colours(), cache, windows=windows, batch_size=4)
    return captions


@pytest.mark.parametrize("stream", ["source", "labelled", "unlabelled"])
def test_a_crops_caption_speaks_of_that_crop(config: Config, tmp_path: Path, stream: str) -> None:
    shares = {}
    for region in ("window", "image"):
        config = config.replace({"model.caption_region": region})
        batches = TrainBatches(config, coloured(config, tmp_path / "captions"), list, {stream})
        found = []
        for step in range(12):
            part = batches[step][stream]
            for image, caption in zip(part["image"], part["language"], strict=True):
                red = image[0].numpy()
                shown = {f"colour{c}" for c in colours(red)}
                named = set(caption.split())
                found.append(len(named & shown) / len(named))
        shares[region] = np.mean(found)
    assert shares["image"] < 0.75
    assert shares["window"] > shares["image"] + 0.15


def test_a_window_of_the_caption_is_the_window_that_is_scored(
    config: Config, tmp_path: Path
) -> None:
    """Evaluation gives each sliding window the caption of what it shows, and no other."""
    seen = []

    class Network(nn.Module):
        def forward(self, images: Tensor, language: Language) -> Tensor:
            for image, number in zip(images, language.tokens[:, 0, 0].tolist(), strict=True):
                shown = colours((image[0] * 255).round().byte().numpy())
                seen.append((texts[int(number)], " ".join(f"colour{c}" for c in shown)))
            return torch.cat([images, 1 - images], 1)

    texts: list[str] = []

    def encode(captions: Sequence[str]) -> Language:
        numbers = torch.arange(len(texts), len(texts) + len(captions)).float()
        texts.extend(captions)
        return Language.of(list(numbers[:, None, None]))

    data = EvalSet(config, coloured(config, tmp_path / "captions"))
    assert data[0]["captions"][0].split()[0] == "colour0"
    cpu = torch.device("cpu")
    # One image a batch, whose windows are shown two at a time.
    batches = evaluation_loader(data, config.replace({"runtime.eval_batch_size": 2}), cpu)
    evaluate({"net": Network()}, batches, encode, 6, config.data.crop, cpu, 2)
    assert len(seen) == 3 * len(data)
    assert all(caption == shown for caption, shown in seen)
    assert len({caption for caption, _ in seen}) == 3


def test_captions_of_windows_and_images_are_kept_apart(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "captions"
    windows = coloured(config, cache)
    whole = coloured(config.replace({"model.caption_region": "image"}), cache)
    target, source = (
        next(c for path, c in windows.items() if name in path.parts) for name in ("camvid", "idda")
    )
    assert (len(target.texts), len(source.texts)) == (3, 10)
    assert all(len(caption.texts) == 1 and caption.windows is None for caption in whole.values())
    monkeypatch.setattr(captions_module, "read_parts", None)  # all of it is on the disk
    assert coloured(config, cache) == windows


def test_a_run_takes_the_region_that_its_config_names(config: Config) -> None:
    """With CLIP's own captions, and with those of the labels, which are cut alike."""
    vlm = load_vlm("toy", "bundled")
    for captioner in ("positions", "shuffled:positions", "oracle"):
        config = config.replace({"model.captions": captioner})
        assert {len(caption.texts) for caption in load_captions(config, vlm).values()} == {3, 10}
    none = load_captions(config.replace({"model.captions": "none"}), vlm)
    assert set(none.values()) == {Caption(("",))}


def test_a_mirrored_crop_takes_the_mirrored_text_of_its_window() -> None:
    windows = Windows((4, 8), (Box(0, 0, 4, 4), Box(0, 4, 4, 4)))
    caption = Caption(("car on the left", "bus on the left"), windows)
    assert caption.of_crop(Box(0, 3, 4, 4), mirrored=False) == "bus on the left"
    assert caption.of_crop(Box(0, 3, 4, 4), mirrored=True) == "bus on the right"
    assert caption.of_crop(Box(0, 1, 4, 4), mirrored=True) == "car on the right"


@pytest.mark.slow
def test_a_run_trains_and_is_scored_with_captions_of_windows(
    config: Config, tmp_path: Path
) -> None:
    changes = {"training.steps": 1, "training.warmup_steps": 0, "training.batch_size": 2}
    result = train(config.replace(changes), checkpoint_dir=tmp_path / "run")
    assert result.latency_ms > 0
    with np.load(result.artifacts["gallery"], allow_pickle=False) as gallery:
        captions = gallery["captions"].tolist()
    assert [text.count(" | ") for text in captions] == [2, 2, 2]
