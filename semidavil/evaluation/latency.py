"""How long a network takes for one image."""

import statistics
import time
from collections.abc import Callable

import torch

SECONDS = 0.15  # of measuring, where an image takes less
FEWEST = 3
SLOW = 10_000.0  # ms; an image that takes as long is measured once


def milliseconds(forward: Callable[[], object], device: torch.device) -> float:
    """Median wall-clock time of `forward`, ms, after one call to warm up.

    The device is synchronised around each call. What else the machine does at the time counts too:
    compare runs that had it to themselves, or as many neighbours.
    """

    def timed() -> float:
        start = time.perf_counter()
        forward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return 1000 * (time.perf_counter() - start)

    with torch.inference_mode():
        if (first := timed()) > SLOW:  # its warming up is a small part of it
            return first
        expected = timed()
        repeats = max(FEWEST, int(1000 * SECONDS / max(expected, 1e-3)))
        return statistics.median(timed() for _ in range(min(repeats, 100)))
