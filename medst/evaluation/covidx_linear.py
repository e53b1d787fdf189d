"""COVIDx: a linear layer on the frozen class token, with 1, 10 and 100 % of the training labels.

Three classes (normal, pneumonia, COVID-19), judged on the official test split.

- as published: 20 % of the training images (not by patient) are the validation set; of the others 1, 10 or 100 % are
  used (data/published_splits.py); AdamW (5e-4, weight decay 1e-6), batches of 96, up to 200 epochs, stopped
  after 10 without a better validation loss, weights of the best epoch: `accuracy_as_published`.
- corrected: training images of patients that also stand in the test split are left out; the fraction is drawn within
  each class (random_state 42); the penalty of a class-balanced logistic regression on standardised features is
  chosen on a validation split that shares no patient with the rest, then fitted on all: `balanced_accuracy`, `auroc`
  (macro).

Features are computed once, so that an epoch costs a few matrix products; no augmentation, as they are frozen.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
from scipy.special import softmax
from sklearn.model_selection import StratifiedGroupKFold

from medst.data.published_splits import PUBLISHED_PERCENTS
from medst.evaluation.context import EvaluationContext, skipped
from medst.evaluation.metrics import balanced_accuracy, log_loss, macro_auroc, margins
from medst.evaluation.predictions import prediction_frame, prediction_table
from medst.evaluation.probes import PROBE_STRENGTH, fit_logistic
from medst.records import Facts, Record

TASK = "covidx_linear"
CLASSES = ("normal", "pneumonia", "COVID-19")
STRENGTHS = (0.001, 0.01, 0.1, 1.0)
"""Inverse penalties among which the corrected protocol chooses on its validation split."""
_MIN_VALIDATION_PATIENTS = 5
_BATCH = 96
_LEARNING_RATE, _WEIGHT_DECAY, _BETA1, _BETA2, _EPSILON = 5e-4, 1e-6, 0.9, 0.999, 1e-8
_MAX_EPOCHS, _PATIENCE = 200, 10


def train_linear_layer(features: np.ndarray, labels: np.ndarray, validation_features: np.ndarray,
                       validation_labels: np.ndarray, num_classes: int, seed: int = 42) -> np.ndarray:
    """Weights (D + 1, K), bias last, of the published linear layer: AdamW with early stopping.

    Args:
        features: (n, D); labels: (n,) class indices; likewise for validation.
    """
    rng = np.random.default_rng(seed)
    inputs, held_out = _with_bias(features), _with_bias(validation_features)
    targets = np.eye(num_classes)[labels]
    bound = 1.0 / np.sqrt(features.shape[1])
    weights = rng.uniform(-bound, bound, (inputs.shape[1], num_classes))
    first, second = np.zeros_like(weights), np.zeros_like(weights)
    best, best_loss, best_epoch, step = weights.copy(), np.inf, 0, 0
    for epoch in range(_MAX_EPOCHS):
        order = rng.permutation(len(inputs))
        for start in range(0, len(inputs), _BATCH):
            rows = order[start:start + _BATCH]
            step += 1
            batch = inputs[rows]
            errors = np.exp(batch @ weights)
            errors /= errors.sum(axis=1, keepdims=True)
            errors -= targets[rows]
            gradient = batch.T @ errors / len(rows)
            first += (1 - _BETA1) * (gradient - first)
            second += (1 - _BETA2) * (gradient * gradient - second)
            weights *= 1 - _LEARNING_RATE * _WEIGHT_DECAY
            weights -= _LEARNING_RATE / (1 - _BETA1**step) * first / (
                np.sqrt(second / (1 - _BETA2**step)) + _EPSILON)
        loss = log_loss(held_out @ weights, validation_labels)
        if loss < best_loss:
            best, best_loss, best_epoch = weights.copy(), loss, epoch
        elif epoch - best_epoch >= _PATIENCE:
            break
    return best


def published_rows(train: pd.DataFrame, percent: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the published training subset and of its validation set, each in the order drawn.

    Args:
        train: the training images, as `CovidxStore.table` has them.
        percent: of PUBLISHED_PERCENTS.
    """
    drawn = np.argsort(train["published_order"].to_numpy(), kind="stable")
    is_train = (train["published_split"] == "train").to_numpy()[drawn]
    is_sampled = is_train & (train["published_percent"] <= percent).to_numpy()[drawn]
    return drawn[is_sampled], drawn[~is_train]


