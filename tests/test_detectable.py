"""Detectable differences of the max-T test: one arm worked, an independent simulation, and their own guarantees."""

from __future__ import annotations

import itertools
import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, special, stats

from analysis import detectable, statistics
from analysis.detectable import Noise, detectable_differences


def _exact_of_one_arm() -> float:
    """Six pairs reach p <= 0.05 only if all differ in one direction: Phi(x)^6 + Phi(-x)^6 = 0.8."""
    return float(optimize.brentq(lambda x: special.ndtr(x) ** 6 + special.ndtr(-x) ** 6 - 0.8, 0.0, 5.0))


def _like(correlation: np.ndarray, num_seeds: int, seed: int = 0) -> np.ndarray:
    """(num_seeds, num_arms) whose sample covariance is `correlation` to the last digit."""
    draws = np.random.default_rng(seed).normal(size=(num_seeds, len(correlation)))
    draws -= draws.mean(axis=0)
    whitened = draws @ np.linalg.inv(np.linalg.cholesky(np.cov(draws.T, ddof=1).reshape(correlation.shape))).T
    return np.asarray(whitened @ np.linalg.cholesky(correlation).T)


def _equal(num_arms: int, correlation: float = 0.5) -> np.ndarray:
    return np.full((num_arms, num_arms), correlation) + (1 - correlation) * np.eye(num_arms)


def test_one_arm_of_six_pairs_is_worked_by_hand() -> None:
    exact = _exact_of_one_arm()
    assert exact == pytest.approx(1.79, abs=0.01)
    [found] = detectable_differences(0.02 * _like(np.eye(1), 6))
    assert found == pytest.approx(0.02 * exact, rel=0.03)
    # Not what the t test would find, which the platform does not use.
    assert found > 1.2 * statistics.minimum_detectable_difference(0.02, 6)


@pytest.mark.parametrize("num_seeds", [2, 3, 5])
def test_below_six_pairs_nothing_is_detectable_however_large(num_seeds: int) -> None:
    draws = np.random.default_rng(0).normal(size=(num_seeds, 2))
    assert detectable_differences(draws).tolist() == [math.inf, math.inf]
    assert detectable.smallest_p(num_seeds) == 2 / 2**num_seeds > 0.05
    # Indeed: all pairs far off in one direction, and the flips give no smaller p.
    p = statistics.max_t_adjusted_p(draws + 1e6, min_seeds=1)
    assert p == pytest.approx([detectable.smallest_p(num_seeds)] * 2)


def test_an_arm_short_of_pairs_is_not_tested_and_does_not_count() -> None:
    table = _like(_equal(2), 6)
    short = np.column_stack([table, table[:, 0], np.full(6, math.nan)])
    short[0, 2] = math.nan
    found = detectable_differences(short)
    np.testing.assert_array_equal(found[:2], detectable_differences(table))
    assert math.isinf(found[2]) and math.isnan(found[3])
    with pytest.raises(ValueError, match="num_seeds, num_arms"):
        detectable_differences([1.0, 2.0])


def _slow_p(differences: np.ndarray, arm: int) -> float:
    """Adjusted p of an arm from t statistics under all sign flips, stepping down in a loop."""
    flips = np.array(list(itertools.product([1, -1], repeat=len(differences))))[:, :, None]
    flipped = flips * differences
    t = np.abs(flipped.mean(axis=1) / (flipped.std(axis=1, ddof=1) / math.sqrt(len(differences))))
    observed = t[0]
    p = 0.0
    for step in np.argsort(-observed):
        rest = np.flatnonzero(observed <= observed[step])
        p = max(p, float((t[:, rest].max(axis=1) >= observed[step] * (1 - 1e-9)).mean()))
        if step == arm:
            return p
    raise AssertionError


@pytest.mark.parametrize(("num_arms", "num_seeds", "num_repetitions"), [(1, 6, 1500), (3, 6, 1500), (7, 6, 1500),
                                                                        (3, 7, 800), (5, 10, 250)])
