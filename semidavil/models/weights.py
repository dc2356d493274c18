"""Weights: their hash, and a trained network as a file."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_model
from torch import Tensor, nn
from torch.nn.utils import skip_init

from semidavil.config import Config


def hash_weights(*towers: nn.Module, about: str = "") -> str:
    """Of the weights as they are now, the same on every device."""
    digest = hashlib.blake2b(about.encode(), digest_size=16)
    for tower in towers:
        for name, value in sorted(tower.state_dict().items()):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def save_weights(
    path: Path,
    network: nn.Module,
    config: Config,
    name: str,
    data: str = "",
    shape: Sequence[int] = (),
) -> None:
    """A trained network as safetensors, with the Config, its key and the network's name inside.

    How its images are normalised is beside them: it comes with the weights that the run began with, which
    whoever uses the network need not have.

    Args:
        data: the fingerprint of what it was trained and scored on.
        shape: (height, width) of the pictures that it was scored on, as they are stored.
    """
    about = {"config": json.dumps(config.to_params()), "network": name, "key": config.key()}
    about |= {"data": data} if data else {}
    about |= {"shape": json.dumps(list(shape))} if shape else {}
    if (vision := getattr(network, "vision", None)) is not None:
        about |= {
            part: json.dumps(getattr(vision, part).flatten().tolist()) for part in ("mean", "std")
        }
    # Not `save_file`: some of MONAI's networks register their modules twice.
    save_model(network, str(path), metadata=about)


def linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    """A linear layer of copies of `weight` (out, in) and `bias` (out,); draws no random number."""
    layer = skip_init(nn.Linear, weight.shape[1], weight.shape[0], bias=bias is not None)
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(bias)
    return layer
