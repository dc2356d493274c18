"""A finished run as a folder for a hub: weights, settings, and the card that says what they are worth.

The card is the folder's README.md, where Hugging Face's hub looks for it, with the head that it reads.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from safetensors.torch import load_file, save_file

from semidavil.benchmarks import BENCHMARKS, Benchmark
from semidavil.config import Config
from semidavil.data.described import title_of
from semidavil.data.streams import streams_of
from semidavil.experiments.predictor import PredictorError, read_about
from semidavil.marks import MEANING, TOY, mark
from semidavil.metrics import absent_classes, summarise
from semidavil.names import ORACLE, VISION_ONLY, WEIGHTS, captions_name
from semidavil.plugin_files import PLUGINS
from semidavil.plugins import in_use

CARD, SETTINGS, EVALUATION, EXAMPLES = "README.md", "config.json", "evaluation.npz", "examples.png"
LICENCE_TOLD = "other"  # where nobody has said one
# Places of the machine that trained it, which are nobody's business.
PLACES = {"runtime.data_root": "", "runtime.cache_dir": ""}


@dataclass(frozen=True)
class FinishedRun:
    """What the files of a finished run say of it.

    Attributes:
        weights: the file; `evaluation.npz` and `examples.png` may be beside it.
    """

    weights: Path
    config: Config
    about: Mapping[str, str]

    @classmethod
    def read(cls, weights: Path) -> "FinishedRun":
        """
        Raises:
            PredictorError: it is none, or one of CT volumes.
        """
        run = cls(weights, *read_about(weights))
        if run.benchmark.kind != "images":
            raise PredictorError(f"{weights} segments volumes ({run.benchmark.name}), not pictures")
        return run

    @property
    def benchmark(self) -> Benchmark:
        return BENCHMARKS[self.config.data.benchmark]

    @cached_property
    def confusion(self) -> np.ndarray | None:
        """(C, C) of its validation images, rows = truth; None where its evaluation is not beside it."""
        path = self.weights.with_name(EVALUATION)
        if not path.is_file():
            return None
        with np.load(path, allow_pickle=False) as file:
            return file["per_image"].astype(np.int64).sum(0)

    @cached_property
    def scores(self) -> dict[str, float]:
        """As `metrics.summarise`; empty where they are not known."""
        if self.confusion is None:
            return {}
        return summarise(self.confusion, self.benchmark.classes, self.benchmark.subsets)

    def of_other_seeds(self) -> "list[FinishedRun]":
        """Runs beside it that differ from it in their seed alone, one a seed, by seed; it is among them."""
        found = {self.config.seed: self}
        for weights in _neighbours(self.weights):
            try:
                other = FinishedRun.read(weights)
            except PredictorError:  # of another version
                continue
            same = other.config.replace({"seed": self.config.seed}).key() == self.config.key()
            if same and other.scores:
                found.setdefault(other.config.seed, other)
        return [found[seed] for seed in sorted(found)]


def _neighbours(weights: Path) -> Iterator[Path]:
    """Weights of other runs where folders lie as MLflow's artifacts do, or as checkpoints."""
    folder = weights.absolute().parent
    if folder.name == "artifacts":
        yield from sorted(folder.parents[1].glob(f"*/artifacts/{WEIGHTS}"))
    else:
        yield from sorted(folder.parent.glob(f"*/{WEIGHTS}"))


def publish(run: FinishedRun, out: Path, name: str, licence: str = "") -> list[str]:
    """Writes weights, settings and card into `out`; returns what whoever loads them elsewhere will miss.

    Args:
        name: the model's on the hub.
        licence: of the weights, by a hub's identifier such as "apache-2.0"; empty: the card says that nobody
            has stated one.
    """
    out.mkdir(parents=True, exist_ok=True)
    clean = run.config.replace(PLACES)
    about = {**run.about, "config": json.dumps(clean.to_params())}
    save_file(load_file(run.weights), out / WEIGHTS, metadata=about)
    (out / WEIGHTS).chmod(0o644)  # it is written for its owner alone
    params = json.dumps(clean.to_params(), indent=2, sort_keys=True)
    (out / SETTINGS).write_text(params + "\n")
    for plugin in in_use(run.config.plugins):
        plugin.write(out / PLUGINS)
    examples = run.weights.with_name(EXAMPLES)
    if examples.is_file():
        shutil.copyfile(examples, out / EXAMPLES)
    missing = local_places(run.config)
    (out / CARD).write_text(str(card_of(run, name, licence, missing)), encoding="utf-8")
    return missing


