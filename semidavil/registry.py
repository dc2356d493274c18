"""Benchmarks that users have described, known beside the built-in ones.

    key = add(file)                # of a `descriptions.BenchmarkFile`: "quay@1f3a9c2b"
    BENCHMARKS[key].classes        # as of any benchmark
    register(registered(key))      # in another process: the text is all that it takes

Everything that looks a benchmark up by its name finds a described one. The text is a run's parameter
`data.own`: all that a worker, a rerun, the weights alone or a figure needs to know the benchmark.
"""

import base64
import json
import zlib

from semidavil.benchmarks import BENCHMARKS, LABEL_IDS
from semidavil.descriptions import (
    NO_RESULT,
    UNLABELLED,
    BenchmarkFile,
    DataSet,
    DescriptionError,
)

PLAIN_CHARACTERS, MOST_CHARACTERS = 3_000, 6_000  # of a text; MLflow takes no longer parameters
_PACKED = "zlib:"

DATASETS: dict[str, DataSet] = {}  # those that were registered, by key
TEXTS: dict[str, str] = {}  # of registered benchmarks, by key


def register(text: str) -> str:
    """Makes a described benchmark known; returns the key that it is known by.

    Args:
        text: `text_of` it.

    Raises:
        DescriptionError: the text was written by another version.
    """
    try:
        plain = text
        if text.startswith(_PACKED):
            plain = zlib.decompress(base64.b85decode(text.removeprefix(_PACKED))).decode()
        file = BenchmarkFile.model_validate(json.loads(plain))
    except (ValueError, zlib.error) as error:
        raise DescriptionError(
            f"the described benchmark {text[:60]!r}... cannot be read ({error}): name its file again with "
            "--benchmark"
        ) from error
    return add(file, text)


def add(file: BenchmarkFile, text: str = "") -> str:
    """`register` of a description that is at hand."""
    text = text or text_of(file)
    key = file.key
    if TEXTS.get(key) != text:
        for one in file.datasets.values():
            if isinstance(one, DataSet):
                add_dataset(one)
        BENCHMARKS[key] = file.benchmark
        TEXTS[key] = text
    return key


def add_dataset(one: DataSet) -> str:
    """Makes a described data set known; returns its key."""
    key = one.key
    DATASETS[key] = one
    LABEL_IDS[key] = one.label_ids
    return key


def has_unlabelled(dataset: str) -> bool:
    """Whether a data set's description names pictures without labels."""
    return dataset in DATASETS and bool(DATASETS[dataset].unlabelled)


def is_without_labels(dataset: str, split: str) -> bool:
    """Whether a split is a data set's pictures without labels: a split of its own may be called so, too."""
    return split == UNLABELLED and has_unlabelled(dataset)


def written_value(dataset: str, raw: int) -> str:
    """What a reader gives for a label's pixel, as the file has it: an id, or a colour."""
    if dataset not in DATASETS:
        return str(raw)
    values = {code: value for value, code in DATASETS[dataset].codes.items()}
    about = DATASETS[dataset].shown(values[raw]) if raw in values else str(raw)
    return about.removeprefix("the id ").removeprefix("the colour ")


def training_splits(dataset: str) -> tuple[str, ...]:
    """The splits that training draws images of a target from."""
    return ("train", UNLABELLED) if has_unlabelled(dataset) else ("train",)


def registered(benchmark: str) -> str:
    """The text of a benchmark that was registered; empty for a built-in one."""
    return TEXTS.get(benchmark, "")


def text_of(file: BenchmarkFile) -> str:
    """As one line that fits into a parameter of MLflow.

    Raises:
        DescriptionError: it is too long even when it is compressed.
    """
    tree = file.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    for role in ("source", "target"):  # what people are told, not what a run needs
        if isinstance(tree.get(role), dict):
            tree[role] = {k: v for k, v in tree[role].items() if k not in NO_RESULT}
    text = json.dumps(tree, separators=(",", ":"))
    if len(text) > PLAIN_CHARACTERS:
        text = _PACKED + base64.b85encode(zlib.compress(text.encode(), 9)).decode()
    if len(text) > MOST_CHARACTERS:
        raise DescriptionError(
            f"{file.name}: the descriptions are too long to be kept with each run ({len(text)} characters of "
            f"{MOST_CHARACTERS}, compressed): leave out synonyms, or join classes"
        )
    return text
