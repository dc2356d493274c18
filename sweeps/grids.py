"""Every grid, declared as data: which Configs answer which question.

A grid is a function (base, benchmarks, budgets, seeds) -> Configs whose docstring says the question
it answers, the figure or table it feeds and what it costs. Its entry in `GRIDS` adds what the
harness needs to know about it: its baseline, and the settings that it varies.

    cells = GRIDS["attention"].cells(preset("toy"), seeds=[0, 1, 2])
"""

import inspect
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from semidavil.config import Config, ConfigError
from semidavil.data.benchmarks import BENCHMARKS

CellFunction = Callable[[Config, Sequence[str], Sequence[int] | None, Sequence[int]], list[Config]]

# Settings that have an option of their own: every grid varies them, and --set does not.
SHARED_AXES = {"data.benchmark": "--benchmark", "data.budget": "--budgets", "seed": "--seeds"}


@dataclass(frozen=True)
class Grid:
    """A grid's function and what is fixed about it.

    Attributes:
        build: the function.
        baseline: the settings that it varies, with the values that the others are compared to.
        benchmarks: what it runs on unless told otherwise; toy runs take the first alone.
    """

    build: CellFunction
    baseline: Mapping[str, Any]
    benchmarks: tuple[str, ...]

    @property
    def about(self) -> str:
        return inspect.getdoc(self.build) or ""

    def cells(
        self,
        base: Config,
        benchmarks: Sequence[str] = (),
        budgets: Sequence[int] | None = None,
        seeds: Sequence[int] = (0,),
    ) -> list[Config]:
        """The grid's Configs around `base`, each once.

        Args:
            benchmarks: empty: the grid's own.
            budgets: labelled target images; None: each benchmark's own.

        Raises:
            ConfigError: an unknown benchmark, or no cell is left.
        """
        chosen = benchmarks or (self.benchmarks[:1] if base.data.toy else self.benchmarks)
        cells = union(self.build(base, chosen, budgets, seeds))
        if not cells:
            raise ConfigError(
                f"no cell of this grid is left on {', '.join(chosen)} with budgets "
                f"{' '.join(map(str, budgets or ()))}: give other --budgets"
            )
        return cells

    def variant(self, config: Config) -> str:
        """What sets `config` apart within the grid: `vlga`."""
        params = config.to_params()
        return "+".join(params[axis] for axis in self.baseline)

    def difference(self, config: Config) -> str:
        """How `config` differs from the baseline: `fusion=vlga`; empty for the baseline itself."""
        params = config.to_params()
        return ", ".join(
            f"{axis.rpartition('.')[2]}={params[axis]}"
            for axis, value in self.baseline.items()
            if params[axis] != str(value)
        )

    def name(self, config: Config) -> str:
        """A readable name of one cell: `gta5-cityscapes/dlg/100/s0`."""
        data = config.data
        return f"{data.benchmark}/{self.variant(config)}/{data.budget}/s{config.seed}"


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


def budgets_of(benchmark: str, budgets: Sequence[int] | None) -> list[int]:
    """The label budgets to run on a benchmark: those asked for, else its own.

    Without a source there is nothing to learn from at budget 0, so it is no cell there.

    Raises:
        ConfigError: no benchmark of that name.
    """
    if benchmark not in BENCHMARKS:
        raise ConfigError(f"unknown benchmark {benchmark!r}: choose from {', '.join(BENCHMARKS)}")
    known = BENCHMARKS[benchmark]
    chosen = known.budgets if budgets is None else budgets
    return [budget for budget in chosen if budget > 0 or known.source is not None]


def attention(
    base: Config, benchmarks: Sequence[str], budgets: Sequence[int] | None, seeds: Sequence[int]
) -> list[Config]:
    """Question: does dense language guidance (DLG) beat other ways of joining image and caption?

    Feeds: the attention figure, mIoU against label budget per attention.
    Cost: 4 attentions x 6 budgets = 24 runs per benchmark and seed.
    """
    return [
        cell
        for seed, benchmark in itertools.product(seeds, benchmarks)
        for cell in product(
            base,
            {
                "seed": [seed],
                "data.benchmark": [benchmark],
                "data.budget": budgets_of(benchmark, budgets),
                "model.fusion": ["dlg", "vlga", "wpct", "cross_attention"],
            },
        )
    ]


def baselines(
    base: Config, benchmarks: Sequence[str], budgets: Sequence[int] | None, seeds: Sequence[int]
) -> list[Config]:
    """Question: what does each stream of data add: source, labelled target, unlabelled target?

    Feeds: the reference lines of every comparison on the same benchmark.
    Cost: 17 runs per benchmark and seed: source_only once, semidavil at 6 budgets, target_only and
    supervised at 5.

    Source-only training draws no target label, so it is one cell, at budget 0, where target_only has
    nothing to learn from and supervised would be source_only again.
    """
    cells: list[Config] = []
    for seed, benchmark in itertools.product(seeds, benchmarks):
        known = budgets_of(benchmark, budgets)
        here = base.replace({"seed": seed, "data.benchmark": benchmark})
        if known and BENCHMARKS[benchmark].source is not None:
            cells += product(here, {"data.budget": [0], "training.method": ["source_only"]})
        for budget in known:
            methods = ["target_only", "supervised", "semidavil"] if budget else ["semidavil"]
            cells += product(here, {"data.budget": [budget], "training.method": methods})
    return cells


GRIDS: dict[str, Grid] = {
    "attention": Grid(
        attention,
        baseline={"model.fusion": "dlg"},
        benchmarks=("gta5-cityscapes", "synthia-cityscapes"),
    ),
    "baselines": Grid(
        baselines,
        baseline={"training.method": "semidavil"},
        benchmarks=("gta5-cityscapes", "synthia-cityscapes"),
    ),
}
