"""What is prepared once, before the first cell: data sets, checks, captions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from semidavil.config import Config
from sweeps.run.worker import INPUT_ERRORS, load_training


@dataclass(frozen=True)
class Preparation:
    """What cells have in common whose data and captions are the same.

    Attributes:
        data: of the Config, without its budget.
        captions: who writes them; empty where nobody reads any.
        vlm, weights: the model that reads them.
        disparity: the method needs depth.
    """

    data: str
    captions: str
    vlm: str
    weights: str
    disparity: bool

    def explains(self, error: Exception) -> bool:
        """Whether an error is of the input, such as a missing data set, and not of this program."""
        return type(error).__name__ in INPUT_ERRORS or isinstance(error, FileNotFoundError)


def preparation_of(config: Config) -> Preparation:
    """The Preparation that a cell needs."""
    from semidavil.methods.table import METHODS

    model = config.model
    return Preparation(
        data=config.data.model_dump_json(exclude={"budget"}),
        captions="" if model.fusion == "none" else model.captions,
        vlm=model.vlm,
        weights=model.weights,
        disparity=METHODS[config.training.method].disparity,
    )


def preparations(configs: Sequence[Config], train: str) -> dict[Preparation, Callable[[], None]]:
    """What prepares each kind, for its largest budget.

    Args:
        train: the training function as `module:function`; its module has `prepare` beside it.
    """
    largest: dict[Preparation, Config] = {}
    for config in configs:
        kind = preparation_of(config)
        if kind not in largest or config.data.budget > largest[kind].data.budget:
            largest[kind] = config
    return {kind: partial(_prepare, train, config) for kind, config in largest.items()}


def _prepare(train: str, config: Config) -> None:
    module, _ = load_training(train)
    module.prepare(config)
