"""Classifiers on frozen features, cross-validated over patients. No model, no store here.

Legend: n examples, D features, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import sklearn
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from medst.evaluation.metrics import UndefinedMetricError, balanced_accuracy, macro_auroc

PROBE_STRENGTH = 0.1
"""Inverse regularisation C of the corrected probes on standardised features, fixed so that nothing is chosen on the
data that is judged. Chosen on another draw of the tiny phantom: from 0.001 to 1 the mean balanced accuracy of temporal
image classification moved by 0.02 on embeddings (best at 0.1) and by 0.04 on pixels (best at 0.1)."""
PROBE_FOLDS = 5
PUBLISHED_SHUFFLES = (42, 100, 666)
PUBLISHED_FOLDS = (5, 10)


class TooFewExamplesError(UndefinedMetricError):
    """A class has too few examples or patients for the folds."""


@dataclass(frozen=True)
class ProbeResult:
    """Out-of-fold outcome of a grouped probe."""

    probabilities: np.ndarray
    """(n, K) of every example, from the probe that did not see its patient."""
    fold: np.ndarray
    """(n,) int64 test fold of every example."""
    balanced_accuracy: float
    """Mean over folds."""
    auroc: float
    """Macro AUROC, mean over folds."""


def fit_logistic(features: np.ndarray, labels: np.ndarray, strength: float = PROBE_STRENGTH
                 ) -> tuple[StandardScaler, LogisticRegression]:
    """Standardisation and class-balanced multinomial logistic regression, both fitted on these rows alone."""
    scaler = StandardScaler().fit(features)
    classifier = LogisticRegression(C=strength, class_weight="balanced", max_iter=500)
    return scaler, classifier.fit(scaler.transform(features), labels)


def grouped_folds(labels: np.ndarray, groups: np.ndarray, num_folds: int = PROBE_FOLDS, seed: int = 0) -> np.ndarray:
    """Test fold of every example: stratified by label, no patient in two folds, whatever the patients are called.

    Raises:
        TooFewExamplesError: a class occurs in fewer patients than there are folds.
    """
    for name in np.unique(labels):
        patients = len(set(groups[labels == name]))
        if patients < num_folds:
            raise TooFewExamplesError(f"class {name} occurs in {patients} patients, {num_folds} folds need as many")
    folds = np.full(len(labels), -1, dtype=np.int64)
    splitter = StratifiedGroupKFold(num_folds, shuffle=True, random_state=seed)
    # Names are salted by store, and the splitter shuffles them sorted: numbered in the order in which they come,
    # the same patients are in the same folds whichever store they were read into.
    numbers = pd.factorize(groups)[0]
    for number, (_, test) in enumerate(splitter.split(labels[:, None], labels, numbers)):
        folds[test] = number
    return folds


def grouped_probe(features: np.ndarray, labels: np.ndarray, groups: np.ndarray, num_classes: int) -> ProbeResult:
    """Cross-validated logistic regression whose folds never share a patient.

    Args:
        features: (n, D).
        labels: (n,) class indices in [0, K).
        groups: (n,) patients.

    Raises:
        TooFewExamplesError: a class is absent or occurs in fewer patients than there are folds.
    """
    if len(np.unique(labels)) < num_classes:
        raise TooFewExamplesError(f"{len(np.unique(labels))} of {num_classes} classes occur")
    folds = grouped_folds(labels, groups)
    probabilities = np.zeros((len(labels), num_classes))
    accuracies, areas = [], []
    for number in range(PROBE_FOLDS):
        test = folds == number
        scaler, classifier = fit_logistic(features[~test], labels[~test])
        # A class that one patient group holds alone may be missing from the training folds.
        probabilities[np.ix_(test, classifier.classes_)] = classifier.predict_proba(scaler.transform(features[test]))
        if len(np.unique(labels[test])) == num_classes:
            accuracies.append(balanced_accuracy(labels[test], probabilities[test].argmax(axis=1)))
            areas.append(macro_auroc(labels[test], probabilities[test]))
    if not accuracies:
        raise TooFewExamplesError("no fold holds every class")
    return ProbeResult(probabilities, folds, float(np.mean(accuracies)), float(np.mean(areas)))


def published_accuracy(features: np.ndarray, labels: np.ndarray, num_folds: int) -> float:
    """Accuracy of the published protocol: linear support vector machine, C = 1, features as they are.

    Stratified folds that ignore patients, plain accuracy, mean over folds and over the three shuffles. The
    linear kernel is computed once and cut into folds, which gives the same machines several times faster.

    Raises:
        TooFewExamplesError: a class has fewer examples than there are folds.
    """
    counts = np.unique(labels, return_counts=True)[1]
    if len(counts) < 2 or counts.min() < num_folds:
        raise TooFewExamplesError(f"class sizes {counts.tolist()} are too small for {num_folds} stratified folds")
    kernel = features.astype(np.float64) @ features.astype(np.float64).T
    scores = []
    # The inputs are our own: scikit-learn's checks would take longer than the fits.
    with sklearn.config_context(assume_finite=True, skip_parameter_validation=True):
        for seed in PUBLISHED_SHUFFLES:
            splitter = StratifiedKFold(num_folds, shuffle=True, random_state=seed)
            for train, test in splitter.split(features, labels):
                machine = SVC(kernel="precomputed", C=1.0).fit(kernel[np.ix_(train, train)], labels[train])
                scores.append(np.mean(machine.predict(kernel[np.ix_(test, train)]) == labels[test]))
    return float(np.mean(scores))
