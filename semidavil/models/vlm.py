"""CLIP as dense vision encoder and frozen text encoder, through open_clip.

vlm = load_vlm("ViT-B-16", "openai")              # an open_clip architecture and tag
vlm = load_vlm("ViT-B-16-quickgelu", "/a/file.safetensors")
vlm = load_vlm("/a/folder", "bundled")            # open_clip_config.json, weights, tokenizer
vlm = load_vlm("toy", "bundled")                  # the folder that comes with this package
features = vlm.vision(images)                     # (B, c_v, h, w)
language = vlm.text(captions)                     # tokens (B, N, c_l) and their mask
"""

import difflib
import json
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from open_clip.factory import load_checkpoint
from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model
from torch import Tensor, nn

from semidavil.models.text import TextEncoder
from semidavil.models.vision import VisionEncoder
from semidavil.models.weights import hash_weights

OPENAI_MEAN, OPENAI_STD = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
TOY_FOLDER = Path(__file__).parents[1] / "toy" / "clip"
CONFIG_FILE = "open_clip_config.json"  # the name that open_clip gives it on the hub and on disk


class VLMError(ValueError):
    """A vision-language model that cannot be had; the message says what to fetch or change."""


@dataclass
class VLM:
    """Both towers of one CLIP. `mean` and `std` are already inside `vision`."""

    vision: VisionEncoder
    text: TextEncoder
    mean: tuple[float, ...]
    std: tuple[float, ...]
    name: str
    logit_scale: float = 100.0  # cosine similarities times this are logits

    @property
    def device(self) -> torch.device:
        return self.vision.mean.device

    def to(self, device: torch.device | str) -> "VLM":
        """Moves both towers in place; returns itself."""
        self.vision.to(device)
        self.text.to(device)
        return self

    def fingerprint(self) -> str:
        """A hash of the weights as they are now and the normalisation, the same on every device."""
        about = repr((self.mean, self.std, self.logit_scale))
        return hash_weights(self.vision, self.text, about=about)


def class_embeddings(vlm: VLM, prompts: Sequence[Sequence[str]]) -> Tensor:
    """(C, e): the L2-normalised mean of each class's L2-normalised prompt embeddings."""
    return torch.stack([F.normalize(vlm.text.embed(texts).mean(0), dim=-1) for texts in prompts])


@dataclass
class _Source:
    """What to build, what to load into it, and how its images are normalised."""

    tokenizer: str  # open_clip's name of the model: an architecture or local-dir:<folder>
    config: dict[str, Any]
    file: Path | None  # None: random weights
    mean: tuple[float, ...]
    std: tuple[float, ...]


def load_vlm(model: str, weights: str, seed: int = 0) -> VLM:
    """The CLIP `model` with `weights`, in eval mode on the CPU.

    Args:
        model: an open_clip architecture, a folder in open_clip's local layout (weights, tokenizer
            and open_clip_config.json), or "toy", the folder of this package.
        weights: an open_clip tag, a local file (.safetensors, .pt, .pth, .bin), "bundled" for a
            folder's own, or "none" for a random initialisation.
        seed: of that random initialisation; the global random state is left alone.

    Raises:
        VLMError: an unknown model or tag, weights that are not here and cannot be downloaded,
            weights that do not fit, or a kind of model without dense features.
    """
    source = _local_source(model, weights) or _named_source(model, weights)
    _check_supported(model, source.config)
    clip = _build(source.config, seed)
    if source.file is not None:
        _load_weights(clip, source.file, model)
    try:
        tokenizer = open_clip.get_tokenizer(source.tokenizer)
    except Exception as error:
        raise VLMError(
            f"the tokenizer {source.config['text_cfg'].get('hf_tokenizer_name')} of {model} cannot "
            f"be loaded ({_short(error)}): fetch it into the Hugging Face cache on a machine with "
            f"network access, or put its files into a folder beside {CONFIG_FILE}"
        ) from error
    vision = VisionEncoder(clip.visual, source.mean, source.std)
    scale = float(clip.logit_scale.detach().exp())
    text = TextEncoder(clip.text, tokenizer, tokenizer_name=source.tokenizer)
    return VLM(vision.eval(), text, source.mean, source.std, f"{model}:{weights}", scale)


