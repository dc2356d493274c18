"""The settings of a run by section, each validated by itself; `config.Config` holds one of each.

The defaults are the paper's, or those of the paper that a rival method comes from.
"""

from collections.abc import Collection
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from semidavil.benchmarks import BENCHMARKS
from semidavil.descriptions import MARK
from semidavil.names import (
    CAPTION_KINDS,
    DENSE,
    ENCODERS,
    FUSIONS,
    LOSSES,
    METHODS,
    SHUFFLED,
    TIMM,
)
from semidavil.plugins import Names, Table
from semidavil.registry import register, registered

Size = tuple[Annotated[int, Field(ge=8)], Annotated[int, Field(ge=8)]]
Side = Annotated[int, Field(ge=32, multiple_of=16)]
Size3 = tuple[Side, Side, Side]
Fraction = Annotated[float, Field(gt=0, le=1)]
Probability = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Dropout = Annotated[float, Field(ge=0, lt=1)]


def _one_of(value: str, names: Collection[str], what: str) -> str:
    if value not in names:
        known = f"choose from {', '.join(names)}"
        of_plugins = isinstance(names, Names | Table)
        hint = ", or name the file that defines it: --plugin FILE" if of_plugins else ""
        raise ValueError(f"unknown {what} {value!r}: {known}{hint}")
    return value


class Section(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, use_attribute_docstrings=True
    )


