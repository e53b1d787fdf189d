"""Temporal sentence similarity (MS-CXR-T): do two sentences say the same about a change, or the opposite?

The score of a pair is the inner product of the unit report embeddings; a pair at or above a threshold is
called a paraphrase. Thresholds run from 0 to 1 in steps of 0.005, ten stratified folds (shuffle 42). Reported for
the RadGraph subset (the published one), the Swaps subset and all pairs.

- as published: each fold's threshold is the best one on the other nine; that of the fold with the best *test*
  accuracy is then applied to all pairs, which leaks: `accuracy_as_published`.
- corrected: each fold is judged at the threshold of the other nine; mean over folds: `accuracy`. `auroc` needs no
  threshold and is the same in both.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedKFold

from medst.data.report_text import clean
from medst.evaluation.context import EvaluationContext, skipped
from medst.evaluation.metrics import auroc
from medst.evaluation.predictions import prediction_frame, prediction_table
from medst.records import Facts, Record

TASK = "sentence_similarity"
THRESHOLDS = np.arange(201) * 0.005
_NUM_FOLDS = 10
_SHUFFLE = 42


@dataclass(frozen=True)
class ThresholdResult:
    """Outcome of the threshold protocols on one subset."""

    accuracy: float
    accuracy_as_published: float
    fold: np.ndarray
    """(n,) test fold of every pair."""
    threshold: np.ndarray
    """(n,) threshold that the other folds chose for it."""


def choose_threshold(labels: np.ndarray, scores: np.ndarray) -> float:
    """The threshold of THRESHOLDS with the best accuracy; of equally good ones the middle one.

    The middle keeps the largest distance from the pairs on both sides.
    """
    accuracies = ((scores[None, :] >= THRESHOLDS[:, None]) == (labels[None, :] == 1)).mean(axis=1)
    best = np.flatnonzero(accuracies == accuracies.max())
    return float(THRESHOLDS[best[len(best) // 2]])


def threshold_accuracy(labels: np.ndarray, scores: np.ndarray) -> ThresholdResult:
    """Both protocols on (n,) labels of 0 and 1 and (n,) scores."""
    fold = np.zeros(len(labels), dtype=np.int64)
    threshold = np.zeros(len(labels))
    test_accuracies, thresholds = [], []
    splitter = StratifiedKFold(_NUM_FOLDS, shuffle=True, random_state=_SHUFFLE)
    for number, (train, test) in enumerate(splitter.split(scores[:, None], labels)):
        chosen = choose_threshold(labels[train], scores[train])
        fold[test], threshold[test] = number, chosen
        thresholds.append(chosen)
        test_accuracies.append(float(np.mean((scores[test] >= chosen) == (labels[test] == 1))))
    leaked = thresholds[int(np.argmax(test_accuracies))]
    return ThresholdResult(float(np.mean(test_accuracies)), float(np.mean((scores >= leaked) == (labels == 1))),
                           fold, threshold)


def sentence_similarity(context: EvaluationContext) -> Iterator[Record]:
    """`test/sentence_similarity/{all,radgraph,swaps}/{accuracy,auroc,accuracy_as_published}`."""
    if context.store.ms_cxr_t is None or len(context.store.ms_cxr_t.sentences) == 0:
        yield skipped(TASK, "the data has no sentence pairs of MS-CXR-T")
        return
    sentences = context.store.ms_cxr_t.sentences
    # Not the cleaning of released captions: it would drop a sentence of one word.
    first, second = ([clean(text, "corrected") for text in sentences[column]]
                     for column in ("sentence_1", "sentence_2"))
    embeddings = context.cache.texts(first + second)
    scores = (embeddings[:len(first)] * embeddings[len(first):]).sum(axis=1).astype(np.float64)
    labels = (sentences["category"].str.lower() == "paraphrase").to_numpy(dtype=np.int64)
    names = _subset_names(sentences["subset_name"])
    values: dict[str, float] = {}
    frames = []
    for subset in ("all", "radgraph", "swaps"):
        rows = np.flatnonzero((names == subset) | (subset == "all"))
        if len(rows) == 0 or np.bincount(labels[rows], minlength=2).min() < _NUM_FOLDS:
            yield skipped(f"{TASK}.{subset}", f"fewer than {_NUM_FOLDS} paraphrases or contradictions")
            continue
        result = threshold_accuracy(labels[rows], scores[rows])
        prefix = f"test/{TASK}/{subset}"
        values |= {f"{prefix}/accuracy": result.accuracy, f"{prefix}/auroc": auroc(labels[rows], scores[rows]),
                   f"{prefix}/accuracy_as_published": result.accuracy_as_published}
        # Sentences carry no patient: every pair is its own group. The score is taken from the threshold of
        # its fold, so that its sign is the prediction.
        frames.append(prediction_frame(
            example=rows, group=context.groups(f"sentence {row}" for row in rows), label=labels[rows],
            score=scores[rows] - result.threshold, fold=result.fold, finding=subset))
    yield Facts({f"{TASK}.num_pairs": len(sentences)})
    yield context.metrics(values)
    yield prediction_table(TASK, frames)


def _subset_names(subsets: pd.Series) -> np.ndarray:
    """Lower case letters only: RadGraph, rad_graph -> radgraph."""
    return subsets.str.lower().str.replace(r"[^a-z]", "", regex=True).to_numpy()
