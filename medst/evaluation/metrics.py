"""Metrics as pure functions of arrays. No model, no store, no config here.

Thin layers over scikit-learn where it has the metric; the rest (retrieval ranks, contrast-to-noise, pointing)
is written out. Every function refuses an input on which its metric is not defined, instead of returning NaN.
"""

from __future__ import annotations

import numpy as np
from scipy.special import softmax
from scipy.stats import rankdata
from sklearn.metrics import f1_score


class UndefinedMetricError(ValueError):
    """The metric is not defined on these labels, such as an AUROC of one class."""


def auroc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve: probability that a positive outscores a negative, ties counting half.

    From the rank sum (Mann-Whitney): hundreds of small ones are asked for, and scikit-learn's checks of its input take
    a hundred times as long as the ranks.

    Args:
        labels: (n,) of 0 and 1.
        scores: (n,), larger for positives.

    Raises:
        UndefinedMetricError: only one class is present.
    """
    labels = np.asarray(labels)
    positives = int((labels == 1).sum())
    if positives in (0, len(labels)):
        raise UndefinedMetricError(f"AUROC needs both classes, but {positives} of {len(labels)} examples are positive")
    rank_sum = rankdata(scores)[labels == 1].sum()
    return float((rank_sum - positives * (positives + 1) / 2) / (positives * (len(labels) - positives)))


def macro_auroc(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Mean over classes of the one-against-rest AUROC.

    Args:
        labels: (n,) class indices in [0, num_classes).
        probabilities: (n, num_classes) scores, larger for the class of the column.

    Raises:
        UndefinedMetricError: a class is absent, or only one is present.
    """
    labels = np.asarray(labels)
    columns = enumerate(np.asarray(probabilities).T)
    return float(np.mean([auroc(labels == column, scores) for column, scores in columns]))


def balanced_accuracy(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Mean of the recalls of the classes that occur in `labels`, in [0, 1].

    A predicted class that no example has costs recall elsewhere; it is no class of its own.

    Raises:
        UndefinedMetricError: fewer than two classes occur, so that chance would be 1.
    """
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    classes = np.unique(labels)
    if len(classes) < 2:
        raise UndefinedMetricError("balanced accuracy needs two classes")
    return float(np.mean([np.mean(predictions[labels == name] == name) for name in classes]))


def f1(labels: np.ndarray, predictions: np.ndarray) -> float:
    """F1 score of class 1; 0 where nothing is predicted positive."""
    return float(f1_score(labels, predictions, zero_division=0.0))


def retrieval_ranks(similarities: np.ndarray, is_correct: np.ndarray) -> np.ndarray:
    """Rank of the best correct candidate of every query, 1 = first.

    A wrong candidate that ties with the best correct one stands before it, so that equal embeddings score
    the worst rank and not the best.

    Args:
        similarities: (queries, candidates).
        is_correct: (queries, candidates) bool, at least one True in every row.

    Returns:
        (queries,) int64 ranks.
    """
    assert is_correct.any(axis=1).all(), "a query without a correct candidate"
    best = np.where(is_correct, similarities, -np.inf).max(axis=1, keepdims=True)
    return 1 + ((similarities >= best) & ~is_correct).sum(axis=1)


def recall_at(ranks: np.ndarray, k: int) -> float:
    """Share of the queries whose best correct candidate is among the first `k`."""
    return float(np.mean(ranks <= k))


def contrast_to_noise(maps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Signed contrast-to-noise ratio (mean_in - mean_out) / sqrt(var_in + var_out) of every map.

    0 for a constant map. The published ratio (BioViL, section 4.1) is its absolute value.

    Args:
        maps: (n, H, W); masks: (n, H, W) bool, True inside; both regions occur in every mask.

    Returns:
        (n,).
    """
    assert masks.any(axis=(1, 2)).all() and not masks.all(axis=(1, 2)).any(), "a region is empty"
    # About its mean, so that the variances do not drown in a large common value.
    centred = maps.astype(np.float64) - maps.mean(axis=(1, 2), keepdims=True)
    means, variances = [], []
    for region in (masks, ~masks):
        count = region.sum(axis=(1, 2))
        mean = np.einsum("nhw,nhw->n", centred, region) / count
        means.append(mean)
        variances.append(np.maximum(np.einsum("nhw,nhw,nhw->n", centred, centred, region) / count - mean**2, 0.0))
    return (means[0] - means[1]) / np.maximum(np.sqrt(variances[0] + variances[1]), 1e-9)


def margins(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Score of the true class minus the best score of the others: positive where the example is right.

    Args:
        scores: (n, num_classes).
        labels: (n,) class indices.

    Returns:
        (n,).
    """
    rows = np.arange(len(labels))
    others = np.array(scores, dtype=float)
    true = others[rows, labels].copy()
    others[rows, labels] = -np.inf
    return true - others.max(axis=1)


def log_loss(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean cross-entropy in nats of (n, num_classes) logits against (n,) class indices."""
    return float(-np.log(softmax(logits, axis=1)[np.arange(len(labels)), labels] + 1e-300).mean())
