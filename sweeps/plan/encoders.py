"""The encoders that `--grid encoders` compares: their settings, and what they are called."""

from collections.abc import Mapping
from pathlib import Path

from semidavil.names import TIMM

# What tells them apart; None stands for what the preset has.
SETTINGS = (
    "model.vlm", "model.weights", "model.encoder", "model.encoder_weights", "model.vision_init",
)  # fmt: skip
FUSIONS = ("dlg", "none")  # with language and without

# Vision-language models of about one size, by open_clip's name and tag.
VLMS = (
    ("ViT-B-16", "openai"),
    ("ViT-B-16-quickgelu", "metaclip_fullcc"),
    ("ViT-B-16-quickgelu", "dfn2b"),
    ("EVA02-B-16", "merged2b_s8b_b131k"),
    ("ViT-B-16-SigLIP2", "webli"),
    ("PE-Core-B-16", "meta"),
    ("MobileCLIP2-S0", "dfndr2b"),
    ("MobileCLIP2-B", "dfndr2b"),
)
# Encoders without language, beside the text of the preset's model, with timm's default weights.
VISION_ONLY = (
    "vit_base_patch14_reg4_dinov2", "vit_base_patch16_dinov3", "vit_base_patch16_224", "convnext_base",
)  # fmt: skip
# Where the hub has them, by name and tag: planning looks whether they are here, and loads neither library.
REPOSITORIES = {
    ("ViT-B-16", "openai"): "timm/vit_base_patch16_clip_224.openai",
    ("ViT-B-16-quickgelu", "metaclip_fullcc"): "timm/vit_base_patch16_clip_224.metaclip_2pt5b",
    ("ViT-B-16-quickgelu", "dfn2b"): "apple/DFN2B-CLIP-ViT-B-16",
    ("EVA02-B-16", "merged2b_s8b_b131k"): "timm/eva02_base_patch16_clip_224.merged2b_s8b_b131k",
    ("ViT-B-16-SigLIP2", "webli"): "timm/ViT-B-16-SigLIP2",
    ("PE-Core-B-16", "meta"): "timm/PE-Core-B-16",
    ("MobileCLIP2-S0", "dfndr2b"): "timm/MobileCLIP2-S0-OpenCLIP",
    ("MobileCLIP2-B", "dfndr2b"): "timm/MobileCLIP2-B-OpenCLIP",
    ("timm:vit_base_patch14_reg4_dinov2", "default"): "timm/vit_base_patch14_reg4_dinov2.lvd142m",
    ("timm:vit_base_patch16_dinov3", "default"): "timm/vit_base_patch16_dinov3.lvd1689m",
    ("timm:vit_base_patch16_224", "default"): "timm/vit_base_patch16_224.augreg2_in21k_ft_in1k",
    ("timm:convnext_base", "default"): "timm/convnext_base.fb_in22k_ft_in1k",
}
VLM_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")  # either will do
TIMM_FILES = ("model.safetensors", "pytorch_model.bin")
# Beside the bundled CLIP: towers of its size that start at random, on which two cores are no bottleneck.
SMALL = ("test_vit", "test_resnet")


# The image tower of the vision-language model, as it comes.
OWN = {"model.encoder": "", "model.encoder_weights": "default", "model.vision_init": "vlm"}


def encoders_beside(vlm: str) -> list[dict[str, str]]:
    """The settings of each encoder to compare with a preset that has `vlm`; the first is the preset's own."""
    if vlm == "toy":
        small = [
            {**OWN, "model.encoder": f"{TIMM}{name}", "model.encoder_weights": "none"}
            for name in SMALL
        ]
        return [{}, OWN, {**OWN, "model.vision_init": "random"}, *small]
    models = [{**OWN, "model.vlm": name, "model.weights": tag} for name, tag in VLMS]
    return [{}, *models, *({**OWN, "model.encoder": f"{TIMM}{name}"} for name in VISION_ONLY)]


def encoder_name(params: Mapping[str, str]) -> str:
    """What an encoder is called, from flat params: `ViT-B-16:openai`, `dinov3 (random)`, `toy`."""
    vlm, weights, encoder, tag, start = (params[name] for name in SETTINGS)
    if not encoder:
        name = vlm if weights == "bundled" else f"{vlm}:{Path(weights).stem}"
        return name if start == "vlm" else f"{vlm} (random)"
    name = encoder.removeprefix(TIMM)
    if tag == "none" or start == "random":
        return f"{name} (random)"
    return name if tag == "default" else f"{name}:{Path(tag).stem}"


def variant_name(params: Mapping[str, str]) -> str:
    """`ViT-B-16:openai+dlg`."""
    return f"{encoder_name(params)}+{params['model.fusion']}"
