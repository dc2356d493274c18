"""What is asked of the numbers: spread, paired differences, who is best, ranks, effects of parts.

scipy and statsmodels compute. A comparison has one question first: which variant is better over all its
conditions? It is answered by one paired difference per seed, averaged over the conditions.
"""

import itertools
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pandas as pd
from scipy import special, stats
from statsmodels.stats.power import TTestPower

from semidavil.metrics import iou

RESAMPLES, LEVEL, ALPHA, POWER = 2000, 0.95, 0.05, 0.8
CLAIM_SEEDS = 3  # from which on one variant may be called best over all conditions
MARK_SEEDS = 5  # from which on a cell of a table may be marked
RANK_BLOCKS, RANK_VARIANTS = 6, 3  # from which on ranks are tested
PROFILE_CONDITIONS = 6  # from which on profiles are drawn
CONDITION = ["benchmark", "budget"]


@dataclass(frozen=True)
class Paired:
    """A difference on the same seeds.

    Attributes:
        difference: its mean over seeds.
        low, high: 95% t interval; NaN for fewer than two pairs or equal differences.
        p: two-sided p of the paired t-test; 1 for equal differences, of which chance is unknown; NaN for
            fewer than two pairs.
        n: number of pairs.
        detectable: the smallest difference that this n and this spread show with a power of 0.8.
        better: of two runs under one condition, how often the first is better; a tie counts half.
        conditions: that the difference is averaged over.
        p_holm: p after Holm's correction over the tests of the same question.
    """

    difference: float
    low: float
    high: float
    p: float
    n: int
    detectable: float = np.nan
    better: float = np.nan
    conditions: int = 1
    p_holm: float = np.nan


@dataclass(frozen=True)
class Verdict:
    """Who leads, and whether a test says so.

    Attributes:
        leader: the variant whose smallest difference to another one is largest, each on common seeds.
        tests: leader minus each other variant.
        uncompared: variants that have no seed and condition in common with the leader.
        p: the largest p of these tests: that it is above *all* others needs no further correction. 1 where
            some are not compared.
        n: the smallest number of pairs.
        sure: whether that claim may be made.
    """

    leader: str
    tests: Mapping[str, Paired]
    uncompared: tuple[str, ...] = ()

    @property
    def p(self) -> float:
        if self.uncompared:
            return 1.0
        return max((1.0 if np.isnan(t.p) else t.p for t in self.tests.values()), default=1.0)

    @property
    def n(self) -> int:
        return min((test.n for test in self.tests.values()), default=0)

    @property
    def sure(self) -> bool:
        return bool(self.tests) and self.n >= CLAIM_SEEDS and self.p < ALPHA

    @property
    def nearest(self) -> str:
        """The variant that is hardest to tell from the leader."""
        return max(self.tests, key=lambda v: (np.nan_to_num(self.tests[v].p, nan=1.0),
                                              -self.tests[v].difference))  # fmt: skip


def over_seeds(runs: pd.DataFrame, by: list[str], value: str = "miou") -> pd.DataFrame:
    """Mean of each group, `std` (n - 1), number of seeds `n`, and the 95% t interval of the mean.

    `std`, `low` and `high` are NaN for one seed.
    """
    table = runs.groupby(by, sort=True)[value].agg(mean="mean", std="std", n="count").reset_index()
    half = stats.t.ppf(0.5 + LEVEL / 2, np.maximum(table["n"] - 1, 1)) * table["std"]
    half /= np.sqrt(table["n"])
    return table.assign(low=table["mean"] - half, high=table["mean"] + half)


def paired(ours: pd.Series | pd.DataFrame, theirs: pd.Series | pd.DataFrame) -> Paired:
    """The paired t-test of two variants, under one condition or over several of one benchmark.

    The t-test and not Wilcoxon's: with n seeds the latter's smallest two-sided p is 2^(1-n), so that five
    seeds could never be significant. It takes the differences as normal.

    Args:
        ours, theirs: values indexed by seed, of several conditions a column each; what only one has is left
            out.
    """
    both = pd.concat([ours, theirs], axis=1, join="inner").to_numpy(float)
    conditions = both.shape[1] // 2
    return _averaged(both[:, :conditions], both[:, conditions:], pd.Index([""] * conditions))


