"""Tiny models of every family of vision-language models, from open_clip's configuration of the real one.

Each has the real one's classes, positions, pooling and text tower; widths, depths and patches are small.
"""

import copy
import json
from functools import partial
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file
from small_clip import MEAN, STD, WORDS, word_tokenizer
from timm.models import register_model
from timm.models.convnext import convnext_base
from timm.models.eva import eva02_base_patch16_clip_224, vit_pe_core_base_patch16_224
from timm.models.fastvit import RepConditionalPosEnc, fastvit_mci0
from timm.models.vision_transformer import vit_base_patch16_siglip_224, vit_large_patch14_clip_224
from timm.models.vision_transformer_hybrid import ConvStem, _create_vision_transformer_hybrid
from timm.models.vitamin import GeGluMlp, VitCfg, _create_vitamin
from torch import nn

SMALL = {"embed_dim": 32, "depth": 3, "num_heads": 2, "img_size": 32, "patch_size": 8}


@register_model
def tiny_siglip(pretrained: bool = False, **how: Any) -> nn.Module:
    return vit_base_patch16_siglip_224(pretrained, **SMALL, **how)


@register_model
def tiny_eva02(pretrained: bool = False, **how: Any) -> nn.Module:
    return eva02_base_patch16_clip_224(pretrained, **SMALL, ref_feat_shape=(5, 5), **how)


@register_model
def tiny_pe(pretrained: bool = False, **how: Any) -> nn.Module:
    shape = {"attn_pool_num_heads": 4, "ref_feat_shape": (5, 5)}
    return vit_pe_core_base_patch16_224(pretrained, **SMALL, **shape, **how)


@register_model
def tiny_clip_vit(pretrained: bool = False, **how: Any) -> nn.Module:
    return vit_large_patch14_clip_224(pretrained, **SMALL, **how)


@register_model
def tiny_mci_vit(pretrained: bool = False, **how: Any) -> nn.Module:
    stem = ConvStem(
        channels=(8, 8, 32), stride=(2, 2, 2), kernel_size=(2, 2, 2), padding=0, act_layer=nn.GELU
    )
    shape = {"embed_dim": 32, "depth": 3, "num_heads": 2, "img_size": 32, "no_embed_class": True}
    return _create_vision_transformer_hybrid(
        "vit_base_mci_224", backbone=stem, embed_args={"proj": False}, pretrained=pretrained,
        **shape, **how,
    )  # fmt: skip


@register_model
def tiny_vitamin(pretrained: bool = False, **how: Any) -> nn.Module:
    stem = VitCfg(embed_dim=(8, 16, 32), depths=(1, 1, 1), stem_width=8, head_type="1d")
    shape = {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 64, "mlp_ratio": 2.0}
    return _create_vitamin(
        "vitamin_small_224", pretrained=pretrained, embed_cfg=stem, mlp_layer=GeGluMlp,
        class_token=False, **{"global_pool": "avg", **shape, **how},
    )  # fmt: skip


@register_model
def tiny_fastvit(pretrained: bool = False, **how: Any) -> nn.Module:
    position = partial(RepConditionalPosEnc, spatial_shape=(7, 7))
    return fastvit_mci0(
        pretrained, layers=(1, 1, 1, 1), embed_dims=(8, 16, 32, 32),
        pos_embs=(None, None, None, position), **how,
    )  # fmt: skip


@register_model
def tiny_convnext(pretrained: bool = False, **how: Any) -> nn.Module:
    return convnext_base(pretrained, depths=(1, 1, 1, 1), dims=(8, 16, 32, 32), **how)


# open_clip's name of a real model -> the tiny network that stands for its image tower.
FAMILIES = {
    "ViT-B-16-SigLIP2": "tiny_siglip",
    "EVA02-B-16": "tiny_eva02",
    "PE-Core-B-16": "tiny_pe",
    "MobileCLIP2-S0": "tiny_fastvit",
    "MobileCLIP2-B": "tiny_mci_vit",
    "MobileCLIP2-L-14": "tiny_clip_vit",
    "ViTamin-S": "tiny_vitamin",
    "convnext_base": "tiny_convnext",
    "ViT-B-16-quickgelu": "",  # OpenAI's, DFN's, MetaCLIP's: open_clip's own tower
    "RN50": "",
}
STRIDES = {"MobileCLIP2-S0": 32, "convnext_base": 32, "ViTamin-S": 16, "RN50": 32}


def tiny_config(family: str) -> dict[str, Any]:
    """open_clip's configuration of a family, made small."""
    config = copy.deepcopy(open_clip.get_model_config(family))
    vision, text = config["vision_cfg"], config["text_cfg"]
    config["embed_dim"], vision["image_size"] = 20, 64 if family in STRIDES else 32
    if tower := FAMILIES[family]:
        if vision["timm_pool"] == "map" and vision.get("timm_proj") == "none":
            config["embed_dim"] = 32  # SigLIP has no projection
        vision["timm_model_name"] = tower
    elif family == "RN50":
        vision |= {"layers": [1, 1, 1, 1], "width": 8, "head_width": 16}
    else:
        vision |= {"layers": 3, "width": 32, "head_width": 16, "patch_size": 8}
    text |= {"width": 24, "heads": 2, "layers": 2}
    if "hf_tokenizer_name" in text:
        text |= {"vocab_size": len(WORDS) + 4, "hf_tokenizer_name": "words", "tokenizer_kwargs": {}}
    return config


def save_family(family: str, folder: Path) -> Any:
    """A random model of a family in open_clip's local layout; returns open_clip's model."""
    folder.mkdir(parents=True, exist_ok=True)
    config = tiny_config(family)
    about = {"model_cfg": config, "preprocess_cfg": {"mean": MEAN, "std": STD}}
    (folder / "open_clip_config.json").write_text(json.dumps(about))
    if "hf_tokenizer_name" in config["text_cfg"]:
        word_tokenizer(folder)
    torch.manual_seed(1)
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    for parameter in model.parameters():  # norms, biases and layer scales too must not be 0 and 1
        parameter.data += 0.1 * torch.randn_like(parameter)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer += 0.1 * torch.randn_like(buffer)
    save_file(
        {k: v.contiguous() for k, v in model.state_dict().items()},
        folder / "open_clip_model.safetensors",
    )
    return model.eval()
