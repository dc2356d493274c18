"""Python's garbage collector, off where it costs most and finds nothing."""

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

# Importing PyTorch, MLflow and Ray makes some 400,000 objects that live on; looking at them at the
# usual pace takes a sixth of the time. `spare_imports` goes back to that pace.
USUAL = gc.get_threshold()
gc.set_threshold(100_000, *USUAL[1:])

# Else the interpreter, on its way out, looks at all imported objects for another second.
atexit.register(gc.freeze)


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """For reading many runs: millions of objects that live on, scanned again and again otherwise."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@cache
def spare_imports() -> None:
    """Leaves what has been imported so far out of all later collections, once in a process.

    Looking at it again after each run took a third of a second, which was most of the time between
    two runs of a worker.
    """
    gc.freeze()
    gc.set_threshold(*USUAL)
