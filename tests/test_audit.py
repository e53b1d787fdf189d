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
from analysis_samples import SOURCE, fill_store, make_frames, make_plan, make_study
from oracle_world import NAMES, World, make_context, make_world
from scipy import stats

from analysis import audit, audit_figure, calibration, statistics, trace
from analysis.audit import PLANTED
from analysis.calibration import (
    clopper_pearson,
    coverage,
    disjoint_rejections,
    dose_response,
    found_shift,
    split_rejections,
    stated_difference,
    trend,
)
from analysis.checking import check_results
from analysis.document import read_document
from analysis.results import make_results
from analysis.tidy import Study, assemble
from medst import tracking
from medst.config import source_fingerprint
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
    stated = stated_difference(pool)
    # All six differences of one sign, four times in five: 1.79 of their deviations.
    assert stated == pytest.approx(1.79 * math.sqrt(2) * pool.std(ddof=1), rel=0.03)
    # The curve goes up by quarters of a deviation.
    assert stated - 0.1 * pool.std() < shift < stated + 0.35 * pool.std()


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


def audit_study(name: str, arms: tuple[str, ...], effects: dict[str, float]) -> Study:
    """Six seeds of these arms, with every outcome that the audit reads."""
    plan = make_plan(arms, 6, name)
    metrics = dict.fromkeys(effect.metric for effect in PLANTED)
    return make_study(replace(plan, expectations=(), secondary=tuple(metrics)), effects=effects)


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
    slope = trend(scores, arms)
    # Between doses 0 and 1 a slope is the difference of both differences, a seed at a time.
    by_hand = statistics.mean_interval((scores["1"] - scores["1, cut"]) - (scores["0"] - scores["0, cut"]))
    assert (slope.mean, slope.half_width, slope.n) == pytest.approx((by_hand.mean, by_hand.half_width, 6))
    assert slope.low > 0


def test_an_effect_without_pairs_is_held_against_dose_0() -> None:
    arms = PLANTED[-1].arms(["0", "0.4", "1"])
    assert arms == [(0.4, "0.4", "0"), (1.0, "1", "0")]
    # Doses 0, 0.4, 1 and differences 0, 0.1, 0.4 of the first seed, 0, 0.2, 0.2 of the second.
    scores = {"0": [0.5, 0.6, 0.5], "0.4": [0.6, 0.8, np.nan], "1": [0.9, 0.8, 0.7]}
    slopes = [np.polyfit([0, 0.4, 1], values, 1)[0] for values in ([0, 0.1, 0.4], [0, 0.2, 0.2])]
    slope = trend(scores, arms)
    assert slope.n == 2 and slope.mean == pytest.approx(np.mean(slopes))
    assert math.isnan(trend(scores, []).mean)


def test_what_is_not_planted_must_not_be_found_and_transfer_asks_the_interval() -> None:
    study = audit_study("audit_lateral", ("0", "0, cut", "0.5", "0.5, cut", "1", "1, cut"),
                        {"0": 0.2, "0.5": 0.2, "1": 0.2})
    rows = audit.audit({"audit_lateral": study}, SOURCE).rows
    assert [(row.expected, row.verdict) for row in rows] == [
        ("not found", "found, though nothing is planted"), ("between", "found"), ("found", "found"),
        ("above 0", "rise not shown")]
    arms = tuple(f"{world}, {arm}" for world in audit.WORLDS
                 for arm in dict.fromkeys(arm for effect in PLANTED for arm in effect.transfer))
    elsewhere = audit_study("audit_transfer", arms, {
        "second, laterals": 0.2, "second, side words": 0.2, "decorrelated, laterals": -0.2})
    found = audit.audit({"audit_lateral": study, "audit_transfer": elsewhere}, SOURCE)
    told = {row.what: (row.expected, row.verdict) for row in found.rows if row.check == "transfer"}
    assert told["lateral view, second geometry and grammar"] == (
        f"above 0 (there: {rows[2].value:.1f}, found)", "kept (interval above 0)")
    assert told["lateral view, devices tell nothing in the test"][1] == "reversed (interval below 0)"
    assert told["side words, second geometry and grammar"] == ("above 0 (there: not measured)",
                                                               "interval above 0 here alone")
    flat = audit.audit({"audit_transfer": audit_study("audit_transfer", arms, {})}, SOURCE)
    assert {row.verdict for row in flat.rows} == {"not shown"}


