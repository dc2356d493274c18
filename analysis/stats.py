"""Spread over seeds and images, paired tests, and ranks. Everything random is seeded."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from semidavil.metrics import iou

RESAMPLES = 2000
LEVEL = 0.95
ALPHA = 0.05
Score = Callable[[np.ndarray], np.ndarray]  # (..., C, C) confusion -> (...) score


@dataclass(frozen=True)
class Paired:
    """A difference on the same seeds.

    Attributes:
        difference: its mean.
        low, high: 95% t interval; NaN for fewer than two pairs.
        p: two-sided p of the paired t-test; NaN for fewer than two pairs or equal differences.
        n: number of pairs.
    """

    difference: float
    low: float
    high: float
    p: float
    n: int


def over_seeds(runs: pd.DataFrame, by: list[str], value: str = "miou") -> pd.DataFrame:
    """Mean, standard deviation (n - 1; NaN for one seed) and number of seeds of each group."""
    table = runs.groupby(by, sort=True)[value].agg(mean="mean", std="std", n="count")
    return table.reset_index()


def paired(ours: pd.Series, theirs: pd.Series) -> Paired:
    """The paired t-test of two variants.

    The t-test and not Wilcoxon's: with n seeds the latter's smallest two-sided p is 2^(1-n), so
    that three to five seeds could never be significant. It takes the differences as normal.

    Args:
        ours, theirs: values indexed by seed (or by anything else that pairs them); what only one
            has is left out.
    """
    both = pd.concat([ours, theirs], axis=1, join="inner").dropna()
    gaps = (both.iloc[:, 0] - both.iloc[:, 1]).to_numpy(dtype=float)
    n = len(gaps)
    mean = float(gaps.mean()) if n else float("nan")
    # Without spread t is infinite or 0/0: no evidence about the next seed either.
    if n < 2 or np.ptp(gaps) <= 1e-12 * max(1.0, abs(mean)):
        return Paired(mean, np.nan, np.nan, np.nan, n)
    test = stats.ttest_1samp(gaps, 0.0)
    low, high = test.confidence_interval(LEVEL)
    return Paired(mean, float(low), float(high), float(test.pvalue), n)


def pareto_front(gain: pd.Series, cost: pd.Series) -> pd.Series:
    """Which rows no other beats: none gains at least as much at no more cost, one of them better."""
    beaten = [
        ((cost <= one_cost) & (gain > one_gain) | (cost < one_cost) & (gain >= one_gain)).any()
        for one_gain, one_cost in zip(gain, cost, strict=True)
    ]
    return ~pd.Series(beaten, index=gain.index, dtype=bool)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values in the given order.

    A NaN (a test that could not be made) stays NaN and does not count as a test.
    """
    p = np.asarray(p_values, dtype=float)
    adjusted = np.full(len(p), np.nan)
    order = [int(i) for i in np.argsort(p) if not np.isnan(p[i])]
    largest = 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, float(p[i]) * (len(order) - rank)))
        adjusted[i] = largest
    return [float(value) for value in adjusted]


