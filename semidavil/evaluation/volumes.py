"""Dice and average surface distance per organ, over whole scans."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps
from monai.inferers import sliding_window_inference
from PIL import Image
from torch import Tensor

from semidavil.data.synapse import Scan
from semidavil.evaluation.pictures import save_sheet
from semidavil.evaluation.surfaces import MISSED, surface_distances
from semidavil.models.unet3d import PyramidUNet


@dataclass(frozen=True)
class VolumeEvaluation:
    """One network's scores on each scan.

    Attributes:
        names: the scans.
        dice: (N, organs) in [0, 1]; NaN where an organ is neither there nor predicted.
        surface: (N, organs) symmetric average surface distance in millimetres; NaN where the organ
            or its prediction is missing.
        surface_voxels: (N, organs) from the prediction's surface to the organ's, in voxels; 128 where
            one of them is missing, 0 where both are, as GenericSSL and DHC report it.
        voxels: (N, organs) of the ground truth.
    """

    names: list[str]
    dice: np.ndarray
    surface: np.ndarray
    surface_voxels: np.ndarray
    voxels: np.ndarray

    def save(self, path: Path) -> None:
        np.savez_compressed(
            path, names=np.array(self.names), dice=self.dice, surface=self.surface,
            surface_voxels=self.surface_voxels, voxels=self.voxels,
        )  # fmt: skip

    def summary(self, organs: Sequence[str]) -> dict[str, float]:
        """`dice` (per cent), `asd` (mm), `asd_voxels`: means over organs of means over scans; and of each.

        A surface distance needs both surfaces: read it beside `missed`, the per cent of the organs
        there that were not found at all. An organ that was found nowhere is missing from `asd`.
        """
        dice, surface = 100 * _mean(self.dice), _mean(self.surface)
        in_voxels = self.surface_voxels.mean(0)
        there = self.voxels > 0
        missed = 100 * (there & np.isnan(self.surface)).sum() / max(there.sum(), 1)
        found = {"dice": float(np.nanmean(dice)), "missed": float(missed)}
        found["asd_voxels"] = float(in_voxels.mean())
        found |= {
            f"asd_voxels/{organ}": float(x) for organ, x in zip(organs, in_voxels, strict=True)
        }
        if not np.isnan(surface).all():
            found["asd"] = float(np.nanmean(surface))
        for organ, overlap, distance in zip(organs, dice, surface, strict=True):
            if not np.isnan(overlap):
                found[f"dice/{organ}"] = float(overlap)
            if not np.isnan(distance):
                found[f"asd/{organ}"] = float(distance)
        return found


def _mean(values: np.ndarray) -> np.ndarray:
    """Over scans, NaN left out; NaN for an organ that has nothing else."""
    known = ~np.isnan(values)
    total = np.where(known, values, 0).sum(0)
    return np.divide(total, known.sum(0), out=np.full(total.shape, np.nan), where=known.any(0))


@torch.inference_mode()
def predict(network: PyramidUNet, scan: Scan, patch: Sequence[int], device: torch.device) -> Tensor:
    """Labels (D, H, W) int64 from patches that overlap by half, their logits averaged."""
    image = torch.from_numpy(scan.image)[None, None].to(device)
    logits = sliding_window_inference(image, tuple(patch), 4, network.eval(), overlap=0.5)
    assert isinstance(logits, Tensor)
    return logits.argmax(1)[0]


def evaluate_volumes(
    networks: Mapping[str, PyramidUNet],
    scans: Mapping[str, Scan],
    num_organs: int,
    patch: Sequence[int],
    device: torch.device,
) -> dict[str, VolumeEvaluation]:
    """Scores of each network on the named scans."""
    found = {}
    for name, network in networks.items():
        rows = [
            score(predict(network, scan, patch, device).cpu(), scan, num_organs)
            for scan in scans.values()
        ]
        columns = (np.stack(column) for column in zip(*rows, strict=True))
        found[name] = VolumeEvaluation(list(scans), *columns)
    return found


def score(
    labels: Tensor, scan: Scan, num_organs: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Dice, surface distance (mm), the same in voxels, true voxels of each organ (1 to `num_organs`)."""
    guess, truth = labels.numpy(), scan.label
    count = num_organs + 1
    sizes = [np.bincount(part.ravel(), minlength=count)[1:] for part in (guess, truth)]
    overlap = np.bincount(guess[guess == truth], minlength=count)[1:]
    total = sizes[0] + sizes[1]
    dice = np.divide(2 * overlap, total, out=np.full(num_organs, np.nan), where=total > 0)
    surface = np.full(num_organs, np.nan)
    in_voxels = np.where(total > 0, MISSED, 0.0)
    for organ in np.flatnonzero(np.minimum(*sizes)):
        masks = guess == organ + 1, truth == organ + 1
        surface[organ], in_voxels[organ] = surface_distances(*masks, scan.spacing)
    return dice, surface, in_voxels, sizes[1]


def save_slices(
    network: PyramidUNet,
    scans: Mapping[str, Scan],
    patch: Sequence[int],
    device: torch.device,
    path: Path,
    count: int = 3,
) -> None:
    """A PNG: of each scan the axial slice with most organs; image, prediction, ground truth."""
    palette = np.zeros((256, 3), np.uint8)
    palette[1:21] = (colormaps["tab20"](np.arange(20))[:, :3] * 255).astype(np.uint8)
    rows = []
    for scan in list(scans.values())[:count]:
        kinds = [len(np.unique(layer)) for layer in scan.label]
        best = int(np.argmax(kinds))
        labels = predict(network, scan, patch, device)[best].cpu().numpy()
        grey = np.repeat((scan.image[best] * 255).astype(np.uint8)[..., None], 3, 2)
        row = np.hstack([grey, palette[labels], palette[scan.label[best]]])
        factor = max(1, 224 // row.shape[0])
        rows.append(Image.fromarray(row).resize((row.shape[1] * factor, row.shape[0] * factor), 0))
    save_sheet(rows, path)
