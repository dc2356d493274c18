"""Python's garbage collector, off while many runs are read."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_collector() -> Iterator[None]:
    """Without the garbage collector, which looks at the objects of many runs again and again.

    Measured while 10,000 runs are drawn: 62 s of CPU with it, 26 without. Nothing that is read is in a cycle.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
