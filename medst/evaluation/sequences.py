"""Embeddings of test sequences for the figures. No scores here."""

from __future__ import annotations

import numpy as np

from medst.evaluation.context import EvaluationContext
from medst.evaluation.finding_zero_shot import finding_labels
from medst.evaluation.prompts import FINDINGS
from medst.records import Arrays

NUM_SEQUENCES = 200


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
