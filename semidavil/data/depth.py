"""How near things are in target images: disparity maps on disk, or a depth estimator's.

    disparities = disparity_source("disparity", "cityscapes", samples, cache_dir)
    disparities(samples[0])                            # (H, W) float32, 0 where unknown

`data.depth=disparity` reads Cityscapes' own `disparity/` folder (the toy data has one too);
`data.depth=hf:NAME` runs a depth estimator of transformers on every image once and keeps the result.
Disparities are comparable within an image, and between the images of one data set.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image
from rich.progress import track

from semidavil.benchmarks import WITH_DISPARITY
from semidavil.config import Config
from semidavil.data.described import title_of
from semidavil.data.files import DataError, hash_files, state_of
from semidavil.data.hub import find_model
from semidavil.data.images import read_rgb, read_unchanged
from semidavil.data.readers import Sample
from semidavil.machine import available_cpus
from semidavil.names import METHODS

Disparities = Callable[[Sample], np.ndarray]
FEATURE_SIZE = (8, 16)  # of the pooled maps that images are told apart by


def needs_depth(config: Config) -> bool:
    """Whether a run looks at disparities: its method does, or what chooses the labelled images."""
    return METHODS[config.training.method].disparity or config.data.selection == "depth"


def disparity_source(
    name: str, dataset: str, samples: Sequence[Sample], cache_dir: Path, progress: bool = False
) -> Disparities:
    """Where the disparities of `samples` come from; an estimator's are computed here, once.

    Args:
        name: "disparity", or "hf:" and a depth estimator of Hugging Face or its folder.
        dataset: the samples' data set, for messages.

    Raises:
        DataError: an unknown name, a missing or broken file, an estimator that cannot be had.
    """
    kind, _, argument = name.partition(":")
    if kind == "disparity" and not argument:
        if wrong := missing_disparities(dataset, samples):
            raise DataError(wrong)
        return read_disparity
    if kind == "hf" and argument:
        return _Estimated(argument, samples, cache_dir / "depth", progress)
    raise DataError(f"unknown data.depth {name!r}: choose disparity, or hf:NAME")


def missing_disparities(dataset: str, samples: Sequence[Sample]) -> str:
    """Which of a data set's own disparities is missing, and what to do; empty if all are there."""
    described = any(sample.disparity for sample in samples)
    if dataset not in WITH_DISPARITY and not described:
        return (
            f"{title_of(dataset)} has no disparity maps: set data.depth=hf:NAME with a depth estimator of "
            "transformers"
        )
    for sample in samples:
        if described and not sample.disparity:
            return (
                f"{title_of(dataset)}: {sample.image} is no picture that `images` of its description fits, "
                "so that nothing says where its disparity is: move it, or set data.depth=hf:NAME"
            )
        if not disparity_path(sample).is_file():
            return (
                f"{title_of(dataset)}: the disparity {disparity_path(sample)} of {sample.image} is "
                "missing: unpack Cityscapes' disparity package beside leftImg8bit, or set "
                "data.depth=hf:NAME with a depth estimator of transformers"
            )
    return ""


def disparity_path(sample: Sample) -> Path:
    """Where an image's disparity is: as its description says, or where Cityscapes keeps it."""
    if sample.disparity:
        return sample.disparity
    parts = ["disparity" if part == "leftImg8bit" else part for part in sample.image.parts]
    return Path(*parts).with_name(sample.image.name.replace("_leftImg8bit", "_disparity"))


def disparity_file(name: str, sample: Sample) -> Path:
    """The file that an image's disparity is made of: where `data.depth` is an estimator, the image."""
    return disparity_path(sample) if name == "disparity" else sample.image


def read_disparity(sample: Sample) -> np.ndarray:
    """Cityscapes' disparity (H, W) float32 in pixels: (p - 1) / 256, and 0 where p is 0."""
    stored = read_unchanged(disparity_path(sample))
    if stored.ndim != 2 or stored.dtype != np.uint16:
        raise DataError(f"{disparity_path(sample)} is not a 16-bit disparity map")
    return np.where(stored > 0, (stored.astype(np.float32) - 1) / 256, 0).astype(np.float32)


