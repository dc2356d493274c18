"""Patterns of paths in a data set's description, such as `frames/**/{stem}.jpg`.

`*` stands for anything in one name, `**/` for any folders or none, `{word}` for anything in one name that a
label's pattern repeats, `.*` at the end for any ending of an image. Endings are read in any case.
"""

import os
import re
from dataclasses import dataclass
from functools import cached_property

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg")
_PARTS = re.compile(r"\*\*/|\*|{\w+}|[^*{]+|{")


@dataclass(frozen=True)
class Found:
    """A path that a pattern fits, with what its words and its folders (`**/`) stand for."""

    path: str  # below the data set's folder
    words: dict[str, str]
    folders: tuple[str, ...]


class Pattern:
    """One pattern.

    Args:
        text: as in the description.
        split: what stands for `{split}`.
    """

    def __init__(self, text: str, split: str = "") -> None:
        self.text = text.replace("{split}", split)
        stem, _, name = self.text.rpartition("/")
        if "{stem}" not in self.text and "*" in name.removesuffix(
            ".*"
        ):  # the first star of its name
            name = name.replace("*", "{stem}", 1)
            self.text = f"{stem}/{name}" if stem else name

    @property
    def folder(self) -> str:
        """The folder that all paths begin with; empty where that is the data set's own."""
        fixed = re.split(r"[*{]", self.text, maxsplit=1)[0]
        return fixed.rpartition("/")[0]

    @property
    def ending(self) -> str:
        return os.path.splitext(self.text)[1].lower()

    @cached_property
    def _regex(self) -> re.Pattern[str]:
        text, any_ending = self.text, self.text.endswith(".*")
        found, seen, folders = [], set[str](), 0
        for part in _PARTS.findall(text.removesuffix(".*") if any_ending else text):
            if part == "**/":
                found.append(rf"(?P<_{folders}>(?:[^/]+/)*)")
                folders += 1
            elif part == "*":
                found.append(r"[^/]*")
            elif part.startswith("{") and len(part) > 2:
                word = part[1:-1]
                found.append(f"(?P={word})" if word in seen else f"(?P<{word}>[^/]+?)")
                seen.add(word)
            else:
                found.append(re.escape(part))
        ending = "|".join(re.escape(one) for one in IMAGE_ENDINGS)
        body = "".join(found)
        if any_ending:
            return re.compile(rf"{body}(?i:{ending})")
        stem, dot, last = body.rpartition(r"\.")  # of what comes last, the ending in any case
        return re.compile(f"{stem}{dot}(?i:{last})" if dot and "(" not in last else body)

    def find(self, path: str) -> Found | None:
        """What a path below the data set's folder stands for; None where the pattern does not fit."""
        match = self._regex.fullmatch(path)
        if match is None:
            return None
        groups = match.groupdict()
        words = {name: value for name, value in groups.items() if not name.startswith("_")}
        folders = tuple(value for name, value in groups.items() if name.startswith("_"))
        return Found(path, words, folders)

    def of(self, image: Found) -> str:
        """The path that belongs to an image, with the image's words and folders."""
        folders = iter(image.folders)
        text = re.sub(r"\*\*/", lambda _: next(folders, ""), self.text)
        return re.sub(r"{(\w+)}", lambda match: image.words[match[1]], text)


def folder_of(pattern: str) -> str:
    """The folder that all paths of a pattern lie in, see `is_in`; without a star, what it names."""
    fixed, star, _ = pattern.removesuffix("/**").rstrip("/").partition("*")
    return fixed.rpartition("/")[0] if star else fixed


def is_in(pattern: str, path: str) -> bool:
    """Whether a path is what a pattern says, or lies in a folder that it says (`a/` and `a/**` are `a`)."""
    parts = _PARTS.findall(pattern.removesuffix("/**").rstrip("/"))
    regex = {"**/": "(?:[^/]+/)*", "*": "[^/]*"}
    body = "".join(regex.get(part) or re.escape(part) for part in parts)
    return re.fullmatch(f"{body}(?:/.*)?", path) is not None
