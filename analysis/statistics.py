"""The statistics of a comparison: pure functions of arrays whose axes are stated.

What lives here: intervals, paired differences, the multiplicity-adjusted test, detectable differences,
the bootstrap over patients and the set of arms that may be best. What must not: tables, data frames, tracking, or any
choice of which arms to compare.

Axis 0 is always the seed: arms that share a seed share its random streams, so they are compared in
pairs. NaN marks a trial that is missing; it is left out pair by pair and n says how many remained.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special, stats

Floats = NDArray[np.float64]

CONFIDENCE = 0.95
POWER = 0.8
MIN_SEEDS_FOR_TEST = 6
"""With 5 seeds the smallest two-sided sign-flip p is 2/32 > 0.05: no test below 6."""
MAX_SEEDS_ENUMERATED = 12
"""Up to here all 2**n sign flips are enumerated; beyond, a fixed random sample of them is drawn."""
NUM_SAMPLED_FLIPS = 9999
_TIE = 1e-12


@dataclass(frozen=True)
class Interval:
    """Mean with a t interval; `half_width` is NaN where n < 2."""

    mean: float
    half_width: float
    n: int
    deviation: float
    """Standard deviation over seeds (n - 1); NaN where n < 2."""

    @property
    def low(self) -> float:
        return self.mean - self.half_width

    @property
    def high(self) -> float:
        return self.mean + self.half_width


@dataclass(frozen=True)
class PairedDifference:
    """Arm minus reference over the seeds that both have."""

    interval: Interval
    correlation: float
    """Correlation of arm and reference over seeds, which is what pairing gains; NaN where undefined."""

    @property
    def n(self) -> int:
        return self.interval.n

    @property
    def effect_size(self) -> float:
        """Hedges' g of the differences: their mean in units of their deviation, corrected for few seeds."""
        return standardised_difference(self.interval.mean, self.interval.deviation, self.interval.n)

    @property
    def mean(self) -> float:
        return self.interval.mean

    @property
    def low(self) -> float:
        return self.interval.low

    @property
    def high(self) -> float:
        return self.interval.high


@lru_cache(maxsize=1024)
def t_quantile(probability: float, degrees: int) -> float:
    """Quantile of Student's t."""
    return float(stats.t.ppf(probability, degrees))


def mean_interval(values: ArrayLike, confidence: float = CONFIDENCE) -> Interval:
    """t interval of the mean.

    Args:
        values: (num_seeds,), NaN = missing.
        confidence: coverage in (0, 1).
    """
    present = _one_axis(values)
    present = present[~np.isnan(present)]
    n = present.size
    if n == 0:
        return Interval(math.nan, math.nan, 0, math.nan)
    mean = float(present.mean())
    if n == 1:
        return Interval(mean, math.nan, 1, math.nan)
    deviation = float(present.std(ddof=1))
    return Interval(mean, t_quantile(0.5 + confidence / 2, n - 1) * deviation / math.sqrt(n), n, deviation)


def paired_difference(arm: ArrayLike, reference: ArrayLike, confidence: float = CONFIDENCE) -> PairedDifference:
    """Mean of `arm - reference`, paired by seed, with a t interval and the correlation of the pairs.

    Args:
        arm, reference: (num_seeds,), row i of both is the same seed; NaN = missing.
    """
    first, second = _one_axis(arm), _one_axis(reference)
    if first.shape != second.shape:
        raise ValueError(f"arm has {first.size} seeds, reference {second.size}: pairing needs one row per seed in both")
    both = ~(np.isnan(first) | np.isnan(second))
    first, second = first[both], second[both]
    correlation = math.nan
    if first.size >= 3 and np.ptp(first) > 0 and np.ptp(second) > 0:
        correlation = float(np.corrcoef(first, second)[0, 1])
    return PairedDifference(mean_interval(first - second, confidence), correlation)


def main_effects(scores: ArrayLike, reference: int) -> list[PairedDifference]:
    """Levels of one factor of a full grid against one of them, each averaged over the levels of the other factor.

    Averaging over L levels makes the noise of single arms smaller, up to the root of L: a grid tells more of a factor
    than any arm of it does.

    Args:
        scores: (num_seeds, num_levels, num_other_levels); NaN = missing, and drops its seed where it is averaged.
        reference: the level that the others are held against.

    Returns:
        A paired difference a level; that of `reference` is 0 throughout.
    """
    means = np.asarray(scores, dtype=np.float64).mean(axis=2)
    return [paired_difference(means[:, level], means[:, reference]) for level in range(means.shape[1])]


def standardised_difference(mean: float, deviation: float, n: int) -> float:
    """Mean difference over the deviation of the differences, with the exact factor of Hedges (1981) against its bias.

    Args:
        mean: of the n paired differences.
        deviation: of the same, n - 1 in the denominator.

    Returns:
        NaN below three pairs, where the factor is zero, and where all differences are equal.
    """
    if n < 3 or deviation == 0:
        return math.nan
    half = (n - 1) / 2
    return math.exp(math.lgamma(half) - math.lgamma(half - 0.5)) / math.sqrt(half) * mean / deviation


