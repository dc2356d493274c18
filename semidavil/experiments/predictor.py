"""A finished street network in use: a picture of any size to classes, and how sure it is of them.

predictor = Predictor.load(find_weights("checkpoints/KEY"), "auto")
seen = predictor(read_rgb(path))                  # captioned as the run's images were
seen.labels, seen.confidence, seen.caption        # (H, W) uint8, (H, W) float32, text
"""

import copy
import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_model
from torch import Tensor

from semidavil import names
from semidavil.benchmarks import BENCHMARKS
from semidavil.config import Config, ConfigError
from semidavil.data.augment import as_floats
from semidavil.data.images import resize_image
from semidavil.data.windows import Windows, sliding_windows
from semidavil.device import choose_device, use_bfloat16
from semidavil.evaluation.street import sliding_window
from semidavil.experiments.street import build_method, captioner_of
from semidavil.language.ablations import ORACLE
from semidavil.language.base import Captioner
from semidavil.language.captioners import Constant
from semidavil.language.captions import cut_parts
from semidavil.language.tokens import one_thread
from semidavil.models.layers import upsample
from semidavil.models.text import Language
from semidavil.models.vlm import load_vlm
from semidavil.models.weights import hash_weights
from semidavil.names import WEIGHTS
from semidavil.plugin_files import PLUGINS
from semidavil.plugins import missing
from semidavil.run_ids import is_named


class PredictorError(ValueError):
    """Weights that cannot be used; the message says which, and what to do."""


@dataclass(frozen=True)
class Seen:
    """What a network makes of one picture.

    Attributes:
        labels: class indices (H, W) uint8.
        confidence: the probability of each pixel's class, (H, W) float32.
        captions: what it was told: of the picture, or of each of its windows.
    """

    labels: np.ndarray
    confidence: np.ndarray
    captions: tuple[str, ...]


