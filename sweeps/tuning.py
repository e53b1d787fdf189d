"""Nuisance parameters: the same candidates for every arm, chosen on validation patients at seeds set apart.

What lives here: the candidates of a study, the choice among measured ones, what a table may say of it. What must not:
how trials are run. Tuning trials are ordinary trials; they are tagged as those of the companion study
`<study>-tuning` and compute no test score at all.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from medst.config import stream_seed
from sweeps.designs import Assignment, arm_name
from sweeps.study_file import Tuning, TuningFactor

TASKS = ("validation",)
"""What tuning trials are evaluated on."""


def tuning_name(study: str) -> str:
    """Name under which a study's tuning trials are tagged."""
    return f"{study}-tuning"


@dataclass(frozen=True)
class Candidate:
    """One setting of the nuisance parameters."""

    name: str
    settings: Assignment


def candidates(tuning: Tuning) -> tuple[Candidate, ...]:
    """The candidates, the same for every arm: all combinations of levels, or a Latin hypercube of `draws` points."""
    labels = {key: factor.label for key, factor in tuning.factors.items()}
    if tuning.draws is None:
        levels = [factor.levels or () for factor in tuning.factors.values()]
        rows: Sequence[tuple[Any, ...]] = list(itertools.product(*levels))
    else:
        rows = list(zip(*(_drawn(key, factor, tuning.draws) for key, factor in tuning.factors.items()), strict=True))
    made = [dict(zip(tuning.factors, row, strict=True)) for row in rows]
    distinct = [settings for index, settings in enumerate(made) if settings not in made[:index]]
    return tuple(Candidate(arm_name(settings, labels), settings) for settings in distinct)


def _drawn(key: str, factor: TuningFactor, num_draws: int) -> list[Any]:
    """One value in each of `num_draws` equal parts of the factor, in an order that is the key's own."""
    stream = np.random.default_rng(stream_seed(0, f"tuning.{key}"))
    shares = (stream.permutation(num_draws) + stream.random(num_draws)) / num_draws
    if factor.levels is not None:
        return [factor.levels[int(share * len(factor.levels))] for share in shares]
    assert factor.range is not None
    low, high = factor.range
    values = low * (high / low) ** shares if factor.scale == "log" else low + (high - low) * shares
    # Three digits name a value in full.
    return [float(f"{value:.3g}") for value in values]


@dataclass(frozen=True)
class Choice:
    """The candidate that an arm is evaluated with."""

    candidate: Candidate
    score: float
    """Mean of the tuning metric over the tuning seeds."""
    edges: tuple[str, ...]
    """Keys whose chosen level is the first or last one tried: a better one may lie beyond."""


def choose(tuning: Tuning, tried: Sequence[Candidate], scores: Sequence[Sequence[float | None]]) -> Choice | None:
    """The best candidate of one arm.

    Args:
        tried: the candidates.
        scores: one row a candidate: the metric at every tuning seed, NaN where the trial failed, None where it has
            not ended.

    Returns:
        None while a trial has not ended, and where no candidate has a score at every seed.
    """
    if any(score is None for row in scores for score in row):
        return None
    means = [fmean(score for score in row if score is not None) for row in scores]
    sign = 1.0 if tuning.direction == "lower" else -1.0
    ranked = [math.inf if math.isnan(mean) else sign * mean for mean in means]
    best = min(range(len(tried)), key=ranked.__getitem__)
    if ranked[best] == math.inf:
        return None
    return Choice(tried[best], means[best], tuple(
        key for key in tuning.factors if _is_edge(tried[best].settings[key], [other.settings[key] for other in tried])))


def _is_edge(level: Any, levels: Sequence[Any]) -> bool:
    """True where a number is the smallest or largest of those tried, of which there are at least two."""
    numbers = [other for other in levels if isinstance(other, int | float) and not isinstance(other, bool)]
    return len(numbers) == len(levels) and len(set(levels)) > 1 and level in (min(numbers), max(numbers))


def report(tuning: Tuning, tried: Sequence[Candidate], chosen: Mapping[str, Choice]) -> dict[str, Any]:
    """What the study's plan says of the tuning: enough for a table's caption."""
    return {
        "metric": tuning.metric, "direction": tuning.direction, "seeds": list(tuning.seeds),
        "candidates": [candidate.settings for candidate in tried],
        "chosen": {arm: choice.candidate.settings for arm, choice in chosen.items()},
        "edges": {arm: list(choice.edges) for arm, choice in chosen.items() if choice.edges},
    }
