"""A first `dataset.yaml` of a folder, by what is in it; see `python -m semidavil data --init FOLDER`."""

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw

from semidavil.benchmarks import PALETTE, palette_of
from semidavil.data.described import DescribedReader
from semidavil.data.files import DataError
from semidavil.data.folders import names_below, natural_order
from semidavil.data.formats import find_format
from semidavil.data.images import (
    JPEG,
    PALETTED,
    PNG,
    read_rgb,
    read_unchanged,
    resize_image,
    resize_nearest,
)
from semidavil.data.own import DATASET_FILE, read_dataset
from semidavil.data.pairing import find_pairing, find_unlabelled
from semidavil.data.readers import Sample
from semidavil.descriptions import REST, UNLABELLED, DataSet
from semidavil.label_values import rgb, written

SHEET = "dataset.png"  # the contact sheet, beside the description
READ = 200  # labels that are read for their ids
VALIDATION = 0.2  # of the images, where nothing tells which
INLINE = 30  # names of validation images that are written into the description; more get a list
WIDTH, ROWS = 320, 6  # of the contact sheet's pictures


@dataclass
class First:
    """A description that was written, and what is to be said of it."""

    path: Path
    said: list[str] = field(default_factory=list)


def write_first_description(folder: Path) -> First:
    """Writes `dataset.yaml` and the contact sheet into a folder.

    Raises:
        DataError: there is a description already, or what is in the folder tells too little; the
        message says what.
    """
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder} (--init)")
    first = First(folder / DATASET_FILE)
    for path in (first.path, folder / SHEET):
        if path.exists():
            raise DataError(
                f"{path} is there already: remove or rename it, --init overwrites nothing"
            )
    files = [name for name in names_below(folder) if not name.lower().endswith(".zip")]
    if found := find_format(folder, files):
        kind, text = found
        first.said.append(f"{folder} is laid out as {kind}")
    else:
        text = _guess(folder, files, first.said)
    try:
        first.path.write_text(text, encoding="utf-8")
        about = read_dataset(first.path)
        reader = DescribedReader(about, folder)
        if not about.unlabelled and reader.without_label("train"):
            first.path.write_text(f"{text}{_REST_LINE}\n", encoding="utf-8")
            about = read_dataset(first.path)
            reader = DescribedReader(about, folder)
        for split in reader.splits:
            first.said.append(f"{split}: {len(reader.samples(split))} images")
        if about.unlabelled:
            count = len(reader.samples(UNLABELLED))
            first.said.append(
                f"{count} pictures without labels ({', '.join(about.unlabelled)}), which training learns "
                "from besides: if they should have labels, add those and remove the line `unlabelled`"
            )
        _write_sheet(reader, folder / SHEET)
    except ValueError:
        first.path.unlink()  # it would stand in the way of the next try
        raise
    return first


def _guess(folder: Path, files: Sequence[str], said: list[str]) -> str:
    found = find_pairing(folder, files)
    said.append(f"{found.pairs} pictures ({found.images}) have labels ({found.labels})")
    entries = {
        "name": _name(folder), "images": found.images, "labels": found.labels, "unlabelled": REST,
        "splits": found.splits or {"train": REST}, "classes": {"none yet": 0},
    }  # fmt: skip
    about = DataSet.model_validate(entries)
    reader = DescribedReader(about, folder)
    by_split = {split: _labelled(reader, split, said) for split in reader.splits}
    samples = [sample for found in by_split.values() for sample in found]
    splits = {split: word for split, word in found.splits.items() if by_split[split]}
    others = find_unlabelled(folder, files, samples, reader.without_label("train"), said)
    unlabelled = [REST] * bool(reader.without_label("train")) + others
    values = _values(samples, said)
    return _text(about, splits or _hold_out(folder, samples, files), unlabelled, values)


def _labelled(reader: DescribedReader, split: str, said: list[str]) -> list[Sample]:
    """A split's images with labels; none of a test split of which nobody has published any."""
    try:
        return reader.samples(split)
    except DataError:
        if split in ("train", "val"):
            raise
        said.append(f"{split}: its pictures have no labels, and no run looks at them")
        return []