def _averaged(ours: np.ndarray, theirs: np.ndarray, benchmarks: pd.Index) -> Paired:
    """The difference per seed, averaged over conditions, benchmarks weighing the same.

    Args:
        ours, theirs: (seeds, conditions), NaN where there is no run. Of a partial sweep, the largest block of
            seeds that share their conditions counts.
        benchmarks: of each condition.
    """
    there = ~np.isnan(ours - theirs)
    blocks = [(there[:, row].all(axis=1), row) for row in np.unique(there, axis=0) if row.any()]
    if not blocks:
        return Paired(np.nan, np.nan, np.nan, np.nan, 0, conditions=0)
    rows, used = max(blocks, key=lambda block: (block[0].sum() * block[1].sum(), block[0].sum()))
    names, of, counts = np.unique(benchmarks[used], return_inverse=True, return_counts=True)
    weights = 1 / (len(names) * counts[of])
    one, other = ours[np.ix_(rows, used)], theirs[np.ix_(rows, used)]
    pairs = np.sign(one[:, None] - other[None])  # every run with every other under its condition
    better = float((0.5 + pairs.mean(axis=(0, 1)) / 2) @ weights)
    return replace(_t_test((one - other) @ weights), better=better, conditions=int(used.sum()))


def _t_test(gaps: np.ndarray) -> Paired:
    n, mean = len(gaps), float(gaps.mean())
    if n < 2:
        return Paired(mean, np.nan, np.nan, np.nan, n)
    # Without spread t is infinite or 0/0: no evidence about the next seed either.
    if np.ptp(gaps) <= 1e-9 * max(1.0, abs(mean)):
        return Paired(mean, np.nan, np.nan, 1.0, n)
    error = float(gaps.std(ddof=1)) / np.sqrt(n)
    half = float(special.stdtrit(n - 1, 0.5 + LEVEL / 2)) * error
    p = 2 * float(special.stdtr(n - 1, -abs(mean) / error))
    detectable = effect_size(n) * error * np.sqrt(n)
    return Paired(mean, mean - half, mean + half, p, n, detectable)


@cache
def effect_size(n: int) -> float:
    """Mean over spread of n paired differences that a t-test shows with a power of 0.8."""
    return float(np.ravel(TTestPower().solve_power(nobs=n, alpha=ALPHA, power=POWER))[0])


