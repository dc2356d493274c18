"""Procedural street scenes: a small world seen through a pinhole camera, in three looks.

A scene is laid out in metres (X to the right, Z forward, camera above the road), painted from far to
near so that nearer things occlude farther ones, and then photographed. The two rendered looks
(`gta5`, `synthia`) are clean, saturated and regular; the `camera` look has another palette, other
statistics of what stands where, texture, haze, a colour cast, blur and noise. No colour belongs to
one class alone, and the same class changes its colour between looks: that is the domain gap.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from semidavil.toy.canvas import FAR, SUPERSAMPLING, log_uniform
from semidavil.toy.painter import Painter
from semidavil.toy.styles import SIDEWALK, STYLES, TERRAIN, VEGETATION, WALL, Look, Style


@dataclass(frozen=True)
class Scene:
    image: np.ndarray  # (H, W, 3) uint8 RGB
    label: np.ndarray  # (H, W) uint8, Cityscapes label ids
    disparity: np.ndarray  # (H, W) float32, pixels; 0 at infinity


def render_scene(rng: np.random.Generator, look: Look, size: tuple[int, int] = (64, 128)) -> Scene:
    """One scene, a pure function of the generator's state.

    Args:
        rng: where every random choice comes from.
        look: whose palette, statistics and camera.
        size: (height, width) in pixels.
    """
    painter = Painter(rng, STYLES[look], size)
    painter.paint()
    label = painter.label[::SUPERSAMPLING, ::SUPERSAMPLING].copy()
    depth = painter.depth[::SUPERSAMPLING, ::SUPERSAMPLING]
    colour = _surface(rng, STYLES[look], painter)
    image = cv2.resize(colour, size[::-1], interpolation=cv2.INTER_AREA)
    image = _photograph(rng, image, depth) if look == "camera" else _render(rng, image, look)
    disparity = np.where(depth < FAR, 0.22 * painter.focal / SUPERSAMPLING / depth, 0)
    return Scene(image, label, disparity.astype(np.float32))


def _noise(rng: np.random.Generator, shape: tuple[int, int], cell: int) -> np.ndarray:
    """Smooth noise (H, W) float32 of unit amplitude with features of about `cell` pixels."""
    coarse = rng.standard_normal((shape[0] // cell + 2, shape[1] // cell + 2), dtype=np.float32)
    return cv2.resize(coarse, shape[::-1], interpolation=cv2.INTER_CUBIC)


def _surface(rng: np.random.Generator, style: Style, painter: Painter) -> np.ndarray:
    """The painted colours with texture: stripes in the rendered looks, grain in the camera's."""
    shape, colour = painter.label.shape, painter.colour
    texture = style.texture * (_noise(rng, shape, 2) + 0.7 * _noise(rng, shape, 7))
    leaves = np.isin(painter.label, (VEGETATION, TERRAIN))
    texture = np.where(leaves, texture * 1.8 + 12 * _noise(rng, shape, 3), texture)
    if style.stripes:
        rows, columns = np.mgrid[: shape[0], : shape[1]]
        checks = np.where((rows // 4 + columns // 4) % 2 == 0, 1.0, -1.0)
        paved = np.isin(painter.label, (SIDEWALK, WALL))
        texture = texture + style.stripes * np.where(paved, checks, 0)
    return np.clip(colour + texture[..., None], 0, 255).astype(np.float32)


def _render(rng: np.random.Generator, image: np.ndarray, look: Look) -> np.ndarray:
    """The rendered looks: saturated, contrasty, clean."""
    grey = image.mean(2, keepdims=True)
    saturation = rng.uniform(1.1, 1.4) if look == "gta5" else rng.uniform(0.95, 1.25)
    gain = rng.uniform(0.85, 1.12) if look == "gta5" else rng.uniform(0.7, 1.15)
    image = (grey + saturation * (image - grey)) * gain
    return np.clip(image, 0, 255).round().astype(np.uint8)


def _photograph(rng: np.random.Generator, image: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """The camera: shadow, haze, saturation, colour cast, exposure, vignette, blur and sensor noise.

    Weather and light vary so widely that a hundred images do not show them all: that is what makes
    many labels, or unlabelled images, worth having.
    """
    height, width = depth.shape
    shadow = 1 - rng.uniform(0, 0.5) * (_noise(rng, (height, width), 24) > rng.uniform(-0.2, 1.2))
    shadow = np.where(depth < FAR, cv2.GaussianBlur(shadow.astype(np.float32), (0, 0), 1.2), 1)
    haze = 1 - np.exp(-depth * log_uniform(rng, 0.0005, 0.025))
    air = rng.uniform(120, 225) + rng.normal(0, 10, 3)
    image = image * shadow[..., None]
    image = image * (1 - haze[..., None]) + air * haze[..., None]
    grey = image.mean(2, keepdims=True)
    image = grey + rng.uniform(0.35, 1.35) * (image - grey)
    cast = 1 + rng.normal(0, 0.1, 3)
    image = 255 * (np.clip(image * cast, 0, 255) / 255) ** log_uniform(rng, 0.58, 1.73)
    image = image * log_uniform(rng, 0.5, 1.25)
    rows = np.linspace(-1, 1, height)[:, None] ** 2 + np.linspace(-1, 1, width)[None] ** 2
    image = image * (1 - rng.uniform(0, 0.14) * rows)[..., None]
    image = cv2.GaussianBlur(image.astype(np.float32), (0, 0), rng.uniform(0.3, 0.8))
    noise = rng.standard_normal(image.shape, dtype=np.float32) * rng.uniform(1, 8)
    return np.clip(image + noise, 0, 255).round().astype(np.uint8)
