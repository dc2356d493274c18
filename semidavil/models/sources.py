"""Where the weights of a vision-language model are: an open_clip architecture, tag, file or folder.

Nothing that comes with a model is executed: weights are read as tensors, configurations as JSON.
"""

import difflib
import json
import os
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model

from semidavil.data.hub import cached_file

OPENAI_MEAN, OPENAI_STD = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
TOY_FOLDER = Path(__file__).parents[1] / "toy" / "clip"
CONFIG_FILE = "open_clip_config.json"  # the name that open_clip gives it on the hub and on disk
WEIGHT_FILES = (".safetensors", ".pt", ".pth", ".bin")


class VLMError(ValueError):
    """A model that cannot be had; the message says what to fetch or change."""


@dataclass
class Source:
    """What to build, what to load into it, and how its images are normalised."""

    tokenizer: str  # open_clip's name of the model: an architecture or local-dir:<folder>
    config: dict[str, Any]
    file: Path | None  # None: random weights
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def remote_tokenizer(self) -> str:
        """The Hugging Face repository of its tokenizer; empty where that is in a folder or in open_clip."""
        local = self.tokenizer.startswith("local-dir:")
        return "" if local else self.config["text_cfg"].get("hf_tokenizer_name") or ""


def find_source(model: str, weights: str) -> Source:
    """What to build for `model` and `weights`, see `vlm.load_vlm`; downloads what a tag names.

    Raises:
        VLMError: an unknown model or tag, or weights that are not here and cannot be downloaded.
    """
    return _local_source(model, weights) or _named_source(model, weights)


def _local_source(model: str, weights: str) -> Source | None:
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
    return Source(name, open_clip.get_model_config(name), file, tuple(mean), tuple(std))


def _named_source(model: str, weights: str) -> Source:
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
        file = _fetch_tag(model, weights, tag["hf_hub"], config)
        return Source(model, config, file, tuple(tag["mean"]), tuple(tag["std"]))
    if weights == "none":
        return Source(model, config, None, OPENAI_MEAN, OPENAI_STD)
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
        beside = (file.parent / "tokenizer_config.json").is_file()
        if beside and described["model_cfg"]["text_cfg"].get("hf_tokenizer_name"):
            tokenizer = f"local-dir:{file.parent}"
            return Source(tokenizer, config, file, tuple(mean), tuple(std))
    else:
        mean, std = _presumed_normalisation(model, file, bool(config.get("quick_gelu")))
    return Source(model, config, file, tuple(mean), tuple(std))


def _presumed_normalisation(
    model: str, file: Path, quick_gelu: bool
) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and std for a bare file, which states neither them nor its activation.

    They are those of the architecture's published weights; OpenAI's for an architecture without
    any, as open_clip trains with them.
    """
    tags = [get_pretrained_cfg(model, tag) for tag in list_pretrained_tags_by_model(model)]
    choices = {(tuple(tag["mean"]), tuple(tag["std"])) for tag in tags}
    require_one(choices, file, model, CONFIG_FILE)
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


def _fetch_tag(model: str, tag: str, address: str, config: dict[str, Any]) -> Path:
    """The file of an open_clip tag."""
    repository, name = os.path.split(address)
    names = [name] if name else ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"]
    if config["text_cfg"].get("hf_tokenizer_name"):  # which is in the same repository
        line = f"hf download {repository} --local-dir DIR"
        settings = "model.vlm=DIR model.weights=bundled"
    elif name:
        line = f"hf download {repository} {name} --local-dir DIR"
        settings = f"model.weights=DIR/{name}"
    else:
        line = f"hf download {repository} {names[0]} {CONFIG_FILE} --local-dir DIR"
        settings = f"model.weights=DIR/{names[0]}"
    other = "" if name else f" ({names[1]} where the repository has no {names[0]})"
    if name and not name.endswith(".safetensors"):
        names.insert(0, f"{os.path.splitext(name)[0]}.safetensors")
    return fetch(repository, names, f"the weights {tag!r} of {model}", f"`{line}`{other}", settings)


def require_tokenizer(source: Source, model: str) -> None:
    """Fails at once where a tokenizer is not here and there is no network: retries would take minutes."""
    from huggingface_hub import HfApi, try_to_load_from_cache

    repository = source.remote_tokenizer
    if isinstance(try_to_load_from_cache(repository, "tokenizer_config.json"), str):
        return
    try:
        HfApi().model_info(repository, timeout=5)
    except Exception as error:
        raise VLMError(about_tokenizer(source, model, error)) from error


def about_tokenizer(source: Source, model: str, error: Exception) -> str:
    """What is to be done where a tokenizer cannot be loaded."""
    name = source.config["text_cfg"].get("hf_tokenizer_name")
    return (
        f"the tokenizer {name} of {model} cannot be loaded ({told(error)}). On a machine with network "
        f"access: `hf download {name} --local-dir DIR`; copy DIR here and, where it holds the weights and "
        "their configuration too, pass --set model.vlm=DIR model.weights=bundled; or put its files into the "
        f"folder that {CONFIG_FILE} is in. Or copy that machine's Hugging Face cache here and set HF_HOME to "
        "it"
    )


def fetch(repository: str, names: Sequence[str], what: str, line: str, settings: str) -> Path:
    """The first of `names` in a repository of the Hugging Face hub: from the cache, or downloaded.

    Args:
        what: what it is, for messages.
        line: the command that downloads it into a folder DIR, for messages.
        settings: what names that folder to this program, for messages.

    Raises:
        VLMError: it is not here and cannot be downloaded.
    """
    from huggingface_hub import HfApi, hf_hub_download

    if cached := cached_file(repository, names):
        return cached
    try:
        # Asking once what there is fails at once without network; a download would try for long.
        files = {
            file.rfilename for file in HfApi().model_info(repository, timeout=5).siblings or ()
        }
        name = next((name for name in names if name in files), names[-1])
        return Path(hf_hub_download(repository, name, etag_timeout=5))
    except Exception as error:
        raise VLMError(
            f"{what} are not here and cannot be downloaded ({told(error)}). On a machine with network "
            f"access: {line}; copy DIR here and pass --set {settings}. Or copy that machine's Hugging Face "
            "cache here and set HF_HOME to it"
        ) from error


def require_one(choices: Collection[object], file: Path, model: str, beside: str) -> None:
    """Raises VLMError where weights of a model are normalised in several ways.

    Args:
        beside: the file that says it, which is in the repository of the weights.
    """
    if len(choices) > 1:
        raise VLMError(
            f"{file} does not say how its images are normalised, and weights of {model} come in "
            f"{len(choices)} ways: put the {beside} of its repository beside it"
        )


def about_fit(file: Path, model: str, error: Exception, setting: str) -> str:
    """What is to be done where weights do not fit.

    Args:
        setting: the one that names the architecture.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    lines.sort(key=lambda line: not line.startswith("size mismatch"))
    return (
        f"the weights {file} do not fit {model}: {'; '.join(map(shorten, lines[:3]))}. Set {setting} to the "
        "architecture that they belong to, or choose other weights"
    )


def told(error: Exception) -> str:
    """An error's first line, shortened."""
    return shorten(next(iter(str(error).splitlines()), "") or type(error).__name__)


def shorten(line: str, length: int = 160) -> str:
    return line if len(line) <= length else line[: length - 3] + "..."
