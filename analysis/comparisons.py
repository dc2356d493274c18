"""The comparisons over label budgets: what is compared, what the paper has, what is expected."""

from collections.abc import Callable, Sequence
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
        told, total = [], 0
        for benchmark in benchmarks:
            by_budgets: dict[tuple[int, ...], list[str]] = {}
            for variant in self.variants:
                expected = self.expected(benchmark, variant)
                lacking = tuple(b for b in expected if (benchmark, variant, b) not in have)
                total += len(lacking)
                if lacking:
                    by_budgets.setdefault(lacking, []).append(variant)
            parts = (f"{', '.join(v)} at {', '.join(map(str, b))}" for b, v in by_budgets.items())
            if by_budgets:
                told.append(f"{benchmark}: {'; '.join(parts)}")
        return f"not run yet: {total} runs ({' | '.join(told)})" if told else ""


COMPARISONS: dict[str, Comparison] = {
    "attention": Comparison(
        grid="attention",
        field="fusion",
        variants=("dlg", "vlga", "wpct", "cross_attention"),
        title="Attention mechanisms",
        subject="Attention",
        reference="dlg",
        published=paper.attention,
        sized=True,
    ),
    "losses": Comparison(
        grid="losses",
        field="loss",
        variants=("ce", "wce", "dce", "focal", "dfl", "dyce"),
        title="Losses for imbalanced classes",
        subject="Loss",
        reference="dyce",
        published=paper.losses,
    ),
    "semivl": Comparison(
        grid="semivl",
        field="method",
        variants=("semivl", "semidavil"),
        title="SemiDAViL and SemiVL",
        subject="Method",
        reference="semidavil",
        published=paper.semivl,
        budgets=(100, 200, 500, 1000),
    ),
    "methods": Comparison(
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
    "baselines": Comparison(
        grid="baselines",
        field="method",
        variants=("semidavil", "supervised", "target_only", "source_only"),
        title="What each stream of data adds",
        subject="Method",
        reference="semidavil",
        unlabelled=("source_only",),
        needs_labels=("supervised", "target_only"),
    ),
}  # fmt: skip