def bootstrap_mean(
    values: Sequence[float], resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """95% percentile interval of the mean over seeds; NaN for fewer than two values."""
    data = np.asarray(values, dtype=float)
    if len(data) < 2:
        return float("nan"), float("nan")
    draws = np.random.default_rng(seed).integers(0, len(data), (resamples, len(data)))
    return _percentiles(data[draws].mean(1))


def bootstrap_images(
    per_image: Sequence[np.ndarray],
    against: Sequence[np.ndarray] = (),
    score: Score | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, float]:
    """95% percentile interval of a score over validation images, averaged over runs.

    Each resample draws the images anew, the same for all runs, and scores the summed confusion
    matrices: what other images of the same kind would have shown of these very networks.

    Args:
        per_image: (N, C, C) confusion matrices of each run (seed) on the same images.
        against: those of another variant: then of the difference of the two means.
        score: default mean IoU in per cent.

    Raises:
        ValueError: no runs, or runs on different numbers of images.
    """
    if not per_image or len({len(run) for run in (*per_image, *against)}) != 1:
        raise ValueError("the runs must have been evaluated on the same images")
    count, rule = len(per_image[0]), score or mean_iou
    weights = np.random.default_rng(seed).multinomial(
        count, np.full(count, 1 / count), size=resamples
    )

    def mean(runs: Sequence[np.ndarray]) -> np.ndarray:
        scores = [rule(np.tensordot(weights.astype(float), run.astype(float), 1)) for run in runs]
        return np.mean(scores, axis=0)

    return _percentiles(mean(per_image) - (mean(against) if against else 0.0))


def class_iou(confusion: np.ndarray) -> np.ndarray:
    """(..., C, C) -> (..., C) IoU in per cent; NaN for neither ground truth nor prediction."""
    return 100 * iou(confusion)


def mean_iou(confusion: np.ndarray) -> np.ndarray:
    """(..., C, C) -> (...) mean IoU in per cent over the classes that occur."""
    return np.nanmean(class_iou(confusion), axis=-1)


def rank_correlation(
    x: Sequence[float], y: Sequence[float], resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float, float]:
    """Spearman's rho of two lists with its 95% percentile bootstrap interval over the pairs.

    Returns:
        rho, low, high; NaN for fewer than three pairs.
    """
    a, b = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if len(a) < 3:
        return float("nan"), float("nan"), float("nan")
    draws = np.random.default_rng(seed).integers(0, len(a), (resamples, len(a)))
    low, high = _percentiles(_spearman(a[draws], b[draws]))
    return float(_spearman(a[None], b[None])[0]), low, high


def _spearman(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Row by row; a resample with one distinct value has no correlation (NaN)."""
    ranks_a, ranks_b = stats.rankdata(a, axis=1), stats.rankdata(b, axis=1)
    ranks_a -= ranks_a.mean(1, keepdims=True)
    ranks_b -= ranks_b.mean(1, keepdims=True)
    below = np.sqrt((ranks_a**2).sum(1) * (ranks_b**2).sum(1))
    return np.divide(
        (ranks_a * ranks_b).sum(1), below, out=np.full(len(a), np.nan), where=below > 0
    )


def _percentiles(values: np.ndarray) -> tuple[float, float]:
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.nanpercentile(values, [tail, 100 - tail])
    return float(low), float(high)


def average_ranks(scores: pd.DataFrame) -> pd.Series:
    """Average rank of each variant, 1 = best; ties share their ranks' mean.

    Args:
        scores: a row per condition (benchmark and budget), a column per variant; conditions that
            lack a variant are left out, so that all variants are ranked on the same ones.

    Returns:
        A value per column; NaN where no condition is complete.
    """
    complete = scores.dropna()
    if complete.empty:
        return pd.Series(np.nan, index=scores.columns)
    return complete.rank(axis=1, ascending=False).mean()


@dataclass(frozen=True)
class Winners:
    """Which variants a test puts ahead in one column, and the tests behind it.

    `tests` has a row per pair: column, place, ours, theirs, difference, low, high, p, n, p_holm.
    """

    best: str | None
    second: str | None
    tests: pd.DataFrame


def winners(
    columns: Mapping[Hashable, Mapping[str, pd.Series]],
) -> dict[Hashable, Winners]:
    """Best and second of each column, where paired tests say so.

    A variant is best if it is above every other one of its column, and second if it is above every
    one below it; all of these tests are one family for Holm's correction.

    Args:
        columns: by column (a label budget), by variant: scores indexed by seed.
    """
    rows = []
    for column, variants in columns.items():
        order = sorted(variants, key=lambda v: -float(variants[v].mean()))
        for place in (0, 1):
            for other in order[place + 1 :]:
                test = paired(variants[order[place]], variants[other])
                rows.append([column, place, order[place], other, *vars(test).values()])
    names = ["column", "place", "ours", "theirs", "difference", "low", "high", "p", "n"]
    table = pd.DataFrame(rows, columns=names)
    table["p_holm"] = holm([float(p) for p in table["p"]])
    table["wins"] = (table["p_holm"] < ALPHA) & (table["difference"] > 0)
    found = {}
    for column in columns:
        here = table[table["column"] == column]
        ahead = [here[here["place"] == place] for place in (0, 1)]
        best, second = (
            str(one["ours"].iloc[0]) if len(one) and one["wins"].all() else None for one in ahead
        )
        found[column] = Winners(best, second, here)
    return found
