"""How many seeds a difference needs, from the variance that was measured.

What lives here: the question per arm of a study, and its answer as a printed table. What must not: the formula
(analysis/statistics.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.table import Table

from analysis import registry, statistics
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
    """Seeds that find the difference with power 0.8 in a two-sided paired t test at 0.05; None above 1000."""


def seeds_needed(study: Study, metric: str, difference: float) -> list[SeedsNeeded]:
    """Seeds that each arm needs, for arms that at least two seeds compare with the reference.

    Args:
        difference: true mean difference to the reference, in the tracked unit, positive.
    """
    scores = study.scores(metric)
    reference = scores[study.plan.reference].to_numpy()
    found = []
    for arm in study.plan.arms:
        if arm == study.plan.reference:
            continue
        paired = statistics.paired_difference(scores[arm].to_numpy(), reference)
        if paired.n >= MIN_PAIRS and not math.isnan(paired.interval.deviation):
            found.append(SeedsNeeded(arm, paired.n, paired.interval.deviation, statistics.num_seeds_needed(
                paired.interval.deviation, difference)))
    return found


def measured_study(snapshot: tracking.Snapshot, study: str, metric: str) -> tuple[str, Study] | None:
    """The study itself where two seeds of an arm are finished, else the one with most pairs on the same metric."""
    best: tuple[int, str, Study] | None = None
    for name in _first(study, snapshot.studies):
        loaded = study_source(snapshot, name).load()
        if metric not in loaded.metrics:
            continue
        pairs = sum(needed.num_pairs for needed in seeds_needed(loaded, metric, 1.0))
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
    console.print(f"Seeds that find a true difference of {shown} in {described.name} four times in five (paired t "
                  f"test, 0.05, before any adjustment), from the measured variance{other}:", highlight=False)
    table = Table("arm", "pairs", "deviation", "seeds needed", box=None, pad_edge=False, header_style="dim")
    for arm in needed:
        table.add_row(arm.arm, str(arm.num_pairs), f"{arm.deviation * described.scale:.2f}",
                      "over 1000" if arm.num_seeds is None else str(arm.num_seeds))
    console.print(table)
    deviations = [arm.deviation for arm in needed]
    pooled = math.sqrt(float(np.mean(np.square(deviations))))
    seeds = statistics.num_seeds_needed(pooled, difference)
    low = min(arm.num_pairs for arm in needed)
    console.print(f"Pooled over arms: deviation {pooled * described.scale:.2f}, "
                  f"{'over 1000' if seeds is None else seeds} seeds."
                  + (f" A deviation from {low} pairs is rough: it may be off by half." if low < 6 else ""),
                  highlight=False)
