"""Where data sets, toy data and captions lie."""

import json
from pathlib import Path

from semidavil.benchmarks import BENCHMARKS
from semidavil.config import Config
from semidavil.data.described import reader_of, title_of
from semidavil.data.files import DataError
from semidavil.data.readers import Reader
from semidavil.settings import Runtime
from semidavil.toy.abdomen import ensure_toy_abdomen
from semidavil.toy.write import ensure_toy_data


def cache_dir(config: Config) -> Path:
    """Where toy data and captions are kept."""
    return Path(config.runtime.cache_dir or "data").absolute()


def data_root(config: Config) -> Path:
    """The folder that holds a folder per data set; toy data is generated on first use.

    Raises:
        DataError: no folder is configured, or it does not exist.
    """
    if config.data.toy:
        benchmark = BENCHMARKS[config.data.benchmark]
        if benchmark.kind == "volumes":
            return ensure_toy_abdomen(cache_dir(config) / "toy")
        return ensure_toy_data(cache_dir(config) / "toy", benchmark.datasets)
    return existing_root(config.data.benchmark, config.runtime.data_root)


def existing_root(what: str, data_root: str) -> Path:
    """The folder that `runtime.data_root` names.

    Raises:
        DataError: it names none, or one that does not exist.
    """
    if not data_root:
        raise DataError(
            f"{what} needs its images: pass --data-root with the folder that holds one folder "
            "per data set, or use the toy preset, which generates its own"
        )
    root = Path(data_root).expanduser().absolute()
    if not root.is_dir():
        raise DataError(f"the data root {root} does not exist (--data-root)")
    return root


def working_size(config: Config, dataset: str) -> tuple[int, int]:
    """(height, width) in pixels that a data set's images are looked at."""
    is_target = dataset == BENCHMARKS[config.data.benchmark].target
    return config.data.target_size if is_target else config.data.source_size


def folder_of(runtime: Runtime, dataset: str) -> Path:
    """Where a data set lies: as `runtime.folders` says, or below `runtime.data_root`.

    Raises:
        DataError: nothing says where, or there is no such folder.
    """
    if place := json.loads(runtime.folders or "{}").get(dataset):
        if Path(place).is_dir():
            return Path(place)
        if not runtime.data_root:
            raise DataError(
                f"{title_of(dataset)}: its folder {place} is not there: name its benchmark's file with "
                f"--benchmark, or with --data-root the folder that holds {title_of(dataset)}/"
            )
    return existing_root(title_of(dataset), runtime.data_root) / title_of(dataset)


def open_reader(config: Config, dataset: str) -> Reader:
    if config.data.toy:
        return reader_of(dataset, data_root(config) / dataset)
    return reader_of(dataset, folder_of(config.runtime, dataset))
