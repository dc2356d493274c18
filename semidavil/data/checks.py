"""What is wrong with a run's data, found before it starts."""

import json
import math
import re
import warnings
from functools import cache, partial
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape

from semidavil.benchmarks import BENCHMARKS, IGNORE_INDEX, UNKNOWN, Benchmark
from semidavil.config import Config
from semidavil.data.described import title_of
from semidavil.data.files import DataError
from semidavil.data.filling import Filling
from semidavil.data.layout import cache_dir, open_reader, working_size
from semidavil.data.readers import Reader
from semidavil.data.scans import Scan, scan, scan_or_recall
from semidavil.data.splits import split_target
from semidavil.data.streams import train_samples
from semidavil.descriptions import UNLABELLED
from semidavil.names import METHODS, ORACLE, SHUFFLED, VISION_ONLY
from semidavil.registry import DATASETS, has_unlabelled, written_value
from semidavil.toy import clip

STRETCHED = 1.2  # times, from which a picture that is looked at in another shape is worth a word


def check_data(config: Config, progress: bool = False, filling: Filling | None = None) -> None:
    """Everything about a run's data that can be wrong, found before it starts.

    Args:
        filling: keeps what is decoded for the check, so that no file is decoded twice.

    Raises:
        DataError: a missing folder, an image without a label or with one of another size, an
            unreadable file, an unknown label id, train ids for label ids, labels without any class, a
            budget larger than the set.
    """
    parts = splits_of(BENCHMARKS[config.data.benchmark])
    # What a listing shows comes first: a full scan of real sets takes minutes.
    listings = [open_reader(config, dataset).samples(split) for dataset, split in parts]
    without = next(
        (one for (_, split), one in zip(parts, listings, strict=True) if split == UNLABELLED), []
    )
    split_target(listings[0], config.data.budget, config.seed, others=without)
    if why := no_oracle(config, len(without)):
        raise DataError(why)
    if filling:
        filling.begin(dict(zip(parts, listings, strict=True)))
    for (dataset, split), listed in zip(parts, listings, strict=True):
        reader = open_reader(config, dataset)
        seen = partial(filling.keep, dataset) if filling else None
        _, found = scan(
            reader, split, cache_dir(config), listed=listed, progress=progress, seen=seen
        )
        problems = [text] if (text := unknown_values(dataset, found)) else list(found.errors)
        if reader.drop_size_mismatch and found.mismatched:
            warnings.warn(
                f"{title_of(dataset)}: {len(found.mismatched)} of {found.count} images are left out, since "
                f"their labels have another size (the first is {found.mismatched[0]})",
                stacklevel=2,
            )
        else:
            problems += [f"the label of {path} has another size" for path in found.mismatched]
        if problems:
            more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
            raise DataError(
                f"{title_of(dataset)}, {split}: {'; '.join(problems[:3])}{more}. {remedy(dataset)}"
            )
        why = void_labels(BENCHMARKS[config.data.benchmark], reader, split, found)
        if why and looks_at_labels(config, dataset, split):
            raise DataError(f"{title_of(dataset)}, {split}: {why}")
        if progress and split == "train":
            _note(stretched(config, dataset, found))
    if progress:
        _note(unknown_words(config))


def _note(text: str) -> None:
    if text:
        Console(stderr=True).print(
            f"[yellow]note:[/] {escape(text)}", soft_wrap=True, highlight=False
        )


def no_oracle(config: Config, without: int) -> str:
    """Why captions cannot be made of labels; empty if they can, or are not.

    Args:
        without: how many pictures have no label.
    """
    if config.model.captions != ORACLE or not without or config.model.fusion in VISION_ONLY:
        return ""
    target = title_of(BENCHMARKS[config.data.benchmark].target)
    return f"model.captions={ORACLE} describes labels, and {without} pictures of {target} have none"


def unknown_values(dataset: str, found: Scan) -> str:
    """What labels of a described data set hold that its description lacks, in one sentence."""
    if dataset not in DATASETS or not found.unknown:
        return ""
    what = "colours" if DATASETS[dataset].encoding == "colour" else "ids"
    shown = list(found.unknown)[:12]
    more = f" and {len(found.unknown) - 12} more" if len(found.unknown) > 12 else ""
    blends = " (so many are blends, as of labels saved as JPEG)" if len(found.unknown) > 32 else ""
    return (
        f"labels hold the {what} {', '.join(shown)}{more}{blends}, which "
        f"{DATASETS[dataset].name}'s description "
        f"does not have; the first: {found.errors[0]}"
    )


def stretched(config: Config, dataset: str, found: Scan) -> str:
    """That most pictures of a described data set are looked at in another shape than theirs; empty if not."""
    if dataset not in DATASETS or not found.sizes:
        return ""
    height, width = map(int, max(found.sizes, key=lambda size: found.sizes[size]).split("x"))
    size = working_size(config, dataset)
    times = size[1] / width * height / size[0]
    if max(times, 1 / times) < STRETCHED:
        return ""
    # As many pixels, or more where the crop would not fit.
    scale = max(
        math.sqrt(size[0] * size[1] / (height * width)),
        config.data.crop[0] / height,
        config.data.crop[1] / width,
    )
    own = f"[{math.ceil(height * scale)},{math.ceil(width * scale)}]"
    is_target = dataset == BENCHMARKS[config.data.benchmark].target
    name = f"data.{'target' if is_target else 'source'}_size"
    return (
        f"pictures of {title_of(dataset)} are {height} x {width} and looked at as {size[0]} x {size[1]}, "
        f"{max(times, 1 / times):.1f} times as {'wide' if times > 1 else 'tall'} as they are: "
        f"--set {name}={own} keeps their shape"
    )


