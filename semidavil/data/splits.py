"""Label budgets: which target images are labelled."""

from collections.abc import Sequence

import numpy as np

from semidavil.data.readers import DataError, Sample


def split_target(
    samples: Sequence[Sample], budget: int, seed: int
) -> tuple[list[Sample], list[Sample]]:
    """Labelled and unlabelled target images.

    Nested: with one seed, the labelled images of a budget are among those of every larger one. When
    all images are labelled, all of them serve as unlabelled too.

    Raises:
        DataError: the budget is larger than the set.
    """
    if budget > len(samples):
        raise DataError(
            f"a budget of {budget} labelled images is larger than the target's training set of "
            f"{len(samples)}: choose at most {len(samples)} (--budgets)"
        )
    order = np.random.default_rng([seed, 0x5B117]).permutation(len(samples))
    labelled = sorted(order[:budget])
    unlabelled = sorted(order[budget:]) or labelled
    return [samples[i] for i in labelled], [samples[i] for i in unlabelled]
