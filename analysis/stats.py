"""Means over seeds, their spread, and paired differences."""

import numpy as np
import pandas as pd
from scipy import stats


def over_seeds(runs: pd.DataFrame, by: list[str], value: str = "miou") -> pd.DataFrame:
    """Mean, standard deviation (n - 1; NaN for one seed) and number of seeds of each group."""
    grouped = runs.groupby(by, sort=True)[value]
    table = grouped.agg(mean="mean", std="std", n="count")
    return table.reset_index()


def paired_difference(ours: pd.Series, theirs: pd.Series) -> dict[str, float]:
    """Mean difference on the same seeds, its 95% t interval and the paired t test's p.

    Args:
        ours, theirs: values indexed by seed; seeds that only one has are left out.

    Returns:
        `difference`, `low`, `high`, `p`, `n`; interval and p are NaN for fewer than two seeds.
    """
    both = pd.concat([ours, theirs], axis=1, join="inner").dropna()
    gaps = (both.iloc[:, 0] - both.iloc[:, 1]).to_numpy(dtype=float)
    found = {"difference": np.nan, "low": np.nan, "high": np.nan, "p": np.nan, "n": len(gaps)}
    if len(gaps):
        found["difference"] = float(gaps.mean())
    if len(gaps) > 1 and gaps.std() > 0:
        test = stats.ttest_rel(both.iloc[:, 0], both.iloc[:, 1])
        low, high = test.confidence_interval(0.95)
        found |= {"low": float(low), "high": float(high), "p": float(test.pvalue)}
    return found
