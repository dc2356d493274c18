"""Encoders that know no language, from timm: DINOv2, DINOv3, those trained on ImageNet.

encoder = load_encoder("timm:vit_base_patch16_dinov3", "lvd1689m")    # timm's name and tag
encoder = load_encoder("timm:tf_efficientnet_lite0", "/a/model.safetensors")
encoder = load_encoder("timm:vit_tiny_patch16_224", "none", seed=3)

Networks of convolutions are dilated to a stride of 16 where timm can (DeepLab, Chen et al., TPAMI 2018): the
weights stay, and their features lie as close as a vision transformer's.
"""

import difflib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import get_pretrained_cfg, list_models, load_state_dict

from semidavil.models.sources import WEIGHT_FILES, VLMError, about_fit, fetch, require_one
from semidavil.models.timm_vision import build_timm, timm_encoder
from semidavil.models.vision import VisionEncoder
from semidavil.names import TIMM
from semidavil.plugins import Table

STRIDE = 16  # of dilated networks
# Of plugins: (weights, seed) -> encoder.
ENCODERS: Table[Callable[[str, int], VisionEncoder]] = Table("ENCODERS", {})
NAMES = ("model.safetensors", "pytorch_model.bin")  # of weights in timm's repositories


def load_encoder(name: str, weights: str, seed: int = 0) -> VisionEncoder:
    """timm's network `name`, or a plugin's, with `weights`, in eval mode on the CPU.

    Args:
        name: `timm:` and timm's name of an architecture, without a tag; or a name in `ENCODERS`.
        weights: "default" for timm's own choice of tag, a tag, a local file or the folder of one
            (.safetensors, .bin, .pth, .pt), or "none" for a random initialisation.
        seed: of that random initialisation; the global random state is left alone.

    Raises:
        VLMError: an unknown name or tag, weights that are not here and cannot be downloaded, weights that do
            not fit, or a network without dense features of any size.
    """
    if name in ENCODERS:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return ENCODERS[name](weights, seed).eval()
    architecture = name.removeprefix(TIMM)
    _require_known(architecture)
    file, mean, std = _find(architecture, weights)
    network = _build(architecture, file, seed)
    size = network.pretrained_cfg["input_size"][1:]
    try:
        return timm_encoder(network, mean, std, size).eval()
    except ValueError as error:
        raise VLMError(
            f"model.encoder={name} is not supported: {error}. Choose a vision transformer such as "
            "timm:vit_base_patch16_dinov3, or a network of convolutions such as timm:convnext_tiny"
        ) from error


def _require_known(architecture: str) -> None:
    base, dot, tag = architecture.partition(".")
    if timm.is_model(base) and dot:
        raise VLMError(
            f"{architecture} names an architecture and a tag: --set model.encoder={TIMM}{base} "
            f"model.encoder_weights={tag}"
        )
    if not timm.is_model(base):
        close = difflib.get_close_matches(base, list_models(), n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else "see timm.list_models()"
        raise VLMError(f"unknown encoder {TIMM}{architecture}: timm has no such network; {hint}")


def _tags(architecture: str) -> list[str]:
    found = list_models(f"{architecture}.*", pretrained=True)
    return [name.partition(".")[2] for name in found]


def _find(architecture: str, weights: str) -> tuple[Path | None, Sequence[float], Sequence[float]]:
    """The file (None: random weights), mean and std."""
    default: Any = get_pretrained_cfg(architecture)
    if weights == "none":
        return None, default.mean, default.std
    path = Path(weights).expanduser()
    if path.is_dir():
        path = next((path / name for name in NAMES if (path / name).is_file()), path)
    if path.is_file():
        if path.suffix not in WEIGHT_FILES:
            raise VLMError(f"{path}: weights must be a {', '.join(WEIGHT_FILES)} file")
        return path, *_normalisation(architecture, path)
    tags = _tags(architecture)
    tag = default.tag if weights == "default" and default is not None else weights
    if tag not in tags:
        raise VLMError(
            f"{weights!r} is neither a file, nor the folder of one, nor a tag of {TIMM}{architecture} (tags: "
            f"{', '.join(tags) or 'none'}): set model.encoder_weights to one of the tags, to a local file, "
            "or to none for random weights"
        )
    config: Any = get_pretrained_cfg(f"{architecture}.{tag}")
    repository = config.hf_hub_id
    if not repository:
        raise VLMError(
            f"the weights {tag!r} of {TIMM}{architecture} are not on the Hugging Face hub: fetch "
            f"{config.url} and pass --set model.encoder_weights=FILE"
        )
    file = fetch(
        repository,
        NAMES if config.hf_hub_filename is None else (config.hf_hub_filename,),
        f"the weights {tag!r} of {TIMM}{architecture}",
        f"`hf download {repository} {config.hf_hub_filename or NAMES[0]} config.json --local-dir DIR`",
        "model.encoder_weights=DIR",
    )
    return file, config.mean, config.std


def _normalisation(architecture: str, file: Path) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and std of a file: those of the config.json beside it, or those that all tags share."""
    described = file.parent / "config.json"
    if described.is_file():
        try:
            config = json.loads(described.read_text(encoding="utf-8"))["pretrained_cfg"]
            return config["mean"], config["std"]
        except (ValueError, KeyError, TypeError) as error:
            raise VLMError(f"{described} is not timm's configuration ({error!r})") from error
    names = [f"{architecture}.{tag}" for tag in _tags(architecture)] or [architecture]
    configs: list[Any] = [get_pretrained_cfg(name) for name in names]
    choices = {(tuple(config.mean), tuple(config.std)) for config in configs}
    require_one(choices, file, f"{TIMM}{architecture}", "config.json")
    return choices.pop()


def _build(architecture: str, file: Path | None, seed: int) -> Any:
    how: dict[str, Any] = {}
    try:
        if file is not None:
            # With the file's own classifier: then timm loads strictly, and nothing is missing without a word.
            classes = _classes(architecture, file)
            # `custom_load` is for the arrays that some weights were published as before.
            about = {"file": str(file), "num_classes": classes, "custom_load": False}
            how = {"pretrained": True, "num_classes": classes, "pretrained_cfg_overlay": about}
        network = _dilated(architecture, seed, **how)
    except Exception as error:
        if file is None:
            raise
        raise VLMError(about_fit(file, f"{TIMM}{architecture}", error, "model.encoder")) from error
    network.reset_classifier(0)
    return network


def _classes(architecture: str, file: Path) -> int:
    """Outputs of the classifier in a file of weights; 0 for weights without one."""
    default: Any = get_pretrained_cfg(architecture)
    state = load_state_dict(str(file), weights_only=True)
    weight = state.get(f"{default.classifier}.weight")
    return 0 if weight is None else len(weight)


def _dilated(architecture: str, seed: int, **how: Any) -> Any:
    try:
        return build_timm(architecture, seed, output_stride=STRIDE, **how)
    except TypeError:  # a network without such an option
        return build_timm(architecture, seed, **how)
