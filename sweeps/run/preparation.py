"""What is prepared once, before the first cell: data sets, checks, captions."""

from collections.abc import Callable, Sequence
from functools import partial

from semidavil.config import Config
from semidavil.names import METHODS, SHUFFLED, VISION_ONLY
from semidavil.plugin_files import Source
from semidavil.plugins import in_use, provider, use
from sweeps.run.worker import load_training

Preparation = tuple[str | bool, ...]


def preparation_of(config: Config) -> Preparation:
    """What a cell has in common with all that need the same data and captions."""
    model = config.model
    return (
        config.data.model_dump_json(exclude={"budget"}),
        # Which nobody reads without a fusion.
        ""
        if model.fusion in VISION_ONLY
        else f"{model.captions} {model.caption_region} {model.caption_prompt} {model.dense}",
        model.vlm,
        model.weights,
        f"{model.encoder} {model.encoder_weights} {model.vision_init}" if model.encoder else "",
        METHODS[config.training.method].disparity,
        provider("CAPTIONERS", model.captions.removeprefix(SHUFFLED).partition(":")[0]) or "",
        provider("ENCODERS", model.encoder) or "",
    )


def described(config: Config) -> str:
    """What is prepared for a Config: `data of gta5-cityscapes, captions by positions`."""
    model, data = config.model, f"data of {config.data.benchmark}"
    reads = METHODS[config.training.method].kind == "images" and model.fusion not in VISION_ONLY
    return f"{data}, captions by {model.captions}" if reads else data


def preparations(configs: Sequence[Config], train: str) -> dict[Preparation, Callable[[], str]]:
    """What prepares each kind, for its largest budget: `prepare`, beside the training function.

    It returns what is to be said of what it has prepared.
    """
    largest: dict[Preparation, Config] = {}
    for config in configs:
        kind = preparation_of(config)
        largest[kind] = max(largest.get(kind, config), config, key=lambda one: one.data.budget)
    return {
        kind: partial(_prepare, train, config, in_use(config.plugins))
        for kind, config in largest.items()
    }


def _prepare(train: str, config: Config, plugins: Sequence[Source]) -> str:
    """On whichever machine: the plugins travel with it."""
    module, _ = load_training(train)
    with use(*plugins):
        return module.prepare(config)
