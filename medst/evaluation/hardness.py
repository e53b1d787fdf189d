"""How hard the findings of a data set are: a linear probe on pixels, and the exact severity as the ceiling.

What lives here: a floor and a ceiling that need no trained model. What must not: the model, prompts, tracking.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from medst.data.readers.ms_cxr_t import FINDINGS
from medst.data.store import MimicStore, Store

_SIDE = 16
_LARGEST_TRAINING_SET = 20_000


def hardness(store: Store) -> pd.DataFrame:
    """AUROC on the test split, against the reports' labels (uncertain ones left out), for each finding.

    Returns:
        finding, num_train, num_test, num_positive (in test), pixel_auroc: logistic regression on 16 x 16 pixels of the
        frontal image, trained on the training split; severity_auroc: the exact severity as the score, which falls
        short of 1 only by what the labels get wrong (NaN where the truth is unknown). AUROCs are NaN where a split
        lacks a class.

    Raises:
        ValueError: the store holds no MIMIC-CXR data.
    """
    if store.mimic is None:
        raise ValueError(f"{store.path}: the store holds no MIMIC-CXR data, whose findings could be probed")
    mimic = store.mimic
    split = mimic.studies["split"].to_numpy(dtype=object)
    train = np.flatnonzero(split == "train")
    # Spread over the split, which is ordered by patient.
    train = train[np.unique(np.linspace(0, len(train) - 1, min(len(train), _LARGEST_TRAINING_SET)).round().astype(int))]
    test = np.flatnonzero(split == "test")
    pixels_train, pixels_test = _small_pixels(mimic, train), _small_pixels(mimic, test)
    rows = []
    for finding in FINDINGS:
        label = mimic.studies[f"label_{finding}"].to_numpy(dtype=float)
        is_certain_train, is_certain_test = label[train] != -1, label[test] != -1
        truth_train, truth_test = label[train][is_certain_train] == 1, label[test][is_certain_test] == 1
        is_possible = len(np.unique(truth_test)) == 2
        pixel_auroc = severity_auroc = np.nan
        if is_possible and len(np.unique(truth_train)) == 2:
            probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=500))
            probe.fit(pixels_train[is_certain_train], truth_train)
            pixel_auroc = roc_auc_score(truth_test, probe.decision_function(pixels_test[is_certain_test]))
        if is_possible and mimic.findings is not None:
            severity = _severities(mimic, finding)[mimic.studies["frontal"].to_numpy()[test]]
            severity_auroc = roc_auc_score(truth_test, severity[is_certain_test])
        rows.append({"finding": finding, "num_train": len(truth_train), "num_test": len(truth_test),
                     "num_positive": int(truth_test.sum()), "pixel_auroc": pixel_auroc,
                     "severity_auroc": severity_auroc})
    return pd.DataFrame(rows)


def hardness_text(store: Store) -> str:
    """`hardness` as printable text."""
    lines = ["", "How hard the findings are on the test split (AUROC against the reports' labels)",
             f"  {'':<18}{'positive':>10}{'linear probe on pixels':>25}{'exact severity':>17}"]
    for row in hardness(store).itertuples():
        lines.append(f"  {row.finding:<18}{f'{row.num_positive} of {row.num_test}':>10}{row.pixel_auroc:>25.3f}"
                     f"{row.severity_auroc:>17.3f}")
    return "\n".join(lines) + "\n"


def _small_pixels(mimic: MimicStore, studies: np.ndarray) -> np.ndarray:
    """(len(studies), 256) float32: the frontal images, area-averaged to 16 x 16."""
    rows = mimic.studies["frontal"].to_numpy()[studies]
    size = mimic.images.shape[1]
    edges = np.arange(_SIDE + 1) * size / _SIDE
    # (16, S): the share of every pixel that lies in a cell, over the cell's side.
    pixel = np.arange(size)
    overlap = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    average = (overlap.clip(0) * _SIDE / size).astype(np.float32)
    return np.stack([(average @ mimic.images[row].astype(np.float32) @ average.T).ravel() for row in rows])


def _severities(mimic: MimicStore, finding: str) -> np.ndarray:
    """(N,) exact severity of a finding in every image, 0 where it is absent."""
    assert mimic.findings is not None
    severity = np.zeros(len(mimic.images))
    own = mimic.findings[mimic.findings["finding"] == finding]
    np.maximum.at(severity, own["image"].to_numpy(), own["severity"].to_numpy())
    return severity
