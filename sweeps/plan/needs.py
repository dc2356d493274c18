"""What runs need that is not here and cannot be had: such runs are left out by name, the others run.

    lacking(configs)[config.key()]      # (Lack("the captioner Salesforce/blip2-opt-2.7b", ...),)

Models of the Hugging Face hub are looked for in its cache. Of those that are not there the hub is asked once
each, unless HF_HUB_OFFLINE is set: what can be downloaded will be. Weights that are a path are looked for on
this machine. Which repository an encoder is in is known here for those of `--grid encoders`. Of others, only
open_clip and timm know (some of timm's are not in timm/NAME), which load PyTorch: those are found missing
when data are prepared, which costs the same runs and no others.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

from semidavil.benchmarks import BENCHMARKS
from semidavil.config import Config
from semidavil.data.checks import no_oracle
from semidavil.data.depth import missing_disparities, needs_depth
from semidavil.data.described import reader_of
from semidavil.data.files import DataError
from semidavil.data.hub import cached_file, is_here, why_not_downloaded
from semidavil.data.layout import folder_of
from semidavil.data.readers import Sample
from semidavil.descriptions import UNLABELLED
from semidavil.names import ORACLE, SHUFFLED, TIMM, VISION_ONLY
from semidavil.registry import has_unlabelled, training_splits
from sweeps.plan.encoders import REPOSITORIES, TIMM_FILES, VLM_FILES

SHOWN = 4  # names of runs in one sentence
MODELS = ("blip", "blip2", "hf")  # captioners that are `KIND:MODEL`


@dataclass(frozen=True)
class Lack:
    """Something that a run needs and that is not here."""

    what: str  # the captioner NAME
    reason: str  # why it cannot be had; of what is no model, also what to do
    repository: str = ""  # of the hub, that has it


Lacking = Mapping[str, tuple[Lack, ...]]  # by key, of the runs that lack something


def lacking(configs: Iterable[Config]) -> dict[str, tuple[Lack, ...]]:
    """What each run lacks; runs that lack nothing are not in it."""
    why, samples = cache(why_not_downloaded), cache(_samples)
    found: dict[str, tuple[Lack, ...]] = {}
    for config in configs:
        if BENCHMARKS[config.data.benchmark].kind == "images":
            lacks = (*_models(config, why), *_of_data(config, samples))
            if lacks:
                found[config.key()] = lacks
    return found


def left_out(cells: Iterable[tuple[str, Sequence[Lack]]]) -> list[str]:
    """Which runs cannot run here, why, and what to do, in a line for each reason.

    Args:
        cells: names of runs with what they lack.
    """
    names: dict[str, dict[str, None]] = defaultdict(dict)  # by reason
    lacks: dict[str, dict[Lack, None]] = defaultdict(dict)
    for name, lacking_ones in cells:
        for lack in lacking_ones:
            names[lack.reason][name] = None
            lacks[lack.reason][lack] = None
    return [
        f"{_some(list(names[reason]))}: {_told(reason, list(lacks[reason]))}" for reason in names
    ]


def _told(reason: str, lacks: Sequence[Lack]) -> str:
    if not lacks[0].repository:
        return reason
    whats = " and ".join(lack.what for lack in lacks)
    which = "which is" if len(lacks) == 1 else "which are"
    commands = ", ".join(f"`hf download {lack.repository}`" for lack in lacks)
    return (
        f"for want of {whats}, {which} not here and cannot be downloaded ({reason}). On a machine with "
        f"network access: {commands}; copy its Hugging Face cache (~/.cache/huggingface) here, and set "
        "HF_HOME to it"
    )


def _some(names: Sequence[str]) -> str:
    """`2 runs (a/b/100/s0, a/c/100/s0)`."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    count = "1 run" if len(names) == 1 else f"{len(names)} runs"
    return f"{count} ({', '.join(names[:SHOWN])}{more})"


def _models(config: Config, why: Callable[[str], str]) -> Iterator[Lack]:
    model = config.model
    kind, _, name = model.captions.removeprefix(SHUFFLED).partition(":")
    if model.fusion not in VISION_ONLY and kind in MODELS:
        yield from _of_hub(f"the captioner {name}", name, partial(is_here, name), why)
    kind, _, name = config.data.depth.partition(":")
    if needs_depth(config) and kind == "hf":
        yield from _of_hub(f"the depth estimator {name}", name, partial(is_here, name), why)
    encoder = (model.encoder, "none" if model.vision_init == "random" else model.encoder_weights)
    for what, chosen, files in (
        (f"the weights {model.weights} of {model.vlm}", (model.vlm, model.weights), VLM_FILES),
        (f"the weights of {model.encoder}", encoder, TIMM_FILES),
    ):
        if repository := REPOSITORIES.get(chosen):
            here = partial(cached_file, repository, files)
            yield from _of_hub(what, repository, here, why)
    paths = {"model.vlm": model.vlm, "model.weights": model.weights}
    paths |= {"model.encoder_weights": encoder[1]} if model.encoder.startswith(TIMM) else {}
    for setting, name in paths.items():
        if "/" in name and not Path(name.removeprefix("local-dir:")).expanduser().exists():
            yield Lack(
                name, f"{setting}={name} is not on this machine: copy it here, or mend its path"
            )


def _of_hub(
    what: str, repository: str, is_cached: Callable[[], object], why: Callable[[str], str]
) -> Iterator[Lack]:
    """Nothing of what is here, can be downloaded, or is no name of the hub: preparing says what that is."""
    folder = Path(repository).expanduser()
    if repository.count("/") > 1 or folder.is_absolute() or folder.is_dir() or is_cached():
        return
    if reason := why(repository):
        yield Lack(what, reason, repository)


def _of_data(config: Config, samples: Callable[..., list[Sample]]) -> Iterator[Lack]:
    if config.data.toy or not (needs_depth(config) or config.model.captions == ORACLE):
        return
    target = BENCHMARKS[config.data.benchmark].target
    try:
        of_split = partial(samples, target, folder_of(config.runtime, target))
        if needs_depth(config) and config.data.depth == "disparity":
            all_of = [one for split in training_splits(target) for one in of_split(split)]
            if reason := missing_disparities(target, all_of):
                yield Lack("disparities", reason)
        if has_unlabelled(target) and (reason := no_oracle(config, len(of_split(UNLABELLED)))):
            yield Lack("a label of each picture", reason)
    except (DataError, OSError):  # of the data themselves: see `checks`
        return


def _samples(dataset: str, root: Path, split: str) -> list[Sample]:
    return reader_of(dataset, root).samples(split)
