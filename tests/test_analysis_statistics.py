"""Statistics against numbers worked by hand, an independent library, and their own guarantees."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from statsmodels.stats.power import TTestPower
from statsmodels.stats.weightstats import DescrStatsW

from analysis import statistics


def test_mean_interval_by_hand() -> None:
    # Mean 2, deviation 1, standard error 1/sqrt(3), t(0.975, 2) = 4.302653.
    interval = statistics.mean_interval([1.0, 2.0, 3.0, math.nan])
    assert interval.mean == 2.0 and interval.n == 3 and interval.deviation == 1.0
    assert interval.half_width == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert interval.low == pytest.approx(2 - 2.484138, abs=1e-5)
    assert interval.high == pytest.approx(2 + 2.484138, abs=1e-5)


def test_mean_interval_of_little_data() -> None:
    one = statistics.mean_interval([0.7])
    assert one.mean == 0.7 and one.n == 1 and math.isnan(one.half_width)
    none = statistics.mean_interval([math.nan])
    assert none.n == 0 and math.isnan(none.mean)


def test_mean_interval_against_statsmodels() -> None:
    values = np.random.default_rng(1).normal(0.7, 0.02, 6)
    interval = statistics.mean_interval(values)
    assert (interval.low, interval.high) == pytest.approx(DescrStatsW(values).tconfint_mean(alpha=0.05))


def test_paired_difference_by_hand() -> None:
    # Differences 1, 1, 4: mean 2, deviation sqrt(3), half width 4.302653 * sqrt(3) / sqrt(3).
    difference = statistics.paired_difference([2.0, 3.0, 7.0, 9.0], [1.0, 2.0, 3.0, math.nan])
    assert difference.n == 3 and difference.mean == pytest.approx(2.0)
    assert difference.high - difference.mean == pytest.approx(4.302653, rel=1e-6)
    # Covariance sum (-2)(-1) + 0 + 3*1 = 5, over sqrt(14 * 2).
    assert difference.correlation == pytest.approx(5 / math.sqrt(28))


def test_paired_difference_against_scipy() -> None:
    generator = np.random.default_rng(2)
    reference = generator.normal(0.7, 0.03, 6)
    arm = reference + generator.normal(0.01, 0.01, 6)
    difference = statistics.paired_difference(arm, reference)
    interval = stats.ttest_rel(arm, reference).confidence_interval(0.95)
    assert (difference.low, difference.high) == pytest.approx((interval.low, interval.high))
    assert difference.correlation == pytest.approx(stats.pearsonr(arm, reference).statistic)


def test_main_effects_by_hand() -> None:
    # Two seeds, levels (rows) 0 and 1, two levels of the other factor; seed 3 lacks a cell.
    scores = [[[1.0, 3.0], [2.0, 6.0]], [[2.0, 2.0], [5.0, 3.0]], [[1.0, 1.0], [math.nan, 9.0]]]
    none, effect = statistics.main_effects(scores, reference=0)
    assert (none.mean, none.interval.half_width, none.n) == (0.0, 0.0, 3)
    # Means over the other factor: (2, 4) and (2, 4): a difference of 2 in both seeds.
    assert (effect.mean, effect.n, effect.interval.deviation) == (2.0, 2, 0.0)


def test_paired_difference_refuses_other_seeds() -> None:
    with pytest.raises(ValueError, match="one row per seed"):
        statistics.paired_difference([1.0, 2.0], [1.0])


def test_max_t_by_hand() -> None:
    # All six differences positive: only the flips "none" and "all" reach the statistic, p = 2/64.
    consistent = np.array([1.0, 1.1, 0.9, 1.2, 0.8, 1.0])
    assert statistics.max_t_adjusted_p(consistent[:, None]) == pytest.approx([2 / 64])
    # It stays 2/64 beside many arms of pure noise that is less consistent than it, under any flip.
    noise = np.array([1.0, -1.0, 1.0, -1.0, 1.0, -1.0])
    p = statistics.max_t_adjusted_p(np.stack([noise] * 10 + [consistent], axis=1))
    assert p[-1] >= 2 / 64
    assert p[:10] == pytest.approx(np.ones(10))
    # No difference at all is no evidence.
    assert statistics.max_t_adjusted_p(np.zeros((6, 1))) == pytest.approx([1.0])


def test_max_t_smallest_p_holds_for_any_number_of_arms() -> None:
    generator = np.random.default_rng(3)
    arms = 1.0 + 0.05 * generator.normal(size=(6, 13))
    assert statistics.max_t_adjusted_p(arms) == pytest.approx(np.full(13, 2 / 64))


def test_max_t_is_not_given_below_six_seeds() -> None:
    table = np.ones((6, 2))
    table[0, 1] = math.nan
    p = statistics.max_t_adjusted_p(table)
    assert p[0] == pytest.approx(2 / 64) and math.isnan(p[1])
    assert np.isnan(statistics.max_t_adjusted_p(np.ones((5, 3)))).all()


def test_max_t_of_one_arm_against_scipy_permutation_test() -> None:
    values = np.random.default_rng(4).normal(0.5, 1.0, 8)
    exact = stats.permutation_test((values,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert statistics.max_t_adjusted_p(values[:, None]) == pytest.approx([exact.pvalue])


def _slow_step_down(differences: np.ndarray) -> np.ndarray:
    """Step-down max-T by nested loops and t statistics."""
    num_seeds, num_arms = differences.shape
    observed = [abs(stats.ttest_1samp(differences[:, arm], 0).statistic) for arm in range(num_arms)]
    order = sorted(range(num_arms), key=lambda arm: -observed[arm])
    counts = np.zeros(num_arms)
    for signs in itertools.product([1, -1], repeat=num_seeds):
        flipped = differences * np.array(signs)[:, None]
        t = np.abs(stats.ttest_1samp(flipped, 0).statistic)
        for rank, arm in enumerate(order):
            counts[arm] += max(t[other] for other in order[rank:]) >= observed[arm] * (1 - 1e-9)
    p = counts / 2**num_seeds
    for before, after in itertools.pairwise(order):
        p[after] = max(p[after], p[before])
    return p


def test_max_t_against_slow_reference() -> None:
    generator = np.random.default_rng(5)
    for shift in (0.0, 0.7):
        differences = generator.normal(shift, 1.0, (6, 4)) + generator.normal(0, 1, (6, 1))
        assert statistics.max_t_adjusted_p(differences) == pytest.approx(_slow_step_down(differences))


@settings(max_examples=25, deadline=None)
@given(st.integers(6, 9), st.integers(1, 5), st.integers(0, 10_000))
def test_max_t_properties(num_seeds: int, num_arms: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    differences = generator.normal(generator.normal(0, 1, num_arms), 1.0, (num_seeds, num_arms))
    p = statistics.max_t_adjusted_p(differences)
    assert ((2 / 2**num_seeds - 1e-12 <= p) & (p <= 1)).all()
    # Neither scale nor sign nor the order of arms or seeds matters.
    scale = generator.uniform(0.1, 10, num_arms) * generator.choice([-1, 1], num_arms)
    assert statistics.max_t_adjusted_p(differences * scale) == pytest.approx(p)
    arms, seeds = generator.permutation(num_arms), generator.permutation(num_seeds)
    assert statistics.max_t_adjusted_p(differences[seeds][:, arms]) == pytest.approx(p[arms])
    # Adjusting never lowers a p-value.
    alone = [statistics.max_t_adjusted_p(differences[:, [arm]])[0] for arm in range(num_arms)]
    assert (p >= np.array(alone) - 1e-12).all()


def test_max_t_keeps_its_level() -> None:
    generator = np.random.default_rng(6)
    repetitions = 400
    rejections = 0
    for _ in range(repetitions):
        # Differences to one reference: correlated, and no arm differs.
        trials = generator.normal(size=(6, 6))
        rejections += statistics.max_t_adjusted_p(trials[:, 1:] - trials[:, :1]).min() <= 0.05
    assert stats.binomtest(int(rejections), repetitions, 0.05, alternative="greater").pvalue > 0.001


def test_max_t_samples_flips_beyond_enumeration() -> None:
    values = np.random.default_rng(7).normal(0.6, 1.0, 14)
    exact = stats.permutation_test((values,), np.mean, permutation_type="samples", n_resamples=np.inf).pvalue
    assert statistics.max_t_adjusted_p(values[:, None])[0] == pytest.approx(exact, abs=4 * math.sqrt(exact / 9999))


def test_minimum_detectable_difference_against_statsmodels() -> None:
    for num_seeds in (3, 6, 12):
        effect = TTestPower().solve_power(nobs=num_seeds, alpha=0.05, power=0.8, alternative="two-sided")
        found = statistics.minimum_detectable_difference(0.01, num_seeds)
        assert found == pytest.approx(0.01 * float(effect), rel=1e-4)
    assert math.isnan(statistics.minimum_detectable_difference(0.01, 1))


def test_minimum_detectable_difference_by_hand() -> None:
    # For many seeds the t test is a z test: (1.959964 + 0.841621) / sqrt(n).
    assert statistics.minimum_detectable_difference(2.0, 10_000) == pytest.approx(2 * 2.801585 / 100, rel=1e-3)


def test_minimum_detectable_difference_by_simulation() -> None:
    generator = np.random.default_rng(8)
    detectable = statistics.minimum_detectable_difference(1.0, 6)
    draws = generator.normal(detectable, 1.0, (4000, 6))
    found = stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05
    assert found.mean() == pytest.approx(0.8, abs=0.025)


def test_num_seeds_needed() -> None:
    needed = statistics.num_seeds_needed(0.02, 0.02)
    assert needed is not None
    assert statistics.minimum_detectable_difference(0.02, needed) <= 0.02
    assert statistics.minimum_detectable_difference(0.02, needed - 1) > 0.02
    # z approximation: (2.8016)^2 = 7.8 seeds, t needs a few more.
    assert needed == 10
    assert statistics.num_seeds_needed(1.0, 1e-4) is None
    with pytest.raises(ValueError, match="must be positive"):
        statistics.num_seeds_needed(1.0, 0.0)


def test_contenders_by_hand() -> None:
    base = np.array([0.70, 0.72, 0.71, 0.69, 0.70, 0.71])
    wobble = np.array([1, -1, 1, -1, 1, -1]) * 0.002
    scores = np.stack([base, base + wobble, base - 0.05 + wobble, np.full(6, math.nan)], axis=1)
    assert statistics.contenders(scores).tolist() == [True, True, False, False]
    assert statistics.contenders(-scores, higher_is_better=False).tolist() == [True, True, False, False]
    # Lower is better: only the third arm is left.
    assert statistics.contenders(scores, higher_is_better=False).tolist() == [False, False, True, False]


def test_contenders_of_two_arms_against_scipy() -> None:
    generator = np.random.default_rng(9)
    for shift in np.linspace(0, 0.03, 13):
        scores = generator.normal(0.7, 0.01, (6, 2)) - np.array([0, shift])
        p = stats.ttest_rel(scores[:, 0], scores[:, 1], alternative="greater").pvalue
        assert statistics.contenders(scores)[1] == (p >= 0.05)


def test_contenders_keep_the_best() -> None:
    generator = np.random.default_rng(10)
    truth = np.array([0.02, 0.018, 0.015, 0.0, -0.02])
    kept = [statistics.contenders(generator.normal(truth, 0.01, (6, 5)))[0] for _ in range(500)]
    assert np.mean(kept) >= 0.95 - 2 * math.sqrt(0.95 * 0.05 / 500)


def test_standardised_difference_by_hand() -> None:
    # Differences 1, 2, 3: mean 2, deviation 1; the factor for 2 degrees of freedom is 1 / gamma(1/2).
    paired = statistics.paired_difference([1.0, 2.0, 3.0], [0.0, 0.0, 0.0])
    assert paired.effect_size == pytest.approx(2 / math.sqrt(math.pi))
    assert math.isnan(statistics.standardised_difference(1.0, 0.5, 2))
    assert math.isnan(statistics.standardised_difference(1.0, 0.0, 6))


def test_standardised_difference_against_scipy() -> None:
    # t = d sqrt(n); the mean of the noncentral t says by how much d is too large on average.
    generator = np.random.default_rng(0)
    first, second = generator.normal(0.3, 1, 7), generator.normal(0, 1, 7)
    t = stats.ttest_rel(first, second).statistic
    bias = stats.nct.mean(6, 1.0)
    assert statistics.paired_difference(first, second).effect_size == pytest.approx(t / math.sqrt(7) / bias)


def test_weighted_balanced_accuracy_by_hand_and_by_another_library() -> None:
    labels, is_right = ["a", "a", "b", "c"], [True, False, True, False]
    # Shares 1/2, 1 and 0; with a third drawing of the first example 3/4, 1 and 0.
    assert statistics.weighted_balanced_accuracy(labels, is_right, [[1, 1, 1, 1], [3, 1, 1, 1]]) == pytest.approx(
        [1.5 / 3, 1.75 / 3])
    assert np.isnan(statistics.weighted_balanced_accuracy(labels, is_right, [[1, 1, 1, 0]])).all()
    generator = np.random.default_rng(0)
    truth, said = generator.integers(0, 3, 60), generator.integers(0, 3, 60)
    weights = generator.integers(0, 3, (4, 60))
    other = [balanced_accuracy_score(truth, said, sample_weight=row) for row in weights]
    assert statistics.weighted_balanced_accuracy(truth, said == truth, weights) == pytest.approx(other)


def test_weighted_auroc_by_hand() -> None:
    labels, scores = [1, 0, 1, 0], [0.9, 0.5, 0.5, 0.1]
    # Pairs of positive and negative: (.9, .5) (.9, .1) won, (.5, .5) tied, (.5, .1) won.
    assert statistics.weighted_auroc(labels, scores, [[1, 1, 1, 1]]) == pytest.approx([3.5 / 4])
    # The first positive drawn twice, the last negative not at all: won 2, tied 1 of 3.
    assert statistics.weighted_auroc(labels, scores, [[2, 1, 1, 0]]) == pytest.approx([2.5 / 3])
    assert np.isnan(statistics.weighted_auroc(labels, scores, [[0, 1, 0, 1]])).all()


def test_weighted_auroc_against_sklearn() -> None:
    generator = np.random.default_rng(1)
    labels, scores = generator.integers(0, 2, 60), generator.normal(0, 1, 60).round(1)
    weights = generator.integers(0, 4, (20, 60))
    expected = [roc_auc_score(labels, scores, sample_weight=row) for row in weights]
    np.testing.assert_allclose(statistics.weighted_auroc(labels, scores, weights), expected)


def test_resampled_weights_draw_groups_with_replacement() -> None:
    weights = statistics.resampled_weights(5, 2000)
    assert (weights.sum(axis=1) == 5).all()
    # A count is binomial(5, 1/5): mean 1, variance 0.8.
    np.testing.assert_allclose(weights.mean(axis=0), 1.0, atol=0.08)
    np.testing.assert_allclose(weights.var(axis=0), 0.8, atol=0.1)
    np.testing.assert_array_equal(weights, statistics.resampled_weights(5, 2000))


def test_bootstrap_of_auroc_against_scipy() -> None:
    generator = np.random.default_rng(2)
    labels = np.repeat([0, 1], 60)
    scores = generator.normal(0, 1, 120) + labels
    drawn = statistics.weighted_auroc(labels, scores, statistics.resampled_weights(120, 2000))
    other = stats.bootstrap((labels, scores), lambda truth, score: roc_auc_score(truth, score), paired=True,
                            vectorized=False, n_resamples=2000, rng=np.random.default_rng(3), method="percentile")
    assert np.nanstd(drawn, ddof=1) == pytest.approx(other.standard_error, rel=0.1)
