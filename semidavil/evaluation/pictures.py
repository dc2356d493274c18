"""Pictures of a run: one to look at, and what the analysis compares methods on."""

import io
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from semidavil.data.loading import EvalSet

KEPT = 50  # validation images whose predictions are kept
LONGEST = 256  # pixels of their longer side at most


@dataclass(frozen=True)
class Prediction:
    """One validation image and what a network makes of it; class indices, 255 is ignored."""

    name: str
    caption: str
    image: np.ndarray  # (h, w, 3) uint8, at the working size
    truth: np.ndarray  # (H, W) uint8
    labels: np.ndarray  # (H, W) uint8


def evenly_spaced(count: int, total: int) -> list[int]:
    """At most `count` numbers below `total`, the first and the last among them."""
    return [round(i) for i in np.linspace(0, total - 1, min(count, total))]


def kept_names(data: EvalSet) -> list[str]:
    """The images whose predictions are kept: the same ones in every run."""
    return [data.samples[index].name for index in evenly_spaced(KEPT, len(data))]


def predictions_of(data: EvalSet, labels: Mapping[str, np.ndarray]) -> list[Prediction]:
    """The kept images with what a network has made of them.

    Args:
        labels: predicted classes by name, as `Evaluation.labels` of `kept_names`.
    """
    items = [data[index] for index in evenly_spaced(KEPT, len(data))]
    return [
        Prediction(
            item["name"],
            " | ".join(item["captions"]),
            item["image"].permute(1, 2, 0).numpy(),
            item["label"].numpy(),
            labels[item["name"]],
        )
        for item in items
    ]


def save_gallery(predictions: Sequence[Prediction], path: Path) -> None:
    """A compressed .npz of predictions, no larger than `LONGEST`.

    Holds `names`, `captions`, and of image number i `image/i` (the bytes of a JPEG), `truth/i` and
    `labels/i` (class indices, uint8).
    """
    arrays: dict[str, Any] = {
        "names": np.array([p.name for p in predictions]),
        "captions": np.array([p.caption for p in predictions]),
    }
    for number, p in enumerate(predictions):
        height, width = p.truth.shape
        scale = min(1.0, LONGEST / max(height, width))
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        file = io.BytesIO()
        Image.fromarray(p.image).resize(size, Image.Resampling.LANCZOS).save(
            file, "JPEG", quality=90
        )
        arrays[f"image/{number}"] = np.frombuffer(file.getvalue(), np.uint8)
        for kind, labels in (("truth", p.truth), ("labels", p.labels)):
            small = Image.fromarray(labels).resize(size, Image.Resampling.NEAREST)
            arrays[f"{kind}/{number}"] = np.asarray(small)
    np.savez_compressed(path, **arrays)


def save_examples(
    predictions: Sequence[Prediction], palette: np.ndarray, path: Path, count: int = 4
) -> None:
    """A PNG with `count` evenly spaced ones: input, prediction, ground truth, caption.

    Args:
        palette: colours (256, 3) uint8 by class index; 255 is the colour of ignored pixels.
    """
    shown = [predictions[index] for index in evenly_spaced(count, len(predictions))]
    save_sheet(
        [_row([p.image, palette[p.labels], palette[p.truth]], p.caption) for p in shown], path
    )


def save_sheet(rows: Sequence[Image.Image], path: Path) -> None:
    """One PNG of pictures below one another."""
    width = max(row.width for row in rows)
    sheet = Image.new("RGB", (width, sum(row.height for row in rows)), "white")
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    sheet.save(path)


def _row(panels: Sequence[np.ndarray], caption: str, width: int = 320, gap: int = 6) -> Image.Image:
    height = round(width * panels[0].shape[0] / panels[0].shape[1])
    lines = textwrap.wrap(caption or "(no caption)", 150)[:3]
    row = Image.new("RGB", (3 * width + 2 * gap, height + 14 * len(lines) + 2 * gap), "white")
    for column, panel in enumerate(panels):
        # Nearest keeps label borders and small images crisp.
        tile = Image.fromarray(panel.astype(np.uint8)).resize(
            (width, height), Image.Resampling.NEAREST
        )
        row.paste(tile, (column * (width + gap), 0))
    draw = ImageDraw.Draw(row)
    for number, line in enumerate(lines):
        draw.text((2, height + 3 + 14 * number), line, fill="black")
    return row
