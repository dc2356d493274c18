"""One frozen, validated `Config` is one run.

    config = preset("toy", {"data.budget": "200", "model.fusion": "vlga"})
    config.key()                              # identity: equal keys mean equal results
    Config.from_params(config.to_params())    # lossless, through a flat dict of strings

The defaults of every field are the paper's; a preset names only what it changes. `Config.key()`
hashes what differs from the defaults, so adding an option leaves the keys of finished runs as they
are. Changing a default, or what the code computes for the same Config, must raise
`RESULTS_VERSION`: results before and after are then never taken for one another.
"""

import difflib
import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cache
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from semidavil.benchmarks import BENCHMARKS
from semidavil.names import CAPTION_KINDS, FUSIONS, LOSSES, METHODS, ORACLE, SHUFFLED

RESULTS_VERSION = 3

Size = tuple[Annotated[int, Field(ge=8)], Annotated[int, Field(ge=8)]]
Side = Annotated[int, Field(ge=32, multiple_of=16)]
Size3 = tuple[Side, Side, Side]
Fraction = Annotated[float, Field(gt=0, le=1)]
Probability = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Dropout = Annotated[float, Field(ge=0, lt=1)]


class ConfigError(ValueError):
    """A field that does not exist or a value that is not allowed; the message lists what is."""


def _one_of(value: str, names: Collection[str], what: str) -> str:
    if value not in names:
        raise ValueError(f"unknown {what} {value!r}: choose from {', '.join(names)}")
    return value


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class Data(Section):
    """Which images a run sees. Sizes are (height, width) in pixels."""

    benchmark: str = "gta5-cityscapes"
    budget: Annotated[int, Field(ge=0)] = 100  # labelled target images
    toy: bool = False  # generated scenes instead of the data sets under `runtime.data_root`
    source_size: Size = (760, 1280)
    target_size: Size = (512, 1024)
    crop: Size = (512, 512)
    selection: Literal["random", "depth"] = "random"  # which target images are labelled
    depth: str = "disparity"  # where depth comes from: Cityscapes' folder, or hf:NAME

    @field_validator("benchmark")
    @classmethod
    def _known_benchmark(cls, value: str) -> str:
        return _one_of(value, BENCHMARKS, "benchmark")


class Model(Section):
    """Vision-language model, fusion of image and caption, decoder."""

    vlm: str = "ViT-B-16"  # an open_clip architecture, or "toy" for the bundled one
    weights: str = "openai"  # an open_clip tag or a local file; the toy CLIP brings its own
    vision_init: Literal["vlm", "random"] = "vlm"  # what the vision encoder starts from
    fusion: str = "dlg"
    fusion_dim: Count = 256  # c in eq. 2-3
    decoder_dim: Annotated[int, Field(ge=8)] = 256  # its finest features have a quarter of it
    captions: str = "blip2:Salesforce/blip2-opt-2.7b"
    caption_region: Literal["image", "window"] = "image"  # what one speaks of; windows: crop-sized

    @field_validator("captions")
    @classmethod
    def _known_captioner(cls, value: str) -> str:
        _one_of(value.removeprefix(SHUFFLED).partition(":")[0], CAPTION_KINDS, "captioner")
        return value

    @field_validator("fusion")
    @classmethod
    def _known_fusion(cls, value: str) -> str:
        return _one_of(value, FUSIONS, "fusion")


class Loss(Section):
    """The supervised loss and its hyper-parameters."""

    name: str = "dyce"
    hard_fraction: Fraction = 0.2  # DyCE's h
    omega: Probability = 0.5  # DyCE's w
    focal_gamma: NonNegative = 2.0
    dce_alpha: Positive = 1.0
    dce_beta: NonNegative = 1.0
    dfl_alpha: NonNegative = 1.0
    dfl_beta: NonNegative = 1.0
    dfl_gamma: NonNegative = 1.0
    dfl_rho: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 1.0

    @field_validator("name")
    @classmethod
    def _known_loss(cls, value: str) -> str:
        return _one_of(value, LOSSES, "loss")


