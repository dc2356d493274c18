"""Folders as annotation tools and published data sets lay them out, recognised for `--init`.

CVAT's "Segmentation mask" export and COCO-panoptic bring their classes along, and so does Mapillary
Vistas; for
data sets whose classes are published, `ready/` has descriptions.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from semidavil.data.described import DescribedReader
from semidavil.data.files import DataError
from semidavil.data.folders import natural_order
from semidavil.data.own import READY, read_dataset, ready_names

_NO_NAME = {"yes", "no", "true", "false", "on", "off", "null", "y", "n"}  # to YAML


def find_format(folder: Path, files: Sequence[str]) -> tuple[str, str] | None:
    """The format's name and a description of the folder; None where it is none of those known here.

    Raises:
        DataError: it is one of them, and something is missing.
    """
    for kind, describe in (
        ("CVAT's export", _cvat),
        ("COCO-panoptic", _coco),
        ("Mapillary", _mapillary),
    ):
        if text := describe(folder, files):
            return kind, text
    for name in ready_names():
        about = read_dataset(READY / f"{name}.yaml")
        try:
            if DescribedReader(about, folder).images_of("train"):
                return f"{name} is published", (READY / f"{name}.yaml").read_text(encoding="utf-8")
        except DataError:
            continue
    return None


def class_lines(classes: Mapping[str, Any]) -> list[str]:
    """Classes of a description: names with what labels hold."""
    return [f"  {yaml_name(name)}: {json.dumps(said)}" for name, said in classes.items()]


def yaml_name(name: str) -> str:
    """A name as YAML reads it back."""
    plain = re.fullmatch(r"[A-Za-z][\w -]*[\w]|[A-Za-z]", name) and name.lower() not in _NO_NAME
    return name if plain else json.dumps(name)


def _cvat(folder: Path, files: Sequence[str]) -> str | None:
    """`labelmap.txt`, `JPEGImages/`, `SegmentationClass/` and lists in `ImageSets/Segmentation/`."""
    if "labelmap.txt" not in files or not any(n.startswith("SegmentationClass/") for n in files):
        return None
    if not any(name.startswith("JPEGImages/") for name in files):
        raise DataError(
            f"{folder} has no JPEGImages: export from CVAT once more with images (Save images)"
        )
    classes, ignored = dict[str, str](), list[str]()
    for line in (folder / "labelmap.txt").read_text(encoding="utf-8-sig").splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        try:  # a name may hold colons
            name, colour, _, _ = line.rsplit(":", 3)
            red, green, blue = map(int, colour.split(","))
        except ValueError:
            raise DataError(
                f"{folder / 'labelmap.txt'}: {line!r} is not NAME:RED,GREEN,BLUE:parts:actions"
            ) from None
        hexed = f"#{red:02x}{green:02x}{blue:02x}"
        if name.strip().lower() == "background":  # what nobody has drawn
            ignored.append(hexed)
        else:
            classes[name.strip()] = hexed
    lists = [n for n in files if n.startswith("ImageSets/Segmentation/") and n.endswith(".txt")]
    by_name = {Path(name).stem.lower(): name for name in lists}
    splits = {
        split: by_name[word]
        for split, words in {"train": ("train",), "val": ("val", "validation")}.items()
        for word in words
        if word in by_name
    }
    if set(splits) != {"train", "val"}:  # one task is one list
        below = (name for name in files if name.startswith("JPEGImages/"))
        pictures = sorted(below, key=natural_order)
        held = pictures[-max(1, len(pictures) // 5) :]
        splits = {"train": "rest", "val": json.dumps(held)}
    return _text(
        folder, "JPEGImages/**/{stem}.*", "SegmentationClass/**/{stem}.png", splits, classes, ignored,
        "encoding: colour",
    )  # fmt: skip


def _coco(folder: Path, files: Sequence[str]) -> str | None:
    """`annotations/panoptic_NAME.json` with PNGs in a folder of its name, and pictures in `NAME/`."""
    found = [m for n in files if (m := re.fullmatch(r"(.*?)panoptic_([^/]+)\.json", n))]
    if not found:
        return None
    where = found[0][1]
    splits = {}
    for match in found:
        word = next((w for w in ("train", "val", "test") if match[2].startswith(w)), match[2])
        splits[word] = match[2]
    tree = json.loads((folder / found[0][0]).read_text(encoding="utf-8"))
    if "categories" not in tree or "segments_info" not in str(tree.get("annotations", ""))[:2000]:
        raise DataError(f"{folder / found[0][0]} is no COCO-panoptic JSON: it has no segments")
    classes, taken = dict[str, Any](), set[str]()
    for one in tree["categories"]:
        name = re.sub(r"-(other|merged|stuff)\b", "", one["name"]).replace("-", " ").strip()
        name = one["name"] if name in taken or not name else name
        taken.add(name)
        said: dict[str, Any] = {"id": one["id"]}
        classes[name] = said | ({"colour": one["color"]} if "color" in one else {})
    prefix = next(
        (p for p in ("", "images/") if any(n.startswith(f"{p}{found[0][2]}/") for n in files)), None
    )
    if prefix is None:
        raise DataError(f"{folder} has no folder {found[0][2]} of pictures beside its annotations")
    return _text(
        folder, prefix + "{split}/{stem}.jpg", where + "panoptic_{split}/{stem}.png", splits, classes, ["0"],
        "encoding: panoptic\nsegments: " + json.dumps(where + "panoptic_{split}.json"),
    )  # fmt: skip


def _mapillary(folder: Path, files: Sequence[str]) -> str | None:
    """`config*.json` with its labels, `training/` and `validation/`."""
    configs = [n for n in files if re.fullmatch(r"config(_v[\d.]+)?\.json", n)]
    if not configs or not any(name.startswith("training/images/") for name in files):
        return None
    for config in sorted(configs):
        version = match[1] if (match := re.search(r"_(v[\d.]+)\.json", config)) else ""
        inner = next(
            (
                p
                for p in (f"{version}/labels/", "labels/")
                if any(n.startswith(f"training/{p}") for n in files)
            ),
            None,
        )
        if inner:
            break
    else:
        raise DataError(
            f"{folder} has {', '.join(configs)} and no training/*/labels of that version"
        )
    classes, ignored = dict[str, Any](), list[str]()
    for index, one in enumerate(
        json.loads((folder / config).read_text(encoding="utf-8"))["labels"]
    ):
        if not one.get("evaluate", True):
            ignored.append(str(index))
            continue
        name = one["readable"].lower()
        name = one["name"] if name in classes else name
        classes[name] = {"id": index, "colour": one["color"]}
    splits = {"train": "training", "val": "validation"}
    return _text(
        folder,
        "{split}/images/{stem}.jpg",
        f"{{split}}/{inner}{{stem}}.png",
        splits,
        classes,
        ignored,
        "",
    )


def _text(
    folder: Path,
    images: str,
    labels: str,
    splits: Mapping[str, str],
    classes: Mapping[str, Any],
    ignored: Sequence[str],
    more: str,
) -> str:
    name = re.sub(r"[^A-Za-z0-9]+", "-", folder.resolve().name).strip("-") or "mine"
    lines = [
        "# Written by `python -m semidavil data --init`.", f"name: {name}", f"images: {json.dumps(images)}",
        f"labels: {json.dumps(labels)}", "splits:", *(f"  {n}: {said}" for n, said in splits.items()),
        *([more] if more else []), "classes:", *class_lines(classes),
        f"ignored: {json.dumps([int(i) if i.isdigit() else i for i in ignored])}",
        'scene: a scene  # what captions begin with, such as "a street scene" or "a harbour"',
    ]  # fmt: skip
    return "\n".join(lines) + "\n"