def max_t_adjusted_p(differences: ArrayLike, min_seeds: int = MIN_SEEDS_FOR_TEST) -> Floats:
    """Two-sided p per arm, adjusted for all arms by step-down max-T over joint sign flips.

    Westfall and Young (1993), algorithm 4.1 applied to sign flips: under "no arm differs from the reference"
    the vector of differences of a seed may be negated as a whole, so the flips keep the arms'
    dependence, and with 6 seeds the smallest p is 2/64 for any number of arms. The statistic is
    |sum of differences| / root of their sum of squares, which for a given n grows with |t|.

    Args:
        differences: (num_seeds, num_arms) arm minus reference, NaN = missing.
        min_seeds: arms with fewer pairs are not tested.

    Returns:
        (num_arms,) adjusted p; NaN for arms that are not tested.
    """
    table = np.asarray(differences, dtype=np.float64)
    if table.ndim != 2:
        raise ValueError(f"differences must be (num_seeds, num_arms), not of shape {table.shape}")
    adjusted = np.full(table.shape[1], math.nan)
    tested = np.flatnonzero((~np.isnan(table)).sum(axis=0) >= min_seeds)
    if tested.size == 0:
        return adjusted
    present = np.nan_to_num(table[:, tested])
    norm = np.sqrt((present**2).sum(axis=0))
    norm[norm == 0] = 1.0
    # The first flip is the data as they are.
    adjusted[tested] = step_down_p(np.abs(sign_flips(table.shape[0]) @ present) / norm)
    return adjusted


def step_down_p(statistic: Floats) -> Floats:
    """Adjusted p of step-down max-T.

    Args:
        statistic: (..., num_flips, num_arms), not negative; flip 0 is the data as they are.

    Returns:
        (..., num_arms).
    """
    order = np.argsort(-statistic[..., :1, :], axis=-1, kind="stable")
    ranked = np.take_along_axis(statistic, order, axis=-1)
    # Largest statistic among this arm and all less significant ones, under every flip.
    tail_max = np.maximum.accumulate(ranked[..., ::-1], axis=-1)[..., ::-1]
    p = np.maximum.accumulate((tail_max >= ranked[..., :1, :] - _TIE).mean(axis=-2), axis=-1)
    adjusted = np.empty_like(p)
    np.put_along_axis(adjusted, order[..., 0, :], p, axis=-1)
    return adjusted


def minimum_detectable_difference(
    deviation: float, num_seeds: int, confidence: float = CONFIDENCE, power: float = POWER
) -> float:
    """Smallest true mean difference that a two-sided paired t test finds with the given power.

    Args:
        deviation: standard deviation of the paired differences, in the metric's unit.
        num_seeds: pairs; NaN is returned below 2.
    """
    if num_seeds < 2 or math.isnan(deviation):
        return math.nan
    return _detectable_effect(num_seeds, confidence, power) * deviation


def num_seeds_needed(
    deviation: float, difference: float, confidence: float = CONFIDENCE, power: float = POWER, limit: int = 1000
) -> int | None:
    """Smallest number of seeds that detects `difference` with the given power; None above `limit`."""
    if difference <= 0 or deviation < 0:
        raise ValueError(f"difference={difference} must be positive and deviation={deviation} not negative")

    def detects(num_seeds: int) -> bool:
        return minimum_detectable_difference(deviation, num_seeds, confidence, power) <= difference

    if not detects(limit):
        return None
    low, high = 1, limit
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if detects(middle) else (middle, high)
    return high


def contenders(scores: ArrayLike, higher_is_better: bool = True, confidence: float = CONFIDENCE) -> NDArray[np.bool_]:
    """The arms that cannot be told from the best.

    Comparison with the best in the sense of Hsu (1981), for paired seeds with unequal variances: an arm
    leaves the set when it is beaten by any other arm, in a one-sided paired t test at level
    (1 - confidence) / (number of arms - 1). The truly best arm stays in with probability >= confidence.

    Args:
        scores: (num_seeds, num_arms), NaN = missing; an arm without any score is never a contender.

    Returns:
        (num_arms,) bool.
    """
    table = np.asarray(scores, dtype=np.float64)
    if table.ndim != 2:
        raise ValueError(f"scores must be (num_seeds, num_arms), not of shape {table.shape}")
    if not higher_is_better:
        table = -table
    scored = np.logical_not(np.isnan(table).all(axis=0))
    num_arms = int(scored.sum())
    if num_arms < 2:
        return scored
    # (num_seeds, rival, arm): how much the rival beats the arm by.
    lead = table[:, :, None] - table[:, None, :]
    n = (~np.isnan(lead)).sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.nansum(lead, axis=0) / n
        deviation = np.sqrt(np.nansum((lead - mean) ** 2, axis=0) / (n - 1))
        level = (1 - confidence) / (num_arms - 1)
        critical = np.array([t_quantile(1 - level, count - 1) if count > 1 else math.inf
                             for count in range(table.shape[0] + 1)])
        is_beaten = (n > 1) & (mean - critical[n] * deviation / np.sqrt(n) > 0)
    return np.logical_and(scored, np.logical_not(is_beaten.any(axis=0)))


