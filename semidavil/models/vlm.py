"""A vision-language model as dense vision encoder and frozen text encoder, through open_clip.

vlm = load_vlm("ViT-B-16", "openai")              # an open_clip architecture and tag
vlm = load_vlm("ViT-B-16-SigLIP2", "webli")       # image towers of timm's, too
vlm = load_vlm("ViT-B-16-quickgelu", "/a/file.safetensors")
vlm = load_vlm("/a/folder", "bundled")            # open_clip_config.json, weights, tokenizer
vlm = load_vlm("toy", "bundled")                  # the folder that comes with this package
features = vlm.vision(images)                     # (B, c_v, h, w)
language = vlm.text(captions)                     # tokens (B, N, c_l) and their mask
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from open_clip.factory import load_checkpoint
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from torch import Tensor, nn

from semidavil.models.clip_vision import ClipResNet, ClipViT
from semidavil.models.sources import (
    OPENAI_MEAN,
    OPENAI_STD,
    WEIGHT_FILES,
    Source,
    VLMError,
    about_fit,
    about_tokenizer,
    find_source,
    require_tokenizer,
)
from semidavil.models.text import TextEncoder
from semidavil.models.timm_vision import timm_encoder
from semidavil.models.vision import VisionEncoder
from semidavil.models.weights import hash_weights

__all__ = ["OPENAI_MEAN", "OPENAI_STD", "VLM", "VLMError", "class_embeddings", "load_vlm"]


@dataclass
class VLM:
    """Both towers of one vision-language model. `mean` and `std` are already inside `vision`."""

    vision: VisionEncoder
    text: TextEncoder
    mean: tuple[float, ...]
    std: tuple[float, ...]
    name: str
    logit_scale: float = 100.0  # cosine similarities times this are logits
    dense: str = "maskclip"  # how `embed` labels patches, see `names.DENSE`

    def embed(self, images: Tensor) -> Tensor:
        """Embeddings (B, e, h, w) of every location in the joint space, L2-normalised.

        Which class a location shows is the softmax of `logit_scale` times its cosines with the classes'
        texts. That is so for models trained with a softmax, and for those trained with a sigmoid for each
        pair (SigLIP): given that exactly one of several independent events with odds exp(l_c + bias) takes
        place, it is c with probability softmax(l)_c, whatever the bias.
        """
        return self.vision.embed(images, self.dense)

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


def load_vlm(model: str, weights: str, seed: int = 0, dense: str = "maskclip") -> VLM:
    """The vision-language model `model` with `weights`, in eval mode on the CPU.

    Args:
        model: an open_clip architecture, a folder in open_clip's local layout (weights, tokenizer
            and open_clip_config.json), or "toy", the folder of this package.
        weights: an open_clip tag, a local file (.safetensors, .pt, .pth, .bin), "bundled" for a
            folder's own, or "none" for a random initialisation.
        dense: how it labels patches, see `names.DENSE`.
        seed: of that random initialisation; the global random state is left alone.

    Raises:
        VLMError: an unknown model or tag, weights that are not here and cannot be downloaded,
            weights that do not fit, or a kind of model without dense features.
    """
    source = find_source(model, weights)
    _check_supported(model, source.config)
    if source.remote_tokenizer:
        require_tokenizer(source, model)
    clip = _build(source.config, seed)
    vision = _vision(clip.visual, source, model)
    if source.file is not None:
        _load_weights(clip, source.file, model)
    try:
        tokenizer = open_clip.get_tokenizer(source.tokenizer)
    except Exception as error:
        raise VLMError(about_tokenizer(source, model, error)) from error
    scale = float(clip.logit_scale.detach().exp())
    text = TextEncoder(clip.text, tokenizer, tokenizer_name=source.tokenizer)
    mean, std = source.mean, source.std
    return VLM(vision.eval(), text, mean, std, f"{model}:{weights}", scale, dense)


def _vision(tower: nn.Module, source: Source, model: str) -> VisionEncoder:
    if not isinstance(tower, TimmModel):
        kind = ClipResNet if isinstance(tower, ModifiedResNet) else ClipViT
        return kind(tower, source.mean, source.std)
    try:
        return timm_encoder(tower, source.mean, source.std, tower.image_size)
    except ValueError as error:
        raise VLMError(
            f"{model} is not supported: its image tower is timm's, and {error}. Choose a CLIP, SigLIP 2, "
            "EVA02, PE-Core, MobileCLIP 2, ViTamin or ConvNeXt: see the table of encoders in README.md"
        ) from error


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
                f"{model} is not supported: {reason}. Choose a CLIP, SigLIP 2, EVA02, PE-Core, "
                "MobileCLIP 2, ViTamin or ConvNeXt: see the table of encoders in README.md"
            )


def _build(config: dict[str, Any], seed: int) -> open_clip.CustomTextCLIP:
    """The two towers as modules of their own, initialised from `seed`."""
    config = {key: value for key, value in config.items() if key != "custom_text"}
    # Dropping patches would leave holes in dense features, and what drops layers draws from the global
    # generator, on which no step may depend.
    config["vision_cfg"] = {**config["vision_cfg"], "patch_dropout": 0.0, "output_tokens": False}
    if config["vision_cfg"].get("timm_model_name"):
        config["vision_cfg"] |= {"timm_drop": 0.0, "timm_drop_path": None}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return open_clip.CustomTextCLIP(**config)


def _load_weights(clip: nn.Module, file: Path, model: str) -> None:
    if file.suffix not in WEIGHT_FILES:
        raise VLMError(f"{file}: weights must be a .safetensors, .pt, .pth or .bin file")
    try:
        load_checkpoint(clip, str(file), strict=True, weights_only=True)
    except Exception as error:
        if "TorchScript" in str(error):
            raise VLMError(
                f"{file} is a TorchScript archive, as OpenAI published its weights: use the "
                "open_clip_model.safetensors of the same model from the Hugging Face hub"
            ) from error
        raise VLMError(about_fit(file, model, error, "model.vlm")) from error
