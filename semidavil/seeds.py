"""Seeds from several numbers."""

import numpy as np


def seed_of(*parts: int) -> int:
    """A seed for torch from several numbers, without the collisions of adding them."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)
