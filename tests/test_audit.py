"""The audit: exact intervals, error rates where the truth is known, planted effects, what shuffling destroys."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from analysis_samples import fill_store, make_plan
from oracle_world import NAMES, World, make_context, make_world
from scipy import stats

from analysis import audit, calibration
from analysis.audit import PLANTED
from analysis.calibration import (
    clopper_pearson,
    coverage,
    disjoint_rejections,
    dose_response,
    found_shift,
    rises,
    split_rejections,
)
from analysis.checking import check_results
from analysis.results import make_results
from medst import tracking
from medst.data.phantom.presets import PRESETS, PhantomError
from medst.data.provision import phantom_of
from medst.evaluation import EVALUATORS
from medst.evaluation.sides import side_labels, side_prompts
from medst.objectives.temporal import fmc, rmr
from medst.records import Facts, Metrics, Record
from medst.tracking import TrackingPlace
from sweeps.study import load_study


def values(records: list[Record]) -> dict[str, float]:
    return {name: value for record in records if isinstance(record, Metrics) for name, value in record.values.items()}


# Rates ------------------------------------------------------------------------------------------------------------


def test_clopper_pearson_by_hand_and_by_another_library() -> None:
    # No hit in n: the upper bound solves (1 - p)^n = 0.025.
    assert clopper_pearson(0, 10) == (0.0, pytest.approx(1 - 0.025**0.1))
    assert clopper_pearson(10, 10) == (pytest.approx(0.025**0.1), 1.0)
    for hits, trials in ((3, 20), (31, 1000)):
        other = stats.binomtest(hits, trials).proportion_ci(method="exact")
        assert clopper_pearson(hits, trials) == pytest.approx((other.low, other.high))
    with pytest.raises(ValueError, match="no share"):
        clopper_pearson(3, 2)


def test_one_arm_under_two_names_is_rarely_told_apart_and_a_large_shift_always() -> None:
    pool = np.random.default_rng(1).normal(0.7, 0.02, 20)
    same = split_rejections(pool, num_repetitions=600)
    # The smallest p of 6 pairs is 2/64: the test cannot reject more often than that by chance.
    assert clopper_pearson(same.by_test.hits, 600)[0] <= 2 / 64 <= clopper_pearson(same.by_test.hits, 600)[1]
    assert same.by_interval.value < 0.1
    assert split_rejections(pool, num_arms=2, num_repetitions=600).by_test.interval[0] <= 0.05
    assert split_rejections(pool, shift=0.2, num_repetitions=50).by_test.value == 1.0
    with pytest.raises(ValueError, match="11 seeds are finished, and 2 disjoint sets of 6 need 12"):
        split_rejections(pool[:11])


def test_the_found_shift_is_near_the_detectable_difference() -> None:
    pool = stats.norm.ppf((np.arange(20) + 0.5) / 20) * 0.01
    shift, curve = found_shift(pool)
    rates = [point.by_test.value for point in curve]
    assert rates[0] < 0.1 and rates[-1] > 0.95
    # Two independent arms: the differences spread by root 2 more than the scores.
    stated = audit.statistics.minimum_detectable_difference(math.sqrt(2) * pool.std(ddof=1), 6)
    assert 0.7 * stated < shift < 1.5 * stated


def test_disjoint_sets_use_every_seed_once() -> None:
    pool = np.concatenate([np.arange(6.0), np.arange(6.0) + 100, np.arange(8.0)])
    assert disjoint_rejections([pool]) == calibration.Rate(1, 1)
    assert disjoint_rejections([pool, np.zeros(24)]) == calibration.Rate(1, 3)


def test_intervals_cover_the_truth_of_a_normal_pool() -> None:
    pool = stats.norm.ppf((np.arange(40) + 0.5) / 40)
    found = coverage(pool, num_repetitions=2000)
    assert 0.93 < found.value < 0.97
    # A rare outlier that most draws miss is what a t interval cannot see.
    assert coverage(np.r_[np.zeros(19), 1.0], num_repetitions=500).value < 0.5


# Doses ------------------------------------------------------------------------------------------------------------


def test_a_dose_response_by_hand() -> None:
    seeds = np.array([0.0, 0.01, -0.01, 0.02, -0.02, 0.0])
    jitter = np.array([0.01, -0.01, 0.005, -0.005, 0.002, -0.002])
    scores = {"0": 0.6 + seeds, "0, cut": 0.6 + seeds + jitter, "1": 0.7 + seeds, "1, cut": 0.6 + seeds + jitter}
    effect = PLANTED[0]
    arms = effect.arms(list(scores))
    assert arms == [(0.0, "0", "0, cut"), (1.0, "1", "1, cut")]
    none, full = dose_response(scores, arms)
    assert not none.is_found and none.difference.mean == pytest.approx(0.0)
    # Six differences of one sign: 2 of 64 flips reach it.
    assert full.is_found and full.adjusted_p == pytest.approx(2 / 64) and full.difference.mean == pytest.approx(0.1)
    assert rises([none, full]) and not rises([full, none])


def test_an_effect_without_pairs_is_held_against_dose_0() -> None:
    arms = PLANTED[-1].arms(["0", "0.4", "1"])
    assert arms == [(0.4, "0.4", "0"), (1.0, "1", "0")]


# Studies, table, figure -------------------------------------------------------------------------------------------


def test_the_studies_of_the_audit_hold_what_the_audit_reads(repository: Path) -> None:
    studies = {name: load_study(repository / "sweeps" / f"{name}.yaml", project=repository) for name in audit.STUDIES}
    assert len(studies["audit_seeds"].replicates) >= 18
    for effect in PLANTED:
        study = studies[effect.study]
        assert effect.metric in (study.file.primary_metric, *study.file.secondary_metrics)
        names = [arm.name for arm in study.arms]
        arms = effect.arms(names)
        assert len(arms) == 3 and arms[-1][0] == 1.0 and len(study.replicates) == 6
        by_name = {arm.name: arm.config for arm in study.arms}
        for dose, whole, cut in arms:
            phantom = phantom_of(Path(by_name[whole].data.root))
            assert phantom is not None and getattr(phantom, effect.dial) == dose
            # Beside the information, nothing differs.
            other = phantom_of(Path(by_name[cut].data.root))
            assert other is not None and other.model_copy(update={effect.dial: dose}) == phantom
        for world in audit.WORLDS:
            assert {f"{world}, whole", f"{world}, {effect.transfer_arm}"} <= {
                arm.name for arm in studies["audit_transfer"].arms}


def test_the_audit_of_a_store_finds_what_was_planted(tmp_path: Path, repository: Path) -> None:
    uri, folder = f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path / "spool"
    for name, num_seeds, effects in (("audit_lateral", 6, {"0.5": 0.05, "1": 0.2}), ("audit_seeds", 18, {})):
        study = load_study(repository / "sweeps" / f"{name}.yaml", project=repository)
        arms = tuple(arm.name for arm in study.arms)
        plan = replace(make_plan(arms, num_seeds, name), reference=study.reference.name,
                       primary=study.file.primary_metric, expectations=())
        fill_store(uri, folder, plan, effects=effects)
    experiment, results = TrackingPlace(uri, folder).experiment, tmp_path / "results"
    make_results(uri, experiment, results)
    snapshot = tracking.read_snapshot(uri, experiment)
    found = audit.audit({source.name: source.load() for source in audit.audit_sources(snapshot)})
    assert {gap.partition(":")[0] for gap in found.missing} == set(audit.STUDIES) - {"audit_lateral", "audit_seeds"}
    highest = next(row for row in found.rows if "lateral_information = 1" in row.what)
    assert highest.verdict == "found, rises" and highest.value == pytest.approx(20, abs=3)
    document = json.loads((tmp_path / "results" / "tables" / "audit.json").read_text())
    runs = set(snapshot.runs["run_id"])
    assert all(row["runs"] and set(row["runs"]) <= runs for row in document["rows"])
    assert document["fingerprint"] == found.fingerprint and len(document["rows"]) == len(found.rows) > 8
    text = (tmp_path / "results" / "tables" / "audit.md").read_text()
    assert "INCOMPLETE: audit_sides: no finished trial." in text and "| planted | lateral view" in text
    table = pd.read_csv(tmp_path / "results" / "tables" / "audit.csv")
    assert list(table["Check"]) == [row.check for row in found.rows]
    assert (tmp_path / "results" / "figures" / "audit.pdf").stat().st_size > 1000
    assert "planted: lateral view" in (results / "report.html").read_text()
    assert not any("audit." in problem or "of study audit:" in problem
                   for problem in check_results(uri, experiment, results))
    (results / "tables" / "audit.csv").write_text("Check\n")
    assert any(problem.startswith("EDITED tables/audit.csv") for problem in check_results(uri, experiment, results))


# Turned dials -----------------------------------------------------------------------------------------------------


def test_a_folder_names_the_dials_of_its_phantom() -> None:
    phantom = phantom_of(Path("data/phantom/smoke-with-num_train=30,change_words=0.0,grammar=second-draw-4"))
    assert phantom == PRESETS["smoke"].model_copy(
        update={"num_train": 30, "change_words": 0.0, "grammar": "second", "seed": 4})
    with pytest.raises(PhantomError, match="the nearest is 'change_words'"):
        phantom_of(Path("data/phantom/smoke-with-change_word=1.0"))
    with pytest.raises(PhantomError, match="turns no dial"):
        phantom_of(Path("data/phantom/smoke-with-change_words"))
    assert phantom_of(Path("data/phantom/smoke-with-")) is None


# Sides ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world() -> World:
    return make_world()


def test_prompts_of_both_sides_differ_in_that_word_alone() -> None:
    for finding in NAMES:
        prompts = side_prompts(finding)
        mirrored = [tuple(sentence.replace("left", "right") for sentence in prompt) for prompt in prompts["positive"]]
        # Short reports have other sentences around the statement; the statements are the same.
        assert {prompt[0] for prompt in mirrored} == {prompt[0] for prompt in prompts["negative"]}
        assert bool(prompts["positive"]) == (finding != "edema")


def test_a_finding_on_both_sides_has_no_side(world: World) -> None:
    mimic = world.store.mimic
    assert mimic is not None
    frontals = mimic.studies["frontal"].to_numpy()[:3]
    truth = pd.DataFrame({"image": [frontals[0], frontals[1], frontals[1], frontals[2]], "finding": "pneumothorax",
                          "finding_side": ["left", "left", "right", "right"]})
    labels = side_labels(replace(mimic, findings=truth), np.arange(4), "pneumothorax")
    assert labels.tolist() == [1, -1, 0, -1]


def test_without_the_truth_of_sides_the_task_says_so(world: World) -> None:
    (record,) = EVALUATORS["sides"](make_context(world))
    assert isinstance(record, Facts) and "no truth about the side" in record.values["skipped.sides"]


# Self-check: what shuffling destroys ------------------------------------------------------------------------------


def shuffled(world: World, *, within_patients: bool) -> World:
    """The oracle's store with reports dealt to other studies: of anybody, or of the same patient."""
    mimic = world.store.mimic
    assert mimic is not None
    studies = mimic.studies.copy()
    rng = np.random.default_rng(0)
    order = np.arange(len(studies))
    if within_patients:
        for rows in studies.groupby("subject_id").indices.values():
            order[rows] = np.roll(rows, 1)
    else:
        order = rng.permutation(order)
    for column in ("report_released", "report_corrected"):
        studies[column] = studies[column].to_numpy()[order]
    return replace(world, store=replace(world.store, mimic=replace(mimic, studies=studies)))


