"""What changed between two results folders, and why; how many seeds a difference needs."""

from __future__ import annotations

import json
import math
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from scipy import stats

from analysis import difference
from analysis.difference import RunOrigin, compare, print_difference, run_ids
from analysis.power import seeds_needed
from analysis.tidy import Plan, Study

METRIC = {"key": "test/score", "scale": 100.0, "short": "Score", "digits": 1}


def cell(arm: str, values: dict[str, float], runs: dict[str, str], metric: str = "test/score") -> dict[str, Any]:
    mean = sum(values.values()) / len(values) if values else None
    return {"arm": arm, "metric": metric, "n": len(values), "mean": mean, "values": values, "run_ids": runs,
            "difference": None, "adjusted_p": None, "detectable": None, "mark": ""}


def folder(path: Path, cells: list[dict[str, Any]], name: str = "tiny", **changes: Any) -> Path:
    (path / "tables").mkdir(parents=True, exist_ok=True)
    metrics = [{**METRIC, "key": key} for key in dict.fromkeys(cell["metric"] for cell in cells)]
    document = {"format": "medst-table/2", "name": name, "metrics": metrics, "cells": cells,
                "reference": "full",
                "arms": [{"name": arm} for arm in dict.fromkeys(cell["arm"] for cell in cells)], **changes}
    (path / "tables" / f"{name}.json").write_text(json.dumps(document))
    return path


def test_equal_folders_have_no_changes(tmp_path: Path) -> None:
    cells = [cell("full", {"0": 0.7, "1": 0.8}, {"0": "a", "1": "b"}), cell("none", {}, {})]
    found = compare(folder(tmp_path / "a", cells), folder(tmp_path / "b", cells), {})
    assert found.changes == () and (found.num_equal, found.num_recomputed) == (1, 0)


def test_every_kind_of_change_has_its_reason(tmp_path: Path) -> None:
    before = folder(tmp_path / "a", [
        cell("same", {"0": 0.7}, {"0": "a0"}), cell("again", {"0": 0.7}, {"0": "a1"}),
        cell("seeds", {"0": 0.7, "1": 0.8}, {"0": "a2", "1": "a3"}), cell("code", {"0": 0.7}, {"0": "a4"}),
        cell("data", {"0": 0.7}, {"0": "a5"}), cell("settings", {"0": 0.7}, {"0": "a6"}),
        cell("edited", {"0": 0.7}, {"0": "a7"}), cell("gone", {"0": 0.7}, {"0": "a8"}),
        cell("unknown", {"0": 0.7}, {"0": "a9"})])
    after = folder(tmp_path / "b", [
        cell("same", {"0": 0.7}, {"0": "a0"}), cell("again", {"0": 0.7}, {"0": "b1"}),
        cell("seeds", {"1": 0.8, "2": 0.9, "10": 0.9}, {"1": "a3", "2": "b2", "10": "b3"}),
        cell("code", {"0": 0.71}, {"0": "b4"}), cell("data", {"0": 0.71}, {"0": "b5"}),
        cell("settings", {"0": 0.71}, {"0": "b6"}), cell("edited", {"0": 0.71}, {"0": "a7"}),
        cell("new", {"0": 0.71}, {"0": "b8"}), cell("unknown", {"0": 0.71}, {"0": "b9"})])
    origins = {run: RunOrigin("c1", "d1", {"training.epochs": "1.0"}) for run in ("a1", "a4", "a5", "a6", "b1")}
    origins |= {"b4": RunOrigin("c2", "d1", {"training.epochs": "1.0"}),
                "b5": RunOrigin("c1", "d2", {"training.epochs": "1.0"}),
                "b6": RunOrigin("c1", "d1", {"training.epochs": "2.0"})}
    found = compare(before, after, origins)
    assert (found.num_equal, found.num_recomputed) == (2, 1)
    assert {change.arm: change.reasons for change in found.changes} == {
        "seeds": ("seeds added: 2, 10", "seeds removed: 0"), "code": ("other code: c1 → c2",),
        "data": ("other data: d1 → d2",), "settings": ("other settings: training.epochs: 1.0 → 2.0",),
        "edited": ("same runs, other numbers: a table was edited, or the analysis changed",),
        "gone": ("gone arm",), "new": ("new arm",),
        "unknown": ("1 seeds from other runs, which the tracking store does not have",)}
    shown = {change.arm: (change.before, change.after) for change in found.changes}
    assert shown["code"] == ("70.0 (n=1)", "71.0 (n=1)") and shown["new"] == ("", "71.0 (n=1)")
    assert run_ids(before, after)[:3] == ["a0", "a1", "a2"]