def test_the_test_finds_it_four_times_in_five_in_an_independent_simulation(num_arms: int, num_seeds: int,
                                                                           num_repetitions: int) -> None:
    noise = Noise(np.ones(num_arms), _equal(num_arms))
    effect = noise.detectable(np.ones((num_seeds, num_arms), dtype=bool))[0]
    generator = np.random.default_rng(11)
    hits = 0
    for _ in range(num_repetitions):
        # Arms that share a reference: correlation 1/2.
        trials = generator.normal(0, math.sqrt(0.5), (num_seeds, num_arms + 1))
        differences = trials[:, 1:] - trials[:, :1]
        differences[:, 0] += effect
        hits += _slow_p(differences, 0) <= 0.05
    error = math.sqrt(0.16 / num_repetitions)
    # Both are simulations; beyond 8 seeds the level is approximated.
    assert hits / num_repetitions == pytest.approx(0.8, abs=3 * error + 0.02)


def test_other_arms_cost_power_the_less_the_more_alike_they_are() -> None:
    alone, three, seven = (Noise(np.ones(k), _equal(k)).detectable(np.ones((6, k), dtype=bool)).mean()
                           for k in (1, 3, 7))
    assert alone * 1.2 < three < seven / 1.1
    # The more the others do as this arm does by chance, the less they hide what it does beyond.
    loose, close = (Noise(np.ones(7), _equal(7, r)).detectable(np.ones((6, 7), dtype=bool)).mean() for r in (0.0, 0.95))
    assert alone < close < seven < loose


@settings(max_examples=10, deadline=None)
@given(st.integers(6, 10), st.integers(1, 4), st.integers(0, 10_000))
def test_only_the_spread_counts(num_seeds: int, num_arms: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    table = generator.normal(size=(num_seeds, num_arms))
    found = detectable_differences(table)
    np.testing.assert_array_equal(found, detectable_differences(table))
    scale = generator.uniform(0.1, 10, num_arms)
    np.testing.assert_allclose(detectable_differences(table * scale + 3), found * scale, rtol=1e-6)
    # The unadjusted t test at the same level of all pairs finds a little less than this.
    plain = [statistics.minimum_detectable_difference(column.std(ddof=1), num_seeds) for column in table.T]
    assert (found > 0.96 * np.array(plain)).all()


def test_differences_that_do_not_vary_are_detectable_at_any_size() -> None:
    table = np.column_stack([np.ones(6), np.random.default_rng(0).normal(size=6)])
    found = detectable_differences(table)
    assert found[0] == 0 and 0 < found[1] < math.inf


def test_the_noise_is_that_of_an_independent_library() -> None:
    table = np.random.default_rng(3).normal(size=(8, 3))
    noise = Noise.measured(table)
    np.testing.assert_allclose(noise.correlation, np.corrcoef(table.T))
    np.testing.assert_allclose(noise.deviations**2, np.diag(np.cov(table.T)))
    table[0, 1] = math.nan
    assert Noise.measured(table).correlation[0, 1] == pytest.approx(stats.pearsonr(table[1:, 0], table[1:, 1])[0])


def test_seeds_needed_find_the_difference_and_one_less_does_not() -> None:
    noise = Noise(np.array([0.005, 0.02, 0.04]), _equal(3))
    needed = noise.num_seeds_needed(0.02)
    assert needed[0] == 6 and None not in needed
    for arm, seeds in enumerate(needed[1:], start=1):
        assert seeds is not None
        more, fewer = (noise.detectable(np.ones((n, 3), dtype=bool))[arm] for n in (seeds, seeds - 1))
        assert more <= 0.02 < fewer
    # An enormous difference still takes the six seeds below which there is no test.
    assert noise.num_seeds_needed(1e3) == [6, 6, 6]
    assert noise.num_seeds_needed(1e-5) == [None, None, None]
    with pytest.raises(ValueError, match="must be positive"):
        noise.num_seeds_needed(0.0)


def test_eight_arms_of_six_seeds_take_well_under_a_second() -> None:
    table = np.random.default_rng(0).normal(size=(6, 8))
    began = time.process_time()
    detectable_differences(table)
    assert time.process_time() - began < 0.8
