"""Benchmarks from files: `--benchmark my/benchmark.yaml`, or a `dataset.yaml` alone.

    settings = own_benchmark("quay/dataset.yaml")
    config = preset("small", {**settings, "data.budget": 10})

A benchmark's file says what it trains on and where it is scored (source and target are built-in names, ready
descriptions or paths of a `dataset.yaml`, relative to the file), a data set's file what its pictures
and labels
mean. A data set lies in the folder of its file.
"""

import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from semidavil.benchmarks import BENCHMARKS, LABEL_IDS
from semidavil.data.described import DescribedReader
from semidavil.data.files import DataError
from semidavil.descriptions import MARK, BenchmarkFile, DataSet, DescriptionError, explained
from semidavil.plugins import Table, in_use, provider
from semidavil.registry import add, registered

ENDINGS = (".yaml", ".yml")
READY = Path(__file__).parent / "ready"  # descriptions of published data sets
SHARES = (8, 4, 2, 1)  # label budgets, where none are given: parts of the training images
DATASET_FILE = "dataset.yaml"


# Beside the built-in ones, those of plugins: a path, or what a file would say.
BENCHMARKS_BY_NAME: Table[Any] = Table("BENCHMARKS", BENCHMARKS)


class _Loader(yaml.SafeLoader):
    """Refuses an entry that is written twice, of which YAML would keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise yaml.constructor.ConstructorError(
                None, None, f"{twice!r} is there twice", node.start_mark
            )
        return super().construct_mapping(node, deep)


def is_own(benchmark: str) -> bool:
    """Whether a benchmark is a plugin's, or named by its file or by the folder of its data set."""
    if provider("BENCHMARKS", benchmark) is not None:
        return True
    return benchmark.endswith(ENDINGS) or (
        benchmark not in BENCHMARKS and (Path(benchmark) / DATASET_FILE).is_file()
    )


def ready_names() -> list[str]:
    return sorted(path.stem for path in READY.glob("*.yaml"))


def own_benchmark(place: str, data_root: str = "") -> dict[str, str]:
    """Reads a benchmark's (or a data set's) file and makes it known; the settings that choose it.

    Args:
        place: the file, the folder of a data set, or the name of a plugin's benchmark.
        data_root: the folder that holds a folder for each ready or built-in data set.

    Raises:
        DescriptionError: the file is wrong, by entry, or is not there.
    """
    if (plugin := provider("BENCHMARKS", place)) is not None:
        (source,) = in_use([plugin])
        path, entry = Path(source.folder, source.name), BENCHMARKS_BY_NAME[place]
        if isinstance(entry, Mapping):  # beside the plugin, as a file would be
            return _described({"name": place, **entry}, path, data_root)
        return own_benchmark(str(path.parent / Path(entry).expanduser()), data_root)
    path = Path(place).expanduser()
    path = path / DATASET_FILE if path.is_dir() else path
    return _described(_tree(path), path, data_root)


def _described(tree: dict[str, Any], path: Path, data_root: str) -> dict[str, str]:
    """`own_benchmark` of what a file says; `path` is the file's, or that of the plugin that says it."""
    folders = dict[str, str]()
    try:
        if "target" in tree:
            for role in ("source", "target"):
                if isinstance(said := tree.get(role), str):
                    tree[role] = _dataset(said, path, folders)
                elif isinstance(said, Mapping):
                    tree[role] = _inline(said, path, folders)
            file = BenchmarkFile.model_validate(tree)
        else:
            one = _inline(tree, path, folders)
            file = BenchmarkFile(name=one.name, target=one)
    except ValidationError as error:
        raise DescriptionError(f"{path}: {explained(error)}") from None
    if not file.budgets:
        file = file.model_copy(update={"budgets": _budgets(file, folders, data_root)})
    key = add(file)
    settings = {"data.benchmark": key, "data.own": registered(key), "data.toy": "false"}
    return settings | {"runtime.folders": json.dumps(folders, sort_keys=True)}


def own_benchmarks(places: Sequence[str], data_root: str = "") -> tuple[list[str], dict[str, str]]:
    """The names of benchmarks of which some are files, and the settings that all of them need."""
    names, folders, settings = [], dict[str, str](), dict[str, str]()
    for place in places:
        if not is_own(place):
            names.append(place)
            continue
        settings = own_benchmark(place, data_root)
        names.append(settings.pop("data.benchmark"))
        del settings["data.own"]  # which follows from the name
        folders |= json.loads(settings["runtime.folders"])
    return names, settings | ({"runtime.folders": json.dumps(folders)} if folders else {})


def read_dataset(path: Path) -> DataSet:
    """
    Raises:
        DescriptionError: the file is wrong, by entry, or is not there.
    """
    return _read(_tree(path), path)


def _inline(said: Mapping[str, Any], path: Path, folders: dict[str, str]) -> DataSet:
    """A data set that is described within a benchmark; `folder` says where it lies, from the file's on."""
    tree = dict(said)
    place = Path(path.parent, str(tree.pop("folder", "."))).expanduser()
    one = _read(tree, path)
    folders[one.key] = str(place.resolve())
    return one


def _read(tree: dict[str, Any], path: Path) -> DataSet:
    known = DataSet.model_fields
    if unknown := [name for name in tree if name not in known]:
        close = difflib.get_close_matches(str(unknown[0]), known, 1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise DescriptionError(
            f"{path}: no entry {unknown[0]!r}: {hint}There are {', '.join(known)}"
        )
    try:
        return DataSet.model_validate(tree)
    except ValidationError as error:
        raise DescriptionError(f"{path}: {explained(error)}") from None


def _dataset(said: str, beside: Path, folders: dict[str, str]) -> DataSet | str:
    """A source or target: a description, or a built-in name."""
    if said in LABEL_IDS and MARK not in said:
        return said
    if not said.endswith(ENDINGS) and (READY / f"{said}.yaml").is_file():
        return read_dataset(READY / f"{said}.yaml")
    path = beside.parent / said
    path = path / DATASET_FILE if path.is_dir() else path
    if not path.is_file():
        known = ", ".join([*(n for n in LABEL_IDS if MARK not in n), *ready_names()])
        raise DescriptionError(f"{beside}: {said!r} is neither a file beside it nor one of {known}")
    one = read_dataset(path)
    folders[one.key] = str(path.parent.resolve())
    return one


def _tree(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.load(path.read_text(encoding="utf-8-sig"), _Loader)  # a safe one
    except OSError as error:
        raise DescriptionError(
            f"{path} cannot be read ({error.strerror}): python -m semidavil data --init FOLDER "
            "writes a first one"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DescriptionError(f"{path} is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise DescriptionError(f"{path} is no description: expected entries such as `name: quay`")
    return tree


def _budgets(file: BenchmarkFile, folders: dict[str, str], data_root: str) -> tuple[int, ...]:
    """An eighth, a quarter, half and all of the training images, as far as they are here; and none."""
    known = next((b.budgets for b in BENCHMARKS.values() if b.target == file.target), ())
    if isinstance(one := file.target, DataSet):
        folder = Path(folders.get(one.key) or Path(data_root) / one.name)
        try:
            count = len(DescribedReader(one, folder).samples("train"))
        except DataError:  # the check will say so
            count = 0
        known = tuple(dict.fromkeys(n for n in (count // share for share in SHARES) if n))
    return ((0,) if file.source else ()) + tuple(n for n in known if n)