@dataclass
class _Values:
    """What labels hold: shares of pixels by value, and the colours (0xRRGGBB) that a palette shows ids in."""

    encoding: str
    shares: dict[int, float]
    palette: dict[int, int] = field(default_factory=dict)


def _values(samples: Sequence[Sample], said: list[str]) -> _Values:
    chosen = {round(i) for i in np.linspace(0, len(samples) - 1, min(READ, len(samples)))}
    if len(chosen) < len(samples):
        said.append(f"ids are those of {len(chosen)} of {len(samples)} labels: the check reads all")
    counts: Counter[int] = Counter()
    kinds, palette = set(), dict[int, int]()
    for number in sorted(chosen):
        path = samples[number].label
        with path.open("rb") as file:
            head = file.read(26)
        if head[:8] == PNG and head[25] == PALETTED:
            with Image.open(path) as picture:
                label = np.array(picture)
                flat = picture.getpalette() or []
            palette |= {i: int.from_bytes(flat[3 * i : 3 * i + 3]) for i in range(len(flat) // 3)}
        elif head.startswith(JPEG):
            raise DataError(f"the label {path} is a JPEG, which blurs classes: save labels as PNG")
        else:
            label = read_unchanged(path)
        if label.ndim == 2:
            kinds.add("index")
        elif label.dtype == np.uint16:
            kinds.add("red")
            label = label[..., 2]
        else:
            kinds.add("colour")
            blue, green, red = (label[..., c].astype(np.uint32) for c in range(3))
            label = red << 16 | green << 8 | blue
        found, pixels = np.unique(label, return_counts=True)
        counts.update(dict(zip(found.tolist(), pixels.tolist(), strict=True)))
    if len(kinds) > 1:
        raise DataError(
            f"labels are of several kinds ({', '.join(sorted(kinds))}), as {samples[0].label}: make them one"
        )
    if len(counts) > 250:
        raise DataError(
            f"labels hold {len(counts)} different values, as {samples[0].label}: too many for "
            "classes. Were they "
            "saved as JPEG, or smoothed? Save them as PNG without smoothing"
        )
    total = sum(counts.values())
    shares = {value: count / total for value, count in sorted(counts.items())}
    return _Values(kinds.pop(), shares, palette)


def _hold_out(folder: Path, samples: Sequence[Sample], files: Sequence[str]) -> dict[str, object]:
    """Which images are for validation: lists that are there, else whole folders, else the last by name."""
    lists = {name.lower(): name for name in files if name.count("/") <= 2}
    by_name = {
        os.path.splitext(name)[0].rpartition("/")[2]: path
        for name, path in lists.items()
        if name.endswith(".txt")
    }
    if "train" in by_name and "val" in by_name:
        return {name: by_name[name] for name in ("train", "val")}
    below = (os.path.relpath(sample.image, folder).replace(os.sep, "/") for sample in samples)
    paths = sorted(below, key=natural_order)
    wanted = max(1, round(VALIDATION * len(paths)))
    folders = Counter(path.rpartition("/")[0] for path in paths)
    if len(folders) >= 3:  # frames of one sequence look alike: a sequence is on one side
        held, count = [], 0
        for name in sorted(folders, key=natural_order, reverse=True):
            if count and count + folders[name] > 2 * wanted:
                continue
            held.append(name)
            count += folders[name]
            if count >= wanted:
                break
        return {"train": "rest", "val": sorted(held, key=natural_order)}
    last = paths[-wanted:]
    if len(last) <= INLINE:
        return {"train": "rest", "val": last}
    listing = folder / "val.txt"
    if listing.exists():
        raise DataError(f"{listing} is there without train.txt: add that, or rename it")
    listing.write_text("\n".join(last) + "\n", encoding="utf-8")
    return {"train": "rest", "val": "val.txt"}


def _name(folder: Path) -> str:
    name = "".join(c if c.isalnum() and c.isascii() else "-" for c in folder.resolve().name).strip(
        "-"
    )
    return name or "mine"


_HEAD = """# What pictures and labels of this folder mean. Written by `python -m semidavil data --init`: give
# the classes their names, which captions and prompts use, and move ids that are no class to `ignored`.
#   * anything in one name   **/ any folders   {stem} the name that both have in common
"""


_REST_LINE = "unlabelled: rest  # pictures of train that have no label: learnt from without"


def _text(
    about: DataSet, splits: Mapping[str, object], unlabelled: Sequence[str], values: _Values
) -> str:
    """The description as a person would write it, with how common each class is."""
    is_colour = values.encoding == "colour"
    names = {colour: name for name, colour in reversed(PALETTE.items())}
    lines, ignored, used = [], list[str](), set[str]()
    for value, share in values.shares.items():
        shown = written(value) if is_colour else str(value)
        # Of two values both are classes: a mask of 0 and 255 says where something is.
        if value == (0 if is_colour else 255) and len(values.shares) != 2:
            ignored.append(shown)
            continue
        name = names.get(rgb(value), "") if is_colour else ""
        if not name or name in used:
            name = f"class {len(used) + 1}" if is_colour else f"class {value}"
        used.add(name)
        said = shown
        if value in values.palette:
            said = f"{{id: {value}, colour: {written(values.palette[value])}}}"
        lines.append(f"  {name}: {said}  # {100 * share:.3g}% of the pixels")
    if not lines:
        raise DataError(
            "labels hold nothing but what is usually ignored (255, black): is that all there is?"
        )
    parts = [
        _HEAD,
        f"name: {about.name}",
        f'images: "{about.images}"',
        f'labels: "{about.labels}"',
        "splits:",
    ]
    for split, chosen in splits.items():
        listed = [f"    - {one}" for one in chosen] if isinstance(chosen, list) else []
        parts += [f"  {split}:{'' if listed else f' {chosen}'}", *listed]
    if unlabelled == [REST]:
        parts.append(_REST_LINE)
    elif unlabelled:
        parts += [
            f"{UNLABELLED}:  # learnt from without labels",
            *(f"  - {json.dumps(one, ensure_ascii=False)}" for one in unlabelled),
        ]
    parts += [f"encoding: {values.encoding}"] if values.encoding != "index" else []
    parts += ["classes:", *lines, f"ignored: [{', '.join(ignored)}]"]
    parts.append(
        'scene: a scene  # what captions begin with, such as "a street scene" or "a harbour"'
    )
    return "\n".join(parts) + "\n"


def _write_sheet(reader: DescribedReader, path: Path) -> None:
    """Some pictures beside their labels, with a legend, as one PNG."""
    classes = list(reader.about.classes)
    palette, lookup = palette_of(classes, reader.about.colours), _lookup(reader.about)
    samples = [sample for split in reader.splits for sample in reader.samples(split)]
    chosen = [samples[round(i)] for i in np.linspace(0, len(samples) - 1, min(ROWS, len(samples)))]
    rows = []
    for sample in chosen:
        image, label = read_rgb(sample.image), lookup[reader.read_label(sample)]
        size = max(1, round(image.shape[0] * WIDTH / image.shape[1])), WIDTH
        shown = palette[resize_nearest(label, size)]
        small = resize_image(image, size)
        rows.append(
            np.concatenate([small, cv2.addWeighted(small, 0.4, shown, 0.6, 0), shown], axis=1)
        )
    legend = Image.new("RGB", (3 * WIDTH, 16 * (-(-len(classes) // 4)) + 8), "white")
    draw = ImageDraw.Draw(legend)
    for number, name in enumerate(classes):
        x, y = number % 4 * (3 * WIDTH // 4) + 6, number // 4 * 16 + 5
        draw.rectangle((x, y, x + 11, y + 11), tuple(palette[number].tolist()), "black")
        draw.text((x + 17, y), name, "black")
    Image.fromarray(np.concatenate([np.asarray(legend), *rows])).save(path)


def _lookup(about: DataSet) -> np.ndarray:
    """Class index by what the reader gives (65536,) uint8; 255 is ignored or unknown."""
    table, names = np.full(65536, 255, np.uint8), list(about.classes)
    for code, name in about.label_ids.items():
        if name:
            table[code] = names.index(name)
    return table
