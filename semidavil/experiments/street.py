"""Street images: what `semidavil.train` trains on, by what, and how it is scored."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.data import Dataset

from semidavil import names
from semidavil.benchmarks import BENCHMARKS
from semidavil.config import Config
from semidavil.data.augment import as_floats
from semidavil.data.checks import check_data, class_pixels
from semidavil.data.depth import needs_depth
from semidavil.data.described import title_of
from semidavil.data.files import hash_files
from semidavil.data.filling import Filling
from semidavil.data.fingerprint import fingerprint
from semidavil.data.layout import cache_dir, open_reader
from semidavil.data.loaders import evaluation_loader, workers_of
from semidavil.data.loading import EvalSet, TrainBatches
from semidavil.data.rare_classes import prepare_rare_classes
from semidavil.data.scans import usable_samples
from semidavil.data.streams import (
    Groups,
    all_samples,
    disparities,
    samples_without_labels,
    selection_features,
    streams_of,
    train_samples,
)
from semidavil.device import choose_device
from semidavil.distributed import rank
from semidavil.evaluation.latency import milliseconds
from semidavil.evaluation.pictures import kept_names, predictions_of, save_examples, save_gallery
from semidavil.evaluation.street import evaluate, sliding_window
from semidavil.experiments.optimizer import adamw
from semidavil.language.ablations import (
    ORACLE,
    SHUFFLED,
    inner_captioner,
    oracle_captions,
    shuffle_captions,
)
from semidavil.language.base import Captioner
from semidavil.language.captioners import Setting, build_captioner
from semidavil.language.captions import HASHES, Caption, bytes_kept, caption_images, windows_of
from semidavil.language.mirror import flip_caption
from semidavil.language.positions import size_of_windows
from semidavil.language.report import EXAMPLES, FEW, caption_report, spread
from semidavil.language.statistics import CaptionStatistics, caption_statistics
from semidavil.language.tokens import CaptionTokens
from semidavil.losses import build_loss
from semidavil.methods.base import Method, Rates
from semidavil.methods.table import METHODS
from semidavil.metrics import Evaluation, absent_classes, summarise
from semidavil.models.execution import execute_as
from semidavil.models.image_encoder import load_encoder
from semidavil.models.segmenter import Segmenter, build_segmenter
from semidavil.models.text import Language
from semidavil.models.vision import VisionEncoder
from semidavil.models.vlm import VLM, load_vlm
from semidavil.models.weights import save_weights

NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)


def prepare_street(config: Config, progress: bool) -> str:
    """Toy data, checks, decoded images, depth and captions; returns what is to be said of the captions."""
    target = BENCHMARKS[config.data.benchmark].target
    with Filling(config, progress) as filling:
        check_data(config, progress, filling)
        filling.finish()
    prepare_rare_classes(config, progress)
    if needs_depth(config):
        samples = usable_samples(open_reader(config, target), "train", cache_dir(config))
        if config.data.selection == "depth":
            selection_features(config, samples, progress)
        samples = [*samples, *samples_without_labels(config)]
        maps = disparities(config, samples, progress)
        if names.METHODS[config.training.method].disparity:
            with Filling(config, progress) as filling:
                filling.begin_disparities(samples, maps)
                filling.finish()
    if config.model.encoder:
        encoder_of(config)  # what cannot be had is said before the first run
    said = ""
    if config.model.fusion not in names.VISION_ONLY:
        vlm, folder = vlm_of(config), cache_dir(config) / "captions"
        kept = bytes_kept(folder)
        captions = load_captions(config, vlm.to(choose_device(config.runtime.device)), progress)
        load_tokens(config, captions, vlm, progress)
        examples = FEW if bytes_kept(folder) > kept else 0  # each start would show the same
        said = describe_captions(config, captions, vlm, examples=examples).report
    fingerprint(config, partial(hash_files, progress=progress))  # last: models are here by now
    return said


class StreetExperiment:
    """A `base.Experiment` of street images, scored by mIoU on the target validation set."""

    def __init__(self, config: Config, device: torch.device) -> None:
        self.config, self.device = config, device
        self.benchmark = BENCHMARKS[config.data.benchmark]
        check_data(config)
        vlm = vlm_of(config).to(device)
        captions = load_captions(config, vlm)
        self.tokens = load_tokens(config, captions, vlm)
        self.data = fingerprint(config)
        self.constants: dict[str, float] = {}
        self.notes: dict[str, str] = {}
        if rank() == 0 and config.model.fusion not in names.VISION_ONLY:
            said = describe_captions(config, captions, vlm)
            print(said.report, flush=True)  # into the run's log
            self.constants, self.notes = said.counts.numbers(), {"caption_prompt": said.prompt}
        self.method = build_method(config, vlm, len(self.benchmark.classes)).to(device)
        traits = names.METHODS[config.training.method]
        workers = workers_of(config, device)
        self.batches: Dataset = TrainBatches(
            config, captions, self.tokens, streams_of(config), traits.strong_views,
            traits.disparity, workers,
        )  # fmt: skip
        self.validation = EvalSet(config, captions, workers)
        self.validation_batches = evaluation_loader(self.validation, config, device)
        rates = self.method.rates()
        self.lr, self.grad_clip = rates.lr, config.training.grad_clip
        self.optimizer: torch.optim.Optimizer = adamw(parameter_groups(self.method, rates))

    def language(self, captions: Sequence[str]) -> Language:
        """What the networks are told of validation images with these captions, on the device."""
        return self.method.language({"language": self.tokens(captions).to(self.device)})

    def evaluate(self, networks: Mapping[str, Segmenter]) -> dict[str, Evaluation]:
        setup = self.config.runtime
        return evaluate(
            networks, self.validation_batches, self.language, len(self.benchmark.classes),
            self.config.data.crop, self.device, setup.eval_batch_size,
            self.config.training.confidence, kept_names(self.validation),
            self.config.training.temperature,
        )  # fmt: skip

    def latency(self, name: str) -> float:
        item = self.validation[0]
        image = as_floats(item["image"][None].to(self.device))
        # Once for an image, not part of it.
        languages = [self.language([text]) for text in item["captions"]]
        network, window = self.method.networks()[name].eval(), self.config.data.crop
        return milliseconds(lambda: sliding_window(network, image, languages, window), self.device)

    def summary(self, evaluation: Evaluation) -> dict[str, float]:
        classes = self.benchmark.classes
        scores = summarise(evaluation.confusion, classes, self.benchmark.subsets)
        pseudo = evaluation.pseudo_labels(classes)
        return scores | {f"pseudo/{name}": value for name, value in pseudo.items()}

    def absent(self, evaluation: Evaluation) -> list[str]:
        return absent_classes(evaluation.confusion, self.benchmark.classes)

    def save(self, name: str, evaluation: Evaluation, folder: Path) -> dict[str, Path]:
        files = {
            "weights": folder / names.WEIGHTS,
            "examples": folder / "examples.png",
            "evaluation": folder / "evaluation.npz",
            "gallery": folder / "gallery.npz",
        }
        network = self.method.networks()[name]
        shape = self.validation[0]["label"].shape
        save_weights(files["weights"], network, self.config, name, self.data, shape)
        evaluation.save(files["evaluation"])
        predictions = predictions_of(self.validation, evaluation.labels)
        save_examples(predictions, self.benchmark.palette, files["examples"])
        save_gallery(predictions, files["gallery"])
        return files


def vlm_of(config: Config) -> VLM:
    model = config.model
    return load_vlm(model.vlm, model.weights, seed=config.seed, dense=model.dense)


def encoder_of(config: Config) -> VisionEncoder | None:
    """What the network sees with, where that is not the VLM's image tower as it comes."""
    model, random = config.model, config.model.vision_init == "random"
    if model.encoder:
        weights = "none" if random else model.encoder_weights
        return load_encoder(model.encoder, weights, seed=config.seed)
    return load_vlm(model.vlm, "none", seed=config.seed).vision if random else None


