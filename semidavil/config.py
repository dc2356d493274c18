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
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from semidavil.benchmarks import BENCHMARKS
from semidavil.names import METHODS, ORACLE, SHUFFLED
from semidavil.place import command
from semidavil.plugins import missing, provider
from semidavil.settings import Data, Loss, Model, Rivals, Runtime, Section, Training, Volumes

RESULTS_VERSION = 4


class ConfigError(ValueError):
    """A field that does not exist or a value that is not allowed; the message lists what is."""


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
    """Fixes the whole run: which images are labelled, how networks begin, each step's draws."""
    # Ids of the plugins that the run uses something of, see `semidavil.plugins`. They follow from the rest.
    plugins: tuple[str, ...] = ()

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
        if self.data.sampling == "rare" and benchmark.kind == "volumes":
            raise ValueError("data.sampling=rare draws images by their classes, and no volumes")
        streams = method.streams
        has_source = "source" in streams and benchmark.source is not None
        has_labelled = "labelled" in streams and self.data.budget > 0
        if not (has_source or has_labelled):
            raise ValueError(
                f"{self.training.method} has nothing to learn from on {self.data.benchmark} with "
                f"{self.data.budget} labelled images: it draws labels from {' and '.join(sorted(streams))}"
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
        """Every field as a flat dict of strings (`{"training.lr": "0.0001", ...}`).

        Those of users' own data and plugins only where there are any: MLflow takes 100 in one call.
        """
        return {
            path: value if isinstance(value, str) else json.dumps(value)
            for path, value in _leaves(self.model_dump(mode="json"))
            if value or path not in _OF_USERS
        }

    @classmethod
    def from_params(cls, params: Mapping[str, str]) -> Self:
        """The Config that `to_params` was called on; fields missing from `params` get defaults.

        Raises:
            ConfigError: what is not known here, or a plugin that is not in use.
        """
        stated = json.loads(params.get("plugins", "[]"))
        if why := missing(stated):
            raise ConfigError(f"this run cannot be made again as it is: {why}")
        config = cls._build(cls(), {path: v for path, v in params.items() if path != "plugins"})
        if list(config.plugins) != stated:
            raise ConfigError(
                f"this run uses {', '.join(stated) or 'no plugin'}, and with the plugins given it would use "
                f"{', '.join(config.plugins) or 'none'}: give those --plugin FILE that it used"
            )
        return config

    def replace(self, changes: Mapping[str, Any]) -> Self:
        """A copy with some fields changed, by dotted name; values may be text (`"3e-4"`).

        Steps that leave no room for the warm-up shorten it as well.

        Raises:
            ConfigError: an unknown field or a value that is not allowed.
        """
        return self._build(self, changes)

    def differences(self, other: "Config") -> dict[str, tuple[Any, Any]]:
        """Fields in which two Configs differ, of those that change a result: `{path: (self's, other's)}`."""
        theirs = dict(other.settings())
        return {
            path: (mine, theirs[path])
            for path, mine in self.settings()
            if path in theirs and mine != theirs[path]
        }

    def settings(self, of_all_methods: bool = False) -> Iterator[tuple[str, Any]]:
        """Path and value of every field that changes this run's result, or that of some method's runs."""
        for path, value in _leaves(self.model_dump(mode="json", exclude=_NO_RESULT)):
            if of_all_methods or owner_of(path) in (None, self.training.method):
                yield path, value

    @classmethod
    def _build(cls, base: "Config", changes: Mapping[str, Any]) -> Self:
        tree, changed = base.model_dump(mode="json"), set()
        fields = dict(_leaves(tree))
        changes = {**changes, **_scaled_warmup(base, changes)}
        for path, value in changes.items():
            if path == "plugins":
                raise ConfigError(
                    "plugins follow from the variants that are chosen: give --plugin FILE"
                )
            _require_known(path, fields)
            section, _, name = path.rpartition(".")
            target = tree[section] if section else tree
            target[name] = _parse(value, fields[path], path)
            changed.add(section or name)
        # Sections that stay are shared: thousands of Configs of a grid are mostly the same.
        parts = {name: tree[name] if name in changed else getattr(base, name) for name in tree}
        try:
            config = cls.model_validate(parts)
        except ValidationError as error:
            raise ConfigError(_explain(error)) from None
        used = config.plugins_used()
        return config if config.plugins == used else config.model_copy(update={"plugins": used})

    def plugins_used(self) -> tuple[str, ...]:
        """The ids of the plugins in use that define something of this Config."""
        captioner = self.model.captions.removeprefix(SHUFFLED).partition(":")[0]
        chosen = {
            "FUSIONS": self.model.fusion,
            "LOSSES": self.loss.name,
            "METHODS": self.training.method,
            "CAPTIONERS": captioner,
            "ENCODERS": self.model.encoder,
        }
        found = {provider(table, name) for table, name in chosen.items()}
        return tuple(sorted(filter(None, found)))


# Methods that came when runs of others had keys already: their own settings, by what these begin with, are no
# part of others' keys, so that presets may adapt them. Those of older rivals are in every key and stay there.
_OWN = {"rivals.unimatch_v2_": "unimatch_v2"}


def owner_of(path: str) -> str | None:
    """The only method whose results a setting changes; None where others' keys hold it as well."""
    return next((name for start, name in _OWN.items() if path.startswith(start)), None)


def is_read(path: str, method: str) -> bool:
    """Whether runs of a method may read a setting, which may be in their keys all the same.

    A rival's settings are named after it, and SemiVL extends UniMatch. A plugin's method, known here or not,
    may extend any.
    """
    section, _, name = path.partition(".")
    if section not in ("rivals", "volumes") or method not in METHODS or provider("TRAITS", method):
        return True
    owner = max((m for m in METHODS if name.startswith(f"{m}_")), key=len, default="")
    if not owner:
        return METHODS[method].kind == section
    return method == owner or (owner, method) == ("unimatch", "semivl")


# What follows from files that a command names: --plugin, --benchmark.
NOT_SET = ("plugins", "data.own", "runtime.folders")
_OF_USERS = ("data.own", "plugins", "runtime.folders")
# What changes no result: where and how a run executes, and how its images are kept.
# A described benchmark's name has a hash of what `own` says.
_NO_RESULT: Any = {"runtime": True, "data": {"store", "own"}}


@cache
def _defaults() -> dict[str, Any]:
    """What a Config that changes nothing holds, by path."""
    return dict(Config().settings(of_all_methods=True))


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
    if text == "auto":  # of a setting that is a number otherwise
        return text
    try:
        return json.loads(text.lower() if text in ("True", "False") else text)
    except json.JSONDecodeError:
        kind = (
            "a size such as 512x1024" if isinstance(current, list) else f"a value like {current!r}"
        )
        raise ConfigError(f"{path}={value!r} cannot be read: expected {kind}") from None


def _scaled_warmup(base: Config, changes: Mapping[str, Any]) -> dict[str, int]:
    """The warm-up of a run that is to be no longer than its warm-up was: its share of the steps stays.

    Empty where `changes` name a warm-up, or leave room for that of `base`, as they always did.
    """
    if "training.steps" not in changes or "training.warmup_steps" in changes:
        return {}
    steps, training = _parse(changes["training.steps"], 0, "training.steps"), base.training
    if not isinstance(steps, int) or steps > training.warmup_steps:
        return {}
    return {"training.warmup_steps": max(0, training.warmup_steps * steps // training.steps)}


def _require_known(path: str, fields: Mapping[str, Any]) -> None:
    if path not in fields:
        close = difflib.get_close_matches(path, fields, n=3, cutoff=0.4)
        hint = f"; did you mean {' or '.join(close)}?" if close else "."
        raise ConfigError(
            f"unknown setting {path!r}{hint} All of them: {command('run')} --settings"
        )


@cache
def every_setting() -> dict[str, Any]:
    """The default of every setting that people set, those included that change no result, by path."""
    fields = dict(_leaves(Config().model_dump(mode="json")))
    return {path: value for path, value in fields.items() if path not in NOT_SET}


def read_value(path: str, value: Any) -> Any:
    """What a value of a setting, or a text that stands for one, is; a size is a list.

    Raises:
        ConfigError: an unknown setting, or a text that cannot be read.
    """
    fields = every_setting()
    _require_known(path, fields)
    read = _parse(value, fields[path], path)
    return list(read) if isinstance(read, tuple) else read


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
# Generated scenes at half their size and the bundled CLIP: a quarter of a minute a run on one CPU core.
# Four crops of 32 pixels cost as much as one of 64, and a decoder of 128 channels is worth more than pixels:
# see benchmarks/README.md.
_TOY: dict[str, Any] = {
    "data.toy": True,
    "data.source_size": [32, 64],
    "data.target_size": [32, 64],
    "data.crop": [32, 32],
    **_BUNDLED,
    "model.fusion_dim": 64,
    "model.decoder_dim": 128,
    "training.steps": 160,
    "training.lr": 6e-3,
    "training.backbone_lr_factor": 0.3,
    "training.ema": 0.95,
    "rivals.sdepth_ema": 0.95,  # this and the next six: as the rest of the preset, which is short
    "rivals.unimatch_v2_ema": 0.95,
    "rivals.unimatch_v2_lr": 6e-3,
    "rivals.unimatch_v2_backbone_lr_factor": 0.3,
    "rivals.semivl_lr": 6e-3,
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
    "runtime.checkpoint_every": 80,
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
        "rivals.unimatch_v2_ema": 0.99,
        "rivals.unimatch_v2_lr": 5e-4,  # this and the next four: of a CLIP of 0.6 million parameters
        "rivals.unimatch_v2_backbone_lr_factor": 1.0,
        "rivals.semivl_lr": 5e-4,
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
    # As long as a hundred labels take to be over-fitted, so that methods differ: two minutes a run.
    "toy-long": {
        **_TOY,
        "training.steps": 2_000,
        "training.lr": 3e-3,
        "rivals.unimatch_v2_ema": 0.99,
        "rivals.unimatch_v2_lr": 3e-3,
        "rivals.semivl_lr": 3e-3,
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
    return Config().replace(PRESETS[name]).replace(changes or {})


PresetName = Literal["toy", "toy-long", "small", "paper"]


def parse_settings(settings: Sequence[str], option: str = "--set") -> dict[str, str]:
    """`["training.lr=3e-4"]` to `{"training.lr": "3e-4"}`; what is given twice counts as given last.

    Raises:
        ConfigError: an entry without `=`.
    """
    pairs = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            raise ConfigError(f"{option} {setting!r} cannot be read: write NAME=VALUE")
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
