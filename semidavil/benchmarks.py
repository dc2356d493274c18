"""Benchmarks: which source, which target, which classes; and every data set's label ids.

Sources of the tables: Cityscapes' `cityscapesscripts/helpers/labels.py` (GTA5 uses the same ids);
SYNTHIA-RAND-CITYSCAPES' ids as public loaders of that set agree on them; SegNet's 11 CamVid
classes; IDDA's own mapping to Cityscapes, with motorcycle and bicycle added. No publication fixes
how the sources' classes read in CamVid's: that table is ours. CamVid has one class for what Cityscapes
splits in several (vehicles, signs, two-wheelers with their riders), and its fences include guard rails.
"""

import colorsys
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

IGNORE_INDEX = 255
UNKNOWN = 254  # marks raw ids that a data set does not define

CITYSCAPES_19 = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign",
    "vegetation", "terrain", "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle",
    "bicycle",
)  # fmt: skip
CITYSCAPES_16 = tuple(c for c in CITYSCAPES_19 if c not in ("terrain", "truck", "train"))
CITYSCAPES_13 = tuple(c for c in CITYSCAPES_16 if c not in ("wall", "fence", "pole"))
CAMVID_11 = (
    "sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian",
    "bicyclist",
)  # fmt: skip

SYNAPSE_13 = (
    "spleen", "right kidney", "left kidney", "gallbladder", "esophagus", "liver", "stomach", "aorta",
    "inferior vena cava", "portal and splenic veins", "pancreas", "right adrenal gland",
    "left adrenal gland",
)  # fmt: skip

PALETTE = {
    "road": (128, 64, 128), "sidewalk": (244, 35, 232), "building": (70, 70, 70),
    "wall": (102, 102, 156), "fence": (190, 153, 153), "pole": (153, 153, 153),
    "traffic light": (250, 170, 30), "traffic sign": (220, 220, 0), "vegetation": (107, 142, 35),
    "terrain": (152, 251, 152), "sky": (70, 130, 180), "person": (220, 20, 60),
    "rider": (255, 0, 0), "car": (0, 0, 142), "truck": (0, 0, 70), "bus": (0, 60, 100),
    "train": (0, 80, 100), "motorcycle": (0, 0, 230), "bicycle": (119, 11, 32),
    # CamVid's classes in the colours of their Cityscapes counterparts
    "pavement": (244, 35, 232), "tree": (107, 142, 35), "sign": (220, 220, 0),
    "pedestrian": (220, 20, 60), "bicyclist": (119, 11, 32),
}  # fmt: skip

# Raw id -> class name, None for ids that exist and are ignored. What is not here is unknown.
_CITYSCAPES_TRAINED = dict(
    zip(
        (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33),
        CITYSCAPES_19,
        strict=True,
    )
)
_CITYSCAPES_IDS: dict[int, str | None] = dict.fromkeys(range(34)) | _CITYSCAPES_TRAINED
LABEL_IDS: dict[str, dict[int, str | None]] = {
    # Cityscapes' licence plate is -1, which an 8-bit PNG stores as 255.
    "cityscapes": _CITYSCAPES_IDS | {255: None},
    "gta5": _CITYSCAPES_IDS | {34: None},
    "synthia": {
        0: None, 1: "sky", 2: "building", 3: "road", 4: "sidewalk", 5: "fence", 6: "vegetation",
        7: "pole", 8: "car", 9: "traffic sign", 10: "person", 11: "bicycle", 12: "motorcycle",
        13: None, 14: None, 15: "traffic light", 16: "terrain", 17: "rider", 18: "truck",
        19: "bus", 20: "train", 21: "wall", 22: None,
    },
    "camvid": dict(enumerate(CAMVID_11)) | {11: None},
    "idda": {
        0: None, 1: "building", 2: "fence", 3: None, 4: "person", 5: "pole", 6: "road", 7: "road",
        8: "sidewalk", 9: "vegetation", 10: "car", 11: "wall", 12: "traffic sign",
        13: "traffic light", 14: "guard rail", 15: None, 16: "bicycle", 17: "motorcycle", 18: "rider",
        19: "terrain", 20: "sky", 21: None, 22: None, 23: None,
    },
}  # fmt: skip

WITH_DISPARITY = ("cityscapes",)  # data sets whose own files say how near things are

# How the sources' classes read in CamVid's words.
_TO_CAMVID = {
    "sidewalk": "pavement", "vegetation": "tree", "terrain": "tree", "traffic light": "sign",
    "traffic sign": "sign", "wall": "building", "person": "pedestrian", "rider": "bicyclist",
    "motorcycle": "bicyclist", "bicycle": "bicyclist", "truck": "car", "bus": "car",
    "train": "car", "guard rail": "fence",
}  # fmt: skip