def _local_source(model: str, weights: str) -> _Source | None:
    """A folder in open_clip's local layout, or None where `model` is not one."""
    folder = TOY_FOLDER if model == "toy" else Path(model.removeprefix("local-dir:")).expanduser()
    if model != "toy" and not model.startswith("local-dir:") and not folder.is_dir():
        return None
    if not (folder / CONFIG_FILE).is_file():
        remedy = (
            "reinstall the package" if model == "toy" else "fetch it from the model's repository"
        )
        raise VLMError(f"there is no {CONFIG_FILE} in {folder}: {remedy}")
    described = _read_config(folder / CONFIG_FILE)
    preprocess = described.get("preprocess_cfg", {})
    file: Path | None
    if weights == "bundled":
        found = open_clip.factory._find_checkpoint_in_dir(folder)
        if found is None:
            raise VLMError(f"there are no weights (.safetensors, .bin, .pth) in {folder}")
        file = Path(found)
    elif weights == "none":
        file = None
    elif Path(weights).expanduser().is_file():
        file = Path(weights).expanduser()
    else:
        raise VLMError(
            f"no weights {weights!r} for the folder {folder}: use its own (--set "
            "model.weights=bundled), a file (model.weights=/path/file), or model.weights=none"
        )
    mean, std = preprocess.get("mean", OPENAI_MEAN), preprocess.get("std", OPENAI_STD)
    name = f"local-dir:{folder}"
    return _Source(name, open_clip.get_model_config(name), file, tuple(mean), tuple(std))


