"""Segmentation metrics from one confusion matrix over the whole set (rows = truth)."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor


def confusion_matrix(predictions: Tensor, targets: Tensor, num_classes: int) -> Tensor:
    """Counts (C, C) int64 over valid pixels: `[truth, prediction]`.

    Args:
        predictions, targets: class indices of one shape; a target >= num_classes is ignored.
    """
    valid = targets < num_classes
    pairs = targets[valid] * num_classes + predictions[valid]
    return pairs.bincount(minlength=num_classes**2).view(num_classes, num_classes)


def iou(confusion: np.ndarray) -> np.ndarray:
    """IoU_c = TP / (TP + FP + FN); NaN for a class with neither ground truth nor prediction.

    The rule of Cityscapes' own evaluation: such a class is left out of the mean, while a class
    that is predicted but never there counts as 0.
    """
    hits = np.diag(confusion).astype(np.float64)
    union = confusion.sum(0) + confusion.sum(1) - hits
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


class Confusion:
    """Adds up a confusion matrix on the device, image by image."""

    def __init__(self, num_classes: int, device: torch.device) -> None:
        self.num_classes = num_classes
        self.counts = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)

    def add(self, predictions: Tensor, targets: Tensor) -> None:
        self.counts += confusion_matrix(predictions, targets, self.num_classes)

    def numpy(self) -> np.ndarray:
        return self.counts.cpu().numpy()