def find_weights(source: str | Path) -> Path:
    """The weights of a finished run: a file, a folder that holds them, or the first letters of its id in
    `mlruns/`.

    Raises:
        PredictorError: there are none, or a run of this id has not finished here.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        found = sorted(path.rglob(WEIGHTS))
        if len(found) == 1:
            return found[0]
        if found:
            raise PredictorError(
                f"{path} holds the weights of {len(found)} runs: name one of them, as {found[0].parent}"
            )
        raise PredictorError(f"there is no {WEIGHTS} in {path}: has the run finished?")
    of_runs = Path("mlruns").glob(f"*/*/artifacts/{WEIGHTS}")
    kept = sorted(path for path in of_runs if is_named(path.parents[1].name, str(source)))
    if len(kept) > 1:
        ids = ", ".join(path.parents[1].name for path in kept[:3])
        raise PredictorError(f"{len(kept)} runs begin with {source}: write more of its id ({ids})")
    if kept:
        return kept[0]
    raise PredictorError(
        f"{source} is neither a file, nor a folder with {WEIGHTS}, nor the id of a finished run in mlruns/ "
        f"here. From a tracking server: `mlflow artifacts download --run-id {source} --dst-path DIR`, then "
        "name DIR"
    )


def read_about(weights: Path) -> tuple[Config, dict[str, str]]:
    """The run that weights are of, and what else they say of themselves.

    Raises:
        PredictorError: the file is none of a finished run, or its settings are not known here.
    """
    try:
        with safe_open(weights, framework="pt") as file:
            about = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise PredictorError(f"the weights {weights} cannot be read: {error}") from error
    if "config" not in about:
        raise PredictorError(f"{weights} does not say which run it is of: name a run's {WEIGHTS}")
    params = json.loads(about["config"])
    if why := missing(json.loads(params.get("plugins", "[]"))):
        raise PredictorError(f"{weights} cannot be used alone: {why}{_kept(weights)}")
    try:
        config = Config.from_params(params)
    except ConfigError as error:
        raise PredictorError(
            f"{weights} is of a run that this version does not know ({error}): use the commit in the "
            "run's tags in MLflow"
        ) from error
    return config, about


class Predictor:
    """A network with all that it needs to be told of a picture.

    Args:
        config: the run's.
        weights: as the run has saved them.
        about: what they say of themselves: the network's name, its images' normalisation and shape.
    """

    def __init__(
        self, config: Config, weights: Path, about: Mapping[str, str], device: torch.device
    ) -> None:
        benchmark = BENCHMARKS[config.data.benchmark]
        if benchmark.kind != "images":
            raise PredictorError(f"{weights} segments volumes ({benchmark.name}), not pictures")
        self.config, self.device, self.benchmark = config, device, benchmark
        # Weights of an earlier version do not say which shape the run's pictures had.
        self.shape: Sequence[int] = json.loads(about.get("shape", "[]")) or config.data.target_size
        self.sees_captions = config.model.fusion not in names.VISION_ONLY
        # What the loss would count in training data is asked for no more.
        used = config.replace({"loss.name": "ce", "runtime.compile": False})
        if used.model.encoder:  # all that is needed of it is in the weights
            used = used.replace({"model.encoder_weights": "none"})
        # Without captions, all that is needed of the VLM is in the weights.
        vlm_weights = used.model.weights if self._needs_vlm(used) else "none"
        vlm = load_vlm(used.model.vlm, vlm_weights, seed=used.seed, dense=used.model.dense)
        self.vlm = vlm.to(device)
        # A student's image tower is the VLM's own, which captions need as it was before training.
        start = replace(self.vlm, vision=copy.deepcopy(self.vlm.vision))
        self.method = build_method(used, start, len(benchmark.classes)).to(device).eval()
        self.network = self.method.networks()[about["network"]]
        load_model(self.network, str(weights))
        # As the run has normalised its images, which weights of an earlier version do not say.
        for part in {"mean", "std"} & about.keys():
            value = torch.tensor(json.loads(about[part])).view(3, 1, 1)
            getattr(self.network.vision, part).copy_(value)
        self._captioner: Captioner | None = None if self.sees_captions else Constant("")
        amp = use_bfloat16(config.training.amp, device)
        self.autocast = torch.autocast(device.type, torch.bfloat16, enabled=amp)

    @classmethod
    def load(cls, weights: Path, device: str = "auto") -> "Predictor":
        """
        Raises:
            PredictorError: the file is none of a finished run, or its settings are not known here.
            VLMError: the VLM that the run began with is not here.
        """
        config, about = read_about(weights)
        return cls(config, weights, about, choose_device(device))

    @property
    def fingerprint(self) -> str:
        """Of the weights and all that is said of pictures."""
        return f"{self.config.key()} {hash_weights(self.network)}"

    @property
    def name(self) -> str:
        """The run that it is of, in a few words."""
        config = self.config
        about = (config.training.method, config.model.fusion, config.loss.name, config.data.budget)
        return f"{config.key()} ({self.benchmark.name}, {', '.join(map(str, about))} labels)"

    @torch.inference_mode()
    def __call__(self, image: np.ndarray, caption: str | None = None) -> Seen:
        """Classes of a picture (H, W, 3) uint8 RGB.

        It is looked at as the run's validation images were: as many pixels, in windows of the training crops'
        size.

        Args:
            caption: in place of the run's own captioner's.

        Raises:
            CaptionError: the run's captioner cannot be had, or looks at labels.
        """
        crop = self.config.data.crop
        size = self.working_size(image.shape[:2])
        windows = sliding_windows(size, crop)
        captions = (caption,) if caption is not None else self.captions(image, windows)
        small = torch.from_numpy(np.ascontiguousarray(resize_image(image, size)))
        images = as_floats(small.permute(2, 0, 1)[None].to(self.device))
        languages = [self.language(text) for text in captions]
        batch = self.config.runtime.eval_batch_size
        with self.autocast:
            logits = sliding_window(self.network, images, languages, crop, batch)
        labels, confidence = classes_at(logits, image.shape[:2])
        return Seen(labels.byte().cpu().numpy(), confidence.cpu().numpy(), captions)

    def working_size(self, size: Sequence[int]) -> tuple[int, int]:
        """(height, width) that a picture of this size is looked at: the run's own, or as many pixels.

        A run whose pictures were stretched to its working size has learnt what stretched cars look like, so
        that pictures of another shape are stretched by as much.
        """
        height, width = self.config.data.target_size
        if size[0] * self.shape[1] == size[1] * self.shape[0]:
            return height, width
        stretched = size[0] * height / self.shape[0], size[1] * width / self.shape[1]
        scale = math.sqrt(height * width / (stretched[0] * stretched[1]))
        return max(1, round(stretched[0] * scale)), max(1, round(stretched[1] * scale))

    def captions(self, image: np.ndarray, windows: Windows) -> tuple[str, ...]:
        """What the run's captioner says of a picture, or of each of its windows."""
        by_window = self.config.model.caption_region == "window"
        captioner = self._captioner = self._captioner or self._own_captioner()
        parts = cut_parts(image, windows if by_window else None, captioner.size)
        return tuple(captioner(parts))

    def _own_captioner(self) -> Captioner:
        if self.config.model.captions == ORACLE:
            raise PredictorError(
                "this run's captions were made from labels, which a new picture does not have: pass --caption"
            )
        return captioner_of(self.config, self.vlm)

    def own_caption(self, image: np.ndarray) -> str:
        """What the run's captioner says of a whole picture, also where the run's captions are of windows."""
        captioner = self._captioner = self._captioner or self._own_captioner()
        return captioner(cut_parts(image, None, captioner.size))[0]

    def language(self, caption: str) -> Language:
        with one_thread(self.device):
            language = self.vlm.text([caption])
        return self.method.language({"language": language})

    def _needs_vlm(self, config: Config) -> bool:
        return self.sees_captions or config.training.method == "semivl"


def _kept(weights: Path) -> str:
    """Where the plugins of a run lie beside its weights."""
    found = sorted(str(path) for path in weights.parent.glob(f"{PLUGINS}/*"))
    options = " ".join(f"--plugin {shlex.quote(path)}" for path in found)
    return f". The run has kept what it used; read it before you run it: {options}" if found else ""


def classes_at(logits: Tensor, size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Class and its probability of each pixel (H, W) at another size, by logits (1, C, h, w).

    One class after another: all at the size of a photograph would take a gigabyte.
    """
    first, *others = (of_class[:, None] for of_class in logits.unbind(1))
    best = upsample(first, size)[0, 0]
    total, labels = torch.ones_like(best), torch.zeros_like(best, dtype=torch.uint8)
    for number, of_class in enumerate(others, 1):
        value = upsample(of_class, size)[0, 0]
        labels = labels.masked_fill(value > best, number)  # of equal logits the first class wins
        highest = torch.maximum(best, value)
        total = total * (best - highest).exp() + (value - highest).exp()
        best = highest
    return labels, total.reciprocal()
