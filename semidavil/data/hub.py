"""Models of Hugging Face, by name: in a folder, in the hub's cache, or downloaded."""

from collections.abc import Sequence
from pathlib import Path

from semidavil.data.files import DataError

WEIGHT_SUFFIXES = (".safetensors", ".bin")
MODEL_SUFFIXES = (*WEIGHT_SUFFIXES, ".pt", ".pth", ".json", ".jinja")  # the last: of chat templates


def find_model(name: str, what: str, setting: str) -> Path:
    """The folder of a model that is here, or that can be downloaded.

    Args:
        name: a folder, or a model of the hub.
        what: what it is, for messages ("the captioner blip2:...").
        setting: the option that names a folder DIR instead, for messages ("model.captions=blip2:DIR").

    Raises:
        DataError: a folder without a model, a name that cannot be one, or a model that is not here and
            that nothing can be downloaded of.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError

    folder = Path(name).expanduser()
    if folder.is_dir():
        if is_complete(folder):
            return folder
        raise DataError(f"{folder} holds no model: config.json and weights are missing there")
    if not name or name.count("/") > 1 or folder.is_absolute():
        raise DataError(f"{what} names neither a folder nor a model of the hub")
    if is_here(name):
        return local_model(name)
    try:
        unwanted = ["*.h5", "*.msgpack", "*.onnx", "*.ot", "onnx/*"]
        return Path(snapshot_download(name, ignore_patterns=unwanted, etag_timeout=5))
    except Exception as error:
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        if isinstance(error, GatedRepoError):
            reason = f"accept its terms at https://huggingface.co/{name}, then `hf auth login`"
        raise DataError(
            f"{what} is not here and cannot be downloaded ({reason}). On a machine with network access: "
            f"`hf download {name} --local-dir DIR`; copy DIR here and pass --set {setting}"
        ) from error


def is_here(name: str) -> bool:
    """Whether a model of transformers is here whole."""
    try:
        return is_complete(local_model(name))
    except DataError:  # not in the cache
        return False


def cached_file(repository: str, names: Sequence[str]) -> Path | None:
    """The first of the files `names` of a repository that the hub's cache has."""
    from huggingface_hub import try_to_load_from_cache

    found = (try_to_load_from_cache(repository, name) for name in names)
    return next((Path(path) for path in found if isinstance(path, str)), None)


def why_not_downloaded(repository: str) -> str:
    """Why a model that is not here cannot be downloaded, as far as the hub says at once; empty if it can.

    The hub is asked with a short wait, and once in vain: it is as far away for the next model.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    if _unreachable:
        return _unreachable[0]
    try:
        if HfApi().model_info(repository, timeout=3).gated:
            HfApi().auth_check(repository)
    except GatedRepoError:
        return f"accept its terms at https://huggingface.co/{repository}, then `hf auth login`"
    except RepositoryNotFoundError:
        return "the hub has no such model, or does not show it: `hf auth login`"
    except Exception as error:  # of the network, by whatever library it goes
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        _unreachable.append(f"the hub does not answer: {reason}")
        return _unreachable[0]
    return ""


_unreachable: list[str] = []  # why the hub did not answer this process


def local_model(name: str) -> Path:
    """The folder of a model that is here, in a folder or in the hub's cache; nothing is downloaded.

    Raises:
        DataError: it is not here.
    """
    from huggingface_hub import snapshot_download

    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (OSError, ValueError) as error:
        raise DataError(f"the model {name} is not here") from error


def model_files(folder: Path, suffixes: Sequence[str] = MODEL_SUFFIXES) -> list[Path]:
    """The weights and settings in a model's folder, in order."""
    return sorted(path for path in folder.iterdir() if path.suffix in suffixes)


def is_complete(folder: Path) -> bool:
    """Whether weights and configuration are there."""
    weights = any(path.suffix in WEIGHT_SUFFIXES for path in folder.iterdir())
    return weights and (folder / "config.json").is_file()
