"""Grids of plugins, written as lists of settings.

    GRIDS = {
        "ladder": [{"model.fusion": "dlg"}, {"model.fusion": "mine"}],
        "steps": {                        # with a name for each variant, and more said of it
            "about": "Question: does mine learn faster?",
            "variants": {"dlg": {"model.fusion": "dlg"}, "mine": {"model.fusion": "mine"}},
            "budgets": [0, 100],
            "benchmarks": ["gta5-cityscapes"],
        },
    }

The first variant is the one that the others are compared to. A value is written as `--set` takes it, or as
what it is. A `sweeps.plan.grid.Grid` is taken as it is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from semidavil.config import Config, ConfigError
from sweeps.plan.combine import Selection, everywhere
from sweeps.plan.grid import Grid

PARTS = ("about", "variants", "budgets", "benchmarks")
BUDGETS, BENCHMARKS = (100,), ("gta5-cityscapes",)  # unless a grid or the command names others


def own_grid(name: str, entry: Any) -> Grid:
    """The grid that a plugin's entry describes.

    Raises:
        ConfigError: it cannot be read so.
    """
    if isinstance(entry, Grid):
        return entry
    parts = entry if isinstance(entry, Mapping) else {"variants": entry}
    if unknown := [str(part) for part in parts if part not in PARTS]:
        raise ConfigError(
            f"the grid {name} has the part {unknown[0]!r}: there are {', '.join(PARTS)}"
        )
    variants = parts.get("variants")
    named = variants if isinstance(variants, Mapping) else {}
    each = list(named.values()) if named else variants
    if not isinstance(each, Sequence) or not each or not all(isinstance(v, Mapping) for v in each):
        raise ConfigError(
            f"the grid {name} is no list of settings, such as [{{'model.fusion': 'dlg'}}, "
            "{'model.fusion': 'vlga'}]"
        )
    axes = dict.fromkeys(axis for variant in each for axis in variant)
    budgets = tuple(parts.get("budgets", ()))

    def build(base: Config, which: Selection) -> list[Config]:
        chosen = replace(which, budgets=which.budgets or budgets)
        return everywhere(base, chosen, each, usual=BUDGETS)

    build.__doc__ = parts.get("about") or f"{len(each)} variants of a plugin."
    benchmarks = tuple(parts.get("benchmarks", BENCHMARKS))
    baseline: dict[str, Any] = dict.fromkeys(axes)
    return Grid(build, baseline, benchmarks, first=each[0], named=named)
