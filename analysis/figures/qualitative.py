"""What methods make of the same images, chosen by rule."""

import io
import textwrap
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import SubFigure
from matplotlib.patches import Patch
from PIL import Image

from analysis import style
from analysis.cells import Cells, select
from analysis.drawn import Drawn
from analysis.panels import SMALL
from analysis.runs import AnalysisError, Tracked
from semidavil.benchmarks import BENCHMARKS
from semidavil.metrics import iou
from semidavil.names import METHODS

GRID, WANTED, OURS = "methods", 100, "semidavil"
SHOWN = ("source_only", "supervised", "unimatch", "sdepth", "semivl", OURS)  # left to right
ROW = 1.0  # inches of one image: predictions, and their errors below
ERROR = (255, 0, 200)  # a colour that no class has
FRAME = 0.8  # inches of the heading above and the legend below


@dataclass(frozen=True)
class Gallery:
    """The same images as several methods see them.

    Attributes:
        names, captions: of the images.
        images, truth: arrays of each image.
        labels: of each method, the predicted class indices of each image.
        run_ids: where each method's come from.
    """

    names: list[str]
    captions: list[str]
    images: list[np.ndarray]
    truth: list[np.ndarray]
    labels: dict[str, list[np.ndarray]]
    run_ids: dict[str, str]


@dataclass(frozen=True)
class Choice:
    """An image and why it is shown."""

    index: int
    reason: str


def draw(tracked: Tracked) -> Drawn:
    """Input, truth, prediction and errors of each method on four images per benchmark.

    Raises:
        AnalysisError: no benchmark has predictions of SemiDAViL and another method.
    """
    chosen = select(tracked, GRID, "method").at_one_budget(WANTED)
    known = {b: read(tracked, chosen, b) for b in chosen.benchmarks if b in BENCHMARKS}
    found = {name: gallery for name, gallery in known.items() if gallery}
    if not found:
        raise AnalysisError(f"no predictions of {OURS} and another method on one benchmark")
    tables = {name: scores(gallery, name) for name, gallery in found.items()}
    picks = {name: choose(gallery, tables[name], name) for name, gallery in found.items()}
    heights = [_height(picks[name]) for name in found]
    figure = plt.figure(figsize=(style.PAGE, sum(heights)))
    panels = figure.subfigures(len(found), 1, squeeze=False, height_ratios=heights, hspace=0)[:, 0]
    rows, told = [], []
    for panel, (name, gallery) in zip(panels, found.items(), strict=True):
        _panel(panel, chosen.heading(name), gallery, picks[name], name)
        strongest = rival(tables[name])
        told.append(f"{style.benchmark_name(name)}: margin to {style.label(strongest)}")
        rows += [
            {"benchmark": name, "image": gallery.names[pick.index], "reason": pick.reason, "method": method,
             "miou_of_image": tables[name][method][pick.index], "run_id": gallery.run_ids[method]}
            for pick in picks[name] for method in gallery.labels
        ]  # fmt: skip
    return Drawn(
        figure=figure,
        title="Predictions of the methods",
        caption="Input, ground truth and predictions; below them the caption that the model was given "
        "and, in magenta over the dimmed image, the wrong pixels of each method. Chosen by rule from the "
        f"{len(next(iter(found.values())).names)} evenly spaced validation images that runs keep: the "
        "best, the median and the worst margin in an image's mIoU of SemiDAViL over the strongest other "
        "method, and the image with the most of the rarest class. "
        f"{'; '.join(told)}. Colours are Cityscapes' own. First seed. {chosen.note()}",
        alt="Rows of street images: input, ground truth, and the segmentation of each method.",
        numbers=pd.DataFrame(rows),
        run_ids=tuple(sorted(run for g in found.values() for run in g.run_ids.values())),
        grid=GRID,
    )


def read(tracked: Tracked, chosen: Cells, benchmark: str) -> Gallery | None:
    """The kept predictions of each method's first seed, all with the same number of labels.

    None where there are none of SemiDAViL, or of no other method. A method that kept other images than
    SemiDAViL is left out.
    """
    runs = _first_runs(chosen.of(benchmark))
    stored = {method: tracked.gallery(run_id) for method, run_id in runs.items()}
    if not (ours := stored.get(OURS)):
        return None
    names = ours["names"].tolist()
    stored = {m: a for m, a in stored.items() if a and a["names"].tolist() == names}
    if len(stored) == 1:
        return None
    numbers = range(len(names))
    return Gallery(
        names=names,
        captions=ours["captions"].tolist(),
        images=[np.asarray(Image.open(io.BytesIO(ours[f"image/{i}"].tobytes()))) for i in numbers],
        truth=[ours[f"truth/{i}"] for i in numbers],
        labels={m: [arrays[f"labels/{i}"] for i in numbers] for m, arrays in stored.items()},
        run_ids={method: runs[method] for method in stored},
    )


def _first_runs(here: pd.DataFrame) -> dict[str, str]:
    """The run of each method's first seed."""
    first = here.sort_values("seed").drop_duplicates("method").set_index("method")["run_id"]
    others = [method for method in first.index if method not in METHODS]  # a plugin's
    return {method: first[method] for method in (*SHOWN[:-1], *others, OURS) if method in first}


