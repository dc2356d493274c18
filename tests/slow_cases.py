"""Cases of a quick test that only the whole suite runs."""

from typing import Any

import pytest


def also_slow(*values: Any) -> list[Any]:
    """Values of `pytest.mark.parametrize` that ask the same of other places as those that are quick;
    tuples where it has several names.
    """
    cases = (value if isinstance(value, tuple) else (value,) for value in values)
    return [pytest.param(*case, marks=pytest.mark.slow) for case in cases]
