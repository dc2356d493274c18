"""Splits of the Synapse scans that publications name, by the challenge's own numbers of the scans.

The paper names no scans, so neither of these is surely its own; splits are known to change results.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from semidavil.data.files import DataError


@dataclass(frozen=True)
class NamedSplit:
    """Numbers of the scans.

    Attributes:
        parts: of "train", "val" and "test".
        labelled: those of "train" that are labelled, by their count (the label budget).
    """

    parts: Mapping[str, tuple[int, ...]]
    labelled: Mapping[int, tuple[int, ...]]


NAMED_SPLITS = {
    # Towards Generic Semi-Supervised Framework for Volumetric Medical Image Segmentation (Wang and Li,
    # NeurIPS 2023), the lists in its code: 20% labelled.
    "genericssl": NamedSplit(
        parts={
            "train": (2, 3, 4, 5, 6, 9, 10, 21, 22, 24, 25, 26, 28, 31, 32, 34, 35, 36, 38, 40),
            "val": (1, 7, 23, 30),
            "test": (8, 27, 29, 33, 37, 39),
        },
        labelled={4: (9, 21, 25, 34)},
    ),
    # Dual-debiased Heterogeneous Co-training (DHC; Wang and Li, MICCAI 2023), the lists that its code came
    # with at first: 10, 20 and 40% labelled.
    "dhc": NamedSplit(
        parts={
            "train": (1, 2, 3, 5, 8, 9, 21, 22, 23, 24, 27, 28, 29, 30, 31, 32, 34, 37, 38, 39),
            "val": (6, 25, 26, 40),
            "test": (4, 7, 10, 33, 35, 36),
        },
        labelled={2: (23, 28), 4: (2, 23, 34, 39), 8: (2, 9, 21, 23, 27, 31, 32, 37)},
    ),
}


def labelled_scans(split: str, budget: int) -> tuple[int, ...]:
    """The numbers of the labelled scans of a named split, whatever the seed.

    Raises:
        DataError: the split has no list of that length.
    """
    lists = NAMED_SPLITS[split].labelled
    if budget not in lists:
        raise DataError(
            f"volumes.split={split} has no list of {budget} labelled scans, only of "
            f"{' and '.join(map(str, lists))}: choose one of these (--budgets), or volumes.split=seeded, "
            "which draws any number by the seed"
        )
    return lists[budget]


def number_of(name: str) -> int | None:
    """The number in a scan's name, `img0001`, `case0001` or `0001`; None for a name with none or several."""
    numbers = re.findall(r"\d+", name)
    return int(numbers[0]) if len(numbers) == 1 else None
