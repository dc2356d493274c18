"""Statistics against scipy, against values computed by hand, and by simulation."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats as reference
from statsmodels.stats.multitest import multipletests

from analysis.stats import (
    MARK_SEEDS,
    best_sets,
    bootstrap_images,
    class_iou,
    complete_blocks,
    effect_size,
    factorial,
    holm,
    interquartile_mean,
    over_seeds,
    paired,
    profile,
    rank_correlation,
    ranks,
    verdict,
)
from analysis.verdicts import in_words


def made_up(
    rng: np.random.Generator, seeds: int, leads: tuple[float, ...], budgets: int = 6
) -> pd.DataFrame:
    """Runs of variants `v0`, `v1`, ... with noise 0.5 around their lead, which budgets do not change."""
    shape = (len(leads), budgets, seeds)
    scores = 50 + np.array(leads)[:, None, None] + rng.normal(0, 0.5, shape)
    variant, budget, seed = (one.ravel() for one in np.indices(shape))
    names = [f"v{i}" for i in variant]
    return pd.DataFrame(
        {"benchmark": "b", "variant": names, "budget": budget, "seed": seed, "miou": scores.ravel()}
    )


def rates(seeds: int, leads: tuple[float, ...], tables: int) -> tuple[float, float]:
    """How often the first variant is called best, and any variant is."""
    rng = np.random.default_rng([seeds, *(abs(int(lead)) for lead in leads)])
    found = [verdict(made_up(rng, seeds, leads)) for _ in range(tables)]
    sure = [one.leader for one in found if one is not None and one.sure]
    return sure.count("v0") / tables, len(sure) / tables


def test_mean_spread_and_interval_over_seeds() -> None:
    runs = pd.DataFrame({"v": ["a", "a", "a", "b"], "miou": [1.0, 3.0, 2.0, 5.0]})
    table = over_seeds(runs, ["v"]).set_index("v")
    assert table.loc["a", ["mean", "std", "n"]].tolist() == pytest.approx([2, 1, 3])
    expected = reference.ttest_1samp([1.0, 3.0, 2.0], 0).confidence_interval(0.95)
    assert table.loc["a", ["low", "high"]].tolist() == pytest.approx(list(expected))
    assert table.loc["b", ["std", "low", "high"]].isna().all()


def test_the_interval_of_a_mean_covers_it() -> None:
    """A percentile bootstrap covered 50% of two seeds, and 85% of five."""
    rng = np.random.default_rng(0)
    for n in (2, 5):
        runs = pd.DataFrame({"v": np.repeat(np.arange(800), n), "miou": rng.normal(7, 1, 800 * n)})
        table = over_seeds(runs, ["v"])
        covered = ((table["low"] < 7) & (table["high"] > 7)).mean()
        assert 0.92 < covered < 0.98


def test_paired_differences_use_common_seeds_alone() -> None:
    ours = pd.Series({0: 3.0, 1: 5.0, 2: 6.5, 9: 100.0})
    theirs = pd.Series({0: 2.0, 1: 4.5, 2: 4.0})
    found = paired(ours, theirs)
    expected = reference.ttest_rel(ours[:3], theirs)
    low, high = expected.confidence_interval(0.95)
    assert (found.n, found.difference) == (3, pytest.approx(4 / 3))
    assert (found.p, found.low, found.high) == pytest.approx((expected.pvalue, low, high))
    assert found.better == pytest.approx(7 / 9)  # 3 above 2; 5 and 6.5 above all three
    assert np.isnan(paired(ours[:1], theirs).p)


def test_equal_differences_are_a_test_that_shows_nothing() -> None:
    """Left out of the family, they made the other tests easier."""
    constant = paired(pd.Series([3.0, 4.0, 5.0]), pd.Series([2.0, 3.0, 4.0]))
    assert (constant.difference, constant.p) == (1, 1)
    assert np.isnan(constant.low)


def test_what_so_many_seeds_could_have_shown() -> None:
    """Simulated: at `effect_size` four of five tests find it."""
    rng = np.random.default_rng(0)
    gaps = rng.normal(effect_size(5), 1, (4000, 5))
    found = reference.ttest_1samp(gaps, 0, axis=1).pvalue < 0.05
    assert found.mean() == pytest.approx(0.8, abs=0.02)


def test_holm() -> None:
    # By hand: 0.01 * 4, 0.02 * 3, max(0.06, 0.03 * 2), max(0.06, 0.04 * 1)
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    adjusted = holm([0.5, np.nan, 0.001])
    assert adjusted[0] == 0.5
    assert np.isnan(adjusted[1])
    assert adjusted[2] == pytest.approx(0.002)
    assert holm([]) == []
    rng = np.random.default_rng(0)
    p = rng.uniform(0, 0.2, 30)  # each call of statsmodels' collects garbage
    assert holm(p) == pytest.approx(multipletests(p, method="holm")[1])


@pytest.mark.slow
def test_a_lead_is_found_over_budgets_and_no_other() -> None:
    """Per cell, as tables were marked, three and five seeds found nothing of this lead."""
    assert rates(3, (1, 0, 0, 0), 40)[0] >= 0.5
    assert rates(5, (1, 0, 0, 0), 40)[0] >= 0.95
    assert rates(5, (0, 0, 0, 0), 40)[1] <= 0.05


@pytest.mark.slow
@pytest.mark.parametrize("leads", [(0, 0, 0, 0), (0, 0, -5, -5), (0, 0, 0, -5)])
def test_false_claims_are_rare_whatever_is_tied(leads: tuple[float, ...]) -> None:
    """Two tied at the top are the worst case, at 0.05 exactly; 0.02 is two standard errors of 400 tables."""
    assert rates(3, leads, 400)[1] <= 0.05 + 0.02


@pytest.mark.slow
@pytest.mark.parametrize("leads", [(0, 0, 0, 0), (0, 0, -5, -5)])
def test_no_tied_row_loses_its_mark_more_often_than_said(leads: tuple[float, ...]) -> None:
    rng = np.random.default_rng(0)
    tied = {f"v{i}" for i, lead in enumerate(leads) if lead == 0}
    wrong = 0
    for _ in range(60):
        runs = made_up(rng, 5, leads)
        found = best_sets({budget: here for budget, here in runs.groupby("budget")})
        wrong += any(tied - members for members, _ in found.values())
    assert wrong / 60 <= 0.05 + 0.06  # two standard errors


def test_marks_can_be_earned_and_no_second_stands_without_a_first() -> None:
    """The tied best were bare, and the second of the column was underlined."""
    rng = np.random.default_rng(0)
    tied = made_up(rng, MARK_SEEDS, (0, -0.1, -20), budgets=2)
    found = best_sets({b: here for b, here in tied.groupby("budget")})
    assert [members for members, _ in found.values()] == [{"v0", "v1"}] * 2
    clear = made_up(rng, MARK_SEEDS, (10, 0, -20), budgets=2)
    found = best_sets({b: here for b, here in clear.groupby("budget")})
    assert [members for members, _ in found.values()] == [{"v0"}] * 2
    few = made_up(rng, MARK_SEEDS - 1, (10, 0, -20), budgets=2)
    found = best_sets({b: here for b, here in few.groupby("budget")})
    assert [members for members, _ in found.values()] == [{"v0", "v1", "v2"}] * 2


def test_winner_and_test_use_the_same_seeds() -> None:
    """A seed that one variant alone has made it the leader, and its test was against it."""
    runs = made_up(np.random.default_rng(0), 5, (0, 1), budgets=1)
    odd = runs[runs["variant"] == "v0"].iloc[:1].assign(seed=99, miou=1000.0)
    found = verdict(pd.concat([runs, odd]))
    assert found is not None
    assert (found.leader, found.n) == ("v1", 5)
    assert found.tests["v0"].difference > 0


def test_nothing_is_best_while_a_variant_is_not_compared() -> None:
    """A variant ahead, begun with other seeds, did not keep another from being called best."""
    runs = made_up(np.random.default_rng(0), 5, (5, 0, 20), budgets=1)
    apart = runs.assign(seed=runs["seed"] + 10 * (runs["variant"] == "v2"))
    found = verdict(apart)
    assert found is not None
    assert (found.leader, set(found.tests), found.uncompared) == ("v0", {"v1"}, ("v2",))
    assert not found.sure
    assert "none is shown to be best" in in_words(found, apart)
    assert "Not compared, for want of a seed in common: v2." in in_words(found, apart)
    assert best_sets({"b": apart})["b"][0] == {"v0", "v2"}


def test_a_partial_sweep_is_compared_on_what_is_complete() -> None:
    runs = made_up(np.random.default_rng(0), 4, (5, 0), budgets=3)
    begun = runs[(runs["seed"] < 3) | (runs["budget"] == 0)]  # seed 3 has one budget of three
    found = verdict(begun)
    assert found is not None
    test = found.tests["v1"]
    assert (test.n, test.conditions) == (3, 3)
    by = begun[begun["seed"] < 3].groupby(["variant", "seed"])["miou"].mean().unstack("variant")
    assert test.difference == pytest.approx((by["v0"] - by["v1"]).mean())
    assert verdict(runs[runs["variant"] == "v0"]) is None


def test_benchmarks_weigh_the_same_however_many_budgets_they_have() -> None:
    rng = np.random.default_rng(0)
    many = made_up(rng, 3, (6, 0), budgets=5)
    one = made_up(rng, 3, (2, 0), budgets=1).assign(benchmark="c")
    found = verdict(pd.concat([many, one]))
    assert found is not None
    assert found.tests["v1"].difference == pytest.approx(4, abs=0.8)


def test_ranks_and_their_critical_difference() -> None:
    """Demsar's example of four classifiers: q = 2.569 for k = 4, of fourteen data sets CD = 1.25."""
    rng = np.random.default_rng(0)
    scores = pd.DataFrame(rng.normal([3, 2, 1, 0], 1, (14, 4)), columns=list("abcd"))
    found = ranks(scores)
    assert found.mean.tolist() == sorted(found.mean)
    assert found.critical == pytest.approx(1.25, abs=0.005)
    assert found.p == pytest.approx(reference.friedmanchisquare(*scores.to_numpy().T).pvalue)
    few = ranks(pd.DataFrame({"a": [3.0, 2.0, 9.0], "b": [1.0, 2.0, np.nan]}))
    assert (few.mean.tolist(), few.blocks) == ([1.25, 1.75], 2)
    assert np.isnan(few.critical)


