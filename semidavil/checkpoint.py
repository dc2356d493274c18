"""Checkpoints from which a run goes on exactly."""

import json
import os
from pathlib import Path

import torch
from safetensors.torch import save_model
from torch import nn

from semidavil.config import Config
from semidavil.disk import on_disk

CHECKPOINT = "last.pt"


class TrainingError(RuntimeError):
    """A run that cannot go on; the message says why and what to do."""


def save_checkpoint(
    folder: Path, step: int, config: Config, method: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """Writes the state after `step` steps; a kill in between leaves the previous checkpoint.

    Raises:
        DiskFull: the previous checkpoint is kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        "key": config.key(),
        "step": step,
        "method": method.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    temporary = folder / f"{CHECKPOINT}.{os.getpid()}.tmp"
    try:
        # A file rather than its name: only then does PyTorch's error hold the system's.
        with on_disk(folder), temporary.open("wb") as file:
            torch.save(state, file)
        temporary.replace(folder / CHECKPOINT)
    finally:
        temporary.unlink(missing_ok=True)


def save_weights(path: Path, network: nn.Module, config: Config, name: str) -> None:
    """A trained network as safetensors, with the Config, its key and the network's name inside."""
    about = {"config": json.dumps(config.to_params()), "network": name, "key": config.key()}
    # Not `save_file`: some of MONAI's networks register their modules twice.
    save_model(network, str(path), metadata=about)


def resume(
    folder: Path | None,
    config: Config,
    method: nn.Module,
    optimizer: torch.optim.Optimizer,
    device: torch.device,
) -> int:
    """Loads the checkpoint in `folder`, if there is one, and returns the number of steps done.

    Raises:
        TrainingError: the checkpoint cannot be read, or is another Config's.
    """
    if folder is None or not (folder / CHECKPOINT).exists():
        return 0
    path = folder / CHECKPOINT
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        key, step = state["key"], state["step"]
    except Exception as error:
        raise TrainingError(
            f"the checkpoint {path} cannot be read ({error}): delete it to start this run anew"
        ) from error
    if key != config.key():
        raise TrainingError(
            f"the checkpoint {path} belongs to run {key}, not to this run {config.key()}: "
            "use another folder, or delete it"
        )
    method.load_state_dict(state["method"])
    optimizer.load_state_dict(state["optimizer"])
    return step
