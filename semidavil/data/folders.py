"""What is in a data set's folders, as people leave them there; and the lists of names beside them."""

import os
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path, PureWindowsPath

from semidavil.data.files import DataError

# What programs put beside pictures: `.ipynb_checkpoints`, `@eaDir`, `#recycle`, `__MACOSX`, `._a.png`.
HIDDEN = (".", "@", "#", "__MACOSX")
_DIGITS = re.compile(r"(\d+)", re.ASCII)
_FIRST_FILE = re.compile(r'.+?\.(?:png|jpe?g|h5|nii\.gz|nii)(?=[\s,;"]|$)', re.IGNORECASE)


def files_below(folder: Path) -> Iterator[Path]:
    """All files below a folder but hidden ones; links are followed.

    Raises:
        DataError: a link that leads back to where it lies, or a name that is not UTF-8.
    """
    yield from map(Path, _walk(os.fspath(folder), frozenset()))


def names_below(folder: Path) -> list[str]:
    """The same files, as text and without the folder: pathlib takes as long for a name as the disk."""
    start = len(os.path.join(folder, ""))
    return [path[start:] for path in _walk(os.fspath(folder), frozenset())]


def files_in(folder: Path) -> list[Path]:
    """The files of one folder, in order: no hidden ones, and none of the folders in it.

    Raises:
        DataError: a name that is not UTF-8.
    """
    return sorted(Path(entry.path) for entry in _entries(os.fspath(folder)) if not entry.is_dir())


def _walk(folder: str, above: frozenset[tuple[int, int]]) -> Iterator[str]:
    status = os.stat(folder)
    here = (status.st_dev, status.st_ino)
    if here in above:
        raise DataError(f"{_shown(folder)} is a link to a folder that it lies in: remove it")
    for entry in _entries(folder):
        if entry.is_dir():
            yield from _walk(entry.path, above | {here})
        else:
            yield entry.path


def _entries(folder: str) -> Iterator["os.DirEntry[str]"]:
    """What is in a folder and not hidden; see `files_below` for the names of files."""
    with os.scandir(folder) as entries:
        found = [entry for entry in entries if not entry.name.startswith(HIDDEN)]
    for entry in found:
        try:
            entry.name.encode()
        except UnicodeEncodeError:
            if not entry.is_dir():
                raise DataError(
                    f"the name of {_shown(entry.path)} is not UTF-8: rename it (`convmv -f latin1 -t utf8 "
                    "-r --notest FOLDER` renames all, if they are Latin-1)"
                ) from None
        yield entry


def _shown(path: str) -> str:
    """A path that may hold what is no character, as text that can be printed."""
    return os.fsencode(path).decode(errors="backslashreplace")


def names_in(listing: Path) -> list[str]:
    """The names of the files that a list has, without folders and endings; see `entries_in`."""
    return [entry.rpartition("/")[2] for entry in entries_in(listing)]


def entries_in(listing: Path) -> list[str]:
    """The paths of the files that a list has, one a line, without endings, with / between folders.

    A line holds a name, a path, or the paths of an image and its label, apart by blanks, commas or
    semicolons; folders may have blanks in their names. As editors and tables of other systems save it: with a
    byte-order mark, with their own ends of lines, with backslashes, in quotes. `# ...` is a remark, and what
    a CSV begins with is a heading if it is no file and others are.

    Raises:
        DataError: the list is no text.
    """
    try:
        lines = listing.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{listing} is not UTF-8 text ({error}): save it as such") from error
    names = []
    lines = [line.strip().lstrip('"') for line in lines if not line.startswith("# ")]
    found = [(line, _FIRST_FILE.match(line)) for line in lines if line]
    is_table = listing.suffix.lower() == ".csv" and any(match for _, match in found)
    for line, match in found[1:] if is_table and not found[0][1] else found:
        first = match[0] if match else re.split(r'[\s,;"]', line)[0]
        path = PureWindowsPath(first).as_posix()  # which knows both kinds of slashes
        folder, slash, name = path.rpartition("/")
        # A bare name may have a dot, and no ending.
        names.append(folder + slash + (stem_of(name) if match else name))
    return names


def as_matched(path: str) -> str:
    """A path as it is compared: endings in any case, and one letter for ä, which macOS stores as two."""
    stem, ending = os.path.splitext(path)
    return composed(stem) + ending.lower()


def composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def natural_order(path: str) -> list[list[tuple[bool, int, str]]]:
    """Sorts paths as people number files: `2.png` before `10.png`, folder by folder."""
    return [
        [
            (part.isdecimal(), int(part) if part.isdecimal() else 0, part)
            for part in _DIGITS.split(name)
        ]
        for name in path.split("/")
    ]


def stem_of(name: str) -> str:
    """A file's name without its ending, `case0001.npy.h5` and `img0001.nii.gz` without both."""
    return re.sub(r"(\.npy)?\.h5$|\.nii(\.gz)?$|\.[^.]+$", "", name, flags=re.IGNORECASE)