def test_profiles_weigh_benchmarks_alike_and_draw_whole_seeds() -> None:
    """`a` leads by 2 on four budgets of one benchmark, `b` by 1 on two of another, with every seed."""
    rows = [
        {"benchmark": name, "seed": seed, "budget": budget, "variant": variant,
         "miou": 10.0 * seed + (lead if variant == better else 0.0)}
        for name, better, lead, budgets in (("x", "a", 2.0, (0, 1, 2, 3)), ("y", "b", 1.0, (0, 1)))
        for seed in range(3) for budget in budgets for variant in ("a", "b")
    ]  # fmt: skip
    runs = pd.DataFrame(rows)
    table = profile(complete_blocks(runs))
    assert table is not None
    assert table["conditions"].unique() == [6]
    ends = {v: (one["share"].iloc[0], one["share"].iloc[-1]) for v, one in table.groupby("variant")}
    assert ends == {"a": (50.0, 100.0), "b": (50.0, 100.0)}
    a = table[table["variant"] == "a"]
    assert (a["share"][a["points"] < 0.99] == 50).all()
    assert (a["share"][a["points"] > 1.01] == 100).all()
    assert (table["high"] == table["low"]).all()  # seeds agree: none of them changes it
    turned = (runs["benchmark"] == "x") & (runs["seed"] == 0) & (runs["variant"] == "a")
    runs.loc[turned, "miou"] -= 4
    first = profile(complete_blocks(runs)).groupby("variant").first()  # type: ignore[union-attr]
    assert first.loc["a", "share"] == pytest.approx(100 * (2 / 3 + 0) / 2)
    assert first.loc["a", "low"] == pytest.approx(0)  # seed 0 three times has a chance of 1 in 27
    assert first.loc["a", "high"] == pytest.approx(50)
    few = runs[(runs["seed"] > 0) | (runs["benchmark"] == "x")]
    assert profile(complete_blocks(few)) is None  # two seeds on y
    begun = runs[(runs["seed"] > 0) | (runs["budget"] == 0)]
    assert set(complete_blocks(begun).index.get_level_values("seed")) == {1, 2}