class Training(Section):
    """What a training step is (its method), and the optimiser.

    The authors' configuration says AdamW, learning rate 1e-4, weight decay 2e-4 and a decay factor of 0.9,
    which is read as the polynomial decay's power. In their released code the rate is constant, and only
    fusion and decoder are trained (`backbone_lr_factor` 0).
    """

    method: str = "semidavil"
    steps: Count = 40_000
    batch_size: Count = 4  # of each stream: source, labelled target, unlabelled target
    lr: Positive = 1e-4
    backbone_lr_factor: NonNegative = 1.0  # the vision encoder learns at lr * this
    weight_decay: NonNegative = 2e-4
    poly_power: NonNegative = 0.9
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    grad_clip: NonNegative = 0.0  # largest gradient norm; 0 switches clipping off
    amp: bool = True  # bfloat16 autocast where the device has it

    confidence: Probability = 0.95  # Th: pseudo-labels below it are not learnt from
    temperature: Positive = 1.0  # of the softmax that this confidence is read from
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.999
    consistency_weight: NonNegative = 1.0  # lambda; SemiDAViL at 0 draws no unlabelled image
    # "matched": lambda grows as the supervised loss's gradient does beside cross-entropy's.
    consistency_scale: Literal["fixed", "matched"] = "fixed"
    consistency_over: Literal["all", "confident"] = "all"  # pixels that L_CT is divided by
    supervised: Literal["per_stream", "joint"] = "per_stream"  # L_sup of source and labelled target
    cutmix: Probability = 0.5  # share of strong views that get a pasted box

    @field_validator("method")
    @classmethod
    def _known_method(cls, value: str) -> str:
        return _one_of(value, METHODS, "method")


class Rivals(Section):
    """Settings of single rival methods, named after them; the defaults are their papers'."""

    unimatch_dropout: Dropout = 0.5  # channels of perturbed features
    semivl_guidance: NonNegative = 0.1  # first weight of the frozen CLIP's labels; falls to 0
    semivl_confidence: Probability = 0.9  # the frozen CLIP's labels below it are not learnt from
    semivl_lr: Positive = 5e-5  # and the next three: the authors' settings for Cityscapes
    semivl_backbone_lr_factor: NonNegative = 0.1
    semivl_head_lr_factor: Positive = 10.0  # of fusion and decoder
    semivl_weight_decay: NonNegative = 0.01
    sdepth_ema: Annotated[float, Field(ge=0, lt=1)] = 0.99
    sdepth_weight: NonNegative = 1.0  # of the depth head's loss
    sdepth_margin: NonNegative = 0.03  # DepthMix: how much nearer wins, in units of mean disparity
    sdepth_confidence: Probability = 0.968  # the share of pixels above it weighs pseudo-labels


class Volumes(Section):
    """CT volumes (`synapse`): network, patches and the settings of UA-MT and URPC.

    SGD with momentum 0.9 and polynomial decay, without clipping, and the ramp-up, as in SSL4MIS's code of
    both; `training.steps` and `poly_power` are shared with the images. Dropout is that of V-Net in UA-MT's
    code and of `unet_3D_dv_semi` in URPC's: it drops channels.
    """

    # Which scans train and which of them are labelled: drawn by the seed, or a publication's lists.
    split: Literal["seeded", "genericssl", "dhc"] = "seeded"
    # Of a NIfTI scan's voxels (z, y, x) after resampling, in millimetres: Swin UNETR's for these scans.
    spacing: tuple[Positive, Positive, Positive] = (2.0, 1.5, 1.5)
    optimizer: Literal["sgd", "adamw"] = "sgd"  # AdamW learns in far fewer steps
    batch_size: Count = 2  # labelled, and as many unlabelled volumes
    patch: Size3 = (96, 96, 96)  # voxels; divisible by 16
    width: Count = 16  # channels of the first level; they double on every level up to 16 times
    lr: Positive = 0.01
    weight_decay: NonNegative = 1e-4
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.99  # of UA-MT's teacher
    weight: NonNegative = 0.1  # of the unsupervised term, once ramped up
    rampup_epochs: Count = 200  # an epoch has `epoch_steps` steps
    epoch_steps: Count = 150
    uamt_passes: Count = 8  # noisy passes of the teacher that its uncertainty comes from
    uamt_noise: NonNegative = 0.1
    uamt_dropout: Dropout = 0.5  # behind the bottleneck and before the last layer
    # Behind each level of the decoder, the coarsest first.
    urpc_dropout: tuple[Dropout, Dropout, Dropout, Dropout] = (0.5, 0.3, 0.2, 0.1)