def test_shuffled_reports_destroy_what_hangs_on_them_and_nothing_else(world: World) -> None:
    tasks = ("retrieval", "direction", "temporal_image", "finding_zero_shot", "covidx_linear")

    def scores(judged: World) -> dict[str, float]:
        return values([record for task in tasks for record in EVALUATORS[task](make_context(judged))])

    whole, found = scores(world), scores(shuffled(world, within_patients=False))
    assert whole["test/retrieval/r1"] > 0.9 and found["test/retrieval/r5"] < 0.2
    assert whole["test/direction/reports/accuracy"] > 0.9 and abs(found["test/direction/reports/accuracy"] - 0.5) < 0.25
    changed = {name for name in whole if whole[name] != found[name]}
    assert changed and all(name.startswith(("test/retrieval/", "test/direction/reports/")) for name in changed)


def test_reports_permuted_within_sequences_destroy_their_order(world: World) -> None:
    rolled = shuffled(world, within_patients=True)
    before, after = (values(list(EVALUATORS["direction"](make_context(one)))) for one in (world, rolled))
    assert before["test/direction/reports/accuracy"] > 0.9
    assert after["test/direction/reports/accuracy"] < before["test/direction/reports/accuracy"] - 0.3
    # What asks the images and the prompts alone stays.
    assert before["test/direction/change/mean/auroc"] == after["test/direction/change/mean/auroc"]


def test_a_joint_permutation_leaves_fmc_and_one_of_reports_alone_does_not() -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.nn.functional.normalize(torch.randn(5, 4, 6, generator=generator, dtype=torch.float64), dim=-1)
    noise = 0.1 * torch.randn(5, 4, 6, generator=generator, dtype=torch.float64)
    report = torch.nn.functional.normalize(image + noise, dim=-1)
    order = torch.tensor([2, 0, 3, 1])
    whole = fmc(image, report, 0.1)
    torch.testing.assert_close(fmc(image[:, order], report[:, order], 0.1), whole)
    assert fmc(image, report[:, order], 0.1) > 5 * whole
    constants = {"variance_weight": 0.001, "variance_floor": 0.01, "huber_threshold": 0.25}
    # RMR regresses times, whose distances a permutation changes: it hardly does where the cycle closes.
    closed = rmr(image, report, 0.1, **constants)
    assert abs(float(rmr(image[:, order], report[:, order], 0.1, **constants) - closed)) < 0.05
