"""What a search varies: the settings, each with its range, around those of a preset."""

import hashlib
from collections.abc import Mapping

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from semidavil.config import Config
from semidavil.models.fusion import FUSIONS


def space_of(base: Config, objective: str) -> Mapping[str, BaseDistribution]:
    """The settings that are searched, around those of `base`, which lie within."""
    lr = base.training.lr
    space: dict[str, BaseDistribution] = {
        "training.lr": FloatDistribution(lr / 10, lr * 10, log=True),
        "training.confidence": _floats(0.3, 0.99, base.training.confidence),
        "training.temperature": _floats(0.3, 3.0, base.training.temperature, log=True),
        "training.ema": _floats(0.8, 0.9999, base.training.ema),
        "training.consistency_weight": _floats(0.0, 2.0, base.training.consistency_weight),
    }
    if base.loss.name == "dyce":
        space["loss.hard_fraction"] = _floats(0.05, 1.0, base.loss.hard_fraction)
        space["loss.omega"] = FloatDistribution(0.0, 1.0)
    if objective == "miou-latency":
        width, inner = base.model.decoder_dim, base.model.fusion_dim
        space["model.fusion"] = CategoricalDistribution(tuple(sorted(FUSIONS)))
        space["model.decoder_dim"] = CategoricalDistribution((width // 2, width, width * 2))
        space["model.fusion_dim"] = CategoricalDistribution((inner // 2, inner, inner * 2))
    return space


def _floats(low: float, high: float, preset: float, log: bool = False) -> FloatDistribution:
    """From `low` to `high`, and as far as the preset's value where that lies outside."""
    return FloatDistribution(min(low, preset), max(high, preset), log=log)


def study_name(base: Config, objective: str, uri: str) -> str:
    """The name of the study that such a search goes on with: the same only if its trials are comparable.

    Args:
        uri: the tracking store; runs of another one are other trials.
    """
    space = sorted((name, str(kind)) for name, kind in space_of(base, objective).items())
    server = "" if uri.startswith("sqlite") else uri  # a file lies beside its studies
    content = f"{base.key()} {base.runtime.eval_every} {space} {server}"
    digest = hashlib.sha256(content.encode()).hexdigest()[:8]
    return f"{base.data.benchmark}-{base.data.budget}-s{base.seed}-{objective}-{digest}"
