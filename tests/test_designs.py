"""Designs, constraints and candidates as pure functions, held against brute force."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeps.constraints import Constraint, ConstraintError
from sweeps.designs import Crossed, Fraction, arm_name, cross, fraction, one_at_a_time
from sweeps.planning import alias_lines
from sweeps.study_file import Tuning
from sweeps.tuning import Candidate, candidates, choose

KEYS = ("a.one", "a.two", "b.three", "b.four")


@st.composite
def factors(draw: st.DrawFn) -> list[Crossed]:
    """Up to four factors, each of which may depend on an earlier one."""
    made: list[Crossed] = []
    for key in KEYS[: draw(st.integers(1, 4))]:
        levels = draw(st.lists(st.integers(0, 5), min_size=1, max_size=3, unique=True))
        when: Mapping[str, tuple[int, ...]] = {}
        if made and draw(st.booleans()):
            other = draw(st.sampled_from(made))
            when = {other.key: tuple(draw(st.lists(st.integers(0, 5), min_size=1, max_size=2)))}
        made.append(Crossed(key, tuple(levels), when))
    return made


REFERENCE = dict.fromkeys(KEYS, 9)


@given(factors())
def test_a_crossing_is_what_is_left_of_all_combinations(design: list[Crossed]) -> None:
    """Every combination of levels, each cut to the factors that exist in it, in the order of first sight."""
    expected: dict[tuple[tuple[str, int], ...], None] = {}
    for levels in itertools.product(*(factor.levels for factor in design)):
        kept: dict[str, int] = {}
        for factor, level in zip(design, levels, strict=True):
            if all({**REFERENCE, **kept}[key] in allowed for key, allowed in factor.when.items()):
                kept[factor.key] = level
        expected[tuple(kept.items())] = None
    made = [tuple(assignment.items()) for assignment in cross(design, REFERENCE)]
    assert sorted(made) == sorted(expected)
    assert len(made) == len(set(made)), "each arm is there once"


@given(factors())
def test_one_at_a_time_changes_one_factor_that_exists(design: list[Crossed]) -> None:
    made = list(one_at_a_time(design, REFERENCE))
    # The reference has the value 9 everywhere, so that no condition on another factor is met.
    assert made == [{factor.key: level} for factor in design if not factor.when for level in factor.levels]


def test_a_factor_whose_condition_is_not_met_is_not_crossed() -> None:
    kind = Crossed("kind", ("joint", "staged", "ramp"))
    start = Crossed("start", (0.25, 0.5), {"kind": ("staged", "ramp")})
    ramp = Crossed("ramp", (0.1, 0.2, 0.4), {"kind": ("ramp",)})
    made = list(cross([kind, start, ramp], {"kind": "joint", "start": 0.5, "ramp": 0.25}))
    assert len(made) == 1 + 2 + 2 * 3
    assert made[0] == {"kind": "joint"} and made[1] == {"kind": "staged", "start": 0.25}
    assert arm_name(made[-1], {"kind": None, "start": "s"}) == "kind = ramp, s = 0.5, ramp = 0.4"


def brute_force_resolution(design: Fraction) -> int | None:
    """Fewest factors whose product of -1 and 1 is constant over all runs."""
    runs = [[1 - 2 * level for level in run] for run in design.runs()]
    for size in range(1, len(design.columns) + 1):
        for word in itertools.combinations(range(len(design.columns)), size):
            products = set()
            for run in runs:
                product = 1
                for factor in word:
                    product *= run[factor]
                products.add(product)
            if len(products) == 1:
                return size
    return None


SMALLEST = {3: {3: 4, 4: 8, 5: 8, 6: 8, 7: 8, 8: 16, 9: 16, 10: 16}, 4: {4: 8, 5: 16, 6: 16, 7: 16, 8: 16, 9: 32},
            5: {5: 16, 6: 32, 7: 64, 8: 64}}
"""Resolution -> factors -> fewest runs (Montgomery, Design and Analysis of Experiments, table 8.14)."""


@pytest.mark.parametrize(("num_factors", "resolution", "num_runs"), [
    (factors, resolution, runs) for resolution, table in SMALLEST.items() for factors, runs in table.items()])
def test_fractions_have_their_resolution_and_are_the_smallest_known(num_factors: int, resolution: int,
                                                                   num_runs: int) -> None:
    design = fraction(num_factors, resolution)
    runs = list(design.runs())
    assert design.num_runs == len(runs) == len(set(runs)) == num_runs
    assert runs[0] == (0,) * num_factors
    assert all(sum(column) == num_runs / 2 for column in zip(*runs, strict=True)), "balanced"
    found = brute_force_resolution(design)
    assert found == design.resolution() and found is not None and found >= resolution


@pytest.mark.parametrize(("num_factors", "resolution"), [(5, 3), (6, 4), (7, 3), (6, 5)])
def test_aliases_are_the_effects_that_no_run_tells_apart(num_factors: int, resolution: int) -> None:
    design = fraction(num_factors, resolution)
    runs = [[1 - 2 * level for level in run] for run in design.runs()]
    contrasts: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    effects = [(factor,) for factor in range(num_factors)] + list(itertools.combinations(range(num_factors), 2))
    for effect in effects:
        contrast = tuple(run[effect[0]] * (run[effect[1]] if len(effect) == 2 else 1) for run in runs)
        contrasts.setdefault(contrast, []).append(effect)
    assert sorted(design.aliases()) == sorted(tuple(group) for group in contrasts.values() if len(group) > 1)


def test_more_resolution_than_a_fraction_can_have_is_the_full_crossing() -> None:
    design = fraction(3, 4)
    assert sorted(design.runs()) == sorted(itertools.product((0, 1), repeat=3)) and design.resolution() is None
    assert list(alias_lines(design, "abc")) == ["Fraction: 8 runs, all combinations: nothing is aliased."]


def test_a_fraction_tells_its_aliases() -> None:
    assert list(alias_lines(fraction(4, 4), "ABCD")) == [
        "Fraction: 8 of 16 combinations, resolution 4; generators: D = A x B x C.",
        "Aliased (of main effects and interactions of two):", "  A x B = C x D", "  A x C = B x D", "  A x D = B x C"]


# ---- Constraints -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "expected"), [
    ("a.x > 0 or a.y > 0", True), ("a.x > 0 and a.y > 0", False), ("not (a.kind == 'ramp' and a.y < 1)", False),
    ("a.kind in ['joint', 'ramp']", True), ("a.kind not in ('joint', 'ramp')", False), ("0 <= a.x < 1", True),
    ("a.y * 2 + 1 == 1", True), ("a.none == null", True), ("a.flag", True), ("-a.x >= -0.5", True),
    ("a.flag == true", True), ("a.x / 2 - 0.25 == a.y % 3", True),
])
def test_constraints_are_judged(text: str, expected: bool) -> None:
    values = {"a.x": 0.5, "a.y": 0, "a.kind": "ramp", "a.none": None, "a.flag": True}
    constraint = Constraint.parse(text)
    assert constraint.holds(values) is expected
    assert constraint.keys <= set(values)


@pytest.mark.parametrize(("text", "message"), [
    ("__import__('os').system('true')", "may hold settings"), ("a.x.__class__()", "may hold settings"),
    ("[x for x in a.x]", "may hold settings"), ("a.x >", "at character"), ("lambda: 1", "may hold settings"),
    ("1 > 0", "no setting stands in it"), ("a.x ** 9 > 1", "may hold settings"), ("a.x if a.y else 1", "may hold"),
])
def test_what_is_no_constraint_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConstraintError, match=message):
        Constraint.parse(text)


@pytest.mark.parametrize(("text", "message"), [
    ("a.x + 1", "neither true nor false"), ("a.kind > 1", "not supported"), ("a.x / 0 > 1", "division by zero"),
    ("a.x or a.y > 1", "neither true nor false"),
])
def test_constraints_that_cannot_be_judged_say_why(text: str, message: str) -> None:
    with pytest.raises(ConstraintError, match=message):
        Constraint.parse(text).holds({"a.x": 1, "a.y": 2, "a.kind": "ramp"})


# ---- Tuning ------------------------------------------------------------------------------------------------------


def tuning(**settings: object) -> Tuning:
    return Tuning.model_validate({
        "factors": {"training.learning_rate": {"levels": (1.0, 2.0, 4.0)}}, "metric": "validation/loss",
        "direction": "lower", "seeds": (100, 101), **settings})


def test_candidates_are_all_combinations_of_levels() -> None:
    made = candidates(tuning(factors={"training.learning_rate": {"levels": (1.0, 2.0), "label": "rate"},
                                      "training.weight_decay": {"levels": (0.0, 0.1)}}))
    assert [candidate.name for candidate in made] == [
        "rate = 1.0, weight_decay = 0.0", "rate = 1.0, weight_decay = 0.1",
        "rate = 2.0, weight_decay = 0.0", "rate = 2.0, weight_decay = 0.1"]
    assert made[1].settings == {"training.learning_rate": 1.0, "training.weight_decay": 0.1}


@given(st.integers(2, 12))
def test_draws_fill_every_part_of_a_range(num_draws: int) -> None:
    made = candidates(tuning(draws=num_draws, factors={
        "training.learning_rate": {"range": (1e-4, 1e-1)}, "training.warmup_fraction": {"range": (0.0, 0.5),
                                                                                         "scale": "linear"}}))
    assert made == candidates(tuning(draws=num_draws, factors={
        "training.learning_rate": {"range": (1e-4, 1e-1)}, "training.warmup_fraction": {"range": (0.0, 0.5),
                                                                                         "scale": "linear"}}))
    assert len(made) == num_draws
    for key, low, high, is_log in (("training.learning_rate", 1e-4, 1e-1, True),
                                   ("training.warmup_fraction", 0.0, 0.5, False)):
        from math import log

        values = sorted(float(candidate.settings[key]) for candidate in made)
        shares = [(log(value / low) / log(high / low)) if is_log else (value - low) / (high - low) for value in values]
        # Rounded to three digits, a value may step over the border of its part by a little.
        assert all(index / num_draws - 0.01 <= share <= (index + 1) / num_draws + 0.01
                   for index, share in enumerate(shares))


def test_the_best_mean_over_the_tuning_seeds_is_chosen() -> None:
    tried = candidates(tuning())
    nan = float("nan")
    choice = choose(tuning(), tried, [[3.0, 1.0], [1.5, 1.5], [nan, 0.1]])
    assert choice is not None and choice.candidate == tried[1] and choice.score == 1.5 and choice.edges == ()
    choice = choose(tuning(direction="higher"), tried, [[3.0, 1.0], [1.5, 1.5], [nan, 9.0]])
    assert choice is not None and choice.candidate == tried[0] and choice.edges == ("training.learning_rate",)
    assert choose(tuning(), tried, [[3.0, None], [1.0, 1.0], [1.0, 1.0]]) is None, "a trial has not ended"
    assert choose(tuning(), tried, [[nan, 1.0]] * 3) is None, "no candidate has a score at every seed"
    texts = [Candidate(kind, {"training.learning_rate": kind}) for kind in ("a", "b")]
    choice = choose(tuning(), texts, [[1.0], [2.0]])
    assert choice is not None and choice.edges == (), "texts have no order"
