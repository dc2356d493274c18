"""Disparities on disk, from an estimator, and the images chosen by them."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from semidavil.config import preset
from semidavil.data.depth import (
    depth_feature,
    depth_features,
    disparity_path,
    disparity_source,
    read_disparity,
    select_diverse,
)
from semidavil.data.files import DataError
from semidavil.data.loading import TrainBatches
from semidavil.data.readers import READERS, Sample
from semidavil.data.streams import all_samples, image_paths, train_samples
from semidavil.language.captions import Caption


@pytest.fixture
def samples(tiny_root: Path) -> list[Sample]:
    return READERS["cityscapes"](tiny_root / "cityscapes").samples("train")


def test_disparity_is_decoded_as_cityscapes_says(samples: list[Sample], tmp_path: Path) -> None:
    stored = cv2.imread(str(disparity_path(samples[0])), cv2.IMREAD_UNCHANGED)
    near = read_disparity(samples[0])
    assert near.dtype == np.float32
    assert near[stored == 0].max(initial=0) == 0
    assert np.allclose(near[stored > 0], (stored[stored > 0].astype(float) - 1) / 256)
    # The road gets nearer towards the camera: the z-buffer is the generator's.
    column = near[40:60, 64]
    assert column[-1] > column[0] > 0


def test_a_missing_disparity_is_named_with_the_remedy(
    samples: list[Sample], tiny_root: Path, tmp_path: Path
) -> None:
    root = tmp_path / "cityscapes"
    shutil.copytree(tiny_root / "cityscapes", root)
    copies = READERS["cityscapes"](root).samples("train")
    disparity_path(copies[3]).unlink()
    with pytest.raises(DataError, match=r"disparity.*hf:NAME") as error:
        disparity_source("disparity", "cityscapes", copies, tmp_path)
    assert str(disparity_path(copies[3])) in str(error.value)
    with pytest.raises(DataError, match=r"unknown data\.depth 'sonar'"):
        disparity_source("sonar", "cityscapes", copies, tmp_path)
    photograph = replace(copies[0], image=tmp_path / "0001TP_006690.png")
    with pytest.raises(DataError, match=r"camvid has no disparity maps: set data.depth=hf:NAME"):
        disparity_source("disparity", "camvid", [photograph], tmp_path)
    with pytest.raises(DataError, match="hf download"):
        disparity_source("hf:nobody/nothing", "cityscapes", copies, tmp_path)


def test_a_depth_estimator_of_transformers_is_run_once_per_image(
    samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.DepthAnythingConfig(
        backbone_config=transformers.Dinov2Config(
            image_size=28, patch_size=14, hidden_size=16, num_hidden_layers=4,
            num_attention_heads=2, intermediate_size=16,
            out_features=["stage1", "stage2", "stage3", "stage4"], reshape_hidden_states=False,
        ),
        patch_size=14, reassemble_hidden_size=16, neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8, head_hidden_size=8,
    )  # fmt: skip
    folder = tmp_path / "estimator"
    model = transformers.DepthAnythingForDepthEstimation(config).eval()
    model.save_pretrained(folder)
    processor = transformers.DPTImageProcessor(size={"height": 28, "width": 56})
    processor.save_pretrained(folder)
    near = disparity_source(f"hf:{folder}", "cityscapes", samples[:3], tmp_path / "cache")
    maps = [near(sample) for sample in samples[:3]]
    assert all(one.shape == (64, 128) and one.dtype == np.float32 for one in maps)
    assert all(one.min() >= 0 for one in maps)
    # A second source reads what the first has written, without the model.
    monkeypatch.setattr(
        transformers.AutoModelForDepthEstimation, "from_pretrained", None, raising=True
    )
    again = disparity_source(f"hf:{folder}", "cityscapes", samples[:3], tmp_path / "cache")
    assert np.array_equal(again(samples[1]), maps[1])


def gradients(samples: list[Sample]) -> Callable[[Sample], np.ndarray]:
    """Disparities of which images 0 to 5 are alike, and the others each have their own gradient."""
    level = {sample.image: number for number, sample in enumerate(samples)}

    def near(sample: Sample) -> np.ndarray:
        slope = max(0, level[sample.image] - 5)
        return 1 + slope * np.linspace(0, 1, 32, dtype=np.float32)[None].repeat(16, 0)

    return near


def test_selection_takes_the_farthest_image_each_time(samples: list[Sample]) -> None:
    features = np.stack([depth_feature(gradients(samples)(sample)) for sample in samples])
    chosen = select_diverse(features, 4, seed=0)
    for step in range(1, 4):
        distances = np.linalg.norm(features[:, None] - features[chosen[:step]], axis=2).min(1)
        assert distances[chosen[step]] == pytest.approx(distances.max())
    assert len(set(chosen)) == 4
    assert sum(index <= 5 for index in chosen) <= 2
    assert select_diverse(features, 2, seed=0) == chosen[:2]  # nested budgets


def test_what_images_are_selected_by_is_read_once_for_each_state_of_the_files(
    samples: list[Sample], tmp_path: Path
) -> None:
    copies = []
    for sample in samples[:3]:
        copy = tmp_path / "leftImg8bit" / sample.image.name
        disparity = disparity_path(replace(sample, image=copy))
        for source, path in ((sample.image, copy), (disparity_path(sample), disparity)):
            path.parent.mkdir(exist_ok=True)
            shutil.copy(source, path)
        copies.append(replace(sample, image=copy))
    read: list[Path] = []

    def disparities(sample: Sample) -> np.ndarray:
        read.append(sample.image)
        return read_disparity(sample)

    def features(name: str = "disparity") -> np.ndarray:
        return depth_features(name, copies, disparities, tmp_path / "cache")

    expected = np.stack([depth_feature(read_disparity(sample)) for sample in copies])
    for _ in range(2):
        assert np.array_equal(features(), expected)
    assert sorted(read) == [sample.image for sample in copies]
    features("hf:another")
    assert len(read) == 6, "of another source"
    for path in (disparity_path(copies[1]), copies[2].image):
        shutil.copy(disparity_path(samples[5]), path)
        count = len(read)
        changed = features()
        assert len(read) == count + 3
    assert not np.array_equal(changed[1], expected[1])


def test_depth_feature_pools_over_what_is_known() -> None:
    near = np.full((16, 32), 3.0, np.float32)
    near[:8, 1::2] = 0  # half of the pixels of the upper cells are unknown
    assert np.allclose(depth_feature(near), 1.0, atol=1e-6)


def test_depth_selection_changes_which_images_are_labelled(tiny_toy: dict[str, str]) -> None:
    changes = {"data.budget": 4, **tiny_toy}
    random = train_samples(preset("toy", changes))
    diverse = train_samples(preset("toy", {**changes, "data.selection": "depth"}))
    assert len(diverse["labelled"]) == 4
    assert {s.image for s in diverse["labelled"]} != {s.image for s in random["labelled"]}
    everything = {s.image for s in diverse["labelled"] + diverse["unlabelled"]}
    assert len(everything) == 12


def test_disparity_is_cut_like_the_image(tiny_toy: dict[str, str]) -> None:
    changes = {"data.budget": 4, "training.batch_size": 3, "data.store": "off"}
    config = preset("toy", {**changes, **tiny_toy})
    captions = dict.fromkeys(image_paths(config), Caption(("",)))
    plain = TrainBatches(config, captions, list, {"unlabelled"})[2]["unlabelled"]
    batches = TrainBatches(config, captions, list, {"unlabelled"}, disparity=True)
    target = batches.images["unlabelled"]
    # Red as disparity: then both must show the same at every pixel where nothing is averaged.
    target.disparities = lambda sample: target.reader.read_image(sample)[..., 0].astype(np.float32)
    batch = batches[2]["unlabelled"]
    assert torch.equal(batch["image"], plain["image"])  # drawing disparities changes no view
    assert batch["disparity"].shape == (3, 32, 32)
    difference = (batch["disparity"] - batch["image"][:, 0].float()).abs() / 255
    assert difference.median() < 0.03
    assert all_samples(config).keys() == {
        ("gta5", "train"), ("cityscapes", "train"), ("cityscapes", "val"),
    }  # fmt: skip
