"""What can be wrong with captions, counted: empty, equal and too long ones; and how long they are."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from semidavil.models.text import TextEncoder

BATCH = 4096  # captions whose tokens are in memory at a time
TOLERATED = 0.05  # share of empty, equal or cut captions above which a run warns


@dataclass(frozen=True)
class CaptionStatistics:
    """Counts over all captions of a run."""

    total: int
    empty: int
    equal: int  # those that another one repeats word for word
    cut: int  # those that go on beyond the text encoder's context
    context: int  # tokens, those of start and end counted
    words: float = 0.0  # of a caption, on average
    tokens: float = 0.0  # that the text encoder reads of a caption, on average; at most `context`

    def __str__(self) -> str:
        counts = (f"{n:,} {what} ({n / max(1, self.total):.1%})" for n, what in self._counted())
        return (
            f"{self.total:,} captions of {self.words:.1f} words or {self.tokens:.1f} tokens: "
            f"{', '.join(counts)}"
        )

    def _counted(self) -> tuple[tuple[int, str], ...]:
        return (
            (self.empty, "empty"),
            (self.equal, "equal to another"),
            (self.cut, f"cut at {self.context} tokens"),
        )

    def warnings(self, made: bool) -> list[str]:
        """What more than `TOLERATED` of the captions suffer from.

        Args:
            made: whether a captioning model has worded them. Texts that are the same for all images are
                equal, or empty, on purpose, and those that name what is where repeat each other.
        """
        return [
            f"warning: {count / self.total:.1%} of the captions are {what}"
            for count, what in self._counted()
            if count > TOLERATED * self.total and (made or what.startswith("cut"))
        ]

    def numbers(self) -> dict[str, float]:
        """Mean length, and shares in per cent, by the names that runs are tracked with."""
        share = 100 / max(1, self.total)
        return {
            "captions/words": self.words,
            "captions/tokens": self.tokens,
            "captions/empty": self.empty * share,
            "captions/equal": self.equal * share,
            "captions/cut": self.cut * share,
        }


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
    counts, lengths = Counter(texts), dict[str, int]()
    distinct = list(counts)
    for start in range(0, len(distinct), BATCH):  # windows of GTA5 make 200,000
        batch = distinct[start : start + BATCH]
        lengths |= zip(batch, encoder.count_tokens(batch), strict=True)
    total, context = counts.total(), encoder.max_tokens
    read = sum(count * min(lengths[text], context) for text, count in counts.items())
    return CaptionStatistics(
        total=total,
        empty=counts[""],
        equal=sum(count for text, count in counts.items() if text and count > 1),
        cut=sum(count for text, count in counts.items() if lengths[text] > context),
        context=context,
        words=sum(count * len(text.split()) for text, count in counts.items()) / max(1, total),
        tokens=read / max(1, total),
    )
