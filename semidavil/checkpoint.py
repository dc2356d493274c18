"""Checkpoints from which a run goes on exactly.

A run's folder holds two: `last.pt`, and the one before it as `previous.pt`, for a `last.pt` that a power
cut or a broken disk has damaged. A checkpoint is the state right after a step: `train` evaluates and
reports that step later, and a run that goes on from a checkpoint begins with both.
"""

import errno
import os
import warnings
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from semidavil.config import Config
from semidavil.data.fingerprint import differences
from semidavil.full_disk import on_disk
from semidavil.meter import Meter

CHECKPOINT, PREVIOUS = "last.pt", "previous.pt"
BROKEN = ".broken"  # follows the name of a checkpoint that cannot be read


class TrainingError(RuntimeError):
    """A run that cannot go on; the message says why and what to do."""


class OtherDataError(TrainingError):
    """A checkpoint of a run that saw other files than are here now."""


class StopTraining(Exception):  # noqa: N818 - no error
    """Raised by a `report` to end its run here; `train` writes a checkpoint of that step first."""


def save_checkpoint(
    folder: Path,
    step: int,
    config: Config,
    data: str,
    method: nn.Module,
    optimizer: torch.optim.Optimizer,
    meter: Meter,
) -> None:
    """Writes the state after `step` steps, and keeps the checkpoint before.

    At every moment a whole checkpoint is in the folder, also after a kill or a power cut.

    Args:
        data: the fingerprint of what the run sees.

    Raises:
        DiskFull: the checkpoints before are kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        "key": config.key(),
        "data": data,
        "step": step,
        "method": method.state_dict(),
        "optimizer": optimizer.state_dict(),
        "meter": meter.state_dict(),
    }
    temporary = folder / f"{CHECKPOINT}.{os.getpid()}.tmp"
    try:
        # A file rather than its name: only then does PyTorch's error hold the system's.
        with on_disk(folder), temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            # Without it, a power cut after the renaming leaves `last.pt` with 0 bytes.
            os.fsync(file.fileno())
        _keep_previous(folder)
        temporary.replace(folder / CHECKPOINT)
        _sync(folder)
    finally:
        temporary.unlink(missing_ok=True)


def _keep_previous(folder: Path) -> None:
    """Makes `previous.pt` another name of `last.pt`, which stays in place for those who copy it."""
    last, link = folder / CHECKPOINT, folder / f"{PREVIOUS}.{os.getpid()}.tmp"
    if not last.exists():
        return
    try:
        os.link(last, link)
        link.replace(folder / PREVIOUS)
    except OSError:  # a file system without hard links
        last.replace(folder / PREVIOUS)
    finally:
        link.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    """Makes the folder's names durable, on file systems that can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def resume(
    folder: Path | None,
    config: Config,
    data: str,
    method: nn.Module,
    optimizer: torch.optim.Optimizer,
    meter: Meter,
    first: bool = True,
) -> int:
    """Loads the newest checkpoint in `folder` that is whole, and returns the number of steps done.

    A damaged one is renamed to `<name>.broken`, with a warning that says why and where the run goes on.

    Args:
        data: the fingerprint of what the run sees.
        first: of several processes of a run, the one that renames and warns.

    Raises:
        OtherDataError: the checkpoint's run saw other files; it is left as it is.
        TrainingError: the checkpoint is another Config's, or is whole and cannot be loaded.
        OSError: the system refuses to read it.
    """
    if folder is None:
        return 0
    damages: list[str] = []
    state = _newest_state(folder, config, data, first, damages)
    step = 0
    if state is not None:
        step = state["step"]
        method.load_state_dict(state["method"])
        load_optimizer(optimizer, state["optimizer"])
        if "meter" in state:  # not in checkpoints of earlier versions
            meter.load_state_dict(state["meter"])
    if damages and first:
        where = f"goes on after step {step}" if step else "starts anew"
        warnings.warn(f"{'; '.join(damages)}: the run {where}", stacklevel=2)
    return step


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Loads a `state_dict`, which leaves the optimizer's own way of computing as it is.

    PyTorch would take that over as well, and place the state for it: a run that began with an earlier version
    would go on without the fused kernel, which counts its steps on the device.
    """
    for mine, theirs in zip(optimizer.param_groups, state["param_groups"], strict=True):
        theirs.update(
            {name: mine[name] for name in ("fused", "foreach", "capturable") if name in mine}
        )
    optimizer.load_state_dict(state)


def _newest_state(
    folder: Path, config: Config, data: str, first: bool, damages: list[str]
) -> dict[str, Any] | None:
    """What the newest whole checkpoint holds; `damages` gets a sentence for each that is not used."""
    for path in (folder / CHECKPOINT, folder / PREVIOUS):
        try:
            damage = _damage(path)
        except FileNotFoundError:
            if path.name == CHECKPOINT and (folder / PREVIOUS).exists():
                damages.append(f"the checkpoint {path} is missing")
            continue
        if damage:
            broken = path.with_name(path.name + BROKEN)
            damages.append(f"the checkpoint {path} is damaged ({damage}) and kept as {broken.name}")
            if first:
                path.replace(broken)
            continue
        try:
            # Not to the GPU: it holds the networks already, and they take the values from here.
            state = torch.load(path, map_location="cpu", weights_only=True)
            key, before, _ = state["key"], state["data"], state["step"]
        except Exception as error:  # for example, too little memory: the file is not to blame
            raise TrainingError(
                f"the checkpoint {path} cannot be read ({type(error).__name__}: {error}); to start "
                f"this run anew, delete it and {PREVIOUS} beside it"
            ) from error
        if key != config.key():
            raise TrainingError(
                f"the checkpoint {path} belongs to run {key}, not to this run {config.key()}: "
                "use another folder, or delete it"
            )
        if before != data:
            raise OtherDataError(
                f"the checkpoint {path} was trained on other data than are here now: not the same are "
                f"{', '.join(differences(before, data))}. Bring back what it was trained on, or delete "
                f"it and {PREVIOUS} beside it to train anew"
            )
        return state
    return None


def _damage(path: Path) -> str:
    """What is wrong with a checkpoint's file; empty if it is as it was written.

    `torch.load` does not compare checksums: it takes zeros, where a power cut has lost a part, for weights.

    Raises:
        OSError: the system does not let it be read.
    """
    size = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as file:
            part = file.testzip()
    except OSError as error:
        if error.errno != errno.EINVAL:  # which is a place outside the file
            raise
        return f"{error}, {size} bytes"
    except Exception as error:  # `zipfile` has its own for each part that may be damaged
        return f"{error}, {size} bytes"
    return f"wrong checksum of {part}" if part else ""