def build_method(config: Config, vlm: VLM, num_classes: int) -> Method:
    """The configured method around a fresh student."""
    start = vlm
    if (encoder := encoder_of(config)) is not None:  # captions and language stay those of the VLM
        start = replace(vlm, vision=encoder.to(vlm.device))
    student = build_segmenter(config.model, start, num_classes)
    loss = build_loss(config.loss, num_classes, lambda: class_pixels(config))
    method = METHODS[config.training.method](student, loss, config)
    method.use_vlm(vlm, BENCHMARKS[config.data.benchmark].classes)
    # After the copies that methods make of what they are given.
    execute_as(config.runtime, method.networks().values())
    return method


def captioner_of(config: Config, vlm: VLM) -> Captioner:
    """What describes the run's images; of shuffled captions, who has made them."""
    by_window = config.model.caption_region == "window"
    benchmark = BENCHMARKS[config.data.benchmark]
    setting = Setting(
        vlm,
        benchmark.classes,
        size_of_windows(vlm, config.data.crop) if by_window else None,
        vlm.device,
        cache_dir(config) / "captions" / HASHES,
        config.model.caption_prompt,
        benchmark.words,
        benchmark.scene,
    )
    return build_captioner(inner_captioner(captions_of(config)), setting)


def captions_of(config: Config) -> str:
    """The captions that the run reads, by name."""
    return "none" if config.model.fusion in names.VISION_ONLY else config.model.captions