def test_what_is_not_finished_is_said_and_leaves_the_rest() -> None:
    arms = ("0", "0, cut", "0.5", "0.5, cut", "1", "1, cut")
    plan = replace(make_plan(arms, 6, "audit_lateral"), expectations=())
    runs, numbers = make_frames(plan, effects={"0.5": 0.2})
    half = assemble(plan, runs[~runs["arm"].isin(["1", "1, cut"])], numbers, SOURCE)
    seeds = replace(make_plan(("full", "no lateral view"), 24, "audit_seeds"), expectations=(),
                    secondary=("test/retrieval/r5",))
    runs, numbers = make_frames(seeds)
    few = numbers["metric"].eq(seeds.primary) & numbers["run_id"].isin(runs.loc[runs["seed"] > 8, "run_id"])
    found = audit.audit({"audit_lateral": half, "audit_seeds": assemble(seeds, runs, numbers[~few], "other code")},
                        "other code")
    assert {row.expected for row in found.rows if row.check == "planted"} == {"not found", "between"}
    told = " ".join(found.warnings)
    assert "INCOMPLETE: audit_lateral: lateral view, no two pairs of seeds at lateral_information = 1." in told
    assert "audit_lateral: INCOMPLETE: 12 of 36 trials" in told and "audit_seeds: STALE: 48 of 48 trials" in told
    # One outcome has too few seeds; the other is audited all the same.
    assert "INCOMPLETE: audit_seeds: " in told and "9 seeds are finished" in told
    real = [row for row in found.rows if row.check == "A/A, disjoint seeds, once each"]
    assert [(row.what, row.n) for row in real] == [("R@5, 2 arms with the same seeds", 4)]
    for line in found.warnings:
        assert line in audit.markdown(found) and line in audit_figure.draw(found).caption


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
            elsewhere = {arm.name: arm.config for arm in studies["audit_transfer"].arms}
            whole, cut = (elsewhere[f"{world}, {arm}"] for arm in effect.transfer)
            phantoms = [phantom_of(Path(config.data.root)) for config in (whole, cut)]
            # The world is another, and again nothing differs beside the information.
            changed = {"second": {"geometry": "second", "grammar": "second"},
                       "decorrelated": {"test_device_correlation": 0.0}}[world]
            dose = 0.0 if arms[0][2] == "0" else 1.0
            assert phantoms[0] is not None and phantoms[1] == phantoms[0].model_copy(update={effect.dial: dose})
            own = phantom_of(Path(by_name[arms[-1][1]].data.root))
            assert own is not None and phantoms[0] == own.model_copy(update=changed)
            assert whole.training == by_name[arms[-1][1]].training
            assert effect.metric in (studies["audit_transfer"].file.primary_metric,
                                     *studies["audit_transfer"].file.secondary_metrics)


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
    sources = audit.audit_sources(snapshot)
    found = audit.audit({source.name: source.load() for source in sources}, source_fingerprint())
    assert [warning.split(": ")[1] for warning in found.warnings] == [
        name for name in audit.STUDIES if name not in ("audit_lateral", "audit_seeds")]
    highest = next(row for row in found.rows if "lateral_information = 1" in row.what)
    assert highest.verdict == "found" and highest.value == pytest.approx(20, abs=3)
    document = json.loads((tmp_path / "results" / "tables" / "audit.json").read_text())
    runs = set(snapshot.runs["run_id"])
    assert all(row["runs"] and set(row["runs"].values()) <= runs for row in document["rows"])
    rise = next(row for row in document["rows"] if row["check"] == "planted, trend")
    assert rise["verdict"] == "rises" and rise["value"] == pytest.approx(20, abs=3) and len(rise["runs"]) == 36
    assert document["fingerprint"] == found.fingerprint and len(document["rows"]) == len(found.rows) > 8
    text = (tmp_path / "results" / "tables" / "audit.md").read_text()
    assert "> **INCOMPLETE: audit_sides: no finished trial.**" in text and "| planted | lateral view" in text
    table = pd.read_csv(tmp_path / "results" / "tables" / "audit.csv")
    assert list(table["Check"]) == [row.check for row in found.rows]
    assert list(table["run_ids"]) == [" ".join(row.runs.values()) for row in found.rows]
    assert set(table["fingerprint"]) == {found.fingerprint}
    traced = read_document(tmp_path / "results" / "tables" / "audit.md")
    line = trace.find_cell(traced, "lateral_information = 1")
    told = list(trace.trace(traced, line, uri, experiment))
    assert told[0] == "planted | lateral view, lateral_information = 1"
    assert sum(text.startswith(("  1, seed ", "  1, cut, seed ")) for text in told) == 12
    assert trace.find_cell(traced, "A/A, test,Zero-shot")["check"] == "A/A, test"
    with pytest.raises(ValueError, match="may be line"):
        trace.find_cell(traced, "A/A")
    assert (tmp_path / "results" / "figures" / "audit.pdf").stat().st_size > 1000
    page = (results / "report.html").read_text()
    assert "planted: lateral view" in page and f"1, cut, seed 5:{highest.runs['1, cut, seed 5']}" in page
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
