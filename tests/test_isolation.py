"""Searches in analysis: contests, edges, fronts, isolation plots, the table and the figures."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from analysis import isolation, searches
from analysis.searches import SearchResult, boundary_warnings, contest, front, hypervolume, running_best, table_text

AUROC = "validation/finding_zero_shot/mean/auroc"


def parameter(key: str, **changes: Any) -> dict[str, Any]:
    return {"key": key, "label": key.rsplit(".", 1)[-1], "choices": [], "low": 0.01, "high": 10.0, "is_integer": False,
            "is_log": True, "step": None, "levels": [], "when": {}, **changes}


def sample(best_lambda: float = 1.0, num_trials: int = 30, objectives: tuple[str, ...] = (AUROC,)) -> SearchResult:
    """A search whose best lies at `best_lambda`, with pruned trials and a conditional parameter."""
    random = np.random.default_rng(0)
    space = [parameter("objective.lambda_local"),
             parameter("objective.curriculum.kind", choices=["joint", "ramp"], low=0.0, high=0.0, is_log=False),
             parameter("objective.curriculum.ramp_fraction", low=0.0, high=1.0, is_log=False,
                       when={"objective.curriculum.kind": ["ramp"]})]
    rows, values, rungs = [], [], []
    for number in range(num_trials):
        drawn = float(10 ** random.uniform(-2, 1))
        held: dict[str, Any] = {"objective.lambda_local": best_lambda if number == 5 else drawn,
                                "objective.curriculum.kind": str(random.choice(["joint", "ramp"]))}
        if held["objective.curriculum.kind"] == "ramp":
            held["objective.curriculum.ramp_fraction"] = float(random.uniform(0, 1))
        score = 0.7 - 0.05 * np.log10(held["objective.lambda_local"] / best_lambda) ** 2
        is_pruned = number % 4 == 3
        row = {"number": number, "state": "pruned" if is_pruned else "finished", "key": f"k{number}",
               "run_id": f"r{number}", "seconds": 2.0 if is_pruned else 10.0, "reason": None}
        row |= {f"objectives.{metric}": np.nan if is_pruned else score * (1 - 2 * index) + index * number / 50
                for index, metric in enumerate(objectives)}
        rows.append(row)
        rungs.append({100: score - 0.1})
        values.append(held)
    importance = pd.DataFrame([(metric, entry["key"], 0.5 - 0.2 * index, np.nan if index == 2 else 0.5, 22)
                               for metric in objectives for index, entry in enumerate(space)],
                              columns=["objective", "parameter", "pedanova", "fanova", "num_trials"])
    plan = {"name": "weights", "question": "Which weights?", "objectives": list(objectives), "data": "tiny", "seed": 0,
            "directions": ["maximize"] * len(objectives), "space": space, "trials": 30, "sampler": {"kind": "tpe"},
            "scientific": ["objective.curriculum.kind"], "compare_with": []}
    return SearchResult(plan, pd.DataFrame(rows), tuple(values), importance, tuple(rungs))


def test_the_best_so_far_skips_what_did_not_finish() -> None:
    scores = np.array([np.nan, 0.5, np.nan, 0.4, 0.7])
    np.testing.assert_array_equal(running_best(scores, 1.0), [np.nan, 0.5, 0.5, 0.5, 0.7])
    np.testing.assert_array_equal(running_best(scores, -1.0), [np.nan, 0.5, 0.5, 0.4, 0.4])


def test_a_contest_counts_the_cost_of_pruned_trials() -> None:
    scores, seconds = np.array([0.5, np.nan, 0.6, 0.9]), np.array([10.0, 2.0, 10.0, 10.0])
    found = contest(scores, seconds, 1.0, "grid", np.array([0.4, 0.6, 0.55]), np.array([9.0, 9.0, 9.0]))
    assert found is not None
    assert (found.best, found.num_trials, found.seconds) == (0.6, 3, 27.0)
    assert (found.trials_to_reach, found.seconds_to_reach) == (3, 22.0)
    never = contest(scores, seconds, 1.0, "grid", np.array([0.95]), np.array([9.0]))
    assert never is not None and never.trials_to_reach is None and never.seconds_to_reach is None
    lower = contest(scores, seconds, -1.0, "grid", np.array([0.55]), np.array([9.0]))
    assert lower is not None and lower.trials_to_reach == 1
    assert contest(scores, seconds, 1.0, "grid", np.array([np.nan]), np.array([9.0])) is None


def test_the_best_at_an_edge_is_told_unless_the_setting_ends_there() -> None:
    (told,) = boundary_warnings(sample(best_lambda=9.9))
    assert "lambda_local (9.9) lies at the upper edge of its range (0.01 to 10)" in told
    assert boundary_warnings(sample(best_lambda=1.0)) == []
    result = sample()
    row = result.best()
    assert row is not None
    held = dict(result.values[row]) | {"objective.curriculum.kind": "ramp", "objective.curriculum.ramp_fraction": 0.99}
    values = (*result.values[:row], held, *result.values[row + 1:])
    # 0.99 of [0, 1]: a fraction cannot be larger than 1.
    assert boundary_warnings(replace(result, values=values)) == []


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(-1, 1)), min_size=1, max_size=30), st.sampled_from([1.0, -1.0]))
@settings(max_examples=100)
def test_each_part_of_a_range_shows_its_best(points: list[tuple[float, float]], sign: float) -> None:
    positions, scores = np.array(points).T
    rows = isolation.best_by_bin(positions, scores, sign, num_bins=4)
    parts = [min(int(4 * position), 3) for position in positions]
    assert [parts[row] for row in rows] == sorted(set(parts))
    for row in rows:
        beside = [scores[other] for other in range(len(points)) if parts[other] == parts[row]]
        assert scores[row] * sign == max(np.array(beside) * sign)


@given(arrays(float, st.tuples(st.integers(1, 8), st.integers(1, 3)), elements=st.floats(0, 1, width=16)))
@settings(max_examples=100)
def test_a_front_is_what_nobody_beats(scores: np.ndarray) -> None:
    expected = [not any((other >= own).all() and (other > own).any() for other in scores) for own in scores]
    assert front(scores).tolist() == expected


@given(arrays(float, st.tuples(st.integers(1, 5), st.integers(1, 3)), elements=st.integers(0, 4).map(float)))
@settings(max_examples=100)
def test_a_hypervolume_counts_the_dominated_cells(scores: np.ndarray) -> None:
    cells = itertools.product(range(4), repeat=scores.shape[1])
    expected = sum(any((np.array(cell) + 1 <= own).all() for own in scores) for cell in cells)
    assert hypervolume(scores, np.zeros(scores.shape[1])) == pytest.approx(expected)


def test_the_table_and_the_figures_say_what_was_found() -> None:
    result = sample(best_lambda=9.9)
    rival = (np.array([0.6, 0.65]), np.array([10.0, 10.0]))
    found = contest(result.scores(), result.seconds(), 1.0, "grid", *rival)
    assert found is not None
    text = table_text(result, [found])
    best = result.best()
    assert f"| {best} | 0.7000 |" in text and "23 finished" in text
    assert "**Warning.** The best lambda_local" in text and "7 pruned" in text and "| grid | 0.6500 | 2 | 20 |" in text
    for picture in (isolation.isolation(result), isolation.course(result, [found], {"grid": rival}),
                    isolation.importance_bars(result)):
        assert picture is not None and picture.study == "weights" and "weights" in picture.name
    picture = isolation.isolation(result)
    assert picture is not None
    first = picture.figure.axes[0]
    # The scientific parameter stands first: all finished trials behind, the best of each choice in front.
    assert first.get_xlabel() == "kind"
    points = max(first.lines, key=lambda line: len(line.get_xdata()))
    assert np.isfinite(points.get_ydata()).sum() == (result.trials["state"] == "finished").sum()
    assert isolation.pareto(result) is None


def test_several_objectives_have_a_front() -> None:
    result = sample(objectives=(AUROC, "validation/change/mean/auroc"))
    picture = isolation.pareto(result)
    assert picture is not None and isolation.course(result, [], {}) is None
    assert "## Against others" not in table_text(result, [])
    assert isolation.isolation(result, 1) is not None


def test_values_survive_the_table_that_is_tracked(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = pd.DataFrame({"number": [0, 1], "state": ["finished", "pruned"], "seconds": [1.0, 2.0],
                          "run_id": ["a", "b"], "rungs": ['{"100": 0.5}', "{}"], "values.data.views": ['"both"', None],
                          "values.objective.lambda_local": ["0.1", "1.0"], f"objectives.{AUROC}": [0.7, None]})
    frame.to_parquet(tmp_path / "trials.parquet")
    pd.DataFrame(columns=["objective", "parameter"]).to_parquet(tmp_path / "importance.parquet")
    (tmp_path / "plan.json").write_text(json.dumps(sample().plan))
    monkeypatch.setattr(searches, "load_group_plan", lambda *arguments: dict(sample().plan))
    monkeypatch.setattr(searches, "group_artifact", lambda kind, name, file, *rest: tmp_path / file.split("/")[1])
    monkeypatch.setattr(searches, "group_run_id", lambda *arguments: "run")
    files = ["plan.json", "search/importance.parquet", "search/trials.parquet"]
    monkeypatch.setattr(searches.tracking, "list_artifacts", lambda *arguments: files)
    loaded = searches.load_search("", "", "weights")
    assert loaded is not None
    assert loaded.values == ({"data.views": "both", "objective.lambda_local": 0.1}, {"objective.lambda_local": 1.0})
    assert loaded.rungs == ({100: 0.5}, {})
    files.pop()
    assert searches.load_search("", "", "weights") is None