def prompt_of(config: Config, vlm: VLM) -> str:
    """What the run's captioner is asked; empty where it is not."""
    _, _, model = inner_captioner(captions_of(config)).partition(":")
    return captioner_of(config, vlm).prompt if model else ""


def load_captions(
    config: Config, vlm: VLM, progress: bool = False, groups: Groups | None = None
) -> dict[Path, Caption]:
    """The caption of every image that the run may draw, from the cache where it is there.

    Args:
        groups: the images to describe; all of the run's if None.
    """
    name, benchmark = captions_of(config), BENCHMARKS[config.data.benchmark]
    folder, groups = cache_dir(config) / "captions", groups or all_samples(config)
    if name == ORACLE:
        return oracle_captions(config, groups, folder, progress)
    captioner = captioner_of(config, vlm)
    captions: dict[Path, Caption] = {}
    for dataset in benchmark.datasets:
        paths = [s.image for (of, _), samples in groups.items() if of == dataset for s in samples]
        captions |= caption_images(
            paths,
            captioner,
            folder,
            windows=windows_of(config, dataset),
            progress=progress,
            of=title_of(dataset),
        )
    if not name.startswith(SHUFFLED):
        return captions
    return shuffle_captions(captions, [[s.image for s in samples] for samples in groups.values()])


def load_tokens(
    config: Config, captions: Mapping[Path, Caption], vlm: VLM, progress: bool = False
) -> CaptionTokens:
    """The token features of all that the run may say of an image or of its mirror image."""
    said = {text for caption in captions.values() for text in caption.texts}
    texts = sorted(said | {flip_caption(text) for text in said})
    return CaptionTokens(vlm.text, texts, cache_dir(config) / "tokens", progress)


class Described(NamedTuple):
    """What a run says of its captions, their counts, and what their captioner was asked."""

    report: str
    counts: CaptionStatistics
    prompt: str


def describe_captions(
    config: Config,
    captions: Mapping[Path, Caption],
    vlm: VLM,
    streams: Mapping[str, Sequence[Path]] | None = None,
    examples: int = EXAMPLES,
) -> Described:
    """Who has made the captions, what is wrong with them, and some of them.

    Args:
        streams: the captioned images; all of the run's if None.
    """
    counts = caption_statistics((t for c in captions.values() for t in c.texts), vlm.text)
    prompt, streams = prompt_of(config, vlm), streams or captioned_streams(config)
    report = caption_report(config, counts, captions, streams, prompt, examples)
    return Described(report, counts, prompt)


def captioned_streams(config: Config) -> dict[str, list[Path]]:
    """The images of a run whose captions it reads, by stream; those that it is scored on come last."""
    drawn = streams_of(config)
    streams = {name: s for name, s in train_samples(config).items() if name in drawn}
    streams["validation"] = all_samples(config)[BENCHMARKS[config.data.benchmark].target, "val"]
    return {name: [sample.image for sample in samples] for name, samples in streams.items()}


def try_captions(config: Config, device: torch.device, count: int) -> str:
    """Captions `count` images of the run's streams, and says of them what a run says of all.

    Raises:
        DataError, VLMError, CaptionError: something is missing or broken; the message names it.
    """
    config = config.replace({"model.fusion": "dlg"})  # one that reads captions
    vlm = vlm_of(config).to(device)
    streams, groups = spread(captioned_streams(config), count), all_samples(config)
    chosen = {path for paths in streams.values() for path in paths}
    some = {key: [s for s in samples if s.image in chosen] for key, samples in groups.items()}
    captions = load_captions(config, vlm, progress=True, groups=some)
    return describe_captions(config, captions, vlm, streams).report


def parameter_groups(method: Method, rates: Rates) -> list[dict[str, Any]]:
    """AdamW's groups: the vision encoder at a rate of its own, and all else that `method` trains.

    `scale` is a group's share of the learning rate. Where norms do not decay they are groups of their own.
    """
    vision = method.student.vision
    if rates.backbone_factor == 0:
        vision.requires_grad_(False)
    backbone = {id(p) for p in vision.parameters()}
    norms = {id(p) for m in method.modules() if isinstance(m, NORMS) for p in m.parameters()}
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = defaultdict(list)
    for parameter in method.parameters():
        if parameter.requires_grad:
            decays = rates.decay_norms or id(parameter) not in norms
            groups[id(parameter) in backbone, decays].append(parameter)
    return [
        {
            "params": parameters,
            "lr": rates.lr * (scale := rates.backbone_factor if in_backbone else 1.0),
            "scale": scale,
            "weight_decay": rates.weight_decay if decays else 0.0,
        }
        for (in_backbone, decays), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]