def test_effects_and_interactions_of_parts() -> None:
    """A part and a pair are found where they are; a pair that was not run is left out."""
    rng = np.random.default_rng(0)
    rows = [(a, b, s) for a in (False, True) for b in (False, True) for s in range(4)]
    runs = pd.DataFrame(rows, columns=["A", "B", "seed"])
    both = runs["A"] & runs["B"]
    runs["miou"] = 30 + 2.0 * runs["A"] + 4.0 * both + runs["seed"] + rng.normal(0, 0.1, len(runs))
    found = factorial(runs, ["A", "B"]).set_index("what")
    assert found["difference"].to_dict() == pytest.approx({"A": 4, "B": 2, "A x B": 4}, abs=0.3)
    assert (found["low"] < found["difference"]).all()
    assert (found["n"] == 4).all()
    assert list(factorial(runs[~both], ["A", "B"])["what"]) == ["A", "B"]
    assert factorial(runs[runs["A"]], ["A", "B"]).empty


def test_iou() -> None:
    confusion = np.array([[3, 1, 0], [0, 4, 0], [0, 0, 0]])
    assert class_iou(confusion)[:2] == pytest.approx([75, 80])
    assert np.isnan(class_iou(confusion)[2])


def test_bootstrap_over_images_keeps_to_one_set_of_classes() -> None:
    """Of a class in one image of fifty, resamples lost the class: the interval lay above the score."""
    rng = np.random.default_rng(0)
    per_image = rng.integers(1, 20, (50, 3, 3)) + 40 * np.eye(3, dtype=int)
    per_image[1:, 2] = per_image[1:, :, 2] = 0
    per_image[0, 2] = [9, 9, 1]
    low, high = bootstrap_images([per_image])
    whole = np.nanmean(class_iou(per_image.sum(0)))
    assert low < whole < high
    with pytest.raises(ValueError, match="same images"):
        bootstrap_images([per_image, per_image[:3]])


def test_rank_correlation() -> None:
    x, y = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [2.0, 1.0, 4.0, 4.0, 9.0, 8.0]
    rho, p = rank_correlation(x, y)
    assert rho == pytest.approx(reference.spearmanr(x, y).statistic)
    assert 0.005 < p < 0.1
    assert rank_correlation([*x, 9], [*y, np.nan]) == (rho, p)
    assert np.isnan(rank_correlation([1, 2, 3], [1, 2, 3])).all()


def test_the_interquartile_mean_leaves_out_both_quarters() -> None:
    assert interquartile_mean([0, 10, 20, 1000]) == 15
