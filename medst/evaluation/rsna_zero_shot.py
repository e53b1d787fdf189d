"""RSNA pneumonia without training: is an image nearer to the words for pneumonia or to those against it?

The score is the cosine with the prompts for minus the cosine with those against, the decision its sign: no threshold
is chosen.

- as published: four prompts for and four against, on each side the projections averaged before they are brought to
  unit length; AUROC of the decisions (which is their balanced accuracy) on the published test split, 15 % of the
  images (data/published_splits.py): `auroc_as_published`.
- corrected: the ensemble of prompts of the other findings' zero-shot, unit embeddings averaged; AUROC of the scores, F1
  and balanced accuracy of the decisions, on all RSNA images. None of them is trained or selected on, so that all of
  them are test images.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from medst.evaluation.context import EvaluationContext, skipped
from medst.evaluation.metrics import UndefinedMetricError, auroc, balanced_accuracy, f1
from medst.evaluation.predictions import prediction_frame, prediction_table
from medst.evaluation.prompts import FINDINGS, PNEUMONIA_AS_PUBLISHED
from medst.evaluation.zero_shot import prompt_direction_as_published, prompt_scores
from medst.records import Facts, Record

TASK = "rsna_zero_shot"


def rsna_zero_shot(context: EvaluationContext) -> Iterator[Record]:
    """`test/rsna_zero_shot/{auroc,f1,balanced_accuracy,auroc_as_published}`."""
    if context.store.rsna is None:
        yield skipped(TASK, "the data has no RSNA images")
        return
    table = context.store.rsna.table
    labels = table["target"].to_numpy(dtype=np.int64)
    images = context.cache.frontal("rsna", table["image"].to_numpy())
    scores = prompt_scores(context, images, FINDINGS["pneumonia"])
    decisions = (scores > 0).astype(np.int64)
    groups = context.groups(table["patient_id"])
    yield Facts({f"{TASK}.num_images": len(labels), f"{TASK}.num_positive": int(labels.sum())})
    try:
        values = {"auroc": auroc(labels, scores), "f1": f1(labels, decisions),
                  "balanced_accuracy": balanced_accuracy(labels, decisions)}
    except UndefinedMetricError as error:
        yield skipped(TASK, str(error))
        return
    frames = [prediction_frame(example=np.arange(len(labels)), group=groups, label=labels, score=scores,
                               finding="pneumonia", traits=table)]
    test = np.flatnonzero(table["published_split"] == "test")
    published = prompt_scores(context, images[test], PNEUMONIA_AS_PUBLISHED, prompt_direction_as_published) > 0
    try:
        values["auroc_as_published"] = auroc(labels[test], published.astype(np.int64))
        frames.append(prediction_frame(example=test, group=groups[test], label=labels[test],
                                       score=published.astype(float), finding="pneumonia",
                                       protocol="as_published", traits=table.iloc[test]))
    except UndefinedMetricError as error:
        yield skipped(f"{TASK}.as_published", str(error))
    yield context.metrics({f"test/{TASK}/{name}": value for name, value in values.items()})
    yield prediction_table(TASK, frames)
