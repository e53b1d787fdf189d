"""What the statistics of a comparison do where the truth is known: nothing differs, or an effect is planted.

Pure functions of scores: false positives and power where two arms are the same, coverage of intervals, dose-response.
What must not live here: the statistics themselves (statistics.py), studies, tables, figures (audit.py).

Axis 0 of scores is the seed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from analysis import statistics
from analysis.detectable import Noise, detectable_differences

SEEDS_OF_A_STUDY = 6
"""Seeds of the comparisons that are audited: those of the full studies."""
NUM_REPETITIONS = 2000
LEVEL = 1 - statistics.CONFIDENCE


@dataclass(frozen=True)
class Rate:
    """A share of repetitions with its exact (Clopper-Pearson) 95 % interval."""

    hits: int
    trials: int

    @property
    def value(self) -> float:
        return self.hits / self.trials

    @property
    def interval(self) -> tuple[float, float]:
        return clopper_pearson(self.hits, self.trials)


def clopper_pearson(hits: int, trials: int, confidence: float = statistics.CONFIDENCE) -> tuple[float, float]:
    """Exact interval of a binomial share (Clopper and Pearson, 1934)."""
    if not 0 <= hits <= trials or trials < 1:
        raise ValueError(f"{hits} hits of {trials} trials is no share")
    tail = (1 - confidence) / 2
    low = 0.0 if hits == 0 else float(stats.beta.ppf(tail, hits, trials - hits + 1))
    high = 1.0 if hits == trials else float(stats.beta.ppf(1 - tail, hits + 1, trials - hits))
    return low, high


@dataclass(frozen=True)
class Rejections:
    """How often arms that differ by `shift` were told apart."""

    shift: float
    by_test: Rate
    """At least one arm with an adjusted p of 0.05 or less."""
    by_interval: Rate
    """The 95 % interval of the first arm's difference excludes 0."""


def split_rejections(pool: ArrayLike, *, shift: float = 0.0, num_arms: int = 1, num_seeds: int = SEEDS_OF_A_STUDY,
                     num_repetitions: int = NUM_REPETITIONS, seed: int = 0) -> Rejections:
    """One arm under several names with disjoint seeds, drawn again and again from its stored trials.

    Args:
        pool: (n,) scores of one arm, one a seed; n >= (num_arms + 1) * num_seeds.
        shift: added to the scores of every arm but the reference: what there is to find.
    """
    scores = np.asarray(pool, dtype=np.float64)
    scores = scores[~np.isnan(scores)]
    size = (num_arms + 1) * num_seeds
    if scores.size < size:
        raise ValueError(f"{scores.size} seeds are finished, and {num_arms + 1} disjoint sets of {num_seeds} need "
                         f"{size}")
    rng = np.random.default_rng(seed)
    by_test = by_interval = 0
    for _ in range(num_repetitions):
        drawn = rng.permutation(scores)[:size].reshape(num_arms + 1, num_seeds)
        differences = (drawn[1:] + shift - drawn[0]).T
        by_test += bool(np.nanmin(statistics.max_t_adjusted_p(differences)) <= LEVEL)
        interval = statistics.mean_interval(differences[:, 0])
        by_interval += not interval.low <= 0.0 <= interval.high
    return Rejections(shift, Rate(by_test, num_repetitions), Rate(by_interval, num_repetitions))


def disjoint_rejections(pools: Iterable[ArrayLike], num_seeds: int = SEEDS_OF_A_STUDY) -> Rate:
    """The same on real sets that share no seed: consecutive seeds of every pool against the next ones, each used once.

    Args:
        pools: of arms on one metric; another metric of the same trials would be no new comparison.

    Returns:
        Share of comparisons with p of 0.05 or less.
    """
    hits = trials = 0
    for pool in pools:
        scores = np.asarray(pool, dtype=np.float64)
        for begin in range(0, len(scores) - 2 * num_seeds + 1, 2 * num_seeds):
            first, second = scores[begin:begin + 2 * num_seeds].reshape(2, num_seeds)
            p = statistics.max_t_adjusted_p((second - first)[:, None])[0]
            if not math.isnan(p):
                hits, trials = hits + int(p <= LEVEL), trials + 1
    return Rate(hits, trials)


