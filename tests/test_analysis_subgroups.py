"""Subgroups: levels by another route, differences paired by patient and seed, uncertainty over patients."""

from __future__ import annotations

import math

import numpy as np
import pytest
from analysis_samples import SOURCE, make_plan, make_predictions, make_study
from sklearn.metrics import roc_auc_score

from analysis import registry, rendering, subgroups

ARMS = ("full", "same", "worse")


@pytest.fixture(scope="module")
def table() -> subgroups.ResultTable:
    study = make_study(make_plan(ARMS, 2))
    shifts = {"full": 1.0, "same": 1.0, "worse": 0.2}
    predictions = {run: make_predictions(seed, shifts[arm]) for arm, seed, run in
                   study.trials[["arm", "seed", "run_id"]].itertuples(index=False)}
    made = subgroups.subgroup_table(study, predictions, SOURCE, num_replicates=200)
    assert made is not None
    return made


def test_levels_are_means_over_findings_and_seeds(table: subgroups.ResultTable) -> None:
    expected = []
    for seed in (0, 1):
        frame = make_predictions(seed, 1.0)
        frame = frame[frame["view"] == "AP"]
        expected += [roc_auc_score(rows["label"], rows["score"]) for _, rows in frame.groupby("finding")]
    cell = table.rows[0].cells["subgroup/view/AP"]
    assert cell.interval.mean == pytest.approx(np.mean(expected)) and len(expected) == 2 * len(registry.FINDINGS)
    assert cell.interval.n == 15, "patients, not studies"
    assert sorted(cell.run_ids) == [0, 1]


def test_shown_are_the_subgroups_that_occur(table: subgroups.ResultTable) -> None:
    titles = {panel.title: [metric.column for metric in panel.metrics] for panel in table.panels}
    assert titles == {"All studies": ["all"], "View of the frontal": ["AP", "PA"], "Sex": ["female", "male"],
                      "Age in years": ["40–59"], "Earlier study": ["with prior", "without prior"]}


def test_pairing_takes_the_patients_out_of_the_difference(table: subgroups.ResultTable) -> None:
    same, worse = (row.cells["subgroup/all/all"] for row in table.rows[1:3])
    assert same.difference is not None and worse.difference is not None
    # The same predictions: no difference under any draw of patients.
    assert (same.difference.mean, same.difference.low, same.difference.high) == (0.0, 0.0, 0.0)
    assert worse.difference.high < 0
    full = table.rows[0].cells["subgroup/all/all"]
    assert worse.difference.mean == pytest.approx(worse.interval.mean - full.interval.mean)
    assert full.difference is None
    # Patients have no deviation of a mean of AUROCs, and so no standardised difference.
    assert all(math.isnan(value) for value in (worse.interval.deviation, worse.difference.interval.deviation,
                                               worse.difference.effect_size))


def test_every_part_shows_its_patients(table: subgroups.ResultTable) -> None:
    frame = make_predictions(0)
    own = {value: frame.loc[frame["sex"] == value, "group"].nunique() for value in ("F", "M")}
    for shown in (rendering.markdown(table), rendering.latex(table)):
        assert shown.count("patients") > 5
    panel = next(panel for panel in table.panels if panel.title == "Sex")
    assert rendering.feet(table, panel) == [("patients", {f"subgroup/sex/{value}": str(own[value]) for value in own})]


def test_seeds_that_only_one_arm_has_are_not_in_the_difference() -> None:
    study = make_study(make_plan(ARMS[:2], 2))
    runs = study.trials.set_index(["arm", "seed"])["run_id"]
    predictions = {runs["full", 0]: make_predictions(0), runs["full", 1]: make_predictions(5, 3.0),
                   runs["same", 0]: make_predictions(0)}
    table = subgroups.subgroup_table(study, predictions, SOURCE, num_replicates=20)
    assert table is not None
    difference = table.rows[1].cells["subgroup/all/all"].difference
    assert difference is not None and difference.mean == 0.0


def test_without_traits_there_is_no_table() -> None:
    study = make_study(make_plan(ARMS[:1], 1))
    bare = make_predictions(0).drop(columns=list(subgroups.TRAITS))
    assert subgroups.subgroup_table(study, {study.trials["run_id"].iloc[0]: bare}, SOURCE) is None
    assert subgroups.subgroup_table(study, {}, SOURCE) is None
