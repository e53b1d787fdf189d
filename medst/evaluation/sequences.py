"""Embeddings of test sequences, and a few of them as they are, for the figures. No scores here."""

from __future__ import annotations

import numpy as np

from medst.evaluation.context import EvaluationContext
from medst.evaluation.finding_zero_shot import finding_labels
from medst.evaluation.prompts import FINDINGS
from medst.records import Arrays

NUM_SEQUENCES = 200
NUM_SAMPLES = 3
"""Patients whose images and reports are tracked."""


def sequence_embeddings(context: EvaluationContext) -> Arrays | None:
    """`embeddings/temporal`: the first `data.sequence_length` studies of up to 200 held-out patients who have as many.

    Arrays, S sequences of T studies: `embeddings` (S, T, E) two-view unit embeddings; `reports` (S, T, E); `days` (S,
    T) since the first study; `labels` (S, T, 5) CheXpert labels (1, 0, -1), findings in the order of `findings`;
    `groups` (S,) salted patients. None where no patient has that many studies.
    """
    mimic = context.store.mimic
    if mimic is None:
        return None
    length = context.config.data.sequence_length
    studies = mimic.studies.reset_index(drop=True)
    studies = studies[studies["split"] == "test"].sort_values(["subject_id", "time"], kind="stable")
    sequences = [group.index.to_numpy()[:length] for _, group in studies.groupby("subject_id", sort=False)
                 if len(group) >= length][:NUM_SEQUENCES]
    if not sequences:
        return None
    rows = np.stack(sequences)
    shape = (*rows.shape, -1)
    flat = mimic.studies.iloc[rows.ravel()]
    times = flat["time"].to_numpy().astype("datetime64[s]").astype(np.int64).reshape(rows.shape)
    texts = flat[f"report_{context.config.data.report_text}"].fillna("").tolist()
    return Arrays("embeddings/temporal", {
        "embeddings": context.cache.studies(rows.ravel()).reshape(shape),
        "reports": context.cache.texts(texts).reshape(shape),
        "days": ((times - times[:, :1]) / 86400.0).astype(np.float32),
        "labels": np.stack([finding_labels(flat, finding) for finding in FINDINGS], axis=-1).reshape(shape),
        "findings": np.array(list(FINDINGS)),
        "groups": context.groups(flat["subject_id"]).reshape(rows.shape)[:, 0].astype(str),
    })


def sample_sequences(context: EvaluationContext) -> Arrays | None:
    """`samples/sequences`: images and reports of a few held-out patients.

    Of those with laterals for half of their studies or more, the ones with the most labelled findings.

    Arrays, n patients of T studies: `frontal`, `lateral` (n, T, H, W) uint8 centre crops, mid-grey where there is no
    lateral; `has_lateral` (n, T); `frontal_view`, `lateral_view` (n, T); `reports` (n, T) cleaned texts; `days` (n, T)
    since the first study; `groups` (n,) salted patients. None where no held-out patient has two studies.
    """
    mimic = context.store.mimic
    if mimic is None:
        return None
    studies = mimic.studies.reset_index(drop=True)
    test = studies[studies["split"] == "test"].sort_values(["subject_id", "time"], kind="stable")
    histories = [group.index.to_numpy() for _, group in test.groupby("subject_id", sort=False)]
    longest = min(context.config.data.sequence_length, max((len(history) for history in histories), default=0))
    if longest < 2:
        return None
    long = [history[:longest] for history in histories if len(history) >= longest]
    has_lateral = (studies["lateral"] >= 0).to_numpy()
    num_findings = sum((finding_labels(studies, finding) == 1).astype(np.int64) for finding in FINDINGS)
    # A picture of the data should show laterals, and something on them.
    long.sort(key=lambda history: (2 * has_lateral[history].sum() < longest, -num_findings[history].sum()))
    rows = np.stack(long[:NUM_SAMPLES])
    chosen = studies.iloc[rows.ravel()]
    crop = context.config.data.crop_size
    margin = (mimic.images.shape[1] - crop) // 2
    images = {}
    for projection in ("frontal", "lateral"):
        of_study = chosen[projection].to_numpy()
        pixels = np.full((len(of_study), crop, crop), 128, dtype=np.uint8)
        there = of_study >= 0
        pixels[there] = mimic.images[of_study[there]][:, margin:margin + crop, margin:margin + crop]
        images[projection] = pixels.reshape(*rows.shape, crop, crop)
    times = chosen["time"].to_numpy().astype("datetime64[s]").astype(np.int64).reshape(rows.shape)
    texts = {name: chosen[column].fillna("").to_numpy(dtype=str).reshape(rows.shape) for name, column in (
        ("frontal_view", "frontal_view"), ("lateral_view", "lateral_view"),
        ("reports", f"report_{context.config.data.report_text}"))}
    return Arrays("samples/sequences", {
        **images, **texts, "has_lateral": has_lateral[rows],
        "days": ((times - times[:, :1]) / 86400.0).astype(np.float32),
        "groups": context.groups(chosen["subject_id"]).reshape(rows.shape)[:, 0].astype(str),
    })