def local_places(config: Config) -> list[str]:
    """Settings that name files of this machine which others need, as `model.weights=/home/ann/clip.pt`."""
    model = config.model
    named = {
        "model.vlm": model.vlm, "model.weights": model.weights,
        "model.captions": model.captions.partition(":")[2],
    }  # fmt: skip
    return [
        f"{name}={value}"
        for name, value in named.items()
        if value and Path(value.removeprefix("local-dir:")).expanduser().exists()
    ]


def card_of(run: FinishedRun, name: str, licence: str, missing: list[str]) -> ModelCard:
    """The card: a head in YAML and Markdown below it.

    Args:
        missing: see `local_places`.
    """
    config, benchmark = run.config, run.benchmark
    marked = mark(benchmark.name, config.data.toy, config.model.vlm)
    results = [
        EvalResult(
            task_type="image-segmentation", dataset_type=title_of(benchmark.target),
            dataset_name=f"{'generated, as ' * (marked == TOY)}{title_of(benchmark.target)}",
            dataset_split="val", metric_type=kind, metric_name=title, metric_value=round(value, 2),
        )
        for kind, title, value in (
            ("mean_iou", "mIoU (%)", run.scores.get("miou")),
            ("accuracy", "pixel accuracy (%)", run.scores.get("pixel_accuracy")),
        )
        if value is not None
    ]  # fmt: skip
    tags = ["semantic-segmentation", "domain-adaptation", "semi-supervised", "semidavil", *(
        [marked.replace(" ", "-")] if marked else []
    )]  # fmt: skip
    head = ModelCardData(
        license=licence or LICENCE_TOLD, library_name="semidavil", pipeline_tag="image-segmentation",
        tags=tags, datasets=None if config.data.toy else [title_of(d) for d in benchmark.datasets],
        metrics=["mean_iou", "accuracy"], model_name=name, eval_results=results or None,
    )  # fmt: skip
    body = "\n\n".join(_paragraphs(run, name, licence, missing, marked))
    return ModelCard(f"---\n{head.to_yaml()}\n---\n\n{body}\n")


def _paragraphs(
    run: FinishedRun, name: str, licence: str, missing: list[str], marked: str
) -> Iterator[str]:
    config, benchmark = run.config, run.benchmark
    yield f"# {name}"
    if marked:
        yield f"> **{marked} result**: {MEANING[marked]}."
    yield (
        f"Semantic segmentation of street scenes into {len(benchmark.classes)} classes ({benchmark.name}), "
        f"trained by `{config.training.method}` on {_streams(config)}, with loss `{config.loss.name}` and "
        f"attention `{config.model.fusion}`, for {config.training.steps:,} steps. The network is the run's "
        f"{run.about['network']}."
    )
    if run.weights.with_name(EXAMPLES).is_file():
        yield f"![Validation images, their labels, and what the model predicts]({EXAMPLES})"
    yield from _results(run)
    yield "## How to load it"
    yield (
        "```\npython -m semidavil predict THIS_FOLDER pictures/ --out seen\n"
        "python -m semidavil export THIS_FOLDER --to onnx\n```\n\n"
        "or, in Python,\n\n```python\nfrom pathlib import Path\n\n"
        "from semidavil.data.images import read_upright\n"
        "from semidavil.experiments.predictor import Predictor\n\n"
        f'predictor = Predictor.load(Path("{WEIGHTS}"), "auto")\n'
        'seen = predictor(read_upright(Path("street.jpg")))\nseen.labels, seen.confidence\n```'
    )
    yield from _language(config, missing)
    yield "## Data"
    yield _data(run)
    yield "## Licence"
    stated = f"{licence}." if licence else "Nobody has stated one for these weights."
    yield (
        f"{stated} Data sets and the model that training began with restrict what may be done with what is "
        "made of them: read their licences."
    )
    yield "## Limits"
    yield _limits(run, marked)


