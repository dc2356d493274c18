"""Segmentation metrics from confusion matrices (rows = truth). Imports no torch: analysis uses them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np


def iou(confusion: np.ndarray) -> np.ndarray:
    """IoU_c = TP / (TP + FP + FN) of (..., C, C): (..., C); NaN for a class that is nowhere.

    The rule of Cityscapes' own evaluation: a class with neither ground truth nor prediction is left
    out of the mean, while one that is predicted but never there counts as 0.
    """
    hits = np.diagonal(confusion, axis1=-2, axis2=-1).astype(np.float64)
    union = confusion.sum(-2) + confusion.sum(-1) - hits
    return np.divide(hits, union, out=np.full_like(hits, np.nan), where=union > 0)


def summarise(
    confusion: np.ndarray,
    classes: Sequence[str],
    subsets: Mapping[str, Sequence[int]] | None = None,
) -> dict[str, float]:
    """mIoU, pixel accuracy and IoU per class, all in per cent.

    Args:
        subsets: further means by name, over some classes each (`miou_13` for SYNTHIA).

    Returns:
        `miou`, `pixel_accuracy`, `iou/<class>` for classes that occur, `miou_<subset>`.
    """
    per_class = 100 * iou(confusion)
    total = confusion.sum()
    metrics = {
        "miou": float(np.nanmean(per_class)) if total else float("nan"),
        "pixel_accuracy": float(100 * np.diag(confusion).sum() / total) if total else float("nan"),
    }
    for name, indices in (subsets or {}).items():
        values = per_class[list(indices)]
        if not np.isnan(values).all():
            metrics[f"miou_{name}"] = float(np.nanmean(values))
    for name, value in zip(classes, per_class, strict=True):
        if not np.isnan(value):
            metrics[f"iou/{name}"] = float(value)
    return metrics


def absent_classes(confusion: np.ndarray, classes: Sequence[str]) -> list[str]:
    """Classes with neither ground truth nor prediction: they are not in the mean."""
    return [name for name, value in zip(classes, iou(confusion), strict=True) if np.isnan(value)]


@dataclass(frozen=True)
class Evaluation:
    """What one network does on a set of images; everything reported follows from it.

    Attributes:
        names: the images.
        per_image: a confusion matrix of each, (N, C, C) int64, rows = truth.
        confident: the same over all images, of the pixels whose largest probability reaches the
            pseudo-label threshold: what a teacher of this skill would teach, (C, C) int64.
        labels: predicted classes (H, W) uint8 of the images that were to be kept, by name.
    """

    names: list[str]
    per_image: np.ndarray
    confident: np.ndarray
    labels: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def confusion(self) -> np.ndarray:
        """(C, C) int64 over the whole set."""
        return self.per_image.sum(0)

    def pseudo_labels(self, classes: Sequence[str] = ()) -> dict[str, float]:
        """`coverage` (confident pixels) and `accuracy` (of those) of pseudo-labels, per cent.

        Args:
            classes: names of all; then also `coverage/<class>` and `accuracy/<class>` of the pixels
                predicted to be of that class.

        Returns:
            Without the coverage of what is never predicted, and the accuracy where nothing is
            confident.
        """
        predicted, kept = self.confusion.sum(0), self.confident.sum(0)  # (C,)
        right = np.diag(self.confident)
        parts = {"": slice(None)} | {f"/{name}": slice(i, i + 1) for i, name in enumerate(classes)}
        found: dict[str, float] = {}
        for name, part in parts.items():
            if total := predicted[part].sum():
                found[f"coverage{name}"] = float(100 * kept[part].sum() / total)
            if confident := kept[part].sum():
                found[f"accuracy{name}"] = float(100 * right[part].sum() / confident)
        return found

    def save(self, path: Path) -> None:
        """A compressed .npz with `names`, `per_image` and `confident`."""
        np.savez_compressed(
            path,
            names=np.array(self.names),
            per_image=self.per_image.astype(np.int32),
            confident=self.confident,
        )
