"""Cases of a quick test that only the whole suite runs."""

from typing import Any

import pytest


def also_slow(*values: Any) -> list[Any]:
    """Values of `pytest.mark.parametrize` that ask the same of other places as those that are quick."""
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]
