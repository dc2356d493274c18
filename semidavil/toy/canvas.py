"""A picture of the toy world in the making: camera, brushes, and the colours of things."""

from collections.abc import Sequence

import cv2
import numpy as np

from semidavil.toy.styles import Style

FAR = 200.0  # metres; the sky's depth
SUPERSAMPLING = 2  # painted larger, then averaged: borders mix colours as a sensor's do


def jitter(rng: np.random.Generator, scale: float) -> np.ndarray:
    """A change of colour (3,), mostly of lightness."""
    return rng.normal(0, scale) + rng.normal(0, 0.4 * scale, 3)


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


class Canvas:
    """A supersampled picture with label and depth, a pinhole camera above the road, and brushes."""

    def __init__(self, rng: np.random.Generator, style: Style, size: tuple[int, int]) -> None:
        self.rng, self.style = rng, style
        self.height, self.width = size[0] * SUPERSAMPLING, size[1] * SUPERSAMPLING
        self.focal = 0.8 * self.width
        self.horizon = rng.uniform(*style.horizon) * self.height
        self.centre = self.width * rng.uniform(0.42, 0.58)
        self.camera_height = rng.uniform(*style.camera_height)
        self.label = np.zeros((self.height, self.width), np.uint8)
        self.depth = np.full((self.height, self.width), FAR, np.float32)
        self.colour = np.zeros((self.height, self.width, 3), np.float32)
        self.base = {
            c: np.clip(np.array(rgb) + jitter(rng, style.scene_jitter), 0, 255)
            for c, rgb in style.palette.items()
        }

    def project(self, x: float, y: float, z: float) -> tuple[float, float]:
        """World point (y above the ground) to canvas coordinates."""
        u = self.centre + self.focal * x / z
        return u, self.horizon + self.focal * (self.camera_height - y) / z

    def fill(
        self,
        points: Sequence[tuple[float, float]],
        label: int | None,
        colour: np.ndarray,
        z: float | None,
    ) -> None:
        """A polygon in canvas coordinates; label None paints colour only (a detail)."""
        polygon = [np.round(points).clip(-9000, 9000).astype(np.int32)]
        cv2.fillPoly(self.colour, polygon, colour.tolist())
        if label is not None:
            cv2.fillPoly(self.label, polygon, label)
            if z is not None:
                cv2.fillPoly(self.depth, polygon, z)

    def ellipse(
        self, centre: tuple[float, float], axes: tuple[float, float], label: int,
        colour: np.ndarray, z: float,
    ) -> None:  # fmt: skip
        middle = (round(centre[0]), round(centre[1]))
        radii = (max(1, round(axes[0])), max(1, round(axes[1])))
        cv2.ellipse(self.colour, middle, radii, 0, 0, 360, colour.tolist(), -1)
        cv2.ellipse(self.label, middle, radii, 0, 0, 360, label, -1)
        cv2.ellipse(self.depth, middle, radii, 0, 0, 360, z, -1)

    def board(
        self, x: float, z: float, y: tuple[float, float], width: float, label: int | None,
        colour: np.ndarray,
    ) -> None:  # fmt: skip
        """An upright rectangle that faces the camera, `width` metres wide, from y[0] to y[1]."""
        (left, top), (right, bottom) = (
            self.project(x - width / 2, y[1], z),
            self.project(x + width / 2, y[0], z),
        )
        right, bottom = max(right, left + 1), max(bottom, top + 1)
        corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
        self.fill(corners, label, colour, z)

    def facade(
        self, x: float, z: tuple[float, float], y: tuple[float, float], label: int | None,
        colour: np.ndarray,
    ) -> None:  # fmt: skip
        """An upright rectangle along the road at X = x, from depth z[0] to z[1]."""
        corners = [
            self.project(x, y[1], z[0]),
            self.project(x, y[1], z[1]),
            self.project(x, y[0], z[1]),
            self.project(x, y[0], z[0]),
        ]
        self.fill(corners, label, colour, (z[0] + z[1]) / 2)

    def shade(self, label: int, factor: float = 1.0) -> np.ndarray:
        """An instance's own colour of a class."""
        own = self.base[label] + jitter(self.rng, self.style.instance_jitter)
        return np.clip(own * factor, 0, 255)

    def count(self, name: str) -> int:
        return int(self.rng.poisson(self.style.rates[name]))

    def chance(self, name: str) -> bool:
        return bool(self.rng.random() < self.style.rates[name])