class Data(Section):
    """Which images a run sees. Sizes are (height, width) in pixels."""

    benchmark: str = "gta5-cityscapes"
    """Source and target, and the classes."""
    budget: Annotated[int, Field(ge=0)] = 100
    """Labelled target images, or scans."""
    toy: bool = False
    """Generated scenes instead of the data sets under `runtime.data_root`."""
    source_size: Size = (760, 1280)
    """Of the source's images, which are resized to it."""
    target_size: Size = (512, 1024)
    """Of the target's images, which are resized to it."""
    crop: Size = (512, 512)
    """What a training step sees of an image, and the windows of an evaluation."""
    selection: Literal["random", "depth"] = "random"
    """Which target images are labelled: drawn by the seed, or chosen by their depth."""
    sampling: Literal["uniform", "rare"] = "uniform"
    """How source images are drawn; rare: by class, see `data.rare_classes`."""
    rare_temperature: Positive = 0.01
    """T: the lower, the more often the rarest classes."""
    rare_share: Fraction = 0.0057
    """The share of the crop that a rare class must cover."""
    depth: str = "disparity"
    """Where depth comes from: Cityscapes' folder, or hf:NAME."""
    store: Literal["auto", "raw", "packed", "off"] = "auto"
    """How decoded images and labels are kept on disk: as they are, compressed without loss, not at all;
    auto takes the first that there is room for. The pixels are the same: no part of a run's identity."""
    own: str = ""
    """What a user's own benchmark says, see `descriptions`; empty for a built-in one. The name in `benchmark`
    ends in its hash, so that this is no part of a run's identity."""

    @model_validator(mode="before")
    @classmethod
    def _known_benchmark(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Learns a described benchmark, and brings along what the chosen one says."""
        if said := values.get("own"):
            register(said)
        name = values.get("benchmark", cls.model_fields["benchmark"].default)
        if name not in BENCHMARKS and MARK in name:
            raise ValueError(
                f"nothing here says what the benchmark {name} is: name its file with --benchmark"
            )
        _one_of(name, [n for n in BENCHMARKS if MARK not in n or n == name], "benchmark")
        return {**values, "own": registered(name)}

    @model_validator(mode="after")
    def _not_generated(self) -> Self:
        if self.own and self.toy:
            raise ValueError(
                f"{self.benchmark} has images of its own, and data.toy draws generated scenes: set "
                "data.toy=false"
            )
        return self

    def __setstate__(self, state: dict[Any, Any]) -> None:
        super().__setstate__(state)  # in another process, which may not know the benchmark
        if self.own:
            register(self.own)


class Model(Section):
    """Vision-language model, fusion of image and caption, decoder."""

    vlm: Annotated[str, Field(min_length=1)] = "ViT-B-16"
    """An open_clip architecture, or "toy" for the bundled one."""
    weights: str = "openai"
    """Of the VLM: an open_clip tag or a local file; the toy CLIP brings its own."""
    encoder: str = ""
    """What the network sees with: the VLM's image tower, or timm:NAME. Captions, text and the zero-shot
    labels of patches stay the VLM's."""
    encoder_weights: str = "default"
    """timm's default tag, a tag, a local file, its folder, or none."""
    dense: str = "maskclip"
    """How the VLM labels patches, for `positions` and SemiVL's guidance."""
    vision_init: Literal["vlm", "random"] = "vlm"
    """What the vision encoder starts from."""
    fusion: str = "dlg"
    """How image and caption meet."""
    fusion_dim: Count = 256
    """Channels of the attention, c in eq. 2-3."""
    decoder_dim: Annotated[int, Field(ge=8)] = 256
    """Channels of the decoder; its finest features have a quarter of them."""
    captions: str = "blip2:Salesforce/blip2-opt-2.7b"
    """Who describes the images; see the list of captioners."""
    caption_prompt: str = ""
    """What an `hf:` captioner is asked; empty: its family's default."""
    caption_region: Literal["image", "window"] = "image"
    """What a caption speaks of: the image, or a window of the crop's size."""

    @field_validator("captions")
    @classmethod
    def _known_captioner(cls, value: str) -> str:
        _one_of(value.removeprefix(SHUFFLED).partition(":")[0], CAPTION_KINDS, "captioner")
        return value

    @field_validator("encoder")
    @classmethod
    def _known_encoder(cls, value: str) -> str:
        if value and value not in ENCODERS and (not value.startswith(TIMM) or value == TIMM):
            of_plugins = "".join(f"{name}, " for name in ENCODERS)
            raise ValueError(
                f"unknown encoder {value!r}: write {of_plugins}{TIMM}NAME, or nothing for the VLM's own"
            )
        return value

    @field_validator("dense")
    @classmethod
    def _known_dense(cls, value: str) -> str:
        return _one_of(value, DENSE, "labels of patches")

    @model_validator(mode="after")
    def _prompt_is_read(self) -> Self:
        if self.caption_prompt and not self.captions.removeprefix(SHUFFLED).startswith("hf:"):
            raise ValueError(
                f"model.caption_prompt is what captioners of the kind hf:NAME are asked, and not "
                f"{self.captions}: leave it empty"
            )
        return self

    @field_validator("fusion")
    @classmethod
    def _known_fusion(cls, value: str) -> str:
        return _one_of(value, FUSIONS, "fusion")


class Loss(Section):
    """The supervised loss and its hyper-parameters."""

    name: str = "dyce"
    """The supervised loss."""
    hard_fraction: Fraction = 0.2
    """DyCE's h."""
    omega: Probability = 0.5
    """DyCE's w."""
    focal_gamma: NonNegative = 2.0
    """Focal loss's gamma."""
    dce_alpha: Positive = 1.0
    """Dual cross-entropy's alpha."""
    dce_beta: NonNegative = 1.0
    """Dual cross-entropy's beta."""
    dfl_alpha: NonNegative = 1.0
    """Dual focal loss's alpha."""
    dfl_beta: NonNegative = 1.0
    """Dual focal loss's beta."""
    dfl_gamma: NonNegative = 1.0
    """Dual focal loss's gamma."""
    dfl_rho: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 1.0
    """Dual focal loss's rho."""

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
    """What a training step is."""
    steps: Count = 40_000
    """Training steps."""
    batch_size: Count = 4
    """Images of each stream: source, labelled target, unlabelled target."""
    lr: Positive = 1e-4
    """The learning rate, of all but the vision encoder."""
    backbone_lr_factor: NonNegative = 1.0
    """The vision encoder learns at lr * this."""
    weight_decay: NonNegative = 2e-4
    """AdamW's weight decay."""
    poly_power: NonNegative = 0.9
    """The power of the learning rate's polynomial decay."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps in which the learning rate rises from 0."""
    grad_clip: NonNegative = 0.0
    """Largest gradient norm; 0 switches clipping off."""
    amp: bool = True
    """Autocast to bfloat16 where the device has it."""

    confidence: Probability = 0.95
    """Th: pseudo-labels of less are not learnt from."""
    temperature: Positive = 1.0
    """Of the softmax that the confidence is read from."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """The share that the teacher keeps of itself at each step."""
    consistency_weight: NonNegative = 1.0
    """lambda, the weight of the consistency loss; SemiDAViL at 0 draws no unlabelled image."""
    consistency_scale: Literal["fixed", "matched"] = "fixed"
    """"matched": lambda grows as the supervised loss's gradient does beside cross-entropy's."""
    consistency_over: Literal["all", "confident"] = "all"
    """The pixels that the consistency loss is divided by."""
    supervised: Literal["per_stream", "joint"] = "per_stream"
    """L_sup of source and labelled target: each by itself, or one loss on both."""
    source_share: Probability = 0.5
    """The source's, of L_sup "per_stream", where there are labelled target images too."""
    cutmix: Probability = 0.5
    """The share of strong views that get a pasted box."""

    @field_validator("method")
    @classmethod
    def _known_method(cls, value: str) -> str:
        return _one_of(value, METHODS, "method")


class Rivals(Section):
    """Settings of single rival methods, named after them; the defaults are their papers'."""

    unimatch_dropout: Dropout = 0.5
    """UniMatch: the share of channels that perturbed features lose."""
    unimatch_v2_lr: Positive = 2e-4
    """UniMatch V2's learning rate; this and its next three are the authors' for Cityscapes."""
    unimatch_v2_backbone_lr_factor: NonNegative = 0.025
    """Of UniMatch V2: its vision encoder learns at its rate times this."""
    unimatch_v2_weight_decay: NonNegative = 0.01
    """UniMatch V2's weight decay."""
    unimatch_v2_ema: Annotated[float, Field(ge=0, lt=1)] = 0.996
    """The share that UniMatch V2's teacher keeps."""
    semivl_guidance: NonNegative = 0.1
    """SemiVL: the first weight of the frozen CLIP's labels; it falls to 0."""
    semivl_confidence: Probability = 0.9
    """SemiVL: the frozen CLIP's labels of less are not learnt from."""
    semivl_lr: Positive = 5e-5
    """SemiVL's learning rate; this and its next three are the authors' for Cityscapes."""
    semivl_backbone_lr_factor: NonNegative = 0.1
    """Of SemiVL: its vision encoder learns at its rate times this."""
    semivl_head_lr_factor: Positive = 10.0
    """Of SemiVL: fusion and decoder learn at its rate times this."""
    semivl_weight_decay: NonNegative = 0.01
    """SemiVL's weight decay."""
    sdepth_ema: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """The share that S-Depth's teacher keeps."""
    sdepth_weight: NonNegative = 1.0
    """S-Depth: the weight of the depth head's loss."""
    sdepth_margin: NonNegative = 0.03
    """DepthMix: how much nearer wins, in units of mean disparity."""
    sdepth_confidence: Probability = 0.968
    """S-Depth: the share of pixels above it weighs pseudo-labels."""


class Volumes(Section):
    """CT volumes (`synapse`): network, patches and the settings of UA-MT and URPC.

    SGD with momentum 0.9 and polynomial decay, without clipping, and the ramp-up, as in SSL4MIS's code of
    both; `training.steps` and `poly_power` are shared with the images. Dropout is that of V-Net in UA-MT's
    code and of `unet_3D_dv_semi` in URPC's: it drops channels.
    """

    split: Literal["seeded", "genericssl", "dhc"] = "seeded"
    """Which scans train and which of them are labelled: drawn by the seed, or a publication's lists."""
    spacing: tuple[Positive, Positive, Positive] = (2.0, 1.5, 1.5)
    """Of a NIfTI scan's voxels (z, y, x) after resampling, in millimetres: Swin UNETR's for these scans."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """AdamW learns in far fewer steps than SGD, which the papers take."""
    batch_size: Count = 2
    """Labelled volumes of a step, and as many unlabelled ones."""
    patch: Size3 = (96, 96, 96)
    """Of a step, in voxels (z, y, x); divisible by 16."""
    width: Count = 16
    """Channels of the first level; they double on every level up to 16 times."""
    lr: Positive = 0.01
    """The learning rate."""
    weight_decay: NonNegative = 1e-4
    """Of the optimiser."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """Of UA-MT's teacher."""
    weight: NonNegative = 0.1
    """Of the unsupervised term, once ramped up."""
    rampup_epochs: Count = 200
    """An epoch has `epoch_steps` steps."""
    epoch_steps: Count = 150
    """Steps of an epoch, by which the unsupervised term is ramped up."""
    uamt_passes: Count = 8
    """Noisy passes of the teacher that its uncertainty comes from."""
    uamt_noise: NonNegative = 0.1
    """The standard deviation of what is added to the images of UA-MT's noisy passes."""
    uamt_dropout: Dropout = 0.5
    """Behind the bottleneck and before the last layer."""
    urpc_dropout: tuple[Dropout, Dropout, Dropout, Dropout] = (0.5, 0.3, 0.2, 0.1)
    """Behind each level of the decoder, the coarsest first."""


class Runtime(Section):
    """Where and how a run executes. Nothing here changes its result, so none of it is in the key.

    `compile` and `deterministic` alone change the rounding of what it computes, as another device does.
    """

    data_root: str = ""
    """A folder per data set; empty: the generated toy data's own folder."""
    folders: str = ""
    """Where described data sets lie, as JSON: folder by name. Others are below `data_root`."""
    cache_dir: str = ""
    """Toy data and captions; empty: `data/` in the current directory."""
    device: str = "auto"
    """auto takes a GPU where there is one; or cpu, cuda, cuda:N."""
    num_workers: Literal["auto"] | Annotated[int, Field(ge=0)] = "auto"
    """Processes that load batches; auto: on a GPU, one for each CPU of the run but one; on a CPU, none."""
    threads: Annotated[int, Field(ge=0)] = 0
    """CPU threads of torch; 0 leaves its own choice."""
    world_size: Count = 1
    """Processes that share every batch, each on a GPU where there are some."""
    deterministic: bool = True
    """On a GPU: kernels that sum in the same order each time. Without, steps take a sixth less, and a run
    can be neither repeated nor resumed to the last bit."""
    cuda_graphs: bool = True
    """On a GPU: steps are recorded and replayed, where the method does the same each step."""
    compile: bool = False
    """Of street networks: encoder blocks and decoder by torch.compile, minutes at the start, then faster."""
    checkpoint_activations: bool = False
    """Of street networks: the encoder's are computed twice instead of kept, for small GPUs."""
    eval_batch_size: Count = 8
    """Windows that an evaluation looks at together."""
    eval_all: bool = True
    """The student beside its teacher, or the reported network alone."""
    eval_every: Annotated[int, Field(ge=0)] = 4_000
    """Steps; 0 evaluates at the end only."""
    checkpoint_every: Annotated[int, Field(ge=0)] = 1_000
    """Steps; 0 keeps the last step only."""