class Runtime(Section):
    """Where and how a run executes. Nothing here changes its result, so none of it is in the key."""

    data_root: str = ""  # a folder per data set; empty: the generated toy data's own folder
    cache_dir: str = ""  # toy data and captions; empty: `data/` in the current directory
    device: str = "auto"
    num_workers: Annotated[int, Field(ge=0)] = 0
    threads: Annotated[int, Field(ge=0)] = 0  # CPU threads of torch; 0 leaves its own choice
    world_size: Count = 1  # processes that share every batch, each on a GPU where there are some
    eval_batch_size: Count = 8
    eval_all: bool = True  # the student beside its teacher, or the reported network alone
    eval_every: Annotated[int, Field(ge=0)] = 4_000  # steps; 0 evaluates at the end only
    checkpoint_every: Annotated[int, Field(ge=0)] = 1_000  # steps; 0 keeps the last step only


class Config(Section):
    """One run. Build it with `preset`; change it with `replace`."""

    data: Data = Field(default_factory=Data)
    model: Model = Field(default_factory=Model)
    loss: Loss = Field(default_factory=Loss)
    training: Training = Field(default_factory=Training)
    rivals: Rivals = Field(default_factory=Rivals)
    volumes: Volumes = Field(default_factory=Volumes)
    runtime: Runtime = Field(default_factory=Runtime)
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name in ("source_size", "target_size"):
            size = getattr(self.data, name)
            if self.data.crop[0] > size[0] or self.data.crop[1] > size[1]:
                raise ValueError(
                    f"data.crop {self.data.crop} does not fit into data.{name} {size}: "
                    "make the crop smaller or the images larger"
                )
        method, benchmark = METHODS[self.training.method], BENCHMARKS[self.data.benchmark]
        if method.kind != benchmark.kind:
            fitting = ", ".join(name for name, m in METHODS.items() if m.kind == benchmark.kind)
            raise ValueError(
                f"{self.training.method} trains on {method.kind} and {self.data.benchmark} holds "
                f"{benchmark.kind}: choose training.method from {fitting}"
            )
        streams = method.streams
        has_source = "source" in streams and benchmark.source is not None
        has_labelled = "labelled" in streams and self.data.budget > 0
        if not (has_source or has_labelled):
            raise ValueError(
                f"{self.training.method} has nothing to learn from on {self.data.benchmark} at "
                f"budget {self.data.budget}: it draws labels from {' and '.join(sorted(streams))}"
            )
        world_size, batch_size = self.runtime.world_size, self.training.batch_size
        if world_size > 1 and not method.data_parallel:
            able = ", ".join(name for name, m in METHODS.items() if m.data_parallel)
            raise ValueError(
                f"{self.training.method} trains in one process, not in {world_size}: set "
                f"runtime.world_size=1 (--gpus-per-trial 1). Several can share {able}"
            )
        if batch_size % world_size:
            raise ValueError(
                f"{world_size} processes cannot share batches of {batch_size} images equally: change "
                "runtime.world_size (--gpus-per-trial) or training.batch_size"
            )
        if self.training.warmup_steps >= self.training.steps:
            raise ValueError(
                f"training.warmup_steps ({self.training.warmup_steps}) must be fewer than "
                f"training.steps ({self.training.steps})"
            )
        return self

    def key(self) -> str:
        """The run's identity: 16 hexadecimal digits, the same on every machine."""
        defaults = _defaults()
        content = {path: value for path, value in self.settings() if value != defaults[path]}
        content["version"] = RESULTS_VERSION
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_params(self) -> dict[str, str]:
        """Every field as a flat dict of strings (`{"training.lr": "0.0001", ...}`)."""
        return {
            path: value if isinstance(value, str) else json.dumps(value)
            for path, value in _leaves(self.model_dump(mode="json"))
        }

    @classmethod
    def from_params(cls, params: Mapping[str, str]) -> Self:
        """The Config that `to_params` was called on; fields missing from `params` get defaults."""
        return cls._build(cls(), params)

    def replace(self, changes: Mapping[str, Any]) -> Self:
        """A copy with some fields changed, by dotted name; values may be text (`"3e-4"`).

        Raises:
            ConfigError: an unknown field or a value that is not allowed.
        """
        return self._build(self, changes)

    def differences(self, other: "Config") -> dict[str, tuple[Any, Any]]:
        """Fields in which two Configs differ, runtime left out: `{path: (self's, other's)}`."""
        theirs = dict(other.settings())
        return {
            path: (mine, theirs[path]) for path, mine in self.settings() if mine != theirs[path]
        }

    def settings(self) -> Iterator[tuple[str, Any]]:
        """Path and value of every field that changes a run's result."""
        return _leaves(self.model_dump(mode="json", exclude={"runtime"}))

    @classmethod
    def _build(cls, base: "Config", changes: Mapping[str, Any]) -> Self:
        tree, changed = base.model_dump(mode="json"), set()
        fields = dict(_leaves(tree))
        for path, value in changes.items():
            if path not in fields:
                close = difflib.get_close_matches(path, fields, n=3, cutoff=0.4)
                hint = f"did you mean {' or '.join(close)}?" if close else ""
                raise ConfigError(
                    f"unknown setting {path!r}; {hint} Settings: {', '.join(sorted(fields))}"
                )
            section, _, name = path.rpartition(".")
            target = tree[section] if section else tree
            target[name] = _parse(value, fields[path], path)
            changed.add(section or name)
        # Sections that stay are shared: thousands of Configs of a grid are mostly the same.
        parts = {name: tree[name] if name in changed else getattr(base, name) for name in tree}
        try:
            return cls.model_validate(parts)
        except ValidationError as error:
            raise ConfigError(_explain(error)) from None


