"""Which runs belong into one figure: those of one grid that differ in nothing but what it varies."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from analysis import style
from analysis.captioners import captioners_sentence
from analysis.runs import AnalysisError, Tracked, command, default_settings
from analysis.stats import bootstrap_mean, over_seeds
from semidavil.benchmarks import BENCHMARKS
from sweeps.plan.grids import GRIDS

# Every grid varies these.
SHARED = ("data.benchmark", "data.budget", "seed")


@dataclass(frozen=True)
class Selected:
    """Runs of one grid, one setting per benchmark.

    Attributes:
        runs: rows of `load_runs`.
        left_out: how many runs of the grid have other settings.
    """

    runs: pd.DataFrame
    left_out: int = 0

    @property
    def run_ids(self) -> tuple[str, ...]:
        return tuple(sorted(self.runs["run_id"]))

    @property
    def benchmarks(self) -> list[str]:
        """In the order in which the harness lists them."""
        present = set(self.runs["benchmark"])
        return [name for name in BENCHMARKS if name in present] + sorted(present - set(BENCHMARKS))

    def of(self, benchmark: str) -> pd.DataFrame:
        return self.runs[self.runs["benchmark"] == benchmark]

    def is_toy(self, benchmark: str) -> bool:
        return bool(self.of(benchmark)["toy"].all())

    def heading(self, benchmark: str) -> str:
        """`GTA5 → Cityscapes (toy)`."""
        toy = " (toy)" if self.is_toy(benchmark) else ""
        return style.benchmark_name(benchmark) + toy

    def note(self) -> str:
        """What every caption says of where its runs come from."""
        steps = " or ".join(f"{int(n):,}" for n in sorted(self.runs["steps"].unique()))
        told = [f"{steps} training steps."]
        if captioners := captioners_sentence(self.runs):
            told.append(captioners)
        if any(self.is_toy(b) for b in self.benchmarks):
            told.append(
                "Toy: generated scenes and a miniature model, which check the machinery and say "
                "nothing about the paper's claims."
            )
        if self.left_out:
            told.append(f"Runs with other settings, left out: {self.left_out}.")
        return " ".join(told)


def select(
    tracked: Tracked, grid: str, axes: Sequence[str] | None = None, metric: str = "miou"
) -> Selected:
    """The runs of a grid that may be compared.

    Per benchmark one setting: real data before generated, then the longest training, then the most
    runs. What a grid varies on purpose is no part of the setting.

    Args:
        axes: the settings that it varies; default those that the grid declares.
        metric: a final metric that every run must have.

    Raises:
        AnalysisError: no such run.
    """
    mine = tracked.of_grid(grid)
    mine = mine[mine[metric].notna()] if metric in mine else mine.iloc[:0]
    if mine.empty:
        raise AnalysisError(f"no finished run has {metric}; make them: {command(grid)}")
    varied = {*SHARED, *(GRIDS[grid].baseline if axes is None else axes)}
    fixed = [setting for setting in default_settings() if setting not in varied]
    kept = []
    for _, here in mine.groupby("benchmark"):
        groups = [group for _, group in here.groupby(fixed, dropna=False)]
        kept.append(
            min(groups, key=lambda g: (bool(g["toy"].iloc[0]), -int(g["steps"].iloc[0]), -len(g)))
        )
    chosen = pd.concat(kept, ignore_index=True)
    return Selected(chosen, len(mine) - len(chosen))


def cells(runs: pd.DataFrame, variant: str, metric: str = "miou") -> pd.DataFrame:
    """One row per variant and budget.

    Args:
        variant: the column that tells variants apart.

    Returns:
        Columns `variant`, `budget`, `mean`, `std` (n - 1; NaN for one seed), `n`, and `low` and
        `high`, the 95% bootstrap interval of the mean over seeds.
    """
    table = over_seeds(runs, [variant, "budget"], metric)
    groups = runs.groupby([variant, "budget"], sort=True)[metric]
    bounds = [bootstrap_mean(list(values)) for _, values in groups]
    table["low"], table["high"] = [low for low, _ in bounds], [high for _, high in bounds]
    return table.rename(columns={variant: "variant"})


def by_seed(runs: pd.DataFrame, metric: str = "miou") -> pd.Series:
    """A metric indexed by seed; the mean of runs that share one."""
    return runs.groupby("seed")[metric].mean()


def seeds_of(counts: Sequence[int]) -> str:
    """`1 seed`, `3 seeds`, `2 to 3 seeds`."""
    low, high = min(counts), max(counts)
    number = f"{low}" if low == high else f"{low} to {high}"
    return f"{number} seed{'' if high == 1 else 's'}"
