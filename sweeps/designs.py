"""Designs: which combinations of levels become arms. Pure functions of factors.

What lives here: the crossing of factors with conditions, one factor at a time, two-level fractions and what they
alias, the names of what they make. What must not: study files, configs.

Fractions are built here because the designs of the common library (pyDOE3 1.6) miss the resolution that was asked
for: from 7 factors on its `fracfact_by_res(n, 5)` is of resolution IV.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Level = Any
"""A plain value of a setting: bool, int, float, text, list of texts, None."""
Assignment = dict[str, Level]
"""Dotted key -> level."""

MAX_FRACTION_FACTORS = 20


@dataclass(frozen=True)
class Crossed:
    """A factor of a design."""

    key: str
    levels: tuple[Level, ...]
    when: Mapping[str, tuple[Level, ...]] = field(default_factory=dict)
    """Key -> the values of which it must have one for this factor to exist; empty: it always exists."""


def is_met(when: Mapping[str, tuple[Level, ...]], values: Mapping[str, Level]) -> bool:
    """True where every key of the condition has one of its values."""
    return all(values[key] in allowed for key, allowed in when.items())


def cross(factors: Sequence[Crossed], reference: Mapping[str, Level]) -> Iterator[Assignment]:
    """Every combination of levels, the last factor varying fastest.

    A factor whose condition is not met takes no part in a combination. Conditions on other factors of the design
    must point to earlier ones.

    Args:
        reference: every setting where no factor says otherwise, on which conditions may depend too.
    """
    if not factors:
        yield {}
        return
    *before, last = factors
    for assignment in cross(before, reference):
        if is_met(last.when, {**reference, **assignment}):
            for level in last.levels:
                yield {**assignment, last.key: level}
        else:
            yield assignment


def one_at_a_time(factors: Sequence[Crossed], reference: Mapping[str, Level]) -> Iterator[Assignment]:
    """Every level of every factor alone; factors whose condition the reference does not meet give none."""
    for factor in factors:
        if is_met(factor.when, reference):
            for level in factor.levels:
                yield {factor.key: level}


def arm_name(assignment: Mapping[str, Level], labels: Mapping[str, str | None]) -> str:
    """`λ1 = 0.3, kind = staged`: each factor by its label, else by the last part of its key."""
    return ", ".join(
        f"{labels.get(key) or key.rsplit('.', 1)[-1]} = {level if isinstance(level, str) else json.dumps(level)}"
        for key, level in assignment.items())


@dataclass(frozen=True)
class Fraction:
    """A regular two-level fraction: each factor's column is a sum, modulo 2, of base columns."""

    columns: tuple[int, ...]
    """One a factor: the base columns of which it is the sum, as bits. The first factors are the base."""
    num_base: int

    @property
    def num_runs(self) -> int:
        return 1 << self.num_base

    def runs(self) -> Iterator[tuple[int, ...]]:
        """The level (0 or 1) of every factor in every run; the first run has 0 everywhere."""
        for bits in range(self.num_runs):
            # The first factor varies slowest, as in a full crossing.
            row = int(f"{bits:0{self.num_base}b}"[::-1], 2) if self.num_base else 0
            yield tuple((row & column).bit_count() % 2 for column in self.columns)

    def generators(self) -> list[tuple[int, tuple[int, ...]]]:
        """(factor, the base factors whose product it is) of every factor beyond the base."""
        return [(index, tuple(base for base in range(self.num_base) if column >> base & 1))
                for index, column in enumerate(self.columns) if index >= self.num_base]

    def words(self) -> list[frozenset[int]]:
        """The defining relation: every set of factors whose product is constant over the runs."""
        generated = [frozenset({index, *base}) for index, base in self.generators()]
        words: list[frozenset[int]] = [frozenset()]
        for generator in generated:
            words += [word ^ generator for word in words]
        return sorted(words[1:], key=lambda word: (len(word), sorted(word)))

    def resolution(self) -> int | None:
        """Length of the shortest word; None for a full crossing, which aliases nothing."""
        return min(map(len, self.words()), default=None)

    def aliases(self, max_order: int = 2) -> list[tuple[tuple[int, ...], ...]]:
        """Groups of effects of at most `max_order` factors that this fraction cannot tell apart, main effects first."""
        groups: dict[int, list[tuple[int, ...]]] = {}
        for order in range(1, max_order + 1):
            for effect in itertools.combinations(range(len(self.columns)), order):
                total = 0
                for factor in effect:
                    total ^= self.columns[factor]
                groups.setdefault(total, []).append(effect)
        return [tuple(group) for group in groups.values() if len(group) > 1]


def fraction(num_factors: int, resolution: int) -> Fraction:
    """The smallest fraction of at least this resolution that a greedy search finds; a full crossing where none is.

    A set of columns is of resolution R when no fewer than R of them add up to nothing. The columns after the base are
    taken in ascending order, each of them if it is no sum of R - 2 or fewer of those before.
    """
    assert 1 <= num_factors <= MAX_FRACTION_FACTORS and resolution >= 3
    for num_base in range(1, num_factors):
        columns: list[int] = []
        # sums[j]: what j different columns add up to.
        sums: list[set[int]] = [{0}, *(set() for _ in range(resolution - 2))]
        base = [1 << index for index in range(num_base)]
        for candidate in itertools.chain(base, (other for other in range(1 << num_base) if other.bit_count() > 1)):
            if any(candidate in reached for reached in sums):
                continue
            columns.append(candidate)
            if len(columns) == num_factors:
                return Fraction(tuple(columns), num_base)
            for order in range(resolution - 2, 0, -1):
                sums[order] |= {reached ^ candidate for reached in sums[order - 1]}
    return Fraction(tuple(1 << index for index in range(num_factors)), num_factors)
