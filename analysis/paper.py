"""Published numbers as data with their source: SemiDAViL's (Basak and Yin, CVPR 2025), and rivals' elsewhere.

Exact values stand in the supplement's tables. Of Figure 1 two values, some differences and bounds are given
in words: the other values of DLG are inferred, read off the loss table, whose DyCE row is the same model.
What is only a bound is never drawn as a value. What is not here is not published in numbers.
"""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["exact", "inferred", "difference", "bound"]
READ_OFF = ("inferred", "difference")  # from another table, or from a difference in words
BUDGETS = (0, 100, 200, 500, 1000, 2975)


@dataclass(frozen=True)
class Published:
    """One mIoU in per cent; for a bound, the smallest value that its words allow."""

    benchmark: str
    variant: str
    budget: int
    miou: float
    kind: Kind
    source: str

    @property
    def text(self) -> str:
        """`71.1`, `71.1†` of what is read off another number, `≥ 72.6` of a bound."""
        return f"{'≥ ' * (self.kind == 'bound')}{self.miou:.1f}{'†' * (self.kind in READ_OFF)}"


# Supplement, Table 1: losses, by benchmark and budget. DyCE's row is the full model with DLG.
LOSS_TABLE: dict[str, dict[str, tuple[float, ...]]] = {
    "gta5-cityscapes": {
        "ce": (66.9, 70.3, 71.6, 72.1, 73.9, 74.4),
        "wce": (64.3, 69.4, 70.5, 71.8, 72.7, 73.3),
        "dce": (67.1, 70.5, 71.6, 72.3, 73.3, 74.7),
        "focal": (67.0, 70.4, 71.8, 72.2, 74.1, 74.9),
        "dfl": (67.3, 70.6, 71.9, 72.2, 74.0, 74.8),
        "dyce": (67.7, 71.1, 72.5, 72.9, 74.8, 75.2),
    },
    "synthia-cityscapes": {
        "ce": (69.5, 74.9, 76.8, 77.7, 79.2, 79.6),
        "wce": (67.2, 73.1, 74.4, 75.3, 77.6, 78.9),
        "dce": (69.7, 75.2, 76.8, 78.1, 79.1, 79.7),
        "focal": (69.8, 75.4, 76.9, 78.0, 79.3, 79.7),
        "dfl": (69.9, 75.7, 77.0, 78.2, 78.9, 79.8),
        "dyce": (70.2, 76.9, 77.2, 78.6, 79.7, 80.5),
    },
}
# Supplement, Table 2: against SemiVL, budgets 100, 200, 500, 1000.
SEMIVL_TABLE: dict[str, dict[str, tuple[float, ...]]] = {
    "gta5-cityscapes": {
        "semivl": (68.5, 69.9, 70.6, 71.7), "semidavil": (71.1, 72.5, 72.9, 74.8)},
    "synthia-cityscapes": {
        "semivl": (71.4, 72.3, 74.3, 75.1), "semidavil": (76.9, 77.2, 78.6, 79.7)},
    "cityscapes-cityscapes": {
        "semivl": (76.2, 77.9, 80.2, 80.4), "semidavil": (77.1, 78.2, 81.4, 81.6)},
}  # fmt: skip
# Figure 1 in words: by how much DLG is above the others.
_DLG_ABOVE = {
    ("gta5-cityscapes", 0): {"wpct": 2.6, "vlga": 1.4},
    ("synthia-cityscapes", 0): {"wpct": 4.4, "vlga": 1.9},
}
_DLG_ABOVE_BY_UP_TO = {"wpct": 3.6, "vlga": 2.6}  # at 2975 labels, whichever benchmark


# Figure 3 in words: DyCE above CE in class IoU at 500 labels: (low, high). Its caption says "percentage
# improvement", which may mean points of IoU or per cent of cross-entropy's IoU: nothing is subtracted.
CLASS_GAINS: dict[str, dict[str, tuple[float, float]]] = {
    "gta5-cityscapes": {
        "rider": (2.3, 2.3), "bus": (1.8, 2.0), "truck": (1.8, 2.0), "wall": (1.8, 2.0),
        "road": (0.1, 0.4), "building": (0.1, 0.4)},
    "synthia-cityscapes": {
        "rider": (2.05, 2.05), "bus": (1.8, 2.0), "wall": (1.8, 2.0),
        "road": (0.07, 0.09), "building": (0.07, 0.09)},
}  # fmt: skip
CLASS_GAINS_SOURCE = "Figure 3 in words"
CLASS_GAINS_WORDS = (
    "The paper's gains (Figure 3, in words; a line is a range) stand on an axis of their own: it calls them "
    "percentage improvements, and does not say whether these are points of IoU or per cent of "
    "cross-entropy's IoU. The CSV has ours in both."
)
# Figure 2 in words: Synapse, 20% labelled, relative Dice gain of DyCE over CE, by abbreviated organ.
SYNAPSE_GAINS = dict.fromkeys(("Ga", "Es", "RAG", "LAG"), "> 50%") | dict.fromkeys(
    ("Li", "St"), "small"
)
_SYNAPSE_GAINS = (
    "The paper's Figure 2 is published in words alone: rare organs (gallbladder, esophagus, adrenal glands) "
    "gain over 50% in some cases, liver and stomach modestly."
)