def verdict(runs: pd.DataFrame) -> Verdict | None:
    """Which variant is best over all conditions of `runs`; None for a single variant.

    Args:
        runs: columns `variant`, `seed`, `benchmark`, `budget` and `miou`, unique on the first four.
    """
    known = runs.dropna(subset=["miou"])
    variants = list(map(str, dict.fromkeys(known["variant"])))
    if len(variants) < 2:
        return None
    table = known.pivot(index="seed", columns=["variant", *CONDITION], values="miou")
    conditions = pd.MultiIndex.from_frame(table.columns.to_frame()[CONDITION]).unique()
    full = table.reindex(columns=[(v, *c) for v in variants for c in conditions])
    values = full.to_numpy(float).reshape(len(table), len(variants), len(conditions))
    benchmarks = conditions.get_level_values(0)

    def test(a: int, b: int) -> Paired:
        return _averaged(values[:, a], values[:, b], benchmarks)

    count = len(variants)
    gaps = np.full((count, count), np.nan)
    for a, b in itertools.combinations(range(count), 2):
        gaps[a, b] = test(a, b).difference
        gaps[b, a] = -gaps[a, b]
    smallest = [np.nanmin(row) if (~np.isnan(row)).any() else -np.inf for row in gaps]
    leader = int(np.argmax(smallest))
    tests = {v: test(leader, i) for i, v in enumerate(variants) if i != leader}
    uncompared = tuple(v for v, one in tests.items() if not one.n)
    tests = {v: one for v, one in tests.items() if one.n}
    # The leader was chosen by the same data: each of its tests stands for count / 2 pairs.
    adjusted = holm([min(1.0, one.p * count / 2) for one in tests.values()])
    tests = {v: replace(t, p_holm=p) for (v, t), p in zip(tests.items(), adjusted, strict=True)}
    return Verdict(variants[leader], tests, uncompared) if tests else None


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values; NaN, a test that could not be made, stays NaN and is none.

    statsmodels' `multipletests` computes the same, and collects garbage in each call: 0.1 to 1 s.
    """
    p = np.array(p_values, dtype=float)
    order = np.argsort(p)[: np.count_nonzero(~np.isnan(p))]  # NaN last
    steps = p[order] * np.arange(len(order), 0, -1)
    p[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return [float(value) for value in p]


def best_sets(columns: Mapping[Hashable, pd.DataFrame]) -> dict[Hashable, tuple[set[str], float]]:
    """Of each column of a table, the variants that are not shown to be below its best, and a p.

    The leader alone, where the largest p of its tests is below 0.05 after Holm's correction over the
    columns; else all that Holm's correction over the tests of all columns leaves. No set is empty; it has
    all variants where nothing is shown, and so wherever a test has fewer than `MARK_SEEDS` seeds.

    Args:
        columns: runs of one condition each, see `verdict`.
    """
    verdicts = {name: verdict(runs) for name, runs in columns.items()}
    tested = {name: v for name, v in verdicts.items() if v is not None and v.n >= MARK_SEEDS}
    alone = dict(zip(tested, holm([v.p for v in tested.values()]), strict=True))
    pairs = [(name, other) for name, v in tested.items() for other in v.tests]
    each = dict(zip(pairs, holm([min(1.0, tested[c].tests[o].p * (1 + len(tested[c].tests)) / 2)
                                 for c, o in pairs]), strict=True))  # fmt: skip
    found = {}
    for name, runs in columns.items():
        members = set(map(str, runs["variant"]))
        if name in tested:
            leader = tested[name].leader
            sure = alone[name] < ALPHA
            members = {
                v for v in members if v == leader or not (sure or each.get((name, v), 1.0) < ALPHA)
            }
        found[name] = (members, alone.get(name, np.nan))
    return found


def complete_blocks(runs: pd.DataFrame) -> pd.DataFrame:
    """A row per benchmark, seed and budget that all variants have, a column per variant.

    Of each benchmark, the seeds with the most budgets: means over other budgets would not compare.
    """
    table = runs.pivot(
        index=["benchmark", "seed", "budget"], columns="variant", values="miou"
    ).dropna()
    counts = table.groupby(["benchmark", "seed"]).transform("size")
    return table[counts == counts.groupby("benchmark").transform("max")]


def profile(blocks: pd.DataFrame) -> pd.DataFrame | None:
    """In how many per cent of conditions and seeds each variant is within some points of the best one.

    A performance profile (Dolan and Moré, 2002) of differences, with the stratified bootstrap of Agarwal et
    al. (NeurIPS 2021): seeds are drawn anew within each benchmark, with all of their nested budgets.

    Args:
        blocks: see `complete_blocks`.

    Returns:
        Rows `variant`, `points`, `share`, `low`, `high`, `conditions`, `n` (the fewest seeds); None for one
        variant, fewer than `PROFILE_CONDITIONS` conditions, or a benchmark of fewer than `CLAIM_SEEDS` seeds.
    """
    conditions = blocks.groupby(CONDITION).size()
    if (
        len(conditions) < PROFILE_CONDITIONS
        or conditions.min() < CLAIM_SEEDS
        or blocks.shape[1] < 2
    ):
        return None
    below = blocks.max(axis=1).to_numpy()[:, None] - blocks.to_numpy()  # (rows, variants)
    points = np.linspace(0, max(np.percentile(below, 95), 0.1), 61)
    within = pd.DataFrame((below[..., None] <= points).reshape(len(blocks), -1), index=blocks.index)
    by_seed = 100 * within.astype(float).groupby(["benchmark", "seed"]).mean()
    rng = np.random.default_rng(0)

    def resampled(seeds: np.ndarray) -> np.ndarray:
        n = len(seeds)
        return rng.multinomial(n, np.full(n, 1 / n), RESAMPLES) @ seeds / n

    parts = [one.to_numpy() for _, one in by_seed.groupby("benchmark")]
    share = np.mean([one.mean(0) for one in parts], axis=0)
    tails = [50 * (1 - LEVEL), 50 * (1 + LEVEL)]
    low, high = np.percentile(np.mean([resampled(one) for one in parts], axis=0), tails, axis=0)
    return pd.DataFrame(
        {"variant": np.repeat(blocks.columns, len(points)), "points": np.tile(points, blocks.shape[1]),
         "share": share, "low": low, "high": high, "conditions": len(conditions), "n": conditions.min()}
    )  # fmt: skip


@dataclass(frozen=True)
class Ranks:
    """Average ranks, 1 is best, over blocks that have all variants.

    Attributes:
        mean: by variant.
        blocks: how many; the test needs `RANK_BLOCKS`.
        p: Friedman's test that all variants are alike; NaN where there are too few blocks.
        critical: Nemenyi's critical difference of two average ranks; NaN likewise.
    """

    mean: pd.Series
    blocks: int
    p: float
    critical: float


def ranks(scores: pd.DataFrame) -> Ranks:
    """Friedman's test and Nemenyi's critical difference (Demsar, JMLR 2006).

    Args:
        scores: a row per block, a column per variant; incomplete blocks are left out. Blocks must be
            independent: seeds are, the nested label budgets of one seed are not.
    """
    complete = scores.dropna()
    mean = complete.rank(axis=1, ascending=False).mean()
    n, k = complete.shape
    if n < RANK_BLOCKS or k < RANK_VARIANTS:
        return Ranks(mean, n, np.nan, np.nan)
    with np.errstate(invalid="ignore"):  # all alike: no p
        p = stats.friedmanchisquare(*complete.to_numpy().T).pvalue
    q = stats.studentized_range.ppf(1 - ALPHA, k, np.inf) / np.sqrt(2)
    return Ranks(mean, n, float(p), float(q * np.sqrt(k * (k + 1) / (6 * n))))


def factorial(runs: pd.DataFrame, parts: Sequence[str]) -> pd.DataFrame:
    """What each part adds on average, and what two add together beyond their sum.

    A linear model of all parts, their pairs and the seed; a pair that the runs cannot tell from the rest
    is left out of it.

    Args:
        runs: a boolean column for each of `parts`, `seed`, `miou`.

    Returns:
        Rows `what` (`VL`, `VL x DLG`), `difference`, `low`, `high`, `p`, `p_holm`, `n` (seeds); empty where
        the runs cannot tell the parts apart. A pair's is the effect of one part with the other minus that
        without it.
    """
    from statsmodels.api import OLS

    design = {"mean": np.ones(len(runs))}
    for seed in sorted(set(runs["seed"]))[1:]:
        design[f"seed {seed}"] = (runs["seed"] == seed).to_numpy(float)
    signs = {part: runs[part].to_numpy(float) - 0.5 for part in parts}
    for part in parts:
        design[part] = signs[part]
    if np.linalg.matrix_rank(np.column_stack(list(design.values()))) < len(design):
        return pd.DataFrame()
    shown = list(parts)
    for i, a in enumerate(parts):
        for b in parts[i + 1 :]:
            more = {**design, f"{a} x {b}": signs[a] * signs[b]}
            if np.linalg.matrix_rank(np.column_stack(list(more.values()))) == len(more):
                design = more
                shown.append(f"{a} x {b}")
    if len(runs) <= len(design):
        return pd.DataFrame()
    fit = OLS(runs["miou"].to_numpy(float), pd.DataFrame(design)).fit()
    bounds = fit.conf_int(1 - LEVEL)
    return pd.DataFrame(
        {"what": shown, "difference": fit.params[shown].to_numpy(), "low": bounds.loc[shown, 0].to_numpy(),
         "high": bounds.loc[shown, 1].to_numpy(), "p": fit.pvalues[shown].to_numpy(),
         "p_holm": holm(list(fit.pvalues[shown])), "n": runs["seed"].nunique()}
    )  # fmt: skip


def interquartile_mean(values: Sequence[float]) -> float:
    """Mean of the middle half of all runs (Agarwal et al., NeurIPS 2021): one odd run moves it little."""
    return float(stats.trim_mean(np.asarray(values, dtype=float), 0.25))


def pareto_front(gain: pd.Series, cost: pd.Series) -> pd.Series:
    """Which rows no other beats: none gains at least as much at no more cost, one of them better."""
    beaten = [
        ((cost <= one_cost) & (gain > one_gain) | (cost < one_cost) & (gain >= one_gain)).any()
        for one_gain, one_cost in zip(gain, cost, strict=True)
    ]
    return ~pd.Series(beaten, index=gain.index, dtype=bool)


def bootstrap_images(per_image: Sequence[np.ndarray]) -> tuple[float, float]:
    """95% percentile interval of mean IoU over validation images, given these networks.

    Each resample draws the images anew, the same for all runs. The classes are those of all images: a class
    that a resample lacks is left out of it, one that no image has never counts.

    Args:
        per_image: (N, C, C) confusion matrices of each run (seed) on the same images.

    Raises:
        ValueError: no runs, or runs on different numbers of images.
    """
    if not per_image or len({len(run) for run in per_image}) != 1:
        raise ValueError("the runs must have been evaluated on the same images")
    count = len(per_image[0])
    draws = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), RESAMPLES)
    scores = []
    for run in per_image:
        per_class = class_iou(np.tensordot(draws.astype(float), run.astype(float), 1))
        whole = class_iou(run.sum(0))
        # A resample without a class keeps the value of the full sample: the mean stays over one set.
        scores.append(np.nanmean(np.where(np.isnan(per_class), whole, per_class), axis=-1))
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(np.mean(scores, axis=0), [tail, 100 - tail])
    return float(low), float(high)


def class_iou(confusion: np.ndarray) -> np.ndarray:
    """(..., C, C) -> (..., C) IoU in per cent; NaN for neither ground truth nor prediction."""
    return 100 * iou(confusion)


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """Spearman's rho of pairs without NaN and its p by permutation; NaN for fewer than four pairs."""
    pairs = pd.DataFrame({"x": x, "y": y}).dropna()
    if len(pairs) < 4 or pairs.nunique().min() < 2:
        return np.nan, np.nan
    a, b = pairs["x"].rank().to_numpy(), pairs["y"].rank().to_numpy()
    a, b = (a - a.mean()) / a.std(), (b - b.mean()) / b.std()
    rho = float((a * b).mean())
    rng = np.random.default_rng(0)
    shuffled = rng.permuted(np.tile(b, (RESAMPLES, 1)), axis=1) @ a / len(a)
    return rho, float((1 + (np.abs(shuffled) >= abs(rho) - 1e-12).sum()) / (1 + RESAMPLES))
