"""Label budgets: which target images are labelled."""

from collections.abc import Sequence

import numpy as np

from semidavil.data.depth import Disparities, select_diverse
from semidavil.data.readers import DataError, Sample


def split_target(
    samples: Sequence[Sample], budget: int, seed: int, near: Disparities | None = None
) -> tuple[list[Sample], list[Sample]]:
    """Labelled and unlabelled target images.

    Nested: with one seed, the labelled images of a budget are among those of every larger one. When
    all images are labelled, all of them serve as unlabelled too.

    Args:
        near: chooses the labelled images by the diversity of their disparities; None: at random.

    Raises:
        DataError: the budget is larger than the set.
    """
    if budget > len(samples):
        raise DataError(
            f"a budget of {budget} labelled images is larger than the target's training set of "
            f"{len(samples)}: choose at most {len(samples)} (--budgets)"
        )
    if near is None:
        order = np.random.default_rng([seed, 0x5B117]).permutation(len(samples))
        labelled = sorted(order[:budget])
    else:
        labelled = sorted(select_diverse(samples, budget, near, seed)) if budget else []
    chosen = set(labelled)
    unlabelled = [i for i in range(len(samples)) if i not in chosen] or labelled
    return [samples[i] for i in labelled], [samples[i] for i in unlabelled]