def corrected_rows(labels: np.ndarray, fraction: float) -> np.ndarray:
    """Rows of a subset that keeps the class proportions, at least two of each class where there are two."""
    rng = np.random.default_rng(42)
    chosen = []
    for name in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == name))
        # Prefixes of one permutation: a smaller fraction is part of a larger one.
        chosen.append(members[:max(2, round(fraction * len(members)))])
    return np.sort(np.concatenate(chosen))


def choose_strength(features: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> float:
    """The strength of STRENGTHS with the best balanced accuracy on one fifth of the patients.

    With too few patients in a class for such a split, `probes.PROBE_STRENGTH`.
    """
    classes = np.unique(labels)
    if min(len(set(groups[labels == name])) for name in classes) < _MIN_VALIDATION_PATIENTS:
        return PROBE_STRENGTH
    splitter = StratifiedGroupKFold(_MIN_VALIDATION_PATIENTS, shuffle=True, random_state=0)
    train, validation = next(iter(splitter.split(features, labels, groups)))
    if len(np.unique(labels[train])) < len(classes) or len(np.unique(labels[validation])) < 2:
        return PROBE_STRENGTH
    scores = []
    for strength in STRENGTHS:
        scaler, classifier = fit_logistic(features[train], labels[train], strength)
        predictions = classifier.predict(scaler.transform(features[validation]))
        scores.append(balanced_accuracy(labels[validation], predictions))
    return STRENGTHS[int(np.argmax(scores))]


def covidx_linear(context: EvaluationContext) -> Iterator[Record]:
    """`test/covidx_linear/{1,10,100}/{balanced_accuracy,auroc,accuracy_as_published}`."""
    if context.store.covidx is None:
        yield skipped(TASK, "the data has no COVIDx images")
        return
    table = context.store.covidx.table
    table = table[table["label"].isin(CLASSES)]
    train, test = table[table["split"] == "train"], table[table["split"] == "test"]
    labels, test_labels = (part["label"].map(CLASSES.index).to_numpy(dtype=np.int64) for part in (train, test))
    if len(np.unique(labels)) < len(CLASSES) or len(np.unique(test_labels)) < len(CLASSES):
        yield skipped(TASK, f"not all of {', '.join(CLASSES)} occur in both splits of COVIDx")
        return
    features = context.cache.class_tokens("covidx", train["image"].to_numpy()).astype(np.float64)
    test_features = context.cache.class_tokens("covidx", test["image"].to_numpy()).astype(np.float64)
    patients = train["patient_id"].to_numpy()
    clean = np.flatnonzero(~train["patient_id"].isin(test["patient_id"]).to_numpy())
    groups = context.groups(test["patient_id"])
    values: dict[str, float] = {}
    facts: dict[str, object] = {f"{TASK}.num_train": len(train), f"{TASK}.num_test": len(test),
                                f"{TASK}.num_train_of_test_patients": len(train) - len(clean)}
    frames = []
    for percent in PUBLISHED_PERCENTS:
        name = str(percent)
        rows, validation = published_rows(train, percent)
        weights = train_linear_layer(features[rows], labels[rows], features[validation], labels[validation],
                                     len(CLASSES))
        logits = _with_bias(test_features) @ weights
        values[f"{name}/accuracy_as_published"] = float(np.mean(logits.argmax(axis=1) == test_labels))
        outcomes = {"as_published": softmax(logits, axis=1)}

        rows = clean[corrected_rows(labels[clean], percent / 100)] if len(clean) else clean
        facts[f"{TASK}.{name}_percent.num_labels"] = len(rows)
        if len(np.unique(labels[rows])) < len(CLASSES):
            facts[f"skipped.{TASK}.{name}_percent.corrected"] = "a class occurs in test patients only"
        else:
            strength = choose_strength(features[rows], labels[rows], patients[rows])
            scaler, classifier = fit_logistic(features[rows], labels[rows], strength)
            probabilities = classifier.predict_proba(scaler.transform(test_features))
            values[f"{name}/balanced_accuracy"] = balanced_accuracy(test_labels, probabilities.argmax(axis=1))
            values[f"{name}/auroc"] = macro_auroc(test_labels, probabilities)
            outcomes["corrected"] = probabilities
        frames += [prediction_frame(
            example=test.index.to_numpy(), group=groups, label=test["label"].to_numpy(dtype=object),
            score=margins(probabilities, test_labels), finding=name, protocol=protocol)
            for protocol, probabilities in outcomes.items()]
    yield Facts(facts)
    yield context.metrics({f"test/{TASK}/{name}": value for name, value in values.items()})
    yield prediction_table(TASK, frames)


def _with_bias(features: np.ndarray) -> np.ndarray:
    return np.concatenate([features, np.ones((len(features), 1))], axis=1)
