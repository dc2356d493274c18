"""Street images: what `semidavil.train` trains on, by what, and how it is scored."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import Dataset

from semidavil import names
from semidavil.benchmarks import BENCHMARKS
from semidavil.config import Config
from semidavil.data.checks import check_data, class_pixels
from semidavil.data.files import hash_files
from semidavil.data.fingerprint import fingerprint
from semidavil.data.layout import cache_dir, open_reader
from semidavil.data.loading import EvalSet, TrainBatches
from semidavil.data.streams import all_samples, disparities
from semidavil.device import choose_device
from semidavil.evaluation.latency import milliseconds
from semidavil.evaluation.pictures import kept_names, predictions_of, save_examples, save_gallery
from semidavil.evaluation.street import evaluate, sliding_window
from semidavil.language.ablations import (
    ORACLE,
    SHUFFLED,
    inner_captioner,
    oracle_captions,
    shuffle_captions,
)
from semidavil.language.captions import caption_images
from semidavil.losses import build_loss
from semidavil.methods.base import Method
from semidavil.methods.table import METHODS
from semidavil.metrics import Evaluation, absent_classes, summarise
from semidavil.models.segmenter import Segmenter, build_segmenter
from semidavil.models.vlm import VLM, load_vlm
from semidavil.models.weights import save_weights


def prepare_street(config: Config, progress: bool) -> None:
    """Toy data, data checks, depth and captions."""
    target = BENCHMARKS[config.data.benchmark].target
    check_data(config, progress)
    if names.METHODS[config.training.method].disparity or config.data.selection == "depth":
        disparities(config, open_reader(config, target).samples("train"), progress)
    if config.model.fusion != "none":
        vlm = load_vlm(config.model.vlm, config.model.weights, seed=config.seed)
        load_captions(config, vlm.to(choose_device(config.runtime.device)), progress)
    fingerprint(config, partial(hash_files, progress=progress))  # last: models are here by now


class StreetExperiment:
    """A `base.Experiment` of street images, scored by mIoU on the target validation set."""

    def __init__(self, config: Config, device: torch.device) -> None:
        self.config, self.device = config, device
        self.benchmark = BENCHMARKS[config.data.benchmark]
        check_data(config)
        vlm = load_vlm(config.model.vlm, config.model.weights, seed=config.seed).to(device)
        captions = load_captions(config, vlm)
        self.data = fingerprint(config)
        self.method = build_method(config, vlm, len(self.benchmark.classes)).to(device)
        traits = names.METHODS[config.training.method]
        self.batches: Dataset = TrainBatches(
            config, captions, traits.streams, traits.strong_views, traits.disparity
        )
        self.validation = EvalSet(config, captions)
        settings = config.training
        self.lr, self.grad_clip = settings.lr, settings.grad_clip
        groups = parameter_groups(
            self.method, self.method.student.vision, settings.lr, settings.backbone_lr_factor
        )
        self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(
            groups,
            weight_decay=settings.weight_decay,
            foreach=True,  # the same to the last bit, in half the time on a CPU
        )

    def evaluate(self, networks: Mapping[str, Segmenter]) -> dict[str, Evaluation]:
        setup = self.config.runtime
        return evaluate(
            networks, self.validation, self.method.encode, len(self.benchmark.classes),
            self.config.data.crop, self.device, setup.eval_batch_size, setup.num_workers,
            self.config.training.confidence, kept_names(self.validation),
            self.config.training.temperature,
        )  # fmt: skip

    def latency(self, name: str) -> float:
        item = self.validation[0]
        image = item["image"][None].to(self.device)
        language = self.method.encode([item["caption"]])  # once for an image, not part of it
        network, window = self.method.networks()[name].eval(), self.config.data.crop
        return milliseconds(lambda: sliding_window(network, image, language, window), self.device)

    def summary(self, evaluation: Evaluation) -> dict[str, float]:
        classes = self.benchmark.classes
        scores = summarise(evaluation.confusion, classes, self.benchmark.subsets)
        pseudo = evaluation.pseudo_labels(classes)
        return scores | {f"pseudo/{name}": value for name, value in pseudo.items()}

    def absent(self, evaluation: Evaluation) -> list[str]:
        return absent_classes(evaluation.confusion, self.benchmark.classes)

    def save(self, name: str, evaluation: Evaluation, folder: Path) -> dict[str, Path]:
        files = {
            "weights": folder / "segmenter.safetensors",
            "examples": folder / "examples.png",
            "evaluation": folder / "evaluation.npz",
            "gallery": folder / "gallery.npz",
        }
        save_weights(files["weights"], self.method.networks()[name], self.config, name)
        evaluation.save(files["evaluation"])
        predictions = predictions_of(self.validation, evaluation.labels)
        save_examples(predictions, self.benchmark.palette, files["examples"])
        save_gallery(predictions, files["gallery"])
        return files


def build_method(config: Config, vlm: VLM, num_classes: int) -> Method:
    """The configured method around a fresh student."""
    start = vlm
    if config.model.vision_init == "random":  # captions and language stay those of the VLM
        fresh = load_vlm(config.model.vlm, "none", seed=config.seed).vision.to(vlm.device)
        start = replace(vlm, vision=fresh)
    student = build_segmenter(config.model, start, num_classes)
    loss = build_loss(config.loss, num_classes, lambda: class_pixels(config))
    # The bound method, not the module: the frozen text tower has no place in checkpoints.
    method = METHODS[config.training.method](student, vlm.text.forward, loss, config)
    method.use_vlm(vlm, BENCHMARKS[config.data.benchmark].classes)
    return method


def load_captions(config: Config, vlm: VLM, progress: bool = False) -> dict[Path, str]:
    """The caption of every image that the run may draw, from the cache where it is there."""
    name = config.model.captions if config.model.fusion != "none" else "none"
    folder, groups = cache_dir(config) / "captions", all_samples(config)
    if name == ORACLE:
        return oracle_captions(config, groups, folder, progress)
    paths = [[sample.image for sample in samples] for samples in groups.values()]
    captions = caption_images(
        [path for group in paths for path in group],
        inner_captioner(name),
        vlm,
        BENCHMARKS[config.data.benchmark].classes,
        folder,
        progress=progress,
    )
    return shuffle_captions(captions, paths) if name.startswith(SHUFFLED) else captions


def parameter_groups(
    method: nn.Module, vision: nn.Module, lr: float, backbone_factor: float
) -> list[dict]:
    """AdamW's groups: the vision encoder at lr * factor, all else that `method` trains at lr.

    `scale` keeps the ratio. A factor of 0 freezes the vision encoder.
    """
    if backbone_factor == 0:
        vision.requires_grad_(False)
    backbone = [p for p in vision.parameters() if p.requires_grad]
    known = {id(p) for p in vision.parameters()}
    rest = [p for p in method.parameters() if p.requires_grad and id(p) not in known]
    groups = [{"params": rest, "lr": lr, "scale": 1.0}]
    if backbone:
        groups.append({"params": backbone, "lr": lr * backbone_factor, "scale": backbone_factor})
    return groups
