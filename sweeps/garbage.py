"""Python's garbage collector, off where it costs most and finds nothing."""

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

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

    PyTorch, MLflow and Ray are some 400,000 objects that live on. Looking at them again after each
    run took a third of a second, which was most of the time between two runs of a worker.
    """
    gc.collect()
    gc.freeze()
