"""Files of data: hashes of their contents, append-only tables of rows, and the error that names one."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

from semidavil.bars import transient_bars


class DataError(ValueError):
    """Data that is missing or broken; the message names the file and what was expected."""


FEW_BYTES = 2**28  # that `recall_hashes` reads, in a fraction of a second

_Key = tuple[str, int, int]  # path, size, time of change in ns


class NotReadYet(DataError):  # noqa: N818 - nothing is wrong with them
    """Files whose contents are not known yet, and that are too much to be read now."""


def hash_files(paths: Sequence[Path], memo: Path, *, progress: bool = False) -> dict[Path, str]:
    """Hashes of the files' contents, remembered in `memo` by path, size and time of change.

    Without the memo, large data sets and models would take minutes at every start.

    Raises:
        DataError: a file that cannot be read, by name.
    """
    keys, known = _keys(paths), dict(_known(memo))
    missing = [path for path, key in keys.items() if key not in known]
    with transient_bars(progress and bool(missing)) as bar:
        task = bar.add_task("reading files", total=len(missing))
        for start in range(0, len(missing), 512):
            batch = missing[start : start + 512]
            found = _hash(batch)
            known |= {keys[path]: value for path, value in found.items()}
            names = ("path", "size", "time")
            append_rows(
                memo,
                [
                    {**dict(zip(names, keys[path], strict=True)), "hash": value}
                    for path, value in found.items()
                ],
            )
            bar.advance(task, len(batch))
    return {path: known[key] for path, key in keys.items()}


def recall_hashes(paths: Sequence[Path], memo: Path) -> dict[Path, str]:
    """As `hash_files`, but at once: what the memo lacks is read only if it is little. Writes nothing.

    Raises:
        NotReadYet: more than `FEW_BYTES` would have to be read.
        DataError: a file that cannot be read, by name.
    """
    keys, known = _keys(paths), dict(_known(memo))
    missing = [path for path, key in keys.items() if key not in known]
    if sum(keys[path][1] for path in missing) > FEW_BYTES:
        raise NotReadYet(f"{len(missing)} files, the first is {missing[0]}, are not read yet")
    known |= {keys[path]: value for path, value in _hash(missing).items()}
    return {path: known[key] for path, key in keys.items()}


def _known(memo: Path) -> Mapping[_Key, str]:
    try:
        status = memo.stat()
    except FileNotFoundError:
        return {}
    return _known_now(memo, status.st_size, status.st_mtime_ns)


@lru_cache(2)  # a start asks for images, for all files and for a model's, and the memo only grows
def _known_now(memo: Path, size: int, time: int) -> Mapping[_Key, str]:
    return {(row["path"], row["size"], row["time"]): row["hash"] for row in read_rows(memo)}


def _keys(paths: Sequence[Path]) -> dict[Path, _Key]:
    keys: dict[Path, _Key] = {}
    folders: dict[str, str] = {}  # a path costs more than the disk's answer
    for path in dict.fromkeys(paths):
        try:
            status = os.stat(path)
        except OSError as error:
            raise DataError(f"{path} cannot be read ({error.strerror}): restore it") from error
        folder, name = os.path.split(path)
        if folder not in folders:
            folders[folder] = os.path.abspath(folder)
        keys[path] = (f"{folders[folder]}/{name}", status.st_size, status.st_mtime_ns)
    return keys


def _hash(paths: Sequence[Path]) -> dict[Path, str]:
    with ThreadPoolExecutor(4) as pool:
        return dict(zip(paths, pool.map(_hash_file, paths), strict=True))


def _hash_file(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): restore it") from error
    return digest.hexdigest()


def state_of(paths: Iterable[Path], about: str) -> str:
    """16 hex digits for `about` and for names, sizes and times of change of files, in their order.

    Raises:
        DataError: a file that is not there, such as a link that leads nowhere.
    """
    digest = hashlib.blake2b(about.encode(), digest_size=8)
    for path in paths:
        try:
            status = path.stat()
        except OSError as error:
            where = f", which is a link to {os.readlink(path)}," if path.is_symlink() else ""
            raise DataError(
                f"{path}{where} cannot be read ({error.strerror}): restore it"
            ) from error
        digest.update(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
    return digest.hexdigest()


def read_rows(file: Path) -> Iterator[dict[str, Any]]:
    """Rows of an append-only JSON Lines file; a line cut short by a crash is passed over."""
    if not file.exists():
        return
    with file.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            if isinstance(row, dict):
                yield row


def append_rows(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Appends rows in one write, which another process' write cannot split.

    The leading newline ends a line that a crash may have cut short.
    """
    text = "\n" + "".join(json.dumps(row) + "\n" for row in rows)
    file.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(handle, text.encode())
    finally:
        os.close(handle)