def coverage(pool: ArrayLike, *, num_seeds: int = SEEDS_OF_A_STUDY, num_repetitions: int = NUM_REPETITIONS,
             seed: int = 0) -> Rate:
    """How often the interval of a few seeds covers the truth of many.

    The stored seeds stand for all there are: few are drawn from them with replacement, and their mean is the truth.

    Args:
        pool: (n,) scores, or paired differences, one a seed.
    """
    values = np.asarray(pool, dtype=np.float64)
    values = values[~np.isnan(values)]
    truth = float(values.mean())
    rng = np.random.default_rng(seed)
    hits = 0
    for _ in range(num_repetitions):
        interval = statistics.mean_interval(rng.choice(values, num_seeds))
        # A draw of one value alone has an interval of length 0.
        hits += interval.low - 1e-12 <= truth <= interval.high + 1e-12
    return Rate(hits, num_repetitions)


def found_shift(pool: ArrayLike, power: float = statistics.POWER) -> tuple[float, list[Rejections]]:
    """The smallest shift that the test finds with the given power in pairs of disjoint seeds, and the power curve.

    Returns:
        Shift in the metric's unit (inf where none on the curve is found often enough), and rejections by shift.
    """
    deviation = float(np.nanstd(np.asarray(pool, dtype=np.float64), ddof=1))
    curve = [split_rejections(pool, shift=factor * deviation, num_repetitions=400)
             for factor in np.arange(0.0, 4.01, 0.25)]
    return next((point.shift for point in curve if point.by_test.value >= power), math.inf), curve


def stated_difference(pool: ArrayLike, num_seeds: int = SEEDS_OF_A_STUDY) -> float:
    """The detectable difference that a table would state of two arms that spread like `pool` and share no seed."""
    deviation = math.sqrt(2) * float(np.nanstd(np.asarray(pool, dtype=np.float64), ddof=1))
    return float(Noise(np.array([deviation]), np.eye(1)).detectable(np.ones((num_seeds, 1), dtype=bool))[0])


@dataclass(frozen=True)
class Dose:
    """One point of a dose-response curve."""

    dose: float
    difference: statistics.PairedDifference
    adjusted_p: float
    """Adjusted for all doses of the effect; NaN below 6 seeds."""
    detectable: float
    """Smallest difference that this adjusted test finds four times in five; inf below 6 seeds."""

    @property
    def is_found(self) -> bool:
        """Better, and not by chance."""
        return self.adjusted_p <= LEVEL and self.difference.mean > 0


def dose_response(scores: Mapping[str, ArrayLike], arms: Sequence[tuple[float, str, str]]) -> list[Dose]:
    """Differences with and without the information, by dose.

    Args:
        scores: arm -> (num_seeds,).
        arms: (dose, arm with, arm without).
    """
    with_it = [np.asarray(scores[arm], dtype=np.float64) for _, arm, _ in arms]
    without = [np.asarray(scores[arm], dtype=np.float64) for _, _, arm in arms]
    differences = np.stack(with_it, axis=1) - np.stack(without, axis=1)
    return [Dose(dose, statistics.paired_difference(first, second), float(p), float(least))
            for (dose, _, _), first, second, p, least in zip(
                arms, with_it, without, statistics.max_t_adjusted_p(differences), detectable_differences(differences),
                strict=True)]


def trend(scores: Mapping[str, ArrayLike], arms: Sequence[tuple[float, str, str]]) -> statistics.Interval:
    """Slope of the difference over the doses: its mean over the seeds that have them all, with its t interval.

    Each seed has a slope of its own, by least squares. Where dose 0 is what all others are compared with, its
    difference of 0 is a point of the line. NaN with fewer than two doses.

    Args:
        scores: arm -> (num_seeds,).
        arms: (dose, arm with, arm without) in rising order.
    """
    doses = [dose for dose, _, _ in arms]
    columns = [np.asarray(scores[whole], dtype=np.float64) - np.asarray(scores[cut], dtype=np.float64)
               for _, whole, cut in arms]
    if doses and doses[0] > 0:
        doses, columns = [0.0, *doses], [np.zeros_like(columns[0]), *columns]
    if len(doses) < 2:
        return statistics.mean_interval([])
    table = np.stack(columns, axis=1)
    centred = np.array(doses) - np.mean(doses)
    # A seed without one of the doses has NaN for its slope, which the interval leaves out.
    return statistics.mean_interval(table @ centred / (centred @ centred))
