"""What logs, sweeps and the data check say of captions: who made them, what is wrong, and some of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from semidavil.config import Config
from semidavil.language.captions import Caption
from semidavil.language.pretrained import Pretrained
from semidavil.language.statistics import CaptionStatistics
from semidavil.names import SHUFFLED

EXAMPLES = 10  # in a run's log, and of the data check
FEW = 3  # where a sweep begins: its progress is to stay in sight
Streams = Mapping[str, Sequence[Path]]  # images by the stream that they are drawn from


def spread(streams: Streams, count: int) -> dict[str, list[Path]]:
    """At most `count` images, as many of each stream as there are, evenly spaced in each."""
    chosen, left = dict[str, list[Path]](), count
    by_size = sorted(streams, key=lambda name: len(streams[name]))
    for position, name in enumerate(by_size):  # what a small one cannot give, the next ones do
        paths = streams[name]
        take = min(len(paths), left // (len(by_size) - position))
        chosen[name] = [paths[(2 * i + 1) * len(paths) // (2 * take)] for i in range(take)]
        left -= take
    return {name: chosen[name] for name in streams}


def caption_report(
    config: Config,
    found: CaptionStatistics,
    captions: Mapping[Path, Caption],
    streams: Streams,
    prompt: str,
    count: int = EXAMPLES,
) -> str:
    """Lines: captioner and counts, what was asked, warnings, and `count` captions with their streams.

    Args:
        prompt: what the captioner was asked; empty where it was not.
    """
    model = config.model
    kind = model.captions.removeprefix(SHUFFLED).partition(":")[0]
    lines = [f"{model.captions}, one caption per {model.caption_region}: {found}"]
    if prompt:
        lines.append(f"asked: {prompt}")
    lines += found.warnings(made=kind in Pretrained.MODELS)
    examples = list[tuple[str, str]]()
    for name, paths in spread(streams, count).items():
        for path in paths:
            texts = captions[path].texts  # one, or one of each window: another one each time
            text = texts[len(examples) % len(texts)] or "(empty)"
            examples.append((f"{name}, {path.name}", text))
    if len(alike := {text for _, text in examples}) == 1:
        examples = [("each", alike.pop())]
    lines += [f"  {where}: {text}" for where, text in examples]
    if 1 < len(examples) < EXAMPLES:
        lines.append("  more of them are in each run's log: python -m sweeps logs RUN")
    return "\n".join(lines)