@dataclass(frozen=True)
class SynapseResult:
    """What others report with cross-entropy.

    Attributes:
        dice: in per cent, by organ in the data set's order.
        mean: of them, with the standard deviation over three runs.
        asd_voxels: the mean surface distance, where a missed organ counts as 128.
    """

    dice: tuple[float, ...]
    mean: str
    asd_voxels: str


# Dual-debiased Heterogeneous Co-training (DHC; Wang and Li, MICCAI 2023), table of 20% labelled scans.
SYNAPSE_DHC = {
    "uamt": SynapseResult(
        (48.2, 31.7, 22.2, 0.0, 0.0, 81.2, 29.1, 23.3, 27.5, 0.0, 0.0, 0.0, 0.0),
        "20.26 ± 2.2", "71.67 ± 7.4",
    ),
    "urpc": SynapseResult(
        (66.7, 38.2, 56.8, 0.0, 0.0, 85.3, 33.9, 33.1, 14.8, 0.0, 5.1, 0.0, 0.0),
        "25.68 ± 5.1", "72.74 ± 15.5",
    ),
}  # fmt: skip
SYNAPSE_WORDS = (
    f"{_SYNAPSE_GAINS} With networks, schedules and a split of its own, DHC (MICCAI 2023) has UA-MT at a "
    f"Dice of {SYNAPSE_DHC['uamt'].mean} and {SYNAPSE_DHC['uamt'].asd_voxels} voxels, URPC at "
    f"{SYNAPSE_DHC['urpc'].mean} and {SYNAPSE_DHC['urpc'].asd_voxels}, both at 0.0 on those rare organs, "
    "where a gain in per cent is undefined."
)


@dataclass(frozen=True)
class Elsewhere:
    """What another publication reports on Cityscapes, without a domain shift.

    Attributes:
        encoder: of that publication, with a decoder, crops and a schedule of its own.
        miou: in per cent, with 186, 372, 744 and 1,488 labelled images (1/16 to 1/2).
    """

    name: str
    encoder: str
    miou: tuple[float, float, float, float]


# None of it is in SemiDAViL's setting: it stands apart, is subtracted from nothing and ranked with nothing.
ELSEWHERE_SOURCE = "the README of LiheYoung/UniMatch-V2 (commit f6afb4d; Yang et al., TPAMI 2025)"
ELSEWHERE = (
    Elsewhere("UniMatch (CVPR 2023)", "ResNet-101", (76.6, 77.9, 79.2, 79.5)),
    Elsewhere("AllSpark (CVPR 2024)", "MiT-B5", (78.3, 79.2, 80.6, 81.4)),
    Elsewhere("SemiVL (ECCV 2024)", "CLIP ViT-B", (77.9, 79.4, 80.3, 80.6)),
    Elsewhere("UniMatch V2 (TPAMI 2025)", "DINOv2-B", (83.6, 84.3, 84.5, 85.1)),
)
_SEMIVL_BUDGETS = (100, 200, 500, 1000)


def losses() -> list[Published]:
    """The supplement's Table 1: six losses, six budgets, two benchmarks."""
    return _exact(LOSS_TABLE, BUDGETS, "supplement, Table 1")


def semivl() -> list[Published]:
    """The supplement's Table 2: SemiVL and SemiDAViL, four budgets, three benchmarks."""
    return _exact(SEMIVL_TABLE, _SEMIVL_BUDGETS, "supplement, Table 2")


def _exact(
    table: dict[str, dict[str, tuple[float, ...]]], budgets: tuple[int, ...], source: str
) -> list[Published]:
    return [
        Published(benchmark, variant, budget, value, "exact", source)
        for benchmark, rows in table.items()
        for variant, values in rows.items()
        for budget, value in zip(budgets, values, strict=True)
    ]


def methods() -> list[Published]:
    """What is known of the methods' comparison at 100 labels: SemiVL and SemiDAViL."""
    return [point for point in semivl() if point.budget == 100]


def attention() -> list[Published]:
    """What is known of Figure 1, the attention comparison."""
    found = []
    for benchmark, losses in LOSS_TABLE.items():
        dlg = dict(zip(BUDGETS, losses["dyce"], strict=True))
        stated = Published(benchmark, "dlg", 0, dlg[0], "exact", "Figure 1 in words")
        table = "supplement, Table 1, DyCE: the same model"
        others = [(b, v) for b, v in dlg.items() if b]
        found += [
            stated,
            *(Published(benchmark, "dlg", b, v, "inferred", table) for b, v in others),
        ]
        for variant, gap in _DLG_ABOVE[benchmark, 0].items():
            value, source = round(dlg[0] - gap, 1), f"Figure 1 in words: DLG is {gap} above"
            found.append(Published(benchmark, variant, 0, value, "difference", source))
        for variant, gap in _DLG_ABOVE_BY_UP_TO.items():
            value, source = round(dlg[2975] - gap, 1), f"Figure 1 in words: DLG up to {gap} above"
            found.append(Published(benchmark, variant, 2975, value, "bound", source))
    return found
