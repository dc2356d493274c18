"""The settings of a run by section, each validated by itself; `config.Config` holds one of each.

The defaults are the paper's, or those of the paper that a rival method comes from.
"""

from collections.abc import Collection
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from semidavil.benchmarks import BENCHMARKS
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
    sampling: Literal["uniform", "rare"] = "uniform"  # rare: by class, see `data.rare_classes`
    rare_temperature: Positive = 0.01  # T: the lower, the more often the rarest classes
    rare_share: Fraction = 0.0057  # of the crop: what a class must cover
    depth: str = "disparity"  # where depth comes from: Cityscapes' folder, or hf:NAME
    # How decoded images and labels are kept on disk: as they are, compressed without loss, not at all; auto
    # takes the first that there is room for. The pixels are the same: no part of a run's identity.
    store: Literal["auto", "raw", "packed", "off"] = "auto"

    @field_validator("benchmark")
    @classmethod
    def _known_benchmark(cls, value: str) -> str:
        return _one_of(value, BENCHMARKS, "benchmark")


class Model(Section):
    """Vision-language model, fusion of image and caption, decoder."""

    vlm: str = "ViT-B-16"  # an open_clip architecture, or "toy" for the bundled one
    weights: str = "openai"  # an open_clip tag or a local file; the toy CLIP brings its own
    # What the network sees with: the VLM's image tower, or timm:NAME. Captions, text and the zero-shot labels
    # of patches stay the VLM's.
    encoder: str = ""
    encoder_weights: str = "default"  # timm's default tag, a tag, a local file, its folder, or none
    dense: str = "maskclip"  # how the VLM labels patches, for `positions` and SemiVL's guidance
    vision_init: Literal["vlm", "random"] = "vlm"  # what the vision encoder starts from
    fusion: str = "dlg"
    fusion_dim: Count = 256  # c in eq. 2-3
    decoder_dim: Annotated[int, Field(ge=8)] = 256  # its finest features have a quarter of it
    captions: str = "blip2:Salesforce/blip2-opt-2.7b"
    caption_prompt: str = ""  # what an `hf:` captioner is asked; empty: its family's default
    caption_region: Literal["image", "window"] = "image"  # what one speaks of; windows: crop-sized

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
    source_share: Probability = (
        0.5  # of L_sup "per_stream", where there are labelled target images too
    )
    cutmix: Probability = 0.5  # share of strong views that get a pasted box

    @field_validator("method")
    @classmethod
    def _known_method(cls, value: str) -> str:
        return _one_of(value, METHODS, "method")


class Rivals(Section):
    """Settings of single rival methods, named after them; the defaults are their papers'."""

    unimatch_dropout: Dropout = 0.5  # channels of perturbed features
    unimatch_v2_lr: Positive = 2e-4  # and the next three: the authors' settings for Cityscapes
    unimatch_v2_backbone_lr_factor: NonNegative = 0.025
    unimatch_v2_weight_decay: NonNegative = 0.01
    unimatch_v2_ema: Annotated[float, Field(ge=0, lt=1)] = 0.996
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
    """Where and how a run executes. Nothing here changes its result, so none of it is in the key.

    `compile` and `deterministic` alone change the rounding of what it computes, as another device does.
    """

    data_root: str = ""  # a folder per data set; empty: the generated toy data's own folder
    cache_dir: str = ""  # toy data and captions; empty: `data/` in the current directory
    device: str = "auto"
    # Processes that load batches; auto: on a GPU, one for each CPU of the run but one; on a CPU, none.
    num_workers: Literal["auto"] | Annotated[int, Field(ge=0)] = "auto"
    threads: Annotated[int, Field(ge=0)] = 0  # CPU threads of torch; 0 leaves its own choice
    world_size: Count = 1  # processes that share every batch, each on a GPU where there are some
    # On a GPU: kernels that sum in the same order each time. Without, steps take a sixth less, and a run can
    # be neither repeated nor resumed to the last bit.
    deterministic: bool = True
    # On a GPU: steps are recorded and replayed, where the method does the same each step.
    cuda_graphs: bool = True
    # Of street networks: encoder blocks and decoder by torch.compile, minutes at the start, then faster.
    compile: bool = False
    # Of street networks: the encoder's are computed twice instead of kept, for small GPUs.
    checkpoint_activations: bool = False
    eval_batch_size: Count = 8
    eval_all: bool = True  # the student beside its teacher, or the reported network alone
    eval_every: Annotated[int, Field(ge=0)] = 4_000  # steps; 0 evaluates at the end only
    checkpoint_every: Annotated[int, Field(ge=0)] = 1_000  # steps; 0 keeps the last step only
