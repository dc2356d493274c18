"""What the processor does for a step of the `paper` preset, what travels to the device, and how a run starts.

    python benchmarks/host.py          # a minute or two of two cores, 2 GB of the temporary folder

CPU time of one core, on generated files of full size. The reference of a step's host work is the same
code with `data.store=off`, which decodes PNGs as it meets them; the pixels are the same.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import torch
from full_size import write_full_size
from rows import Row, print_rows
from torch import Tensor

from semidavil.config import Config, preset
from semidavil.data import decoded
from semidavil.data.checks import check_data
from semidavil.data.fingerprint import fingerprint
from semidavil.data.loading import EvalSet, TrainBatches
from semidavil.data.streams import streams_of
from semidavil.experiments.street import (
    StreetExperiment,
    load_captions,
    load_tokens,
    prepare_street,
)
from semidavil.models.vlm import VLM, load_vlm

LABELLED = 8  # of the generated images
IMAGES = 24_966 + 2_975 + 500  # of GTA5 and Cityscapes
FULL = {"few": (40, 10, 50), "many": (160, 40, 200)}  # images of train, val, source
QUICK = {"few": (12, 2, 6), "many": (16, 4, 10)}


def seconds(call: Callable[[], object]) -> float:
    """CPU time of a call."""
    start = time.process_time()
    call()
    return time.process_time() - start


def config_of(root: Path, quick: bool) -> Config:
    changes: dict[str, Any] = {
        "model.weights": "none", "model.captions": "class_names", "data.budget": LABELLED,
        "runtime.data_root": str(root), "runtime.cache_dir": str(root / "cache"),
        "runtime.device": "cpu",
    }  # fmt: skip
    if quick:
        changes |= {
            "model.vlm": "toy", "model.weights": "bundled", "data.source_size": "95x160",
            "data.target_size": "64x128", "data.crop": "64x64",
        }  # fmt: skip
    return preset("paper", changes)


def batches_of(config: Config, vlm: VLM) -> TrainBatches:
    captions = load_captions(config, vlm)
    look_up = load_tokens(config, captions, vlm)
    return TrainBatches(config, captions, look_up, streams_of(config), strong_views=1)


def host_work(config: Config, vlm: VLM, steps: int) -> list[Row]:
    """Batches from the store and decoded ones, in turn."""
    ours = batches_of(config, vlm)
    rows = []
    for labels in (100, 2_975):
        cold = batches_of(config.replace({"data.store": "off"}), vlm)
        for images in cold.images.values():
            images.memory = decoded.Memory(2**40)
        if labels == 100:  # few enough to stay in memory, where all others hardly ever are
            for sample in cold.samples["labelled"]:
                cold.images["labelled"].image(sample)
                cold.images["labelled"].label(sample)
        for images in cold.images.values():
            images.memory.limit = images.memory.bytes
        times: tuple[list[float], list[float]] = ([], [])
        for step in range(steps + 1):
            for batches, found in zip((ours, cold), times, strict=True):
                found.append(seconds(lambda b=batches, s=step: b[s]))
        mine, theirs = (1000 * statistics.median(found[1:]) for found in times)
        what = f"host work of a `paper` step at {labels:,} labels, store on disk"
        rows.append(
            Row(what, mine, theirs, "decoding the images", goal=60 / (720, 990)[labels > 100])
        )
    return rows


def bytes_per_step(config: Config, vlm: VLM) -> Row:
    """Against images as float32 and labels as int64, of all views and without the captions."""
    batch = batches_of(config, vlm)[0]
    height, width = config.data.crop
    images = config.training.batch_size * (len(batch) + 1)  # and the strong views
    labels = config.training.batch_size * sum("label" in part for part in batch.values())
    floats = (images * 3 * 4 + labels * 8) * height * width
    ours = sum(map(bytes_of, batch.values()))
    return Row(
        "bytes to the device per `paper` step", ours / 1e6, floats / 1e6,
        "float32 images, int64 labels", "MB", goal=16 / 67,
    )  # fmt: skip


def bytes_of(value: Any) -> int:
    """Of the tensors in dicts and dataclasses."""
    if isinstance(value, Tensor):
        return value.nbytes
    if isinstance(value, dict):
        return sum(map(bytes_of, value.values()))
    if is_dataclass(value):
        return sum(bytes_of(getattr(value, field.name)) for field in fields(value))
    return 0


def data_of_a_start(config: Config, vlm: VLM) -> None:
    """What a run does about its data until the first batch is there."""
    check_data(config)
    batches_of(config, vlm)[0]
    EvalSet(config, load_captions(config, vlm))
    fingerprint(config)


def second_start(few: Config, many: Config, vlm: VLM) -> Row:
    """Of a new process to the first batch, but for imports; both scaled to all images of the benchmark."""
    first, again, counts = [], [], []
    for config in (few, many):
        first.append(seconds(lambda c=config: prepare_street(c, False)))
        data_of_a_start(config, vlm)
        looks = [seconds(lambda c=config: data_of_a_start(c, vlm)) for _ in range(3)]
        again.append(statistics.median(looks))
        folder = Path(config.runtime.data_root)
        images = [p for p in folder.rglob("*.png") if {"leftImg8bit", "images"} & set(p.parts)]
        counts.append(len(images))
    device = torch.device("cpu")
    whole = seconds(lambda: StreetExperiment(many, device).batches[0])
    more = (IMAGES - counts[1]) / (counts[1] - counts[0])
    ours = whole + more * (again[1] - again[0])
    reference = first[1] + whole + more * (first[1] - first[0])
    what = f"second start of a run, scaled to {IMAGES:,} images from {counts[0]} and {counts[1]}"
    return Row(what, ours, reference, "the first", "s", goal=0.02)


def measure(quick: bool) -> list[Row]:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        few, many = (
            config_of(
                write_full_size(Path(folder) / name, *counts, scale=16 if quick else 1), quick
            )
            for name, counts in (QUICK if quick else FULL).items()
        )
        vlm = load_vlm(few.model.vlm, few.model.weights)
        start = second_start(few, many, vlm)
        rows = [*host_work(many, vlm, 2 if quick else 15), bytes_per_step(many, vlm), start]
    # Of images as small as a quick measurement's, goals say nothing.
    return [replace(row, goal=None) for row in rows] if quick else rows


if __name__ == "__main__":
    print_rows(measure, __doc__)
