"""Metrics and probes against hand-worked numbers, scikit-learn and slow obvious versions."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_score, train_test_split
from sklearn.svm import SVC

from medst.data.published_splits import published_covidx_split
from medst.evaluation.covidx_linear import (
    STRENGTHS,
    choose_strength,
    corrected_rows,
    published_rows,
    train_linear_layer,
)
from medst.evaluation.direction import alignment_accuracy, order_probe, report_alignment
from medst.evaluation.grounding import box_mask, phrase_maps, points_inside, upsample
from medst.evaluation.metrics import (
    UndefinedMetricError,
    auroc,
    balanced_accuracy,
    contrast_to_noise,
    f1,
    macro_auroc,
    margins,
    recall_at,
    retrieval_ranks,
)
from medst.evaluation.predictions import COLUMNS, prediction_frame, salted_groups
from medst.evaluation.probes import (
    PROBE_STRENGTH,
    TooFewExamplesError,
    grouped_folds,
    grouped_probe,
    published_accuracy,
)
from medst.evaluation.retrieval import direction_ranks, retrieval_values
from medst.evaluation.sentence_similarity import THRESHOLDS, choose_threshold, threshold_accuracy
from medst.evaluation.temporal_image import small_images


def test_auroc_by_hand_with_a_tie() -> None:
    # Pairs (positive, negative): 0.8 > 0.1, 0.8 > 0.5, 0.5 > 0.1, 0.5 = 0.5 -> 3.5 of 4.
    assert auroc(np.array([0, 0, 1, 1]), np.array([0.1, 0.5, 0.5, 0.8])) == pytest.approx(3.5 / 4)
    with pytest.raises(UndefinedMetricError, match="both classes"):
        auroc(np.ones(3), np.arange(3.0))


@given(st.lists(st.tuples(st.booleans(), st.integers(-3, 3)), min_size=2, max_size=30))
def test_auroc_counts_pairs(examples: list[tuple[bool, int]]) -> None:
    labels, scores = (np.array(column, dtype=int) for column in zip(*examples, strict=True))
    wins = [(p > n) + 0.5 * (p == n) for p in scores[labels == 1] for n in scores[labels == 0]]
    if wins:
        assert auroc(labels, scores) == pytest.approx(np.mean(wins)) == roc_auc_score(labels, scores)
    else:
        with pytest.raises(UndefinedMetricError):
            auroc(labels, scores)


def test_macro_auroc_is_the_mean_of_one_against_rest() -> None:
    labels = np.array([0, 0, 1, 1, 2, 2])
    probabilities = np.array([[.8, .1, .1], [.2, .5, .3], [.3, .4, .3], [.1, .7, .2], [.1, .2, .7], [.5, .3, .2]])
    by_hand = [(4 + 2) / 8, (4 + 3) / 8, (4 + 1.5) / 8]
    # Class 2: 0.7 beats all four others; 0.2 beats 0.1 and ties with 0.2 of class 1 -> 1.5.
    assert macro_auroc(labels, probabilities) == pytest.approx(np.mean(by_hand))


def test_balanced_accuracy_by_hand_and_as_scikit_learn() -> None:
    labels, predictions = np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1])
    assert balanced_accuracy(labels, predictions) == pytest.approx((2 / 3 + 1) / 2)
    rng = np.random.default_rng(0)
    labels, predictions = rng.integers(0, 3, (2, 50))
    assert balanced_accuracy(labels, predictions) == pytest.approx(balanced_accuracy_score(labels, predictions))
    with pytest.raises(UndefinedMetricError):
        balanced_accuracy(np.zeros(4), np.zeros(4))


def test_f1_by_hand() -> None:
    assert f1(np.array([1, 1, 0, 0]), np.array([1, 0, 1, 0])) == pytest.approx(0.5)
    assert f1(np.array([1, 0]), np.array([0, 0])) == 0.0


def test_margins_by_hand() -> None:
    scores = np.array([[0.7, 0.2, 0.1], [0.7, 0.2, 0.1]])
    np.testing.assert_allclose(margins(scores, np.array([0, 1])), [0.5, -0.5])


def test_retrieval_ranks_by_hand() -> None:
    similarities = np.array([[0.9, 0.8, 0.1], [0.9, 0.8, 0.1], [0.5, 0.5, 0.5]])
    np.testing.assert_array_equal(retrieval_ranks(similarities, np.eye(3, dtype=bool)), [1, 2, 3])
    # Candidates 0 and 1 are the same text: either is right for queries 0 and 1.
    same = np.array([[1, 1, 0], [1, 1, 0], [0, 0, 1]], dtype=bool)
    ranks = retrieval_ranks(similarities, same)
    np.testing.assert_array_equal(ranks, [1, 1, 3])
    assert recall_at(ranks, 1) == pytest.approx(2 / 3)
    assert recall_at(ranks, 3) == 1.0


def test_retrieval_both_directions_and_identical_reports() -> None:
    images = np.eye(4)
    reports = np.eye(4)[[1, 0, 2, 3]]
    ranks = direction_ranks(images, reports, pd.Series(["a", "b", "c", "d"]))
    # A wrong twin stands first; of the others, equal to the right one at 0, both come before it.
    np.testing.assert_array_equal(ranks["image_to_report"], [4, 4, 1, 1])
    ranks = direction_ranks(images, reports, pd.Series(["a", "a", "c", "d"]))
    assert retrieval_values(ranks) == {
        "image_to_report/r1": 1.0, "image_to_report/r5": 1.0, "image_to_report/r10": 1.0,
        "report_to_image/r1": 1.0, "report_to_image/r5": 1.0, "report_to_image/r10": 1.0,
        "r1": 1.0, "r5": 1.0, "r10": 1.0, "image_to_report/median_rank": 1.0, "report_to_image/median_rank": 1.0}


def test_contrast_to_noise_by_hand() -> None:
    maps = np.array([[[2.0, 4.0], [1.0, 1.0]], [[1.0, 1.0], [2.0, 4.0]], [[1.0, 1.0], [1.0, 1.0]]])
    masks = np.array([[[True, True], [False, False]]] * 3)
    # Means 3 and 1, variances 1 and 0; the reverse; a constant map.
    np.testing.assert_allclose(contrast_to_noise(maps, masks), [2.0, -2.0, 0.0])
    rng = np.random.default_rng(0)
    maps, masks = rng.normal(5.0, 1.0, (4, 6, 6)), rng.random((4, 6, 6)) < 0.4
    slow = [(m[k].mean() - m[~k].mean()) / np.sqrt(m[k].var() + m[~k].var()) for m, k in zip(maps, masks, strict=True)]
    np.testing.assert_allclose(contrast_to_noise(maps, masks), slow)


def test_phrase_maps_by_hand() -> None:
    words = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    patches = np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8], [-1.0, 0.0]])
    similarity, attention = phrase_maps(words, np.array([True, True, False]), patches, temperature=0.5)
    np.testing.assert_allclose(similarity, [0.5, 0.5, 0.7, -0.5])
    rows = [np.exp([2, 0, 1.2, -2]), np.exp([0, 2, 1.6, 0])]
    np.testing.assert_allclose(attention, np.mean([row / row.sum() for row in rows], axis=0))


def test_pointing_and_box_masks() -> None:
    mask = box_mask(np.array([[2.0, 0.0, 2.0, 1.0], [-5.0, 3.0, 5.5, 9.0]]), 4)
    np.testing.assert_array_equal(mask.astype(int), [[0, 0, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    mask = box_mask(np.array([[-5.0, 3.0, 5.6, 9.0]]), 4)
    np.testing.assert_array_equal(np.argwhere(mask), [[3, 0]])
    # The largest of the four patches is the lower left one, whose centre is pixel (6, 2) of 8.
    patch_map = np.array([0.0, 0.1, 0.9, 0.2])
    pixel_map = upsample(patch_map[None], 8)[0]
    assert pixel_map.shape == (8, 8)
    assert pixel_map.max() == pytest.approx(0.9) and pixel_map[7, 0] == pytest.approx(0.9)
    masks = np.stack([box_mask(np.array([box]), 8) for box in ([0.0, 4.0, 4.0, 4.0], [4.0, 0.0, 4.0, 8.0])])
    np.testing.assert_array_equal(points_inside(np.stack([patch_map, patch_map]), masks), [True, False])


def test_published_accuracy_equals_scikit_learns_cross_validation() -> None:
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 3, 90)
    features = rng.normal(size=(90, 12)) + np.eye(3)[labels] @ rng.normal(size=(3, 12))
    for num_folds in (5, 10):
        scores = [cross_val_score(SVC(kernel="linear", C=1.0), features, labels,
                                  cv=StratifiedKFold(num_folds, shuffle=True, random_state=seed))
                  for seed in (42, 100, 666)]
        assert published_accuracy(features, labels, num_folds) == pytest.approx(np.mean(scores), abs=1e-12)


def test_published_accuracy_of_a_tiny_example() -> None:
    # Two clusters far apart: every machine separates them, whatever the shuffle.
    features = np.repeat([[0.0, 0.0], [9.0, 9.0]], 10, axis=0)
    assert published_accuracy(features, np.repeat([0, 1], 10), 5) == 1.0
    # Identical features say nothing: the machine calls everything by the larger class, 14 of 20.
    labels = np.repeat([0, 1], [14, 6])
    assert published_accuracy(np.ones((20, 2)), labels, 5) == pytest.approx(0.7, abs=0.01)
    with pytest.raises(TooFewExamplesError):
        published_accuracy(features, np.repeat([0, 1], [16, 4]), 5)


@given(st.integers(0, 1000))
def test_no_patient_is_on_both_sides_of_a_fold(seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups = rng.integers(0, 25, 120)
    labels = rng.integers(0, 3, 120)
    folds = grouped_folds(labels, groups)
    assert set(folds) == set(range(5))
    for group in np.unique(groups):
        assert len(set(folds[groups == group])) == 1
    names = rng.permutation(25).astype(str)
    np.testing.assert_array_equal(grouped_folds(labels, names[groups]), folds)


def test_grouped_probe_finds_what_is_there_and_nothing_in_shuffled_labels() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 300)
    groups = np.arange(300) // 3
    features = rng.normal(size=(300, 20))
    features[:, :3] += 4 * np.eye(3)[labels]
    found = grouped_probe(features, labels, groups, 3)
    assert found.balanced_accuracy > 0.9 and found.auroc > 0.98
    assert found.probabilities.sum(axis=1) == pytest.approx(1.0)
    shuffled = [grouped_probe(features, rng.permutation(labels), groups, 3) for _ in range(8)]
    # Standard error of one: sqrt(2/9 / 300) = 0.027; of the mean of eight 0.010.
    assert abs(np.mean([result.balanced_accuracy for result in shuffled]) - 1 / 3) < 0.04
    assert abs(np.mean([result.auroc for result in shuffled]) - 0.5) < 0.04


def test_patients_do_not_leak_through_the_grouped_probe() -> None:
    # Features tell the patient, labels are random per patient: ungrouped folds would score 1.
    rng = np.random.default_rng(1)
    labels = np.repeat(rng.integers(0, 2, 60), 5)
    groups = np.repeat(np.arange(60), 5)
    features = np.repeat(rng.normal(size=(60, 60)), 5, axis=0)
    assert abs(grouped_probe(features, labels, groups, 2).auroc - 0.5) < 0.2
    assert published_accuracy(features, labels, 5) > 0.95


def test_threshold_chosen_by_hand() -> None:
    labels = np.array([0, 0, 1, 1])
    threshold = choose_threshold(labels, np.array([0.1, 0.3, 0.5, 0.9]))
    assert 0.3 < threshold <= 0.5
    assert len(THRESHOLDS) == 201 and THRESHOLDS[1] == 0.005 and THRESHOLDS[-1] == 1.0


def test_threshold_is_chosen_without_the_fold_it_judges() -> None:
    rng = np.random.default_rng(2)
    labels = np.repeat([0, 1], 50)
    scores = np.clip(0.5 + 0.2 * (labels - 0.5) + rng.normal(0, 0.15, 100), 0, 1)
    result = threshold_accuracy(labels, scores)
    accuracies = []
    for fold in range(10):
        test = result.fold == fold
        chosen = choose_threshold(labels[~test], scores[~test])
        assert set(result.threshold[test]) == {chosen}
        accuracies.append(np.mean((scores[test] >= chosen) == labels[test]))
    assert result.accuracy == pytest.approx(np.mean(accuracies))
    best = result.threshold[result.fold == int(np.argmax(accuracies))][0]
    assert result.accuracy_as_published == pytest.approx(np.mean((scores >= best) == labels))


def test_published_covidx_rows_are_those_that_scikit_learn_and_pandas_draw() -> None:
    names = pd.DataFrame({"name": [f"image {row}" for row in range(1003)]})
    drawn_train, drawn_validation = train_test_split(names, train_size=0.8, random_state=0)
    table = pd.concat([names, published_covidx_split(len(names))], axis=1)
    # An image that cannot be read is missing where it was drawn, and moves no other.
    lost = drawn_train["name"].iloc[7]
    readable = table[table["name"] != lost].reset_index(drop=True)
    for percent in (1, 10, 100):
        sample = drawn_train if percent == 100 else drawn_train.sample(frac=percent / 100, random_state=42)
        for images in (table, readable):
            train, validation = published_rows(images, percent)
            expected = sample["name"] if images is table else sample.loc[sample["name"] != lost, "name"]
            assert set(images["name"].iloc[train]) == set(expected) and len(train) == len(expected)
            assert images["name"].iloc[validation].tolist() == drawn_validation["name"].tolist()
    assert readable["name"].iloc[published_rows(readable, 100)[0]].tolist() == [
        name for name in drawn_train["name"] if name != lost]


def test_corrected_subset_keeps_the_classes_and_is_nested() -> None:
    labels = np.repeat([0, 1, 2], [100, 60, 40])
    one, ten, all_ = (corrected_rows(labels, fraction) for fraction in (0.01, 0.1, 1.0))
    np.testing.assert_array_equal(np.bincount(labels[ten]), [10, 6, 4])
    np.testing.assert_array_equal(np.bincount(labels[one]), [2, 2, 2])
    assert set(one) < set(ten) < set(all_) and len(all_) == 200


def test_strength_is_a_listed_one_and_falls_back_with_few_patients() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 100)
    features = rng.normal(size=(100, 4)) + labels[:, None]
    assert choose_strength(features, labels, np.arange(100)) in STRENGTHS
    assert choose_strength(features, labels, np.arange(100) % 3) == PROBE_STRENGTH


def test_linear_layer_takes_the_steps_of_torchs_adamw() -> None:
    import torch

    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 60)
    features = rng.normal(size=(60, 5)) + np.eye(3)[labels] @ rng.normal(size=(3, 5))
    ours = train_linear_layer(features, labels, features, labels, 3)

    # The same run, written with torch: one batch an epoch, as 60 < 96.
    start = np.random.default_rng(42).uniform(-1 / np.sqrt(5), 1 / np.sqrt(5), (6, 3))
    weights = torch.nn.Parameter(torch.tensor(start))
    optimizer = torch.optim.AdamW([weights], lr=5e-4, weight_decay=1e-6)
    inputs = torch.tensor(np.concatenate([features, np.ones((60, 1))], axis=1))
    for _ in range(200):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(inputs @ weights, torch.tensor(labels)).backward()
        optimizer.step()
    np.testing.assert_allclose(ours, weights.detach().numpy(), atol=1e-9)


def test_linear_layer_stops_and_returns_the_best_epoch() -> None:
    features = np.random.default_rng(0).normal(size=(40, 5))
    start = np.random.default_rng(42).uniform(-1 / np.sqrt(5), 1 / np.sqrt(5), (6, 2))
    labels = (np.concatenate([features, np.ones((40, 1))], axis=1) @ start).argmax(axis=1)
    # It begins with the right weights, and the validation labels are the opposite: the first epoch is the best one,
    # and ten more are tried before it stops.
    weights = train_linear_layer(features, labels, features, 1 - labels, 2)
    assert np.abs(weights - start).max() < 1.1 * 5e-4


def test_order_probe_sees_a_drift_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    groups = np.arange(200) // 2
    first, second = rng.normal(size=(2, 200, 8))
    forward = np.ones(200, dtype=np.int64)
    # Five folds of 80 examples, of which half are mirror images.
    assert abs(order_probe(first, second, forward, groups).auroc - 0.5) < 0.12
    result = order_probe(first, second + 1.0, forward, groups)
    assert result.auroc > 0.9
    np.testing.assert_array_equal(result.fold[:200], result.fold[200:])


def test_report_alignment_by_hand() -> None:
    images = np.array([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]]])
    reports = np.array([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]], [[1.0, 0.0], [1.0, 0.0]]])
    alignment = report_alignment(images, reports)
    np.testing.assert_allclose(alignment, [2.0, -2.0, 0.0])
    assert alignment_accuracy(alignment) == pytest.approx(0.5)


def test_small_images_average_areas() -> None:
    image = np.arange(36, dtype=np.uint8).reshape(1, 6, 6)
    small = small_images(image, np.array([0]), crop_size=4, side=2)
    inner = image[0, 1:5, 1:5].astype(float) / 255
    np.testing.assert_allclose(small, [[inner[:2, :2].mean(), inner[:2, 2:].mean(), inner[2:, :2].mean(),
                                        inner[2:, 2:].mean()]], rtol=1e-6)
    uneven = small_images(np.full((1, 7, 7), 51, dtype=np.uint8), np.array([0]), crop_size=7, side=3)
    np.testing.assert_allclose(uneven, 0.2, rtol=1e-6)


def test_groups_are_salted_and_stable() -> None:
    groups = salted_groups(["10000032", "10000032", "10000048"], "salt")
    assert groups[0] == groups[1] != groups[2]
    assert "10000032" not in groups[0] and len(groups[0]) == 16
    assert salted_groups(["10000032"], "other")[0] != groups[0]
    frame = prediction_frame(example=[0], group=groups[:1], label=[1], score=[0.5], finding="edema")
    assert tuple(frame.columns) == COLUMNS
