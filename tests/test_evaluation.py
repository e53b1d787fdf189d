"""The tasks on a made-up store: an oracle scores about 1, a random model scores chance, nothing leaks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from model_samples import small_batch, small_model
from model_samples import small_config as model_config
from oracle_world import (
    CROP,
    GRID,
    PATCH,
    WIDTH,
    OracleFeatures,
    OracleModel,
    OracleTokenizer,
    RandomModel,
    World,
    make_context,
    make_world,
    small_config,
)
from torch import Tensor

from medst.config import Config
from medst.data.images import equalise_squares
from medst.data.loader import centre_crop
from medst.data.report_text import join_prompt
from medst.evaluation import EVALUATORS, check_tasks, evaluate, evaluate_pixel_baseline
from medst.evaluation.context import held_out
from medst.evaluation.direction import consecutive_studies
from medst.evaluation.finding_zero_shot import finding_labels, lateral_only_labels
from medst.evaluation.metrics import auroc, balanced_accuracy
from medst.evaluation.predictions import COLUMNS, salted_groups
from medst.evaluation.prompts import CHANGES, FINDINGS, PNEUMONIA_AS_PUBLISHED, join
from medst.evaluation.retrieval import POOL_SIZE, retrieval_pool
from medst.evaluation.traits import studies_of, study_traits
from medst.evaluation.zero_shot import unit
from medst.records import Arrays, Facts, Metrics, Record, Table


@pytest.fixture(scope="module")
def world() -> World:
    return make_world()


@pytest.fixture(scope="module")
def oracle(world: World) -> dict[str, list[Record]]:
    """Task -> records of the oracle."""
    context = make_context(world)
    return {task: list(run(context)) for task, run in EVALUATORS.items()}


@pytest.fixture(scope="module")
def chance(world: World) -> dict[str, list[Record]]:
    """Task -> records of a model that says nothing."""
    context = make_context(world, model=RandomModel)
    return {task: list(run(context)) for task, run in EVALUATORS.items()}


def values(records: list[Record]) -> dict[str, float]:
    return {name: value for record in records if isinstance(record, Metrics) for name, value in record.values.items()}


def facts(records: list[Record]) -> dict[str, object]:
    return {name: value for record in records if isinstance(record, Facts) for name, value in record.values.items()}


def table(records: list[Record]) -> pd.DataFrame:
    [found] = [record for record in records if isinstance(record, Table)]
    assert found.is_private
    return found.frame


PERFECT = {
    "temporal_image": ["mean/balanced_accuracy", "mean/auroc"],
    "sentence_similarity": ["all/accuracy", "radgraph/accuracy", "swaps/auroc", "radgraph/accuracy_as_published"],
    "rsna_zero_shot": ["auroc", "f1", "balanced_accuracy", "auroc_as_published"],
    "covidx_linear": ["1/balanced_accuracy", "100/auroc", "100/accuracy_as_published"],
    "finding_zero_shot": ["mean/auroc", "lateral_only/auroc", "pneumothorax/auroc"],
    "retrieval": ["r1", "image_to_report/r1", "report_to_image/r10", "frontal/r1"],
    "grounding": ["pointing_accuracy", "attention/pointing_accuracy"],
    "direction": ["reports/accuracy", "change/mean/auroc", "words/mean/auroc"],
}


@pytest.mark.parametrize(("task", "metric"), [(task, metric) for task in PERFECT for metric in PERFECT[task]])
def test_the_oracle_is_nearly_perfect(oracle: dict[str, list[Record]], task: str, metric: str) -> None:
    # Half-severe findings are linear in neither axis, and the probes see few pairs: hence no 1.0.
    assert values(oracle[task])[f"test/{task}/{metric}"] > (0.7 if task == "temporal_image" else 0.9)


AT_CHANCE = [
    # metric, chance, about three standard errors for the number of examples behind it
    ("temporal_image/mean/balanced_accuracy", 1 / 3, 0.08),
    ("temporal_image/mean/auroc", 0.5, 0.08),
    ("sentence_similarity/all/auroc", 0.5, 0.12),
    ("rsna_zero_shot/auroc", 0.5, 0.13),
    ("rsna_zero_shot/auroc_as_published", 0.5, 0.3),
    ("finding_zero_shot/mean/auroc", 0.5, 0.12),
    ("finding_zero_shot/frontal/mean/auroc", 0.5, 0.12),
    ("finding_zero_shot/lateral_only/auroc", 0.5, 0.2),
    ("retrieval/r1", 0.0, 0.05),
    ("grounding/pointing_accuracy", 0.25, 0.15),
    ("direction/order/auroc", 0.5, 0.15),
    ("direction/reports/accuracy", 0.5, 0.15),
    ("direction/change/mean/auroc", 0.5, 0.12),
    ("direction/words/mean/auroc", 0.5, 0.12),
]


@pytest.mark.parametrize(("name", "expected", "width"), AT_CHANCE)
def test_a_model_that_says_nothing_is_at_chance(chance: dict[str, list[Record]], name: str, expected: float,
                                                width: float) -> None:
    assert abs(values(chance[name.split("/")[0]])[f"test/{name}"] - expected) < width


def test_validation_scores(oracle: dict[str, list[Record]], chance: dict[str, list[Record]]) -> None:
    found, random = values(oracle["validation"]), values(chance["validation"])
    for name in ("finding_zero_shot/mean/auroc", "retrieval/r1", "direction/reports/accuracy", "change/mean/auroc"):
        assert found[f"validation/{name}"] > 0.9
    assert abs(random["validation/finding_zero_shot/mean/auroc"] - 0.5) < 0.15
    assert abs(random["validation/change/mean/auroc"] - 0.5) < 0.25


def test_lateral_only_findings_need_the_lateral(oracle: dict[str, list[Record]]) -> None:
    found = values(oracle["finding_zero_shot"])
    assert found["test/finding_zero_shot/lateral_only/auroc"] > 0.95
    assert found["test/finding_zero_shot/frontal/lateral_only/auroc"] < 0.6
    assert found["test/finding_zero_shot/mean/auroc"] > found["test/finding_zero_shot/frontal/mean/auroc"]


def test_without_laterals_the_same_studies_are_judged_by_the_frontal_alone(world: World,
                                                                           oracle: dict[str, list[Record]]) -> None:
    context = make_context(world, small_config(data__views="frontal"))
    records = list(EVALUATORS["finding_zero_shot"](context))
    assert not any(name == "study" for name, _ in _visited(world, lambda: list(EVALUATORS["retrieval"](context))))
    found = values(records)
    name = "lateral_only/auroc"
    assert found[f"test/finding_zero_shot/{name}"] == found[f"test/finding_zero_shot/frontal/{name}"]
    ours, theirs = table(records), table(oracle["finding_zero_shot"])
    pd.testing.assert_frame_equal(ours.drop(columns="score"), theirs.drop(columns="score"))


def test_every_image_is_computed_once(world: World) -> None:
    context = make_context(world)
    slow = ("direction", "covidx_linear")
    visited = _visited(world, lambda: [list(run(context)) for task, run in EVALUATORS.items() if task not in slow])
    assert len(visited) == len(set(visited)) > 500
    assert not _visited(world, lambda: list(EVALUATORS["temporal_image"](context)))


def test_equal_texts_are_encoded_once(world: World) -> None:
    context = make_context(world)
    world.texts_encoded.clear()
    first = context.cache.texts(["study 1", "study 2", "study 1"])
    second = context.cache.texts(["study 2"])
    assert sorted(world.texts_encoded) == ["study 1", "study 2"]
    np.testing.assert_array_equal(first[0], first[2])
    np.testing.assert_array_equal(first[1], second[0])


def test_embeddings_are_those_of_the_rows_asked_for(world: World) -> None:
    context = make_context(world)
    rows = np.array([7, 3, 7, 200])
    np.testing.assert_allclose(context.cache.frontal("mimic", rows), unit(world.images["mimic"][rows]), atol=1e-6)
    mimic = world.store.mimic
    assert mimic is not None
    lateral = mimic.studies["lateral"].to_numpy()
    studies = np.array([int(np.flatnonzero(lateral >= 0)[5]), int(np.flatnonzero(lateral < 0)[2])])
    expected = [world.two_view[lateral[studies[0]]], world.images["mimic"][mimic.studies["frontal"][studies[1]]]]
    np.testing.assert_allclose(context.cache.studies(studies), unit(np.array(expected)), atol=1e-6)


def test_projections_become_the_embeddings() -> None:
    world = make_world(num_patients=6)
    context = make_context(world)
    texts = ["there is mild pulmonary edema", "no pneumothorax"]
    np.testing.assert_allclose(unit(context.cache.text_projections(texts)), context.cache.texts(texts), atol=1e-6)


def test_words_leave_out_the_separator(world: World) -> None:
    words, mask = make_context(world).cache.words(["small effusion"])
    np.testing.assert_array_equal(mask, [[True, True, False]])
    assert words.shape[:2] == (1, 3)
    # What the model does: captions of 5, 2 and 0 words, each with its [SEP] behind them.
    model = small_model(model_config()).eval()
    batch = small_batch((1, 1, 1), (), (5, 2, 0))
    features = model.encode_text(batch.token_ids, batch.attention_mask, batch.word_of_token)
    embedded, is_word = model.embed_words(features)
    assert is_word.sum(dim=1).tolist() == [5, 2, 0] and is_word[1].tolist() == [True, True, *[False] * 4]
    torch.testing.assert_close(embedded, model.project_text(features).words, rtol=0, atol=0)


class PairOracle(OracleModel):
    """Also reads an image with an earlier one: by the difference of what is in them."""

    def encode_pairs(self, current: Tensor, previous: Tensor) -> OracleFeatures:
        views = torch.ones(len(current), dtype=torch.int64)
        now, before = (self.encode_images(images, views) for images in (current, previous))
        return OracleFeatures(now.cls - before.cls, now.frontal_patches)


def test_a_model_that_reads_pairs_is_also_judged_by_them(world: World, oracle: dict[str, list[Record]]) -> None:
    context = make_context(world, model=PairOracle)
    vectors = world.images["mimic"]
    expected = unit(np.array([vectors[0] - vectors[5], vectors[3] - vectors[2]]))
    found = context.cache.pairs([0, 3], [5, 2])
    assert found is not None and make_context(world).cache.pairs([0], [5]) is None
    np.testing.assert_allclose(found, expected, atol=1e-6)
    records = list(EVALUATORS["temporal_image"](context))
    scores, alone = values(records), values(oracle["temporal_image"])
    assert {name: score for name, score in scores.items() if "pair_encoder" not in name} == alone
    assert scores.keys() - alone.keys() == {name.replace("image/", "image/pair_encoder/") for name in alone}
    assert scores["test/temporal_image/pair_encoder/mean/auroc"] > 0.8
    assert "pair_encoder/edema" in set(table(records)["finding"])


@pytest.mark.parametrize("task", list(PERFECT))
def test_predictions_carry_no_ids_and_reproduce_the_scores(oracle: dict[str, list[Record]], world: World,
                                                          task: str) -> None:
    frame = table(oracle[task])
    assert tuple(frame.columns) == COLUMNS and len(frame) > 0
    assert frame["group"].str.fullmatch("[0-9a-f]{16}").all()
    assert frame["score"].notna().all()
    if task == "finding_zero_shot":
        rows = frame[frame["finding"] == "edema"]
        assert values(oracle[task])["test/finding_zero_shot/edema/auroc"] == pytest.approx(
            auroc(rows["label"].to_numpy(), rows["score"].to_numpy()))
    if task == "covidx_linear":
        rows = frame[(frame["finding"] == "1") & (frame["protocol"] == "corrected")]
        assert values(oracle[task])["test/covidx_linear/1/balanced_accuracy"] == pytest.approx(
            rows.groupby("label")["score"].agg(lambda scores: (scores > 0).mean()).mean())
    if task == "temporal_image":
        rows = frame[frame["finding"] == "edema"]
        folds = [rows[rows["fold"] == fold].groupby("label")["score"].agg(lambda scores: (scores > 0).mean()).mean()
                 for fold in range(5)]
        assert values(oracle[task])["test/temporal_image/edema/balanced_accuracy"] == pytest.approx(np.mean(folds))


def test_no_training_patient_is_judged_and_no_patient_crosses_folds(oracle: dict[str, list[Record]],
                                                                    world: World) -> None:
    mimic = world.store.mimic
    assert mimic is not None
    context = make_context(world)
    trained = set(context.groups(mimic.studies.loc[mimic.studies["split"] == "train", "subject_id"]))
    tested = set(context.groups(mimic.studies.loc[mimic.studies["split"] == "test", "subject_id"]))
    for task in ("temporal_image", "finding_zero_shot", "retrieval", "grounding", "direction"):
        assert not set(table(oracle[task])["group"]) & trained
    for task in ("finding_zero_shot", "retrieval"):
        assert set(table(oracle[task])["group"]) <= tested
    for task in ("temporal_image", "direction"):
        frame = table(oracle[task])
        frame = frame[frame["fold"] >= 0]
        assert len(frame) > 0
        assert (frame.groupby(["finding", "group"])["fold"].nunique() == 1).all()


def test_shuffled_labels_give_chance(world: World) -> None:
    assert world.store.ms_cxr_t is not None
    rng = np.random.default_rng(0)
    pairs = world.store.ms_cxr_t.pairs.copy()
    for finding in FINDINGS:
        known = pairs[finding].notna().to_numpy()
        pairs.loc[known, finding] = rng.permutation(pairs.loc[known, finding].to_numpy())
    shuffled = replace(world, store=replace(world.store, ms_cxr_t=replace(world.store.ms_cxr_t, pairs=pairs)))
    found = values(list(EVALUATORS["temporal_image"](make_context(shuffled))))
    assert abs(found["test/temporal_image/mean/balanced_accuracy"] - 1 / 3) < 0.08
    assert abs(found["test/temporal_image/mean/auroc"] - 0.5) < 0.08


def test_covidx_leaves_out_training_images_of_test_patients(world: World) -> None:
    assert world.store.covidx is not None
    covidx = world.store.covidx.table.copy()
    covidx.loc[covidx.index[:40], "patient_id"] = covidx["patient_id"].iloc[-1]
    leaky = replace(world, store=replace(world.store, covidx=replace(world.store.covidx, table=covidx)))
    found = facts(list(EVALUATORS["covidx_linear"](make_context(leaky))))
    assert found["covidx_linear.num_train_of_test_patients"] == 40
    assert found["covidx_linear.100_percent.num_labels"] == 260


def test_grounding_chance_is_the_area_of_the_boxes(oracle: dict[str, list[Record]]) -> None:
    found = values(oracle["grounding"])
    assert found["test/grounding/chance"] == pytest.approx(4 * PATCH * PATCH / CROP**2)
    assert found["test/grounding/contrast_to_noise"] == pytest.approx(found["test/grounding/contrast_to_noise_signed"])
    assert found["test/grounding/contrast_to_noise"] > 1.0


@pytest.mark.parametrize("gone", ["mimic", "ms_cxr_t", "ms_cxr", "rsna", "covidx"])
def test_a_missing_data_set_is_named_and_nothing_else_happens(world: World, gone: str) -> None:
    apart = ("rsna_zero_shot", "covidx_linear", "sentence_similarity")
    tasks = {"mimic": [task for task in PERFECT if task not in apart],
             "ms_cxr_t": ["temporal_image", "sentence_similarity"], "ms_cxr": ["grounding"],
             "rsna": ["rsna_zero_shot"], "covidx": ["covidx_linear"]}[gone]
    context = make_context(replace(world, store=replace(world.store, **{gone: None})))
    for task in tasks:
        [record] = list(EVALUATORS[task](context))
        assert isinstance(record, Facts) and list(record.values) == [f"skipped.{task}"]


def test_direction_still_asks_for_order_without_labelled_pairs(world: World) -> None:
    records = list(EVALUATORS["direction"](make_context(replace(world, store=replace(world.store, ms_cxr_t=None)))))
    assert {name.split("/")[2] for name in values(records)} == {"order", "reports"}
    assert "skipped.direction.change" in facts(records)


def test_without_truth_the_lateral_only_findings_are_skipped(world: World) -> None:
    assert world.store.mimic is not None
    real = replace(world, store=replace(world.store, mimic=replace(world.store.mimic, findings=None)))
    records = list(EVALUATORS["finding_zero_shot"](make_context(real)))
    assert "skipped.finding_zero_shot.lateral_only" in facts(records)
    assert not any("lateral_only" in name for name in values(records))
    assert "test/finding_zero_shot/mean/auroc" in values(records)


def test_labels_of_studies(world: World) -> None:
    frame = pd.DataFrame({"label_edema": [1.0, 0.0, -1.0, np.nan]})
    np.testing.assert_array_equal(finding_labels(frame, "edema"), [1, 0, -1, 0])
    mimic = world.store.mimic
    assert mimic is not None and mimic.findings is not None
    rows = np.arange(len(mimic.studies))
    labels = lateral_only_labels(mimic, rows, "edema")
    present = mimic.studies["label_edema"].fillna(0).to_numpy() == 1
    np.testing.assert_array_equal(labels == 0, ~present)
    assert (mimic.studies["lateral"].to_numpy()[labels == 1] >= 0).all()


def test_consecutive_studies_are_of_one_patient_in_time_order(world: World) -> None:
    mimic = world.store.mimic
    assert mimic is not None
    shuffled = replace(mimic, studies=mimic.studies.sample(frac=1.0, random_state=0).reset_index(drop=True))
    pairs = consecutive_studies(shuffled, "test")
    subjects, times = (shuffled.studies[column].to_numpy()[pairs] for column in ("subject_id", "time"))
    assert (subjects[:, 0] == subjects[:, 1]).all()
    assert (np.diff(times, axis=1) == np.timedelta64(10, "D")).all()
    assert len(pairs) == 2 * (mimic.studies["split"] == "test").sum() / 3


def test_the_pool_is_bounded_and_fixed() -> None:
    world = make_world(num_patients=6)
    mimic = world.store.mimic
    assert mimic is not None
    many = replace(mimic, studies=pd.concat([mimic.studies] * 100, ignore_index=True).assign(split="test"))
    pool = retrieval_pool(many, "test", "report_corrected")
    assert len(pool) == POOL_SIZE and (np.diff(pool) > 0).all()
    np.testing.assert_array_equal(pool, retrieval_pool(many, "test", "report_corrected"))
    assert (many.studies["lateral"].to_numpy()[pool] >= 0).all()


def test_held_out_patients(world: World) -> None:
    assert world.store.mimic is not None
    np.testing.assert_array_equal(held_out(world.store.mimic, ["10000", "10003", "10004"]), [False, True, True])


def test_prompts_are_balanced_and_joined_as_configured() -> None:
    assert len(PNEUMONIA_AS_PUBLISHED["positive"]) == len(PNEUMONIA_AS_PUBLISHED["negative"]) == 4
    assert list(CHANGES) == list(FINDINGS)
    for prompts in FINDINGS.values():
        assert not set(prompts["positive"]) & set(prompts["negative"])
        words = [word for prompt in prompts["positive"] for sentence in prompt for word in sentence.split()]
        assert words.count("left") == words.count("right")
        for side in prompts.values():
            # Each statement once bare and once as a short report, which says it twice.
            bare, reports = side[: len(side) // 2], side[len(side) // 2 :]
            assert [prompt[0] for prompt in bare] == [prompt[0] for prompt in reports]
            assert all(len(prompt) == 1 for prompt in bare)
            assert all(len(prompt) == 4 and prompt[0] == prompt[2] for prompt in reports)
    prompt = ("the lungs are clear", "no pneumonia")
    for behaviour in ("released", "corrected"):
        config = small_config(evaluation__prompt_joining=behaviour)
        assert join([prompt], config) == [join_prompt(prompt, config.evaluation.prompt_joining)]
    assert join([prompt], small_config()) != join([prompt], small_config(evaluation__prompt_joining="released"))


def test_unknown_task_is_refused_before_any_work(world: World) -> None:
    with pytest.raises(ValueError, match="unknown task 'retreival'; the nearest is 'retrieval'"):
        check_tasks(["grounding", "retreival"])
    context = make_context(world)
    config = small_config(evaluation__tasks=["temporal_imag"])
    with pytest.raises(ValueError, match="temporal_image"):
        evaluate(context.model, context.store, context.tokenizer, config, 1)


def test_default_tasks_are_all_evaluators() -> None:
    # The sides of findings are for the audit alone.
    assert set(EVALUATORS) - set(Config().evaluation.tasks) == {"sides"}
    assert set(Config().evaluation.tasks) <= set(EVALUATORS)


def test_the_suite_runs_tasks_in_order_and_restores_the_mode(world: World) -> None:
    config = small_config(evaluation__tasks=["rsna_zero_shot", "retrieval"], evaluation__track_embeddings=True)
    tokenizer = OracleTokenizer()
    model = OracleModel(world, tokenizer).train()
    records = list(evaluate(model, world.store, tokenizer, config, 42))  # type: ignore[arg-type]
    assert model.training
    metrics = [record for record in records if isinstance(record, Metrics)]
    assert [next(iter(record.values)).split("/")[1] for record in metrics] == ["rsna_zero_shot", "retrieval"]
    assert all(record.step == 42 for record in metrics)
    # No made-up patient has four studies.
    assert "skipped.embeddings" in facts(records)


def test_tracked_sequences(world: World) -> None:
    config = small_config(evaluation__tasks=[], evaluation__track_embeddings=True, data__sequence_length=3)
    tokenizer = OracleTokenizer()
    model = OracleModel(world, tokenizer)
    record, samples = list(evaluate(model, world.store, tokenizer, config, 1))  # type: ignore[arg-type]
    assert isinstance(record, Arrays) and record.is_private and record.name == "embeddings/temporal"
    arrays = record.arrays
    assert arrays["embeddings"].shape[:2] == arrays["reports"].shape[:2] == arrays["days"].shape == (50, 3)
    assert arrays["labels"].shape == (50, 3, 5)
    np.testing.assert_array_equal(arrays["days"][0], [0.0, 10.0, 20.0])
    assert all(array.dtype != object for array in arrays.values())

    assert isinstance(samples, Arrays) and samples.is_private and samples.name == "samples/sequences"
    shown = samples.arrays
    assert shown["frontal"].shape == shown["lateral"].shape == (3, 3, CROP, CROP)
    assert all(array.dtype != object for array in shown.values())
    mimic = world.store.mimic
    assert mimic is not None
    test = mimic.studies[mimic.studies["split"] == "test"]
    # Of the patients with laterals in two of three studies, those with the most findings, each as it is in the store.
    enough = (test["lateral"] >= 0).groupby(test["subject_id"]).transform("sum") >= 2
    positive = test[[f"label_{finding}" for finding in FINDINGS]].eq(1).sum(axis=1)
    counts = positive[enough].groupby(test["subject_id"]).sum()
    own = [int(positive[test["report_corrected"].isin(reports)].sum()) for reports in shown["reports"]]
    assert own == counts.nlargest(3).tolist() and (shown["has_lateral"].sum(axis=1) >= 2).all()
    assert (shown["lateral"][~shown["has_lateral"]] == 128).all()
    subject = test.loc[test["report_corrected"] == shown["reports"][0, 1], "subject_id"]
    assert context_groups(world, subject)[0] == shown["groups"][0]


def context_groups(world: World, patients: pd.Series) -> np.ndarray:
    return salted_groups(patients, world.store.fingerprint)


def test_predictions_carry_the_traits_of_subgroups(oracle: dict[str, list[Record]], world: World) -> None:
    mimic = world.store.mimic
    assert mimic is not None
    frame = table(oracle["finding_zero_shot"])
    rows = frame[frame["finding"] == "edema"]
    studies = mimic.studies.iloc[rows["example"].to_numpy()]
    assert rows["view"].tolist() == studies["frontal_view"].tolist()
    assert rows["sex"].tolist() == studies["sex"].tolist()
    # By the obvious way: does the patient have an earlier study?
    priors = ["yes" if ((mimic.studies["subject_id"] == study.subject_id) & (mimic.studies["time"] < study.time)).any()
              else "no" for study in studies.itertuples()]
    assert rows["prior"].tolist() == priors and set(priors) == {"yes", "no"}
    # A pair of MS-CXR-T has the traits of its current study, and every current study has a prior.
    assert set(table(oracle["temporal_image"])["prior"]) == {"yes"}
    assert set(table(oracle["sentence_similarity"])["prior"]) == {""}


def test_ages_fall_into_bands_and_an_unknown_study_has_no_traits(world: World) -> None:
    mimic = world.store.mimic
    assert mimic is not None
    ages = [39.9, 40.0, 80.0, np.nan]
    studies = mimic.studies.iloc[:4].assign(age=ages)
    traits = study_traits(replace(mimic, studies=studies), [0, 1, 2, 3, -1])
    assert traits["age"].tolist() == ["0-39", "40-59", "80+", "", ""]
    assert traits.iloc[-1].tolist() == ["", "", "", ""]
    assert studies_of(mimic, [mimic.studies["study_id"].iloc[2], "no such study"]).tolist() == [2, -1]


def test_tracked_attention(world: World) -> None:
    context = make_context(world, small_config(evaluation__track_attention=True))
    [arrays] = [record for record in EVALUATORS["grounding"](context) if isinstance(record, Arrays)]
    assert arrays.is_private and arrays.name == "attention/grounding"
    assert arrays.arrays["similarity"].shape == arrays.arrays["images"].shape == (12, CROP, CROP)
    assert arrays.arrays["images"].dtype == np.uint8
    assert len(set(arrays.arrays["findings"])) == 5
    boxes = arrays.arrays["boxes"]
    assert boxes.shape == (12, 1, 4) and (boxes[..., 2:] == 2 * PATCH).all()
    # The oracle's map is largest in the middle of the box.
    for pixel_map, (x, y, w, h) in zip(arrays.arrays["similarity"], boxes[:, 0], strict=True):
        row, column = divmod(int(pixel_map.argmax()), CROP)
        assert y <= row < y + h and x <= column < x + w
    assert all(array.dtype != object for array in arrays.arrays.values())
    # A patch is most like itself, and its centre lies in the box.
    for pixel_map, (x, y), (left, top, w, h) in zip(arrays.arrays["patch_similarity"], arrays.arrays["reference"],
                                                    boxes[:, 0], strict=True):
        assert left <= x <= left + w and top <= y <= top + h
        # Bilinear: the centre of a patch of even side lies between pixels.
        assert pixel_map[int(y), int(x)] == pytest.approx(pixel_map.max(), abs=0.05) and pixel_map.max() > 0.99
    assert GRID * PATCH == CROP


def test_pixel_baseline_sees_pixels_and_only_them(world: World) -> None:
    # The pixels of the made-up store say nothing but the row.
    found = values(list(evaluate_pixel_baseline(world.store, small_config(), step=3)))
    assert abs(found["test/pixel_baseline/temporal_image/mean/balanced_accuracy"] - 1 / 3) < 0.1
    assert world.store.mimic is not None and world.store.ms_cxr_t is not None
    images = world.store.mimic.images.copy()
    findings = world.store.mimic.findings
    assert findings is not None
    edema = findings[(findings["finding"] == "edema") & ~findings["is_lateral_only"]]
    images[edema["image"].to_numpy(), 8:] = (200 * edema["severity"].to_numpy()).astype(np.uint8)[:, None, None]
    painted = replace(world.store, mimic=replace(world.store.mimic, images=images))
    found = values(list(evaluate_pixel_baseline(painted, small_config(), step=3)))
    assert found["test/pixel_baseline/temporal_image/edema/balanced_accuracy"] > 0.8
    assert abs(found["test/pixel_baseline/temporal_image/pneumothorax/balanced_accuracy"] - 1 / 3) < 0.15
    [skipped] = list(evaluate_pixel_baseline(replace(painted, ms_cxr_t=None), small_config()))
    assert isinstance(skipped, Facts)


def test_balanced_accuracy_of_decisions_is_the_published_auroc() -> None:
    rng = np.random.default_rng(0)
    labels, decisions = rng.integers(0, 2, (2, 60))
    assert auroc(labels, decisions) == pytest.approx(balanced_accuracy(labels, decisions))


def _visited(world: World, run: Callable[[], object]) -> list[tuple[str, int]]:
    world.visited.clear()
    run()
    return list(world.visited)


@pytest.mark.parametrize("behaviour", ["released", "corrected"])
def test_images_of_other_collections_are_equalised_as_the_training_images_are(
        world: World, behaviour: str) -> None:
    seen: list[Tensor] = []

    class Recorder(OracleModel):
        def encode_images(self, frontal: Tensor, *rest: Tensor, **named: Tensor) -> OracleFeatures:
            seen.append(frontal)
            return OracleFeatures(torch.zeros(len(frontal), WIDTH), torch.zeros(len(frontal), 1, WIDTH))

    context = make_context(world, small_config(evaluation__equalisation=behaviour), model=Recorder)
    context.cache.frontal("rsna", [0, 1])
    context.cache.frontal("mimic", [0, 1])
    assert world.store.rsna is not None and world.store.mimic is not None
    rsna = world.store.rsna.images[:2]
    expected = equalise_squares(rsna) if behaviour == "corrected" else rsna
    assert torch.equal(seen[0], centre_crop(expected, CROP))
    assert torch.equal(seen[1], centre_crop(world.store.mimic.images[:2], CROP))
