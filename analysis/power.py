"""How many seeds a difference needs, from the variance that was measured.

What lives here: the question per arm of a study, and its answer as a printed table. What must not: the power
of the test (analysis/detectable.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from analysis import registry
from analysis.detectable import Noise, smallest_p
from analysis.statistics import MIN_SEEDS_FOR_TEST, Floats
from analysis.text import counted
from analysis.tidy import Study, study_source
from medst import tracking

MIN_PAIRS = 2


@dataclass(frozen=True)
class SeedsNeeded:
    """What one arm's comparison with the reference needs."""

    arm: str
    num_pairs: int
    """Seeds from which the deviation was estimated."""
    deviation: float
    """Of the paired differences, in the tracked unit."""
    num_seeds: int | None
    """Seeds with which the study's test, adjusted for all arms, finds the difference four times in five: 6 at least,
    since with fewer no difference reaches its level; None above 1000."""


def seeds_needed(study: Study, metric: str, difference: float) -> list[SeedsNeeded]:
    """Seeds that each arm needs, for arms that at least two seeds compare with the reference.

    Args:
        difference: true mean difference to the reference, in the tracked unit, positive.
    """
    differences = _differences(study, metric)
    if differences.empty:
        return []
    noise = _noise(differences.to_numpy())
    needed = noise.num_seeds_needed(difference)
    return [SeedsNeeded(str(arm), int(num_pairs), float(deviation), num_seeds)
            for (arm, num_pairs), deviation, num_seeds in zip(differences.count().items(), noise.deviations, needed,
                                                              strict=True)]


def _differences(study: Study, metric: str) -> pd.DataFrame:
    """(seeds x arms) arm minus reference, of the arms with enough pairs for a deviation."""
    scores = study.scores(metric)
    differences = scores.drop(columns=study.plan.reference).sub(scores[study.plan.reference], axis=0)
    return differences.loc[:, differences.count() >= MIN_PAIRS]


def _noise(differences: Floats) -> Noise:
    """As measured; arms count as independent, which asks for most seeds, where too few pairs tell how they hang
    together."""
    noise = Noise.measured(differences)
    is_rough = (~np.isnan(differences)).sum(axis=0).min() < MIN_SEEDS_FOR_TEST
    return Noise(noise.deviations, np.eye(len(noise.deviations))) if is_rough else noise


def measured_study(snapshot: tracking.Snapshot, study: str, metric: str) -> tuple[str, Study] | None:
    """The study itself where two seeds of an arm are finished, else the one with most pairs on the same metric."""
    best: tuple[int, str, Study] | None = None
    for name in _first(study, snapshot.studies):
        loaded = study_source(snapshot, name).load()
        if metric not in loaded.metrics:
            continue
        pairs = int(_differences(loaded, metric).count().sum())
        if name == study and pairs:
            return name, loaded
        if pairs and (best is None or pairs > best[0]):
            best = pairs, name, loaded
    return None if best is None else best[1:]


def _first(name: str, names: Iterable[str]) -> list[str]:
    return sorted(names, key=lambda other: other != name)


def print_seeds_needed(uri: str, experiment: str, study: str, metric: str, difference: float,
                       console: Console | None = None) -> None:
    """Print how many seeds find `difference` on the study's primary metric, arm by arm."""
    console = console or Console()
    described = registry.describe(metric)
    shown = f"{difference * described.scale:g} {described.unit}".strip()
    found = measured_study(tracking.read_snapshot(uri, experiment), study, metric)
    if found is None:
        console.print(f"No variance of {described.name} is measured yet: run this study, or another one with the same "
                      "metric, with 2 seeds.", highlight=False)
        return
    source, loaded = found
    needed = seeds_needed(loaded, metric, difference)
    other = "" if source == study else f", from study {source}, since this one has no pairs yet"
    console.print("Seeds with which the study's own test (sign flips, 0.05, adjusted for "
                  f"{counted(len(needed), 'arm')}) finds a true difference of {shown} in {described.name} four times "
                  f"in five, from the measured variance{other}. {MIN_SEEDS_FOR_TEST} at least: with "
                  f"{MIN_SEEDS_FOR_TEST - 1} its smallest p is {smallest_p(MIN_SEEDS_FOR_TEST - 1):.3f}, for a "
                  "difference of any size.", highlight=False)
    table = Table("arm", "pairs", "deviation", "seeds needed", box=None, pad_edge=False, header_style="dim")
    for arm in needed:
        table.add_row(arm.arm, str(arm.num_pairs), f"{arm.deviation * described.scale:.2f}",
                      "over 1000" if arm.num_seeds is None else str(arm.num_seeds))
    console.print(table)
    pooled = math.sqrt(float(np.mean(np.square([arm.deviation for arm in needed]))))
    alike = Noise(np.full(len(needed), pooled), np.eye(len(needed))).num_seeds_needed(difference)
    seeds = None if None in alike else max(number for number in alike if number is not None)
    low = min(arm.num_pairs for arm in needed)
    console.print(f"Were all arms alike and independent: deviation {pooled * described.scale:.2f}, "
                  f"{'over 1000' if seeds is None else seeds} seeds."
                  + (f" A deviation from {low} pairs is rough: it may be off by half."
                     if low < MIN_SEEDS_FOR_TEST else ""), highlight=False)
