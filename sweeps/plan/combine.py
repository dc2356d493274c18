"""What grids are made of: combinations of values, each Config once."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from semidavil.benchmarks import BENCHMARKS
from semidavil.config import Config, ConfigError


@dataclass(frozen=True)
class Selection:
    """Which of a grid's cells."""

    benchmarks: tuple[str, ...] = ()  # empty: the grid's own
    budgets: tuple[int, ...] = ()  # numbers of labelled target images; empty: each benchmark's own
    seeds: tuple[int, ...] = (0,)
    only: tuple[str, ...] = ()  # `fusion=dlg,vlga`: those that have one of these values


def product(base: Config, fields: Mapping[str, Iterable[Any]]) -> list[Config]:
    """Every combination of values; the first field changes slowest.

    `product(base, {"seed": [0, 1], "model.fusion": ["dlg", "vlga"]})` holds four Configs.
    """
    return [
        base.replace(dict(zip(fields, values, strict=True)))
        for values in itertools.product(*fields.values())
    ]


def union(*parts: Iterable[Config]) -> list[Config]:
    """All Configs in order, equal keys once."""
    first: dict[str, Config] = {}
    for config in itertools.chain(*parts):
        first.setdefault(config.key(), config)
    return list(first.values())


def budgets_of(benchmark: str, budgets: Sequence[int], usual: Sequence[int] = ()) -> list[int]:
    """The label budgets to run on a benchmark: those asked for, else the usual, else its own.

    Without a source there is nothing to learn from at budget 0, so it is no cell there. The usual are a
    grid's own choice, for benchmarks that have them.
    """
    if benchmark not in BENCHMARKS:
        raise ConfigError(f"unknown benchmark {benchmark!r}: choose from {', '.join(BENCHMARKS)}")
    known = BENCHMARKS[benchmark]
    if not budgets:
        budgets = [n for n in usual if n in known.budgets] or known.budgets
    return [budget for budget in budgets if budget > 0 or known.source is not None]


def everywhere(
    base: Config,
    which: Selection,
    variants: Sequence[Mapping[str, Any]],
    usual: Sequence[int] = (),
) -> list[Config]:
    """Every variant at every seed, benchmark and budget; the variant changes fastest."""
    return [
        base.replace({"seed": seed, "data.benchmark": benchmark, "data.budget": budget, **variant})
        for seed, benchmark in itertools.product(which.seeds, which.benchmarks)
        for budget in budgets_of(benchmark, which.budgets, usual)
        for variant in variants
    ]
