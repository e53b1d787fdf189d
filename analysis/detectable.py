"""What the multiplicity-adjusted test of a study can find: detectable differences and the seeds that they need.

What lives here: the power of `statistics.max_t_adjusted_p`, as pure functions of measured differences. What must not:
the test itself (analysis/statistics.py), studies, tables.

A difference is detectable where the test gives its arm p <= 0.05 four times in five, while the other arms truly differ
by nothing and all spread and hang together as they were measured to. Up to `MAX_SEEDS_SIMULATED` seeds the test itself
is run on simulated differences, with all their sign flips; the draws are fixed, so that the same scores give the same
number. For more seeds it is the paired t test at the level that the largest of so many correlated arms leaves to each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import special

from analysis import statistics
from analysis.statistics import CONFIDENCE, MIN_SEEDS_FOR_TEST, POWER, Floats

MAX_SEEDS_SIMULATED = 8
NUM_SIMULATIONS = 1000
"""Power is known to 1.3 points, a detectable difference to about 2 %: far better than the spread of a few seeds is."""
_NUM_DRAWS = 20_000
"""From which the level of a single arm is read for more seeds."""
_STEPS = 10
"""Halvings in the search for a difference: to a thousandth of it."""


def smallest_p(num_seeds: int) -> float:
    """What a difference of any size reaches at best: that of the two flips of no seed and of all seeds."""
    return 2.0 ** (1 - num_seeds)


def detectable_differences(differences: ArrayLike, confidence: float = CONFIDENCE, power: float = POWER) -> Floats:
    """Smallest true difference of each arm that the test of all these arms finds with the given power.

    Args:
        differences: (num_seeds, num_arms) arm minus reference, NaN = missing.

    Returns:
        (num_arms,), in the metric's unit; inf where no difference can reach the level, which holds below 6 pairs; NaN
        where there is not one pair.
    """
    table = np.asarray(differences, dtype=np.float64)
    if table.ndim != 2:
        raise ValueError(f"differences must be (num_seeds, num_arms), not of shape {table.shape}")
    is_present = ~np.isnan(table)
    num_pairs = is_present.sum(axis=0)
    found = np.where(num_pairs > 0, math.inf, math.nan)
    tested = np.flatnonzero(num_pairs >= MIN_SEEDS_FOR_TEST)
    if tested.size:
        found[tested] = Noise.measured(table[:, tested]).detectable(is_present[:, tested], confidence, power)
    return found


@dataclass(frozen=True)
class Noise:
    """How differences to one reference vary over seeds."""

    deviations: Floats
    """(num_arms,) of the paired differences, n - 1 in the denominator."""
    correlation: Floats
    """(num_arms, num_arms) of the differences; they share the reference."""

    @staticmethod
    def measured(differences: ArrayLike) -> Noise:
        """From (num_seeds, num_arms) with two seeds an arm at least; where seeds are missing, a correlation is of the
        seeds that both arms have."""
        table = pd.DataFrame(np.asarray(differences, dtype=np.float64))
        # Arms that always differ by the same hang together with none.
        correlation = table.corr().fillna(0.0).to_numpy(copy=True)
        np.fill_diagonal(correlation, 1.0)
        return Noise(table.std(ddof=1).to_numpy(), correlation)

    def detectable(self, is_present: NDArray[np.bool_], confidence: float = CONFIDENCE, power: float = POWER) -> Floats:
        """Detectable difference of each arm.

        Args:
            is_present: (num_seeds, num_arms) which pairs there are, 6 of each arm at least.
        """
        return self.deviations * _effects(self.correlation, is_present, confidence, power)

    def num_seeds_needed(self, difference: float, confidence: float = CONFIDENCE, power: float = POWER,
                         limit: int = 1000) -> list[int | None]:
        """Smallest number of seeds for which the test of all these arms finds `difference`, arm by arm.

        Returns:
            6 at least, since fewer reach no level; None above `limit`.
        """
        if difference <= 0:
            raise ValueError(f"difference={difference} must be positive")
        num_arms = len(self.deviations)
        needed: list[int | None] = [None] * num_arms
        for num_seeds in range(MIN_SEEDS_FOR_TEST, MAX_SEEDS_SIMULATED + 1):
            found = self.detectable(np.ones((num_seeds, num_arms), dtype=bool), confidence, power) <= difference
            needed = [known or (num_seeds if is_found else None) for known, is_found in zip(needed, found, strict=True)]
        level = _level_of_one(self.correlation, 1 - confidence)
        for arm in range(num_arms):
            if needed[arm] is None:
                more = statistics.num_seeds_needed(float(self.deviations[arm]), difference, 1 - level, power, limit)
                needed[arm] = None if more is None else max(more, MAX_SEEDS_SIMULATED + 1)
        return needed


def _effects(correlation: Floats, is_present: NDArray[np.bool_], confidence: float, power: float) -> Floats:
    """(num_arms,) detectable differences in units of their deviation, for pairs as in (num_seeds, num_arms)."""
    num_pairs = is_present.sum(axis=0)
    if len(is_present) <= MAX_SEEDS_SIMULATED:
        simulation = _Simulation(correlation, is_present, 1 - confidence)
        start = [statistics.minimum_detectable_difference(1.0, int(n), confidence, power) for n in num_pairs]
        return np.array([simulation.detectable(arm, power, first) for arm, first in enumerate(start)])
    level = _level_of_one(correlation, 1 - confidence)
    return np.array([statistics.minimum_detectable_difference(1.0, int(n), 1 - level, power) for n in num_pairs])


def _level_of_one(correlation: Floats, level: float) -> float:
    """Two-sided level of a single arm at which the largest of all is passed by chance in a share `level`."""
    draws = np.random.default_rng(0).standard_normal((_NUM_DRAWS, len(correlation))) @ _root(correlation)
    return 2 * float(special.ndtr(-np.quantile(np.abs(draws).max(axis=1), 1 - level)))


def _root(correlation: Floats) -> Floats:
    """R with R' R the correlation; fewer seeds than arms leave it short of rank, missing ones not quite positive."""
    values, vectors = np.linalg.eigh(correlation)
    root = np.sqrt(np.clip(values, 0.0, None))[:, None] * vectors.T
    return root / np.sqrt((root**2).sum(axis=0))


