"""Label budgets: which target images are labelled."""

from collections.abc import Sequence

import numpy as np

from semidavil.data.depth import select_diverse
from semidavil.data.files import DataError
from semidavil.data.readers import Sample


def split_target(
    samples: Sequence[Sample],
    budget: int,
    seed: int,
    features: np.ndarray | None = None,
    others: Sequence[Sample] = (),
) -> tuple[list[Sample], list[Sample]]:
    """Labelled and unlabelled target images.

    Nested: with one seed, the labelled images of a budget are among those of every larger one. When
    all images are labelled, all of them serve as unlabelled too.

    Args:
        samples: those that have labels.
        others: those that have none, which are unlabelled at every budget.
        features: (n, c), a row an image: chooses the labelled images by their diversity; None: at random.

    Raises:
        DataError: the budget is larger than the set.
    """
    if budget > len(samples):
        raise DataError(
            f"a budget of {budget} labelled images is larger than the target's training set of "
            f"{len(samples)}{' with labels' if others else ''}: choose at most {len(samples)} (--budgets)"
        )
    if features is None or not budget:
        labelled, unlabelled = split_at_random(len(samples), budget, seed)
    else:
        chosen = select_diverse(features, budget, seed)
        labelled, unlabelled = _split(len(samples), chosen)
    if others and budget == len(samples):
        unlabelled = []
    return [samples[i] for i in labelled], [*(samples[i] for i in unlabelled), *others]


def split_at_random(count: int, budget: int, seed: int) -> tuple[list[int], list[int]]:
    """Indices of `budget` of `count` items and of the rest; nested by seed, see `split_target`."""
    order = np.random.default_rng([seed, 0x5B117]).permutation(count)
    return _split(count, order[:budget].tolist())


def _split(count: int, chosen: Sequence[int]) -> tuple[list[int], list[int]]:
    labelled = sorted(chosen)
    return labelled, sorted(set(range(count)) - set(chosen)) or labelled
