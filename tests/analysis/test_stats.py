"""Statistics against scipy and against values computed by hand."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats as reference

from analysis.stats import (
    average_ranks,
    bootstrap_images,
    bootstrap_mean,
    class_iou,
    holm,
    mean_iou,
    over_seeds,
    paired,
    rank_correlation,
    winners,
)


def test_mean_and_spread_over_seeds() -> None:
    runs = pd.DataFrame({"v": ["a", "a", "b"], "miou": [1.0, 3.0, 5.0]})
    table = over_seeds(runs, ["v"]).set_index("v")
    assert table.loc["a"].tolist() == pytest.approx([2, np.sqrt(2), 2])
    assert np.isnan(table.loc["b", "std"])


def test_paired_differences_use_common_seeds_alone() -> None:
    ours = pd.Series({0: 3.0, 1: 5.0, 2: 6.5, 9: 100.0})
    theirs = pd.Series({0: 2.0, 1: 4.5, 2: 4.0})
    found = paired(ours, theirs)
    expected = reference.ttest_rel(ours[:3], theirs)
    low, high = expected.confidence_interval(0.95)
    assert (found.n, found.difference) == (3, pytest.approx(4 / 3))
    assert (found.p, found.low, found.high) == pytest.approx((expected.pvalue, low, high))
    assert np.isnan(paired(ours[:1], theirs).p)
    constant = paired(theirs + 1, theirs)  # an infinite t is no evidence
    assert constant.difference == 1
    assert np.isnan(constant.p)


def test_holm() -> None:
    # By hand: 0.01 * 4, 0.02 * 3, max(0.06, 0.03 * 2), max(0.06, 0.04 * 1)
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    adjusted = holm([0.5, np.nan, 0.001])
    assert adjusted[0] == 0.5
    assert np.isnan(adjusted[1])
    assert adjusted[2] == pytest.approx(0.002)


def test_iou() -> None:
    confusion = np.array([[3, 1, 0], [0, 4, 0], [0, 0, 0]])
    assert class_iou(confusion)[:2] == pytest.approx([75, 80])
    assert np.isnan(class_iou(confusion)[2])
    assert mean_iou(np.stack([confusion, confusion])) == pytest.approx([77.5, 77.5])


def test_bootstrap_over_seeds() -> None:
    low, high = bootstrap_mean([1.0, 2.0, 3.0, 4.0])
    assert 1 <= low < 2.5 < high <= 4
    assert bootstrap_mean([1.0, 2.0, 3.0, 4.0]) == (low, high)
    assert np.isnan(bootstrap_mean([1.0])).all()


def test_bootstrap_over_images_pairs_the_images() -> None:
    rng = np.random.default_rng(0)
    worse = rng.integers(1, 20, (30, 3, 3))
    better = worse + 5 * np.eye(3, dtype=int)
    low, high = bootstrap_images([worse])
    assert low < float(mean_iou(worse.sum(0))) < high
    gap_low, gap_high = bootstrap_images([better], [worse])
    assert 0 < gap_low < gap_high
    assert gap_high - gap_low < high - low
    equal = bootstrap_images([worse], [worse])
    assert equal == (0, 0)
    with pytest.raises(ValueError, match="same images"):
        bootstrap_images([worse, worse[:3]])


def test_rank_correlation() -> None:
    x, y = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [2.0, 1.0, 4.0, 4.0, 9.0, 8.0]
    rho, low, high = rank_correlation(x, y)
    assert rho == pytest.approx(reference.spearmanr(x, y).statistic)
    assert -1 <= low < rho <= high <= 1
    assert np.isnan(rank_correlation([1, 2], [1, 2])).all()


def test_average_ranks_take_conditions_that_all_have() -> None:
    scores = pd.DataFrame({"a": [3.0, 2.0, 9.0], "b": [1.0, 2.0, np.nan]})
    assert average_ranks(scores).tolist() == [1.25, 1.75]
    assert average_ranks(scores[2:]).isna().all()


def test_only_a_test_makes_a_winner() -> None:
    base = pd.Series({0: 10.0, 1: 12.0, 2: 11.0, 3: 13.0})
    noise = pd.Series({0: 0.01, 1: -0.01, 2: 0.02, 3: 0.0})
    clear = winners({100: {"a": base + 5 + noise, "b": base + 2 - noise, "c": base}})[100]
    assert (clear.best, clear.second) == ("a", "b")
    assert len(clear.tests) == 3
    unsure = winners({100: {"a": base + 3 * noise * 10, "b": base}})[100]
    assert unsure.best is None
    assert winners({100: {"a": base[:1] + 5, "b": base[:1]}})[100].best is None
