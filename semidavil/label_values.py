"""What labels hold, as people write it in a description: ids, colours, and classes of them."""

import re
from typing import Any

Colour = tuple[int, int, int]


def rgb(value: int) -> Colour:
    """The colour that 0xRRGGBB stands for."""
    return value >> 16 & 255, value >> 8 & 255, value & 255


def written(value: int) -> str:
    """The colour that 0xRRGGBB stands for, as a description has it: in quotes, since # begins a comment."""
    return f'"#{value:06x}"'


def category_of(name: str, said: Any, colours: bool) -> Any:
    """A class as people write it: an id, several, a colour, or entries."""
    if not isinstance(said, dict):
        return {"values": values_of(said, colours, f"classes: {name}")}
    said = dict(said)
    if "values" in said:
        return said
    wrong = set(said) - {"id", "ids", "colour", "colours", "synonyms"}
    if wrong:
        raise ValueError(
            f"classes: {name}: no entry {min(map(str, wrong))!r}: ids, colour, colours, synonyms"
        )
    if isinstance(words := said.get("synonyms", []), str):
        said["synonyms"] = words = [words]
    shown = said.get("colour")
    labels = said.get("colours", shown) if colours else said.get("ids", said.get("id"))
    found: dict[str, Any] = {
        "values": [] if labels is None else values_of(labels, colours, f"classes: {name}"),
        "synonyms": words,
    }
    if shown is not None:
        found["colour"] = rgb(colour_of(shown, f"classes: {name}"))
    return found


def values_of(said: Any, colours: bool, where: str) -> list[int]:
    """Ids, or colours as 0xRRGGBB; `where` names the entry, for messages."""
    if not colours:
        ids = said if isinstance(said, list | tuple) else [said]
        for one in ids:
            if isinstance(one, bool) or not isinstance(one, int) or not 0 <= one < 65536:
                raise ValueError(f"{where}: {one!r} is no label id, a number from 0 to 65535")
        return list(ids)
    if isinstance(said, list | tuple) and said and isinstance(said[0], list | tuple | str):
        return [colour_of(one, where) for one in said]
    return [colour_of(said, where)] if said != [] else []


def colour_of(said: Any, where: str) -> int:
    """0xRRGGBB of `[128, 0, 0]` or `#800000`."""
    if isinstance(said, str) and re.fullmatch(r"#[0-9a-fA-F]{6}", said):
        return int(said[1:], 16)
    is_triple = isinstance(said, list | tuple) and len(said) == 3
    if is_triple and all(isinstance(v, int) and 0 <= v <= 255 for v in said):
        return int(said[0] << 16 | said[1] << 8 | said[2])
    raise ValueError(f'{where}: {said!r} is no colour: write [128, 0, 0] or "#800000" (in quotes)')
