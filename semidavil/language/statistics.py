"""What can be wrong with captions, counted: empty ones, equal ones, those that are too long."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from semidavil.models.text import TextEncoder

BATCH = 4096  # captions whose tokens are in memory at a time


@dataclass(frozen=True)
class CaptionStatistics:
    """Counts over all captions of a run."""

    total: int
    empty: int
    equal: int  # those that another one repeats word for word
    cut: int  # those that go on beyond the text encoder's context
    context: int  # tokens, those of start and end counted

    def __str__(self) -> str:
        empty, equal, cut = (
            f"{count:,} {what} ({count / max(1, self.total):.1%})"
            for count, what in (
                (self.empty, "empty"),
                (self.equal, "equal to another"),
                (self.cut, f"cut at {self.context} tokens"),
            )
        )
        return f"{self.total:,} captions: {empty}, {equal}, {cut}"


def caption_statistics(texts: Iterable[str], encoder: TextEncoder) -> CaptionStatistics:
    """Counts empty, equal and cut captions; an empty one is not also an equal one.

    Runs of one process mostly have the same captions: counting the toy's takes 0.4 s, of 17 a run.
    """
    texts = list(texts)
    if not encoder.tokenizer_name:  # what tokenises is not known by name, nor what it has counted
        return _count(texts, encoder)
    digest = hashlib.blake2b("\0".join(texts).encode()).digest()
    key = encoder.tokenizer_name, encoder.max_tokens, digest
    if key not in _counted:
        _counted.clear()
        _counted[key] = _count(texts, encoder)
    return _counted[key]


_counted: dict[tuple[str, int, bytes], CaptionStatistics] = {}  # of the last run of this process


def _count(texts: Sequence[str], encoder: TextEncoder) -> CaptionStatistics:
    counts = Counter(texts)
    empty, distinct = counts.pop("", 0), list(counts)
    cut: list[str] = []
    for start in range(0, len(distinct), BATCH):  # windows of GTA5 make 200,000
        batch = distinct[start : start + BATCH]
        lengths = encoder.count_tokens(batch)
        cut += [t for t, n in zip(batch, lengths, strict=True) if n > encoder.max_tokens]
    return CaptionStatistics(
        total=empty + counts.total(),
        empty=empty,
        equal=sum(count for count in counts.values() if count > 1),
        cut=sum(counts[text] for text in cut),
        context=encoder.max_tokens,
    )
