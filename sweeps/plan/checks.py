"""What is wrong with a command, as far as it can be known within seconds and without writing anything.

Broken files, captioners and models are found later, when data are prepared.
"""

import os
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from semidavil.benchmarks import BENCHMARKS, Benchmark
from semidavil.config import Config
from semidavil.data.described import reader_of, title_of
from semidavil.data.files import DataError
from semidavil.data.layout import folder_of
from semidavil.data.synapse import SHARES, Synapse
from semidavil.data.synapse_splits import NAMED_SPLITS, labelled_scans
from semidavil.settings import Runtime, Volumes
from semidavil.toy.abdomen import NUMBERS
from semidavil.toy.write import COUNTS, DATASETS


@dataclass(frozen=True)
class Problem:
    """Why some cells cannot run."""

    reason: str
    cells: frozenset[str]  # their keys

    def __str__(self) -> str:
        return f"{self.reason} ({len(self.cells)} runs cannot be made)"


def find_problems(configs: Iterable[Config]) -> list[Problem]:
    """What keeps cells from running on this machine, each reason once, in the order of the cells."""
    # Hundreds of cells have the same data.
    training_set, wrong_cache = cache(_training_set), cache(_wrong_cache)
    found: dict[str, set[str]] = defaultdict(set)
    for config in configs:
        benchmark = BENCHMARKS[config.data.benchmark]
        place = config.data.toy, config.runtime.data_root, config.runtime.folders, config.volumes
        size = training_set(benchmark.name, *place)
        for reason in (
            size if isinstance(size, str) else _wrong_budget(config, benchmark, size),
            wrong_cache(config.runtime.cache_dir),
        ):
            if reason:
                found[reason].add(config.key())
    return [Problem(reason, frozenset(cells)) for reason, cells in found.items()]


def runnable(configs: Iterable[Config], problems: Iterable[Problem]) -> list[Config]:
    wrong = frozenset().union(*(problem.cells for problem in problems))
    return [config for config in configs if config.key() not in wrong]


def _training_set(
    name: str, toy: bool, data_root: str, folders: str, volumes: Volumes
) -> int | str:
    """How many images or scans a benchmark's target has to train on, or why there are none."""
    benchmark = BENCHMARKS[name]
    if toy:
        return _toy_training_set(benchmark)
    try:
        places = Runtime(data_root=data_root, folders=folders)
        target = folder_of(places, benchmark.target)
        if benchmark.kind == "volumes":
            return len(Synapse(target, volumes).cases("train"))
        if benchmark.source:
            reader_of(benchmark.source, folder_of(places, benchmark.source)).samples("train")
        reader = reader_of(benchmark.target, target)
        reader.samples("val")
        return len(reader.samples("train"))
    except (DataError, OSError) as error:
        return str(error)


def _toy_training_set(benchmark: Benchmark) -> int | str:
    if benchmark.kind == "volumes":
        return round(len(NUMBERS) * SHARES["train"])
    if missing := [name for name in benchmark.datasets if name not in DATASETS]:
        return (
            f"{benchmark.name}: generated scenes imitate {', '.join(DATASETS)}, and not {missing[0]}: "
            "choose another --benchmark, or --data-root and the small preset"
        )
    return COUNTS["train"]


def _wrong_budget(config: Config, benchmark: Benchmark, size: int) -> str:
    budget = config.data.budget
    if benchmark.kind == "volumes" and config.volumes.split in NAMED_SPLITS:
        try:
            labelled_scans(config.volumes.split, budget)
        except DataError as error:
            return str(error)
    if budget <= size:
        return ""
    what = "images" if benchmark.kind == "images" else "scans"
    return (
        f"a budget of {budget} labelled {what} is larger than the training set of "
        f"{title_of(benchmark.target)}, {size}: choose at most {size} (--budgets)"
    )


def _wrong_cache(text: str) -> str:
    folder = Path(text or "data").absolute()
    why = why_unwritable(folder)
    remedy = "name another folder with --set runtime.cache_dir=DIR"
    return f"data and captions cannot be kept in {folder}: {why}; {remedy}" if why else ""


def why_unwritable(folder: Path) -> str:
    """Why files cannot be written into a folder, which need not exist yet; empty if they can."""
    place = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not place.is_dir():
        return f"{place} is no folder"
    return "" if os.access(place, os.W_OK | os.X_OK) else f"{place} cannot be written"