def remedy(dataset: str) -> str:
    """What is to be done about labels that are wrong."""
    if dataset in DATASETS:
        return "Add what is missing to classes or to ignored in its dataset.yaml, or mend the files"
    return "Restore the files from the data set's archive"


def unknown_words(config: Config) -> str:
    """Class names that the captions of a run with the bundled CLIP would call alike, in a sentence."""
    model = config.model
    kind = model.captions.removeprefix(SHUFFLED)
    reads = model.fusion not in VISION_ONLY and kind in ("positions", "class_names", ORACLE)
    if not config.data.own or model.vlm != "toy" or not reads:
        return ""
    return strange_words(BENCHMARKS[config.data.benchmark])


def strange_words(benchmark: Benchmark) -> str:
    """Classes whose names the bundled CLIP has no words for, in a sentence; other models spell them."""
    vocabulary = bundled_words()
    lacking = [
        name
        for name in benchmark.classes
        if not all(word in vocabulary for word in re.findall(r"\w+", name.lower()))
    ]
    if not lacking:
        return ""
    return (
        f"the bundled CLIP does not know the words {', '.join(lacking)}: captions call these classes alike. "
        "Take a real model (--set model.vlm=ViT-B-16 model.weights=openai), or names that it knows"
    )


@cache
def bundled_words() -> frozenset[str]:
    """All words that the tokenizer of the bundled CLIP has."""
    tree = json.loads((Path(clip.__file__).parent / "tokenizer.json").read_text(encoding="utf-8"))
    return frozenset(tree["model"]["vocab"])


def void_labels(benchmark: Benchmark, reader: Reader, split: str, found: Scan) -> str:
    """Why labels teach nothing: no pixel of theirs is of a class. Empty if some are."""
    dataset = reader.name
    lookup = benchmark.lookup(dataset)
    if not all(lookup[raw] in (IGNORE_INDEX, UNKNOWN) for raw in found.pixels):
        return ""
    what = "colours" if dataset in DATASETS and DATASETS[dataset].encoding == "colour" else "ids"
    values = [written_value(dataset, raw) for raw in sorted(found.pixels)]
    shown = ", ".join(values[:12]) + (f" and {len(values) - 12} more" if len(values) > 12 else "")
    remedies = ["Use the split's real labels (those of test splits are often not published)"]
    if dataset in DATASETS:
        remedies.append(f"or give the classes their {what} in its dataset.yaml")
    if benchmark.source and dataset == benchmark.target and split == "train":
        remedies.append("or train without labels of the target (data.budget=0)")
    return (
        f"no label in {reader.root} holds a class of {title_of(benchmark.name)}: all pixels "
        f"have ignored {what} ({shown}). {', '.join(remedies)}"
    )


def needs_labels(benchmark: Benchmark, dataset: str, split: str) -> bool:
    """Whether a benchmark is of no use without a split's labels.

    Where there is a source, runs at 0 labels do without those of the target's training images.
    """
    if dataset == benchmark.target:
        return split == "val" or (split == "train" and not benchmark.source)
    return dataset == benchmark.source and split == "train"


def looks_at_labels(config: Config, dataset: str, split: str) -> bool:
    """Whether a run learns from, or is scored by, the labels of a data set's split."""
    benchmark, streams = BENCHMARKS[config.data.benchmark], METHODS[config.training.method].streams
    if split == UNLABELLED:
        return False
    if split == "val" or config.model.captions == ORACLE:
        return True
    if dataset == benchmark.source:
        return "source" in streams
    return "labelled" in streams and config.data.budget > 0


def class_pixels(config: Config) -> list[int]:
    """Pixels of each class in the labels that a run learns from: its source and labelled target.

    From the scans, so that every set of labels is read once. Labels of unlabelled images are not
    looked at.
    """
    benchmark, cache = BENCHMARKS[config.data.benchmark], cache_dir(config)
    streams, found = METHODS[config.training.method].streams, []
    if benchmark.source and "source" in streams:
        reader = open_reader(config, benchmark.source)
        found.append((benchmark.source, scan(reader, "train", cache)[1]))
    if config.data.budget and "labelled" in streams:
        reader = open_reader(config, benchmark.target)
        labelled = train_samples(config)["labelled"]
        part = f"labelled-{len(labelled)}"
        scanned = scan_or_recall(reader, part, labelled, cache, progress=False)
        found.append((benchmark.target, scanned))
    totals = np.zeros(256, np.int64)
    for dataset, scanned in found:
        lookup = benchmark.lookup(dataset)
        for raw, pixels in scanned.pixels.items():
            totals[lookup[raw]] += pixels
    return totals[: len(benchmark.classes)].tolist()


def splits_of(benchmark: Benchmark) -> list[tuple[str, str]]:
    """Data set and split of all that a run looks at."""
    parts = [(benchmark.target, "train"), (benchmark.target, "val")]
    parts += [(benchmark.source, "train")] if benchmark.source else []
    return [*parts, (benchmark.target, UNLABELLED)] if has_unlabelled(benchmark.target) else parts
