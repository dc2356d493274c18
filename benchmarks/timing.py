"""CPU time of two things that are compared, measured in turn."""

import statistics
import time
from collections.abc import Callable

Step = Callable[[], object]


def in_turn(ours: Step, reference: Step, repeats: int) -> tuple[float, float]:
    """Medians of the CPU time of both, ms, after one call of each to warm up."""
    times: tuple[list[float], list[float]] = ([], [])
    for warm in range(repeats + 1):
        for step, taken in zip((ours, reference), times, strict=True):
            start = time.process_time()
            step()
            if warm:
                taken.append(1000 * (time.process_time() - start))
    return statistics.median(times[0]), statistics.median(times[1])