def test_a_cell_that_is_compared_otherwise_has_changed(tmp_path: Path) -> None:
    def arm(low: float, **changes: Any) -> dict[str, Any]:
        difference = {"mean": -0.01, "low": low, "high": 0.01}
        return {**cell("none", {"0": 0.7}, {"0": "n"}), "difference": difference, "adjusted_p": 0.2, **changes}

    def told(first: list[dict[str, Any]], second: list[dict[str, Any]], name: str) -> dict[str, Any]:
        found = compare(folder(tmp_path / name / "a", first), folder(tmp_path / name / "b", second), {})
        return {change.arm: (change.before, change.after, *change.reasons) for change in found.changes}

    reference, other = cell("full", {"0": 0.71}, {"0": "f"}), cell("more", {"0": 0.6}, {"0": "m"})
    again = cell("full", {"0": 0.72}, {"0": "g"})
    shown = ("70.0 (n=1), Δ −1.0 [−3.0, +1.0]", "70.0 (n=1), Δ −1.0 [−2.0, +1.0]")
    assert told([reference, arm(-0.03)], [again, arm(-0.02)], "reference")["none"] == (
        *shown, "difference: the reference changed")
    assert told([reference, arm(-0.03)], [reference, arm(-0.02)], "analysis") == {
        "none": (*shown, "difference: the analysis changed")}
    changed = arm(-0.03, adjusted_p=0.031, mark="best")
    assert told([reference, arm(-0.03)], [reference, changed, other], "others")["none"] == (
        "70.0 (n=1), p 0.200, mark none", "70.0 (n=1), p 0.031, mark best", "p, mark: other arms changed")


def test_new_tables_and_outcomes_are_told(tmp_path: Path) -> None:
    before = folder(tmp_path / "a", [cell("full", {"0": 0.7}, {"0": "a"})])
    after = folder(tmp_path / "b", [cell("full", {"0": 0.7}, {"0": "a"}),
                                    cell("full", {"0": 0.6}, {"0": "a"}, "test/other")])
    folder(tmp_path / "b", [cell("full", {"0": 0.7}, {"0": "a"})], "more")
    found = compare(before, after, {})
    assert [(change.table, change.metric, change.reasons) for change in found.changes] == [
        ("tiny", "test/other", ("new outcome",)), ("more", "test/score", ("new table",))]


def test_what_is_no_table_is_passed_over(tmp_path: Path) -> None:
    before, after = folder(tmp_path / "before", []), folder(tmp_path / "after", [])
    (before / "tables" / "audit.json").write_text(json.dumps({"format": "medst-audit/0", "rows": []}))
    (after / "tables" / "list.json").write_text("[]")
    assert compare(before, after, {}).changes == ()


def test_a_folder_without_tables_or_of_another_format_is_refused(tmp_path: Path) -> None:
    good = folder(tmp_path / "a", [cell("full", {"0": 0.7}, {"0": "a"})])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no tables with their JSON"):
        compare(good, tmp_path / "empty", {})
    with pytest.raises(ValueError, match="format 'medst-table/0'"):
        compare(folder(tmp_path / "old", [], format="medst-table/0"), good, {})


def test_the_difference_is_printed_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(difference, "load_origins", lambda *arguments: {})
    before = folder(tmp_path / "a", [cell("full", {"0": 0.7}, {"0": "a"})])
    after = folder(tmp_path / "b", [cell("full", {"0": 0.7, "1": 0.8}, {"0": "a", "1": "b"})])
    output = StringIO()
    assert print_difference(before, after, "", "", Console(file=output, width=160)) == 1
    assert "70.0 (n=1)" in output.getvalue() and "75.0 (n=2)" in output.getvalue()
    assert "seeds added: 1" in output.getvalue() and "1 cells changed, 0 did not." in output.getvalue()


def test_the_seeds_needed_find_the_difference_and_one_less_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    import pandas as pd

    plan = Plan("tiny", ("full", "none", "once"), "full", "test/score", (0, 1, 2, 3))
    scores = pd.DataFrame({"full": [0.70, 0.72, 0.71, 0.69], "none": [0.68, 0.71, 0.68, 0.69],
                           "once": [0.6, math.nan, math.nan, math.nan]}, index=[0, 1, 2, 3])
    monkeypatch.setattr(Study, "scores", lambda self, metric: scores)
    [needed] = seeds_needed(Study(plan, pd.DataFrame(), pd.DataFrame()), "test/score", 0.02)
    deviation = (scores["none"] - scores["full"]).std()
    assert needed.arm == "none" and needed.num_pairs == 4 and math.isclose(needed.deviation, deviation)

    # Six pairs are told from 0 only if all differ in one direction; seven at this size with a power of 0.89.
    share = stats.norm.cdf(0.02 / deviation)
    assert share**6 + (1 - share)**6 < 0.8 and needed.num_seeds == 7
    # An effect of any size takes as many seeds as the test does.
    [large] = seeds_needed(Study(plan, pd.DataFrame(), pd.DataFrame()), "test/score", 10.0)
    assert large.num_seeds == 6
