"""The comparisons over label budgets: what is compared, what the paper has, what is expected."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import pandas as pd

from analysis import paper
from analysis.cells import in_order
from semidavil.benchmarks import BENCHMARKS


@dataclass(frozen=True)
class Comparison:
    """Variants against label budgets.

    Attributes:
        grid: whose runs count.
        field: the column of the runs that tells the variants apart.
        variants: those that are expected, in the order in which they are shown.
        title: what is compared, in words.
        subject: what the variants are, the heading of their column.
        reference: the variant in question, that is subtracted from the others in figures.
        published: the paper's values.
        budgets: those that are expected; None: all of the benchmark's own.
        unlabelled: variants that draw no target label: one cell, at budget 0, drawn as a line.
        needs_labels: variants that have no cell at budget 0.
        sized: whether its variants differ in parameters and time, which its table then shows.
    """

    grid: str
    field: str
    variants: tuple[str, ...]
    title: str
    subject: str
    reference: str
    published: Callable[[], list[paper.Published]] = list
    budgets: tuple[int, ...] | None = None
    unlabelled: tuple[str, ...] = ()
    needs_labels: tuple[str, ...] = ()
    sized: bool = False

    def expected(self, benchmark: str, variant: str) -> list[int]:
        """The budgets at which a variant has a cell on a benchmark."""
        known = BENCHMARKS.get(benchmark)
        has_source = known is None or known.source is not None
        if variant in self.unlabelled:
            return [0] if has_source else []
        budgets = self.budgets or (known.budgets if known else ())
        at_zero = has_source and variant not in self.needs_labels
        return [budget for budget in budgets if budget > 0 or at_zero]

    def present(self, runs: pd.DataFrame) -> list[str]:
        """The variants that have a run, in order, unexpected ones last."""
        return in_order(runs[self.field], self.variants)

    def missing(self, runs: pd.DataFrame, benchmarks: Sequence[str]) -> str:
        """In one line, the cells without a run on benchmarks that have some."""
        have = set(zip(runs["benchmark"], runs[self.field], runs["budget"], strict=True))
        return not_run_yet(
            (benchmark, variant, budget)
            for benchmark in benchmarks
            for variant in self.variants
            for budget in self.expected(benchmark, variant)
            if (benchmark, variant, budget) not in have
        )


def not_run_yet(cells: Iterable[tuple[str, str, int]]) -> str:
    """`not run yet: 3 runs (gta5-cityscapes: wpct at 0, 100; vlga at 100)`; empty without a cell.

    Args:
        cells: benchmark, variant and budget of each; several seeds are several.
    """
    lacking: dict[str, dict[str, list[int]]] = {}
    for benchmark, variant, budget in cells:
        lacking.setdefault(benchmark, {}).setdefault(variant, []).append(budget)
    told = []
    for benchmark, budgets_of in lacking.items():
        by_budgets: dict[tuple[int, ...], list[str]] = {}
        for variant, budgets in budgets_of.items():
            by_budgets.setdefault(tuple(dict.fromkeys(budgets)), []).append(variant)
        parts = (f"{', '.join(v)} at {', '.join(map(str, b))}" for b, v in by_budgets.items())
        told.append(f"{benchmark}: {'; '.join(parts)}")
    total = sum(len(budgets) for of in lacking.values() for budgets in of.values())
    return f"not run yet: {total} runs ({' | '.join(told)})" if told else ""


_ALL = (
    Comparison(
        grid="attention",
        field="fusion",
        variants=("dlg", "vlga", "wpct", "cross_attention"),
        title="Attention mechanisms",
        subject="Attention",
        reference="dlg",
        published=paper.attention,
        sized=True,
    ),
    Comparison(
        grid="losses",
        field="loss",
        variants=("ce", "wce", "dce", "focal", "dfl", "dyce"),
        title="Losses for imbalanced classes",
        subject="Loss",
        reference="dyce",
        published=paper.losses,
    ),
    Comparison(
        grid="semivl",
        field="method",
        variants=("semivl", "semidavil"),
        title="SemiDAViL and SemiVL",
        subject="Method",
        reference="semidavil",
        published=paper.semivl,
        budgets=(100, 200, 500, 1000),
    ),
    Comparison(
        grid="methods",
        field="method",
        variants=("source_only", "target_only", "supervised", "sdepth", "unimatch", "semivl",
                  "unimatch_v2", "semidavil"),
        title="Methods",
        subject="Method",
        reference="semidavil",
        published=paper.methods,
        budgets=(100,),
        unlabelled=("source_only",),
        needs_labels=("supervised", "target_only"),
    ),
    Comparison(
        grid="baselines",
        field="method",
        variants=("semidavil", "supervised", "target_only", "source_only"),
        title="What each stream of data adds",
        subject="Method",
        reference="semidavil",
        unlabelled=("source_only",),
        needs_labels=("supervised", "target_only"),
    ),
)  # fmt: skip
COMPARISONS = {one.grid: one for one in _ALL}
