"""Two-view image-report retrieval: which report belongs to the study, and which study to the report?

The pool holds the held-out studies that have a lateral and a report, at most POOL_SIZE of them, drawn once by a fixed
seed and stated with the results: recall depends on the size of the pool. Studies whose reports are
equal word for word are all correct. Ties count against the model (`metrics.retrieval_ranks`).

`frontal/...` is the same pool by the frontal image alone.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from medst.data.store import MimicStore
from medst.evaluation.context import EvaluationContext, skipped
from medst.evaluation.metrics import recall_at, retrieval_ranks
from medst.evaluation.predictions import prediction_frame, prediction_table
from medst.evaluation.traits import study_traits
from medst.records import Facts, Record

TASK = "retrieval"
POOL_SIZE = 500
RECALLS = (1, 5, 10)
DIRECTIONS = ("image_to_report", "report_to_image")


def retrieval_pool(mimic: MimicStore, split: str, report_column: str) -> np.ndarray:
    """Rows of the studies of a split with a lateral and a report, at most POOL_SIZE, in store order."""
    studies = mimic.studies
    has_report = studies[report_column].fillna("").str.len() > 0
    rows = np.flatnonzero(((studies["split"] == split) & (studies["lateral"] >= 0) & has_report).to_numpy())
    if len(rows) > POOL_SIZE:
        rows = np.sort(np.random.default_rng(0).choice(rows, POOL_SIZE, replace=False))
    return rows


def direction_ranks(images: np.ndarray, reports: np.ndarray, texts: pd.Series) -> dict[str, np.ndarray]:
    """Direction -> (n,) rank of the best correct candidate of each query.

    Args:
        images, reports: (n, E) unit embeddings, row by row of one study.
        texts: (n,) report texts; equal ones are correct for each other.
    """
    codes = pd.factorize(texts)[0]
    similarities = images.astype(np.float64) @ reports.astype(np.float64).T
    is_correct = codes[:, None] == codes[None, :]
    return {"image_to_report": retrieval_ranks(similarities, is_correct),
            "report_to_image": retrieval_ranks(similarities.T, is_correct)}


def retrieval_values(ranks: dict[str, np.ndarray]) -> dict[str, float]:
    """Recalls of both directions and their means (`r1`, `r5`, `r10`), median ranks."""
    values = {f"{direction}/r{k}": recall_at(found, k) for direction, found in ranks.items() for k in RECALLS}
    values |= {f"r{k}": float(np.mean([values[f"{direction}/r{k}"] for direction in ranks])) for k in RECALLS}
    return values | {f"{direction}/median_rank": float(np.median(found)) for direction, found in ranks.items()}


def report_column(context: EvaluationContext) -> str:
    """The column of cleaned reports that this trial was trained on."""
    return f"report_{context.config.data.report_text}"


def retrieval(context: EvaluationContext) -> Iterator[Record]:
    """`test/retrieval/{r1,r5,r10}`, `/<direction>/{r1,r5,r10,median_rank}`, `/frontal/...`."""
    mimic = context.store.mimic
    rows = np.zeros(0, dtype=np.int64) if mimic is None else retrieval_pool(mimic, "test", report_column(context))
    if mimic is None or len(rows) < 2:
        yield skipped(TASK, "fewer than two held-out studies with a lateral and a report")
        return
    studies = mimic.studies.iloc[rows]
    texts = studies[report_column(context)]
    reports = context.cache.texts(texts.tolist())
    groups = context.groups(studies["subject_id"])
    traits = study_traits(mimic, rows)
    values: dict[str, float] = {}
    frames = []
    for prefix, images in (("", context.cache.studies(rows)),
                           ("frontal/", context.cache.frontal("mimic", studies["frontal"].to_numpy()))):
        ranks = direction_ranks(images, reports, texts)
        values |= {f"{prefix}{name}": value for name, value in retrieval_values(ranks).items()}
        # The reciprocal rank is the score: larger is better, as everywhere.
        frames += [prediction_frame(example=rows, group=groups, label=np.ones(len(rows), dtype=np.int64),
                                    score=1.0 / ranks[direction], finding=f"{prefix}{direction}", traits=traits)
                   for direction in DIRECTIONS]
    yield Facts({f"{TASK}.pool_size": len(rows), f"{TASK}.num_distinct_reports": int(texts.nunique())})
    yield context.metrics({f"test/{TASK}/{name}": value for name, value in values.items()})
    yield prediction_table(TASK, frames)
