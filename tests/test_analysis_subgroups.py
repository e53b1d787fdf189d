"""Subgroups: levels by another route, differences paired by patient and seed, uncertainty over patients."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from analysis_samples import SOURCE, make_plan, make_predictions, make_study
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from analysis import registry, rendering, subgroups

ARMS = ("full", "same", "worse")
ZERO_SHOT = "predictions/finding_zero_shot"


@pytest.fixture(scope="module")
def table() -> subgroups.ResultTable:
    study = make_study(make_plan(ARMS, 2))
    shifts = {"full": 1.0, "same": 1.0, "worse": 0.2}
    predictions = {run: make_predictions(seed, shifts[arm]) for arm, seed, run in
                   study.trials[["arm", "seed", "run_id"]].itertuples(index=False)}
    made = subgroups.subgroup_table(study, {ZERO_SHOT: predictions}, SOURCE, num_replicates=200)
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
    table = subgroups.subgroup_table(study, {ZERO_SHOT: predictions}, SOURCE, num_replicates=20)
    assert table is not None
    difference = table.rows[1].cells["subgroup/all/all"].difference
    assert difference is not None and difference.mean == 0.0


def test_without_traits_there_is_no_table() -> None:
    study = make_study(make_plan(ARMS[:1], 1))
    bare = make_predictions(0).drop(columns=list(subgroups.TRAITS))
    assert subgroups.subgroup_table(study, {ZERO_SHOT: {study.trials["run_id"].iloc[0]: bare}}, SOURCE) is None
    assert subgroups.subgroup_table(study, {}, SOURCE) is None


def test_other_tasks_are_scored_over_their_own_patients() -> None:
    study = make_study(make_plan(ARMS[:2], 1))
    runs = study.trials.set_index(["arm", "seed"])["run_id"]
    temporal = make_predictions(1, num_patients=24)
    classes = np.array(["improving", "stable", "worsening"], dtype=object)[temporal["example"] % 3]
    temporal["label"] = classes
    sentences = make_predictions(2, num_patients=40).iloc[:120].assign(finding="all")
    rsna = make_predictions(3).assign(finding="pneumonia")
    # What was judged as published is another score of the same examples.
    published = rsna.assign(protocol="as_published", score=-rsna["score"])
    predictions = {
        ZERO_SHOT: {runs[arm, 0]: make_predictions(0) for arm in ARMS[:2]},
        "predictions/temporal_image": {runs["full", 0]: temporal, runs["same", 0]: temporal},
        "predictions/sentence_similarity": {runs["full", 0]: sentences},
        "predictions/rsna_zero_shot": {runs["full", 0]: pd.concat([rsna, published])},
    }
    table = subgroups.subgroup_table(study, predictions, SOURCE, num_replicates=300)
    assert table is not None
    (panel,) = (panel for panel in table.panels if panel.title == "Other tasks")
    assert [metric.key.split("/")[1] for metric in panel.metrics] == [
        "rsna_zero_shot", "temporal_image", "sentence_similarity"]
    full = table.rows[0].cells
    right = temporal["score"].to_numpy() > 0
    by_finding = [np.mean([right[(temporal["finding"] == finding) & (classes == label)].mean()
                           for label in ("improving", "stable", "worsening")]) for finding in registry.FINDINGS]
    assert full["subgroup/temporal_image/all"].interval.mean == pytest.approx(np.mean(by_finding))
    assert full["subgroup/temporal_image/all"].interval.n == 24
    assert full["subgroup/sentence_similarity/all"].interval.mean == pytest.approx(
        balanced_accuracy_score(sentences["label"], sentences["score"] >= 0))
    assert full["subgroup/rsna_zero_shot/all"].interval.mean == pytest.approx(
        roc_auc_score(rsna["label"], rsna["score"]))
    same = table.rows[1].cells
    assert same["subgroup/temporal_image/all"].difference is not None
    assert same["subgroup/temporal_image/all"].difference.interval.half_width == 0.0
    assert same["subgroup/sentence_similarity/all"].interval.n == 0, "an arm without predictions has no score"


def test_the_interval_over_patients_is_that_of_their_draws() -> None:
    # One example a patient, right with probability 0.7 in both classes: the standard error of a mean of two shares.
    study = make_study(make_plan(ARMS[:1], 1))
    run = study.trials["run_id"].iloc[0]
    generator = np.random.default_rng(0)
    label = np.arange(400) % 2
    right = generator.random(400) < 0.7
    frame = pd.DataFrame({"example": np.arange(400), "group": [f"{row:016x}" for row in range(400)], "label": label,
                          "score": np.where(right == (label == 1), 1.0, -1.0), "finding": "all",
                          "protocol": "corrected"})
    table = subgroups.subgroup_table(study, {ZERO_SHOT: {run: make_predictions(0)},
                                             "predictions/sentence_similarity": {run: frame}}, SOURCE)
    assert table is not None
    interval = table.rows[0].cells["subgroup/sentence_similarity/all"].interval
    shares = [right[label == value].mean() for value in (0, 1)]
    assert interval.mean == pytest.approx(np.mean(shares))
    error = math.sqrt(sum(share * (1 - share) / 200 for share in shares)) / 2
    assert interval.half_width == pytest.approx(1.96 * error, rel=0.1)