@dataclass(frozen=True)
class Benchmark:
    """One source and target with the classes that are trained and scored.

    Attributes:
        kind: street images, or CT volumes, whose background is a class that is not scored.
        metric: the score that runs are compared by.
        source: a data set's name; None for a benchmark without domain shift.
        budgets: the numbers of labelled target images that its papers compare; the last is all.
        ssl_budgets: those that papers of semi-supervised learning compare, 1/16 to 1/2 of the set.
        subsets: further means over some classes, by name.
        synonyms: class names of the source that are called otherwise here.
        colours: of classes in pictures, where they are not Cityscapes'.
        words: what classes are also called, in prompts.
        scene: what captions begin with.
        disparity: whether the target's description says where its disparities are.
    """

    name: str
    source: str | None
    target: str
    classes: tuple[str, ...]
    budgets: tuple[int, ...]
    ssl_budgets: tuple[int, ...] = ()
    subsets: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    synonyms: Mapping[str, str] = field(default_factory=dict)
    kind: Literal["images", "volumes"] = "images"
    metric: str = "miou"
    colours: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)
    words: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    scene: str = "a street scene"
    disparity: bool = False

    @property
    def score(self) -> str:
        """The metric's name in print."""
        return {"miou": "mIoU", "dice": "Dice"}[self.metric]

    @property
    def datasets(self) -> tuple[str, ...]:
        return (self.target,) if self.source is None else (self.source, self.target)

    @property
    def has_disparity(self) -> bool:
        """Whether the target's images come with disparity maps."""
        return self.disparity or self.target in WITH_DISPARITY

    def lookup(self, dataset: str) -> np.ndarray:
        """Class index by raw label id (65536,) uint8: 255 is ignored, 254 an unknown id."""
        table = np.full(65536, UNKNOWN, dtype=np.uint8)
        for raw, name in LABEL_IDS[dataset].items():
            known = self.synonyms.get(name, name) if name else None
            table[raw] = self.classes.index(known) if known in self.classes else IGNORE_INDEX
        return table

    @property
    def palette(self) -> np.ndarray:
        """Colours (256, 3) uint8 by class index; ignored pixels are black."""
        return palette_of(self.classes, self.colours)


def palette_of(classes: Sequence[str], colours: Mapping[str, tuple[int, int, int]]) -> np.ndarray:
    """Colours (256, 3) uint8 by class index: those given, Cityscapes', or made ones; all else is black."""
    palette = np.zeros((256, 3), dtype=np.uint8)
    known = PALETTE | dict(colours)
    taken = [known[name] for name in classes if name in known]
    for index, name in enumerate(classes):
        if name not in known:
            taken.append(known.setdefault(name, _unlike(taken)))
        palette[index] = known[name]
    return palette


def _unlike(taken: Sequence[tuple[int, int, int]]) -> tuple[int, int, int]:
    """A colour for a class that has none: of many, the one that is farthest from those taken."""
    shades = itertools.product(range(24), ((0.65, 1.0), (0.8, 0.65), (0.35, 0.95)))
    made = [colorsys.hsv_to_rgb(hue / 24, *shade) for hue, shade in shades]
    table = np.array(made).reshape(-1, 1, 3) * 255
    others = np.array([(0, 0, 0), *taken], float)  # black is what is ignored
    distance = np.square(table - others).sum(2).min(1)
    red, green, blue = table[int(distance.argmax()), 0].round().astype(int).tolist()
    return red, green, blue


_CITYSCAPES_BUDGETS = (0, 100, 200, 500, 1000, 2975)
_CAMVID_BUDGETS = (0, 25, 50, 100, 200, 367)
_SUBSET_13 = {"13": tuple(CITYSCAPES_16.index(name) for name in CITYSCAPES_13)}

BENCHMARKS = {
    b.name: b
    for b in (
        Benchmark("gta5-cityscapes", "gta5", "cityscapes", CITYSCAPES_19, _CITYSCAPES_BUDGETS),
        Benchmark(
            "synthia-cityscapes", "synthia", "cityscapes", CITYSCAPES_16, _CITYSCAPES_BUDGETS,
            subsets=_SUBSET_13,
        ),
        Benchmark(
            "cityscapes-cityscapes", None, "cityscapes", CITYSCAPES_19, _CITYSCAPES_BUDGETS[1:],
            ssl_budgets=(186, 372, 744, 1488),
        ),
        Benchmark(
            "idda-camvid", "idda", "camvid", CAMVID_11, _CAMVID_BUDGETS, synonyms=_TO_CAMVID
        ),
        Benchmark(
            "gta5-camvid", "gta5", "camvid", CAMVID_11, _CAMVID_BUDGETS, synonyms=_TO_CAMVID
        ),
        Benchmark(
            "synthia-camvid", "synthia", "camvid", CAMVID_11, _CAMVID_BUDGETS, synonyms=_TO_CAMVID
        ),
        # 20% and 40% of 20 training scans.
        Benchmark("synapse", None, "synapse", SYNAPSE_13, (4, 8), kind="volumes", metric="dice"),
    )
}  # fmt: skip
