"""Arrays in one file: whole ones alone count, and offsets are never those of another file."""

import os
from pathlib import Path

import numpy as np
import pytest

from semidavil.data.arrays import Arrays


def written(folder: Path, values: dict[str, int], status: os.stat_result) -> Arrays:
    """Arrays of one value each, in the order in which they lie in the file."""
    arrays = Arrays(folder / "images", "raw")
    for name, value in values.items():
        arrays.append(name, status, np.full((2, 2), value, np.uint8))
    arrays.commit()
    arrays.close()
    return arrays


def value_of(arrays: Arrays, name: str, status: os.stat_result) -> int:
    entry = arrays.entry(name, status)
    assert entry is not None
    (value,) = np.unique(arrays.read(entry))
    return int(value)


def test_who_has_read_the_index_reads_that_file_although_another_is_begun(tmp_path: Path) -> None:
    status = tmp_path.stat()
    written(tmp_path, {"a": 1, "b": 2}, status)
    reader, late = (Arrays(tmp_path / "images", "raw") for _ in range(2))  # nothing is mapped yet
    Arrays(tmp_path / "images", "raw").clear()
    written(tmp_path, {"b": 3, "a": 4}, status)  # in the other order
    assert [value_of(reader, name, status) for name in "ab"] == [1, 2]
    again = Arrays(tmp_path / "images", "raw")
    assert [value_of(again, name, status) for name in "ab"] == [4, 3]
    again.clear()
    assert [value_of(reader, name, status) for name in "ab"] == [1, 2]  # mapped, it stays
    with pytest.raises(FileNotFoundError):
        late.map()
    assert not again.entries


def test_what_is_added_to_a_file_that_is_mapped_is_read_too(tmp_path: Path) -> None:
    status = tmp_path.stat()
    arrays = written(tmp_path, {"a": 1}, status)
    assert value_of(arrays, "a", status) == 1
    arrays.append("b", None, np.full((2, 2), 2, np.uint8))
    assert "b" not in arrays.entries, "it does not count yet"
    arrays.commit()
    arrays.close()
    assert [int(arrays.read(arrays.entries[name])[0, 0]) for name in "ab"] == [1, 2]


def test_a_file_that_was_removed_is_read_on_once_it_is_mapped(tmp_path: Path) -> None:
    status = tmp_path.stat()
    arrays = written(tmp_path, {"a": 1}, status)
    arrays.map()
    arrays.file.unlink()
    assert value_of(arrays, "a", status) == 1
    assert not Arrays(tmp_path / "images", "raw").entries


def test_a_file_of_arrays_that_was_cut_short_holds_what_is_left(tmp_path: Path) -> None:
    arrays, status = Arrays(tmp_path / "images", "raw"), tmp_path.stat()
    for number in range(3):
        arrays.append(str(number), status, np.full((2, 2), number, np.uint8))
    arrays.commit()
    os.truncate(arrays.file, 9)
    again = Arrays(tmp_path / "images", "raw")
    assert set(again.entries) == {"0", "1"}
    entry = again.entry("1", status)
    assert entry is not None
    assert (again.read(entry) == 1).all()
    again.file.unlink()
    assert not Arrays(tmp_path / "images", "raw").entries


def test_a_line_of_the_index_cut_short_loses_its_arrays_alone(tmp_path: Path) -> None:
    status = tmp_path.stat()
    for number in range(2):
        arrays = Arrays(tmp_path / "images", "raw")
        arrays.append(str(number), status, np.full((2, 2), number, np.uint8))
        arrays.commit()
        arrays.close()
    text = arrays.index.read_text()
    arrays.index.write_text(text[:-9])
    again = Arrays(tmp_path / "images", "raw")
    assert set(again.entries) == {"0"}
    again.append("2", status, np.full((2, 2), 2, np.uint8))
    again.commit()
    assert set(Arrays(tmp_path / "images", "raw").entries) == {"0", "2"}