def resampled_weights(num_groups: int, num_replicates: int, seed: int = 0) -> Floats:
    """(num_replicates, num_groups) how often each group is drawn in a bootstrap that draws groups with replacement.

    To use the same weights for two arms is what pairs them.
    """
    draws = np.random.default_rng(seed).integers(0, num_groups, size=(num_replicates, num_groups))
    weights = np.zeros((num_replicates, num_groups))
    np.add.at(weights, (np.arange(num_replicates)[:, None], draws), 1.0)
    return weights


def weighted_auroc(labels: ArrayLike, scores: ArrayLike, weights: ArrayLike) -> Floats:
    """Area under the ROC curve under many weightings of the examples at once; ties count half.

    Args:
        labels: (n,) 0 or 1; scores: (n,), larger for label 1.
        weights: (num_weightings, n), not negative; the draws of a bootstrap.

    Returns:
        (num_weightings,); NaN where a weighting leaves no positive or no negative.
    """
    truth, values = np.asarray(labels) == 1, np.asarray(scores, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    starts = np.flatnonzero(np.concatenate([[True], np.diff(values[order]) > 0]))
    sorted_weights = np.asarray(weights, dtype=np.float64)[:, order]
    # (num_weightings, distinct scores): weight of the positives and the negatives at each score.
    positive = np.add.reduceat(sorted_weights * truth[order], starts, axis=1)
    negative = np.add.reduceat(sorted_weights * ~truth[order], starts, axis=1)
    below = np.cumsum(negative, axis=1) - negative
    pairs = positive.sum(axis=1) * negative.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((positive * (below + 0.5 * negative)).sum(axis=1) / pairs)


def weighted_balanced_accuracy(labels: ArrayLike, is_right: ArrayLike, weights: ArrayLike) -> Floats:
    """Mean over classes of the share that is right, under many weightings of the examples at once.

    Args:
        labels: (n,) classes; is_right: (n,) whether the example was given its own.
        weights: (num_weightings, n), not negative; the draws of a bootstrap.

    Returns:
        (num_weightings,); NaN where a weighting leaves a class without an example.
    """
    table, right = np.asarray(weights, dtype=np.float64), np.asarray(is_right, dtype=bool)
    is_class = [np.asarray(labels) == label for label in np.unique(np.asarray(labels))]
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = [table[:, own & right].sum(axis=1) / table[:, own].sum(axis=1) for own in is_class]
    return np.asarray(np.mean(shares, axis=0))


@lru_cache(maxsize=256)
def _detectable_effect(num_seeds: int, confidence: float, power: float) -> float:
    """Smallest mean difference in units of the differences' standard deviation."""
    degrees = num_seeds - 1
    critical = t_quantile(0.5 + confidence / 2, degrees)
    # The noncentral t as a mixture of normals over the estimated deviation: scipy's own noncentral t
    # returns NaN far out in its tails.
    nodes, weights = np.polynomial.legendre.leggauss(400)
    estimated = np.sqrt(stats.chi2.ppf((nodes + 1) / 2, degrees) / degrees)

    def shortfall(shift: float) -> float:
        reached = special.ndtr(shift - critical * estimated) + special.ndtr(-shift - critical * estimated)
        return float(weights @ reached) / 2 - power

    # The shift is the effect in units of its standard error.
    return float(optimize.brentq(shortfall, 0.0, 10 * critical, xtol=1e-10)) / math.sqrt(num_seeds)


@lru_cache(maxsize=16)
def sign_flips(num_seeds: int) -> Floats:
    """(num_flips, num_seeds) of -1 and 1, first row all 1: every flip, or a fixed sample of them."""
    if num_seeds <= MAX_SEEDS_ENUMERATED:
        codes = np.arange(2**num_seeds)[:, None] >> np.arange(num_seeds)[None, :]
        bits = codes & 1
    else:
        drawn = np.random.default_rng(0).integers(0, 2, size=(NUM_SAMPLED_FLIPS, num_seeds))
        bits = np.concatenate([np.zeros((1, num_seeds), dtype=np.int64), drawn])
    return np.where(bits == 0, 1.0, -1.0)


def _one_axis(values: ArrayLike) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise ValueError(f"values must be (num_seeds,), not of shape {array.shape}")
    return array