def _named_source(model: str, weights: str) -> _Source:
    """An open_clip architecture with a tag's weights, a file's, or none."""
    config = open_clip.get_model_config(model)
    if config is None:
        close = difflib.get_close_matches(model, open_clip.list_models(), n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else "see open_clip.list_models()"
        raise VLMError(
            f"unknown vision-language model {model!r}: no folder, not in open_clip; {hint}"
        )
    tag = get_pretrained_cfg(model, weights)
    if tag:
        # Weights trained with QuickGELU compute something else under GELU; the tag knows which.
        config["quick_gelu"] = bool(tag.get("quick_gelu", config.get("quick_gelu", False)))
        file = _fetch(model, weights, tag["hf_hub"])
        return _Source(model, config, file, tuple(tag["mean"]), tuple(tag["std"]))
    if weights == "none":
        return _Source(model, config, None, OPENAI_MEAN, OPENAI_STD)
    file = Path(weights).expanduser()
    if not file.is_file():
        tags = ", ".join(list_pretrained_tags_by_model(model)) or "none"
        raise VLMError(
            f"{weights!r} is neither a file nor an open_clip tag of {model} (tags: {tags}): set "
            "model.weights to one of the tags, to a local file, or to none for random weights"
        )
    if (file.parent / CONFIG_FILE).is_file():
        described = _read_config(file.parent / CONFIG_FILE)
        preprocess = described.get("preprocess_cfg", {})
        config["quick_gelu"] = bool(described["model_cfg"].get("quick_gelu", False))
        mean, std = preprocess.get("mean", OPENAI_MEAN), preprocess.get("std", OPENAI_STD)
    else:
        mean, std = _presumed_normalisation(model, file, bool(config.get("quick_gelu")))
    return _Source(model, config, file, tuple(mean), tuple(std))


def _presumed_normalisation(
    model: str, file: Path, quick_gelu: bool
) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and std for a bare file, which states neither them nor its activation.

    They are those of the architecture's published weights; OpenAI's for an architecture without
    any, as open_clip trains with them.
    """
    tags = [get_pretrained_cfg(model, tag) for tag in list_pretrained_tags_by_model(model)]
    choices = {(tuple(tag["mean"]), tuple(tag["std"])) for tag in tags}
    if len(choices) > 1:
        raise VLMError(
            f"{file} does not say how its images are normalised, and weights of {model} come in "
            f"{len(choices)} ways: put the {CONFIG_FILE} of its repository beside it"
        )
    if not quick_gelu and any(tag.get("quick_gelu") for tag in tags):
        warnings.warn(
            f"{file} does not say its activation: taking GELU, as {model} does. For weights "
            f"trained with QuickGELU (OpenAI, MetaCLIP, DFN) set model.vlm={model}-quickgelu, or "
            f"put the {CONFIG_FILE} of their repository beside the file",
            stacklevel=4,
        )
    return choices.pop() if choices else (OPENAI_MEAN, OPENAI_STD)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        config["model_cfg"]["text_cfg"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise VLMError(f"{path} is not an open_clip configuration ({error!r})") from error
    return config


def _check_supported(model: str, config: dict[str, Any]) -> None:
    vision, text = config["vision_cfg"], config["text_cfg"]
    custom = (
        "qk_norm",
        "scaled_cosine_attn",
        "scale_heads",
        "scale_attn_inner",
        "scale_attn",
        "scale_fc",
    )
    unsupported = {
        "its image tower is timm's": vision.get("timm_model_name"),
        "its text tower is a Hugging Face model": text.get("hf_model_name"),
        "it is a CoCa": config.get("multimodal_cfg"),
        "its image tower pools by attention": vision.get("attentional_pool"),
        "its image tower has custom attention blocks": vision.get("block_type") == "custom"
        or any(vision.get(name) for name in custom),
        "its text tower appends a class token": text.get("embed_cls"),
    }
    for reason, present in unsupported.items():
        if present:
            raise VLMError(
                f"{model} is not supported: {reason}. Choose a CLIP with open_clip's own "
                "towers, such as ViT-B-16, ViT-L-14 or RN50"
            )


def _build(config: dict[str, Any], seed: int) -> open_clip.CustomTextCLIP:
    """The two towers as modules of their own, initialised from `seed`."""
    config = {key: value for key, value in config.items() if key != "custom_text"}
    # Dropping patches would leave holes in dense features.
    config["vision_cfg"] = {**config["vision_cfg"], "patch_dropout": 0.0, "output_tokens": False}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return open_clip.CustomTextCLIP(**config)


def _load_weights(clip: nn.Module, file: Path, model: str) -> None:
    if file.suffix not in (".safetensors", ".pt", ".pth", ".bin"):
        raise VLMError(f"{file}: weights must be a .safetensors, .pt, .pth or .bin file")
    try:
        load_checkpoint(clip, str(file), strict=True, weights_only=True)
    except Exception as error:
        if "TorchScript" in str(error):
            raise VLMError(
                f"{file} is a TorchScript archive, as OpenAI published its weights: use the "
                "open_clip_model.safetensors of the same model from the Hugging Face hub"
            ) from error
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        lines.sort(key=lambda line: not line.startswith("size mismatch"))
        raise VLMError(
            f"the weights {file} do not fit {model}: {'; '.join(map(_cut, lines[:3]))}. Set "
            " model.vlm to the architecture that they belong to, or choose other weights"
        ) from error


def _fetch(model: str, tag: str, address: str) -> Path:
    """The file of an open_clip tag from the Hugging Face cache, downloaded if it is not there."""
    from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache

    repository, name = os.path.split(address)
    names = [name] if name else ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"]
    if name and not name.endswith(".safetensors"):
        names.insert(0, f"{os.path.splitext(name)[0]}.safetensors")
    for name in names:
        cached = try_to_load_from_cache(repository, name)
        if isinstance(cached, str):
            return Path(cached)
    try:
        # Asking once what there is fails at once without network; a download would try for long.
        files = {
            file.rfilename for file in HfApi().model_info(repository, timeout=5).siblings or ()
        }
        name = next((name for name in names if name in files), names[-1])
        return Path(hf_hub_download(repository, name, etag_timeout=5))
    except Exception as error:
        raise VLMError(
            f"the weights {tag!r} of {model} are not here and cannot be downloaded "
            f"({_short(error)}). On a machine with network access: `hf download {repository} "
            f"{names[0]} {CONFIG_FILE} --local-dir DIR` (or {names[-1]} where the repository has "
            f"no {names[0]}); copy DIR here and pass --set model.weights=DIR/{names[0]}. Or copy "
            "that machine's Hugging Face cache here and set HF_HOME to it"
        ) from error


def _short(error: Exception) -> str:
    return _cut(next(iter(str(error).splitlines()), "") or type(error).__name__)


def _cut(line: str, length: int = 160) -> str:
    return line if len(line) <= length else line[: length - 3] + "..."
