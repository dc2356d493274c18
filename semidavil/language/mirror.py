"""The caption of a mirrored image: left and right change places where they say where something is.

"Left" is a verb as well ("a man left the lane", "what is left of it"), "right" is an adjective and an
adverb ("the right way", "right next to"), and a sign keeps its words ("turn left"). So a word changes
only where one of these rules finds a place:

    before it    a determiner or preposition: on the left, its right, at left, from right
                 what narrows a place down: far left, top right, upper-left
                 what something does, seen moving: turns left, facing right
    behind it    what has two sides: left side, right-hand, left lane, right corner
                 "of", as in "left of the car", but not in "what is left of it"
    around it    the other side: left and right, left or right, from left to right
                 nothing else between commas or brackets: "a man, left, and a dog (right)"
    in itself    leftmost, rightmost

Words in quotation marks are what is written in the picture, and stay. Sentences of `positions` say "on
the left", "on the right" and "on the left and right" alone, for which the rules are exact ("on the right
and left" is the same place). What they do not know stays as it is: a caption that misses a side misleads
less than one that makes up a verb.
"""

import re
from functools import lru_cache

_SIDES = re.compile(r"\b(left|right)(?=most\b|\b)", re.IGNORECASE)
_QUOTED = re.compile(r'"[^"]*"|“[^”]*”|(?<!\w)\'[^\']*\'(?!\w)|(?<!\w)\u2018[^\u2019]*\u2019(?!\w)')
_SIDE = r"(?:left|right)"
_JOINS = r"(?:\s*[/&]\s*|[\s-]+(?:and|or|to)[\s-]+)(?:the\s+)?"
_TURNS = r"turn|head|point|mov|driv|lean|bend|curv|veer|fac|merg"  # with -s, -es or -ing
_BEFORE = re.compile(
    rf"\b(?:the|its|his|her|their|on|at|to|from"
    rf"|far|top|bottom|upper|lower|middle|cent(?:er|re)|front|rear"
    rf"|(?:{_TURNS})(?:e?s|ing)"
    rf"|{_SIDE}{_JOINS})[\s-]*$",
    re.IGNORECASE,
)
_BEHIND = re.compile(
    rf"most\b|[\s-]+(?:hand|sides?|lanes?|corners?|edge|half(?!\s+an?\b)|part|portion|third|end"
    rf"|foreground|background|shoulder|curb|kerb|sidewalk|pavement)\b"
    rf"|{_JOINS}{_SIDE}\b",
    re.IGNORECASE,
)
_OF = re.compile(r"\s+of\b(?!\s+way\b)", re.IGNORECASE)
# "what is left of it", "all that's left of", "not much left of"
_REMAINS = re.compile(
    r"\b(?:what|all|that|which|nothing|anything|little|much|rest)"
    r"(?:['\u2019]s|\s+(?:is|was|are|were|remains))?\s+$",
    re.IGNORECASE,
)
_NO_PLACE = re.compile(
    r"\s+(?:ways?|time|moment|size|kind|thing|amount|answer|choice|angles?|now|away)\b"
    r"|[\s-]+of[\s-]+way\b|[\s-]*over\b|[\s-]*luggage\b",
    re.IGNORECASE,
)
_OPENS, _CLOSES = re.compile(r"(?:^|[,;:(])\s*$"), re.compile(r"\s*(?:$|[,;:).])")


# Runs of one process have the same captions: mirroring the toy's 5,475 takes 0.4 s.
@lru_cache(2**18)
def flip_caption(caption: str) -> str:
    """The caption of the mirrored image; doing it twice gives the caption back."""
    quoted = [match.span() for match in _QUOTED.finditer(caption)]

    def swap(match: re.Match[str]) -> str:
        inside = any(start < match.start() < end for start, end in quoted)
        return match[0] if inside or not _is_place(match) else _other_side(match[0])

    return _SIDES.sub(swap, caption)


def _is_place(match: re.Match[str]) -> bool:
    """Whether the word says where something is."""
    before, behind = match.string[: match.start()], match.string[match.end() :]
    if _NO_PLACE.match(behind):
        return False
    if _BEFORE.search(before) or _BEHIND.match(behind):
        return True
    if _OF.match(behind):
        return not _REMAINS.search(before)
    return bool(_OPENS.search(before) and _CLOSES.match(behind))


def _other_side(word: str) -> str:
    other = "right" if word.lower() == "left" else "left"
    return other.upper() if word.isupper() else other.capitalize() if word[0].isupper() else other