@cache
def _defaults() -> dict[str, Any]:
    """What a Config that changes nothing holds, by path."""
    return dict(Config().settings())


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _parse(value: Any, current: Any, path: str) -> Any:
    """Text to the type that the field holds; `512x1024` and `[512, 1024]` are both sizes."""
    if not isinstance(value, str) or isinstance(current, str):
        return value
    text = value.strip()
    if isinstance(current, list) and "x" in text:
        text = f"[{text.replace('x', ',')}]"
    try:
        return json.loads(text.lower() if text in ("True", "False") else text)
    except json.JSONDecodeError:
        kind = "a size such as 512x1024" if isinstance(current, list) else f"like {current!r}"
        raise ConfigError(f"{path}={value!r} cannot be read: expected {kind}") from None


def _explain(error: ValidationError) -> str:
    lines = []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"]) or "config"
        lines.append(
            f"{where}: {item['msg'].removeprefix('Value error, ')} (got {item['input']!r})"
            if item["type"] != "value_error"
            else f"{where}: {item['msg'].removeprefix('Value error, ')}"
        )
    return "; ".join(lines)


_BUNDLED = {"model.vlm": "toy", "model.weights": "bundled", "model.captions": "positions"}
# Generated scenes and the bundled CLIP: half a minute a run on one CPU core.
_TOY: dict[str, Any] = {
    "data.toy": True,
    "data.source_size": [64, 128],
    "data.target_size": [64, 128],
    "data.crop": [64, 64],
    **_BUNDLED,
    "model.fusion_dim": 64,
    "model.decoder_dim": 64,
    "training.steps": 150,
    "training.lr": 3e-3,
    "training.backbone_lr_factor": 0.3,
    "training.ema": 0.95,
    "rivals.sdepth_ema": 0.95,  # this and the next three: as the rest of the preset, which is short
    "rivals.semivl_lr": 3e-3,
    "rivals.semivl_backbone_lr_factor": 0.3,
    "rivals.semivl_head_lr_factor": 1.0,
    "training.confidence": 0.6,
    "training.consistency_weight": 0.5,
    "loss.hard_fraction": 0.5,
    "training.grad_clip": 1.0,
    "training.warmup_steps": 10,
    "volumes.patch": [32, 32, 32],
    "volumes.width": 8,
    "volumes.optimizer": "adamw",
    "volumes.lr": 0.01,
    "volumes.rampup_epochs": 40,
    "volumes.epoch_steps": 4,
    "volumes.uamt_passes": 2,
    "volumes.uamt_dropout": 0.1,  # half of 8 channels are too few to tell 14 classes apart
    "runtime.eval_every": 0,  # an evaluation costs as much as thirty steps
    "runtime.checkpoint_every": 50,
    "runtime.eval_batch_size": 50,
    "runtime.eval_all": False,
    "runtime.threads": 1,
}

