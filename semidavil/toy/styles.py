"""What is painted, and the three looks: palettes, statistics of the world, cameras."""

from dataclasses import dataclass
from typing import Literal

Look = Literal["camera", "gta5", "synthia"]
LOOKS: tuple[Look, ...] = ("camera", "gta5", "synthia")
# Cityscapes label ids of what is painted.
EGO, ROAD, SIDEWALK, BUILDING, WALL, FENCE, POLE = 1, 7, 8, 11, 12, 13, 17
LIGHT, SIGN, VEGETATION, TERRAIN, SKY, PERSON, RIDER = 19, 20, 21, 22, 23, 24, 25
CAR, TRUCK, BUS, TRAIN, MOTORCYCLE, BICYCLE, PLATE = 26, 27, 28, 31, 32, 33, 34


@dataclass(frozen=True)
class Style:
    """A look's palette (RGB), statistics of the world, and camera."""

    palette: dict[int, tuple[int, int, int]]
    scene_jitter: float  # standard deviation of a class's colour between scenes
    instance_jitter: float  # and between instances in a scene
    texture: float  # amplitude of the fine noise
    stripes: float  # amplitude of the rendered looks' regular texture
    horizon: tuple[float, float]  # as a share of the height
    camera_height: tuple[float, float]  # metres
    rates: dict[str, float]  # expected numbers, or probabilities, of things
    plates: bool = False  # licence plates have a label of their own, as in GTA5


STYLES: dict[Look, Style] = {
    "gta5": Style(
        palette={
            ROAD: (92, 94, 104), SIDEWALK: (168, 158, 140), BUILDING: (184, 150, 106),
            WALL: (138, 118, 128), FENCE: (116, 84, 50), POLE: (70, 74, 82), LIGHT: (36, 46, 30),
            SIGN: (214, 184, 50), VEGETATION: (62, 130, 40), TERRAIN: (146, 158, 62),
            SKY: (120, 174, 240), PERSON: (168, 74, 76), RIDER: (84, 84, 176),
            TRUCK: (204, 200, 192), BUS: (204, 86, 36), TRAIN: (106, 128, 162),
            MOTORCYCLE: (52, 40, 62), BICYCLE: (108, 60, 44), EGO: (24, 26, 30),
        },
        scene_jitter=12, instance_jitter=12, texture=3, stripes=9,
        horizon=(0.36, 0.46), camera_height=(2.0, 2.6),
        rates={"car": 2.6, "truck": 0.45, "bus": 0.22, "train": 0.1, "person": 1.6, "cycle": 0.6,
               "motorcycle": 0.35, "tree": 2.0, "pole": 2.2, "wall": 0.3, "fence": 0.3,
               "terrain": 0.35, "green": 0.22},
        plates=True,
    ),
    "synthia": Style(
        palette={
            ROAD: (70, 72, 72), SIDEWALK: (186, 116, 104), BUILDING: (154, 162, 178),
            WALL: (182, 154, 120), FENCE: (66, 98, 126), POLE: (126, 128, 132), LIGHT: (70, 58, 26),
            SIGN: (60, 92, 204), VEGETATION: (36, 106, 62), TERRAIN: (114, 170, 88),
            SKY: (176, 206, 234), PERSON: (116, 98, 148), RIDER: (182, 112, 48),
            TRUCK: (172, 58, 54), BUS: (54, 132, 150), TRAIN: (196, 186, 82),
            MOTORCYCLE: (36, 58, 92), BICYCLE: (146, 48, 58), EGO: (30, 26, 26),
        },
        scene_jitter=12, instance_jitter=12, texture=2, stripes=12,
        horizon=(0.3, 0.52), camera_height=(1.8, 3.4),
        rates={"car": 2.0, "truck": 0.3, "bus": 0.3, "train": 0.08, "person": 2.6, "cycle": 0.7,
               "motorcycle": 0.45, "tree": 1.8, "pole": 2.4, "wall": 0.25, "fence": 0.3,
               "terrain": 0.25, "green": 0.15},
    ),
    "camera": Style(
        palette={
            ROAD: (111, 102, 102), SIDEWALK: (157, 154, 157), BUILDING: (164, 115, 89),
            WALL: (167, 147, 138), FENCE: (81, 84, 70), POLE: (86, 92, 88), LIGHT: (31, 39, 42),
            SIGN: (209, 197, 153), VEGETATION: (69, 107, 40), TERRAIN: (147, 147, 75),
            SKY: (178, 198, 218), PERSON: (104, 61, 86), RIDER: (110, 60, 108),
            TRUCK: (139, 159, 173), BUS: (205, 138, 64), TRAIN: (148, 88, 104),
            MOTORCYCLE: (53, 46, 46), BICYCLE: (78, 82, 55), EGO: (38, 38, 38),
        },
        scene_jitter=16, instance_jitter=12, texture=6, stripes=0,
        horizon=(0.4, 0.5), camera_height=(1.8, 2.3),
        rates={"car": 2.4, "truck": 0.12, "bus": 0.09, "train": 0.05, "person": 1.6, "cycle": 0.6,
               "motorcycle": 0.17, "tree": 2.4, "pole": 2.6, "wall": 0.12, "fence": 0.2,
               "terrain": 0.3, "green": 0.3},
    ),
}  # fmt: skip