class _Simulation:
    """Simulated differences of arms that do not differ, and the test of them after one arm is shifted."""

    def __init__(self, correlation: Floats, is_present: NDArray[np.bool_], level: float) -> None:
        num_seeds, num_arms = is_present.shape
        self._level = level
        # A flip and its opposite have the same statistic: one of both is enough.
        self._flips = statistics.sign_flips(num_seeds)[: 2 ** (num_seeds - 1)]
        draws = np.random.default_rng(0).standard_normal((NUM_SIMULATIONS, num_seeds, num_arms)) @ _root(correlation)
        noise = np.moveaxis(draws * is_present, 2, 0)
        # Arms come first: (arm, simulation, flip); of sums over seeds (arm, simulation).
        self._sums = noise @ self._flips.T
        self._squares, self._counts = (noise**2).sum(axis=2), is_present.sum(axis=0)
        self._lean = is_present.T @ self._flips.T
        self._statistic = np.abs(self._sums) / np.sqrt(self._squares)[:, :, None]
        self._rivals = _largest_of_others(self._statistic)
        self._is_rival_found = self._is_within(self._rivals >= self._rivals[:, :, :1])

    def detectable(self, arm: int, power: float, start: float) -> float:
        """Smallest shift of an arm, in its deviations, that is found with the given power."""
        everyone = np.arange(NUM_SIMULATIONS)
        low, found_low = 0.0, self._is_found(arm, 0.0, everyone)
        high, found_high = start, self._is_found(arm, start, everyone)
        while found_high.mean() < power:
            low, found_low = high, found_high
            high *= 2
            found_high = self._is_found(arm, high, everyone)
        for _ in range(_STEPS):
            # Whoever finds both ends alike finds what lies between as they do.
            open_ones = np.flatnonzero(found_low != found_high)
            middle, found = (low + high) / 2, found_low.copy()
            found[open_ones] = self._is_found(arm, middle, open_ones)
            if found.mean() >= power:
                high, found_high = middle, found
            else:
                low, found_low = middle, found
        return high

    def _is_found(self, arm: int, shift: float, chosen: NDArray[np.intp]) -> NDArray[np.bool_]:
        """Of the chosen simulations, those in which an arm that differs by `shift` is found."""
        sums, rivals = self._sums[arm, chosen], self._rivals[arm, chosen]
        norm = np.sqrt(self._squares[arm, chosen] + 2 * shift * sums[:, 0] + self._counts[arm] * shift**2)
        own = np.abs(sums + shift * self._lean[arm]) / norm[:, None]
        is_found = self._is_within(np.maximum(own, rivals) >= own[:, :1])
        # Stepping down finds more than this only after the arm above was found.
        doubtful = np.flatnonzero((rivals[:, 0] > own[:, 0]) & self._is_rival_found[arm, chosen] & ~is_found)
        if doubtful.size:
            statistic = self._statistic[:, chosen[doubtful]]
            statistic[arm] = own[doubtful]
            is_found[doubtful] = statistics.step_down_p(np.moveaxis(statistic, 0, 2))[:, arm] <= self._level
        return is_found

    def _is_within(self, is_as_extreme: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Whether few enough flips (last axis) are as extreme as the data."""
        return np.count_nonzero(is_as_extreme, axis=-1) <= self._level * len(self._flips)


def _largest_of_others(statistic: Floats) -> Floats:
    """Along the first axis, the largest of all other entries; 0 where there is no other."""
    order = np.argmax(statistic, axis=0)
    largest = np.take_along_axis(statistic, order[None], axis=0)
    rest = statistic.copy()
    np.put_along_axis(rest, order[None], 0.0, axis=0)
    return np.where(np.arange(len(statistic))[:, None, None] == order, rest.max(axis=0), largest)