def _streams(config: Config) -> str:
    """What the method has learned from."""
    benchmark, streams = BENCHMARKS[config.data.benchmark], streams_of(config)
    labelled = "labelled" in streams and config.data.budget > 0
    target, parts = title_of(benchmark.target), []
    if "source" in streams and benchmark.source:
        parts.append(f"labelled images of {title_of(benchmark.source)}")
    if labelled:
        parts.append(f"{config.data.budget} labelled images of {target}")
    if "unlabelled" in streams:
        parts.append(f"unlabelled images of {target}")
    return ", ".join(parts[:-1]) + " and " * (len(parts) > 1) + parts[-1]


def _results(run: FinishedRun) -> Iterator[str]:
    benchmark = run.benchmark
    yield "## Results"
    if run.confusion is None:
        yield "Not known: the run's evaluation was not beside its weights."
        return
    seeds = run.of_other_seeds()
    values = np.array([other.scores["miou"] for other in seeds])
    text = (
        f"mIoU {run.scores['miou']:.2f} and pixel accuracy {run.scores['pixel_accuracy']:.2f} per cent on "
        f"the validation images of {title_of(benchmark.target)}, at {_size(run.config.data.target_size)} "
        f"pixels, after the last step; seed {run.config.seed}. "
    )
    if len(seeds) > 1:
        numbers = ", ".join(str(other.config.seed) for other in seeds)
        text += (
            f"Over the seeds {numbers}, mIoU {values.mean():.2f} ± {values.std(ddof=1):.2f} (standard "
            "deviation)."
        )
    else:
        text += "Other seeds were not beside it: how much it varies is not known."
    yield text
    rows = [
        f"| {name} | {run.scores[f'iou/{name}']:.2f} |"
        for name in benchmark.classes
        if f"iou/{name}" in run.scores
    ]
    yield "\n".join(["| class | IoU (%) |", "|---|---:|", *rows])
    if absent := absent_classes(run.confusion, benchmark.classes):
        yield f"Neither labelled nor predicted there, and not in the mean: {', '.join(absent)}."


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


def _language(config: Config, missing: list[str]) -> Iterator[str]:
    model = config.model
    yield "## Language"
    vlm = "the package's miniature CLIP" if model.vlm == "toy" else f"{model.vlm} ({model.weights})"
    encoder = model.encoder or vlm
    if model.fusion in VISION_ONLY:
        yield f"It reads no captions. Its image encoder began as {encoder}, and is in the weights."
        return
    said = captions_name(model.captions, model.caption_region, model.caption_prompt)
    text = (
        f"It reads a caption of each picture. In training and evaluation they came from `{said}`; they are "
        f"encoded by the text tower of {vlm}, which is not in the weights and is loaded beside them. Its "
        f"image encoder began as {encoder}."
    )
    if model.captions == ORACLE:
        text += " These captions were made from labels: its scores are a bound, and a new picture needs one."
    if missing:
        text += (
            " These are files of the machine that trained it, without which it cannot be used: "
            f"{', '.join(missing)}."
        )
    yield text


def _data(run: FinishedRun) -> str:
    known = run.about.get("data", "")
    if not known:
        return "Their fingerprint is not in these weights."
    # Without the hash of a description, which is another one than the benchmark's.
    for dataset in run.benchmark.datasets:
        known = known.replace(f"{dataset}/", f"{title_of(dataset)}/")
    rows = [f"| {n} | `{v}` |" for n, v in (word.split("=", 1) for word in known.split())]
    head = (
        "What it was trained and scored on, by a hash of the files that counts names and contents:"
    )
    return "\n".join([head, "", "| part | hash |", "|---|---|", *rows])


def _limits(run: FinishedRun, marked: str) -> str:
    config = run.config
    lines = [
        f"It knows {len(run.benchmark.classes)} classes and gives one of them to every pixel, also of what "
        "is none of them.",
        f"A picture is looked at with as many pixels as {_size(config.data.target_size)} has, in windows of "
        f"{_size(config.data.crop)}: what is smaller is not seen.",
        "Its confidence is the network's own probability, which was not calibrated.",
        "It was measured on one data set of one camera. It is no part of anything that steers a vehicle.",
    ]
    if marked:
        lines.insert(0, f"{marked}: {MEANING[marked]}.")
    return "\n".join(f"- {line}" for line in lines)