PRESETS: dict[str, dict[str, Any]] = {
    # The paper's scale: CLIP ViT-B/16, BLIP-2, 512x512 crops, 40,000 steps. Needs data and a GPU.
    "paper": {},
    # The same code on small images with the bundled CLIP: one modest GPU, or a patient CPU.
    "small": {
        "data.source_size": [180, 320],
        "data.target_size": [180, 240],
        "data.crop": [128, 128],
        **_BUNDLED,
        "model.fusion_dim": 64,
        "model.decoder_dim": 64,
        "training.steps": 1_000,
        "training.lr": 5e-4,
        "rivals.semivl_lr": 5e-4,  # this and the next two: of a CLIP of 0.6 million parameters
        "rivals.semivl_backbone_lr_factor": 1.0,
        "rivals.semivl_head_lr_factor": 1.0,
        "training.ema": 0.99,
        "training.confidence": 0.9,
        "training.grad_clip": 1.0,
        "training.warmup_steps": 20,
        "runtime.eval_every": 250,
        "runtime.checkpoint_every": 250,
    },
    "toy": _TOY,
    # As long as a hundred labels take to be over-fitted, so that methods differ: five minutes a run.
    "toy-long": {
        **_TOY,
        "training.steps": 2_000,
        "training.ema": 0.99,
        "rivals.sdepth_ema": 0.99,
        "training.confidence": 0.7,
        "training.consistency_weight": 1.0,
        "runtime.eval_every": 500,
        "runtime.checkpoint_every": 250,
    },
}


def preset(name: str, changes: Mapping[str, Any] | None = None) -> Config:
    """The preset's Config with `changes` by dotted name (`{"training.lr": "3e-4"}`).

    Raises:
        ConfigError: an unknown preset, an unknown field, or a value that is not allowed.
    """
    if name not in PRESETS:
        raise ConfigError(f"unknown preset {name!r}: choose from {', '.join(PRESETS)}")
    return Config().replace({**PRESETS[name], **(changes or {})})


PresetName = Literal["toy", "toy-long", "small", "paper"]


def parse_settings(settings: Sequence[str]) -> dict[str, str]:
    """`["training.lr=3e-4"]` to `{"training.lr": "3e-4"}`.

    Raises:
        ConfigError: an entry without `=`.
    """
    pairs = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            raise ConfigError(f"--set {setting!r} cannot be read: write NAME=VALUE")
        pairs[name.strip()] = value.strip()
    return pairs


def refuse_oracle(config: Config) -> None:
    """Raises ConfigError for a Config that would look at labels it must not see."""
    if config.model.captions == ORACLE:
        raise ConfigError(
            "model.captions=oracle describes the ground truth, of validation images too: it is an "
            "upper bound for the ablation `--grid captions` and refused everywhere else"
        )


def default_preset(data_root: str) -> str:
    """`toy` where no data set is configured, `small` where one is."""
    return "small" if data_root else "toy"