def scores(gallery: Gallery, benchmark: str) -> pd.DataFrame:
    """mIoU (per cent) of each image (rows) by each method, over the classes of its ground truth."""
    classes = len(BENCHMARKS[benchmark].classes)
    table = {}
    for method, predictions in gallery.labels.items():
        values = []
        for truth, labels in zip(gallery.truth, predictions, strict=True):
            valid = truth < classes
            pairs = truth[valid].astype(int) * classes + labels[valid]
            confusion = np.bincount(pairs, minlength=classes**2).reshape(classes, classes)
            there = confusion.sum(1) > 0
            values.append(100 * iou(confusion)[there].mean() if there.any() else np.nan)
        table[method] = values
    return pd.DataFrame(table)


def rival(table: pd.DataFrame) -> str:
    """The other method with the highest mean score over the images."""
    return str(table.drop(columns=OURS).mean().idxmax())


def choose(gallery: Gallery, table: pd.DataFrame, benchmark: str) -> list[Choice]:
    """Best, median and worst margin over the strongest other method, and the rarest class.

    Args:
        table: the gallery's `scores`.
    """
    margin = (table[OURS] - table[rival(table)]).dropna().sort_values(kind="stable")
    order = [int(index) for index in margin.index[::-1]]
    places = {"best": 0, "median": len(order) // 2, "worst": -1}
    picked: dict[int, str] = {}  # the first reason for an image counts
    for which, place in places.items():
        picked.setdefault(order[place], f"{which} margin")
    classes = BENCHMARKS[benchmark].classes
    counts = np.stack(
        [np.bincount(t.ravel(), minlength=256)[: len(classes)] for t in gallery.truth]
    )
    total = counts.sum(0)
    for rare in np.argsort(np.where(total > 0, total, np.iinfo(int).max)):
        index = int(counts[:, rare].argmax())
        if total[rare] and index not in picked:
            picked[index] = f"rare: {classes[rare]}"
            break
    return [Choice(index, reason) for index, reason in picked.items()]


def _height(picks: list[Choice]) -> float:
    return ROW * len(picks) + FRAME


def _panel(
    panel: SubFigure, heading: str, gallery: Gallery, picks: list[Choice], benchmark: str
) -> None:
    methods = list(gallery.labels)
    classes, palette = BENCHMARKS[benchmark].classes, BENCHMARKS[benchmark].palette
    height = _height(picks)
    axes = panel.subplots(
        2 * len(picks), 2 + len(methods), squeeze=False,
        gridspec_kw={
            "left": 0.035, "right": 0.998, "top": 1 - 0.27 / height, "bottom": 0.5 / height,
            "wspace": 0.03, "hspace": 0.05,
        },
    )  # fmt: skip
    for ax in axes.flat:
        ax.set_axis_off()
    for ax, title in zip(axes[0], ["Input", "Truth", *map(style.label, methods)], strict=True):
        ax.set_title(title, fontsize=SMALL, pad=2)
    for row, pick in enumerate(picks):
        upper, lower = axes[2 * row], axes[2 * row + 1]
        truth = gallery.truth[pick.index]
        upper[0].imshow(gallery.images[pick.index], aspect="auto")
        upper[0].text(
            -0.06, 0.0, pick.reason, transform=upper[0].transAxes, rotation=90, fontsize=SMALL,
            ha="right", va="center",
        )  # fmt: skip
        upper[1].imshow(palette[truth], aspect="auto")
        lower[0].text(
            0, 0.95, textwrap.fill(gallery.captions[pick.index], 26, max_lines=4, placeholder=" …"),
            transform=lower[0].transAxes, fontsize=SMALL, va="top", linespacing=1.0,
        )  # fmt: skip
        for column, method in enumerate(methods, start=2):
            labels = gallery.labels[method][pick.index]
            wrong = (labels != truth) & (truth < len(classes))
            upper[column].imshow(palette[labels], aspect="auto", interpolation="nearest")
            dim = np.repeat(_grey(gallery.images[pick.index], truth.shape)[..., None], 3, axis=-1)
            errors = np.where(wrong[..., None], ERROR, dim).astype(np.uint8)
            lower[column].imshow(errors, aspect="auto", interpolation="nearest")
    panel.text(0.002, 1 - 0.04 / height, heading, fontsize=7, weight="bold", va="top")
    patches = [Patch(color=tuple(palette[i] / 255), label=name) for i, name in enumerate(classes)]
    panel.legend(
        handles=patches, loc="lower center", ncols=8, fontsize=SMALL, frameon=False,
        handlelength=1, handleheight=0.8, columnspacing=0.8, handletextpad=0.4, borderpad=0,
    )  # fmt: skip


def _grey(image: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """An image of (H, W, 3) as pale grey, at the size of its labels."""
    small = Image.fromarray(image).convert("L").resize((shape[1], shape[0]))
    return (150 + 0.4 * np.asarray(small, dtype=float)).astype(np.uint8)