class _Estimated:
    """An estimator's relative inverse depth, kept as 16-bit PNGs under the images' content."""

    def __init__(self, name: str, samples: Sequence[Sample], folder: Path, progress: bool) -> None:
        self.hashes = hash_files([sample.image for sample in samples], folder / "hashes.jsonl")
        self.folder = folder / hashlib.blake2b(name.encode(), digest_size=8).hexdigest()
        self.folder.mkdir(parents=True, exist_ok=True)
        missing = [sample for sample in samples if not self._file(sample).exists()]
        if missing:
            self._estimate(name, missing, progress)

    def __call__(self, sample: Sample) -> np.ndarray:
        return read_unchanged(self._file(sample)).astype(np.float32) / 256

    def _file(self, sample: Sample) -> Path:
        return self.folder / f"{self.hashes[sample.image]}.png"

    def _estimate(self, name: str, samples: Sequence[Sample], progress: bool) -> None:
        # Seconds to import, and planning reads this module.
        import torch
        import transformers

        folder = find_model(name, f"the depth estimator {name}", "data.depth=hf:DIR")
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            processor: Any = transformers.AutoImageProcessor.from_pretrained(folder)
            model: Any = transformers.AutoModelForDepthEstimation.from_pretrained(folder)
        except Exception as error:
            raise DataError(
                f"{name} cannot be loaded from {folder} ({error}): data.depth=hf:NAME takes a depth "
                "estimator that transformers opens, with its image processor"
            ) from error
        model.to(device).eval()
        for sample in track(samples, "depth", transient=True, disable=not progress):
            image = read_rgb(sample.image)
            inputs = processor(images=Image.fromarray(image), return_tensors="pt").to(device)
            with torch.inference_mode():
                found = model(**inputs).predicted_depth[0].float().cpu().numpy()
            found = cv2.resize(found, image.shape[1::-1], interpolation=cv2.INTER_LINEAR)
            # Relative inverse depth has no unit: its largest value in an image becomes 255.
            scaled = np.clip(found, 0, None) / max(float(found.max()), 1e-6) * 255 * 256
            temporary = self._file(sample).with_suffix(f".{os.getpid()}.png")
            if not cv2.imwrite(str(temporary), scaled.round().astype(np.uint16)):
                raise DataError(f"{temporary} cannot be written: is the disk full?")
            temporary.replace(self._file(sample))


def depth_features(
    name: str,
    samples: Sequence[Sample],
    disparities: Disparities,
    cache_dir: Path,
    progress: bool = False,
) -> np.ndarray:
    """What `select_diverse` tells images apart by (n, 128) float32: once for each state of the files.

    Args:
        name: where the disparities come from, `data.depth`.
    """
    files = (path for s in samples for path in (s.image, disparity_path(s)) if path.is_file())
    file = cache_dir / "depth" / f"features-{state_of(files, f'1 {name}')}.npy"
    if file.exists():
        return np.load(file, allow_pickle=False)
    with ThreadPoolExecutor(available_cpus()) as pool:
        made = pool.map(lambda sample: depth_feature(disparities(sample)), samples)
        shown = track(made, "depth", len(samples), transient=True, disable=not progress)
        features = np.stack(list(shown))
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(f".{os.getpid()}.npy")
    np.save(temporary, features)
    temporary.replace(file)
    return features


def select_diverse(features: np.ndarray, budget: int, seed: int) -> list[int]:
    """Indices of the images to label: each is the one least like those already chosen.

    Automatic data selection of S-Depth (Hoyer et al., IJCV 2023), its diversity criterion: farthest
    point sampling in the features of a depth network. Our reading: the features are the disparity
    map itself, pooled to 8x16 and divided by its mean, as no depth network is trained before the
    labels are chosen; the paper's second criterion, a student's depth error, is left out.

    Args:
        features: of all images (n, c), `depth_features`.
    """
    first = int(np.random.default_rng([seed, 0xDE97]).integers(len(features)))
    chosen, distance = [first], np.linalg.norm(features - features[first], axis=1)
    while len(chosen) < budget:
        farthest = int(distance.argmax())
        chosen.append(farthest)
        distance = np.minimum(distance, np.linalg.norm(features - features[farthest], axis=1))
    return chosen[:budget]


def depth_feature(disparity: np.ndarray) -> np.ndarray:
    """A disparity map (H, W) pooled to 8x16 over what is known, divided by its mean: (128,)."""
    height, width = FEATURE_SIZE
    total = cv2.resize(disparity, (width, height), interpolation=cv2.INTER_AREA)
    known = (disparity > 0).astype(np.float32)
    share = cv2.resize(known, (width, height), interpolation=cv2.INTER_AREA)
    pooled = np.divide(total, share, out=np.zeros_like(total), where=share > 0)
    return (pooled / max(float(pooled.mean()), 1e-6)).ravel()
