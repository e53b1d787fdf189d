"""The labeller: the 14 CheXpert labels of a study, read from what the report mentions, with its own errors.

What lives here: labels. What must not: truth is consulted only where the report's record is silent about
a label (devices, heart); severities never enter.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from medst.data.phantom.course import FindingName, Patient
from medst.data.phantom.presets import PhantomConfig

CHEXPERT_LABELS = (
    "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Enlarged Cardiomediastinum", "Fracture", "Lung Lesion",
    "Lung Opacity", "No Finding", "Pleural Effusion", "Pleural Other", "Pneumonia", "Pneumothorax", "Support Devices",
)
LABEL_OF_FINDING: Mapping[FindingName, str] = {
    "consolidation": "Consolidation", "edema": "Edema", "pleural_effusion": "Pleural Effusion",
    "pneumonia": "Pneumonia", "pneumothorax": "Pneumothorax",
}
_VALUES = {"positive": 1.0, "negative": 0.0, "uncertain": -1.0}
_LARGE_HEART = 0.52


def label_study(patient: Patient, study_index: int, mentioned: Mapping[FindingName, str], config: PhantomConfig,
                rng: np.random.Generator) -> dict[str, float]:
    """Label -> 1 positive, 0 negative, -1 uncertain, NaN not mentioned.

    With probability `labeller_noise` a label of a mentioned finding is misread: lost, or of wrong polarity.
    """
    study = patient.studies[study_index]
    labels = dict.fromkeys(CHEXPERT_LABELS, float("nan"))
    for name, label in LABEL_OF_FINDING.items():
        if name in mentioned:
            labels[label] = _VALUES[mentioned[name]]
    if any(labels[LABEL_OF_FINDING[name]] == 1.0 for name in ("consolidation", "edema", "pneumonia")):
        labels["Lung Opacity"] = 1.0 if rng.random() < 0.6 else float("nan")
    # Low volumes and effusions come with collapse of the bases, which the phantom does not grade.
    if rng.random() < 0.10 + 0.25 * (labels["Pleural Effusion"] == 1.0) + 0.15 * (study.inspiration < -0.5):
        labels["Atelectasis"] = 1.0 if rng.random() < 0.8 else -1.0
    if study.heart_size > _LARGE_HEART:
        labels["Cardiomegaly"] = 1.0
    elif rng.random() < 0.1:
        labels["Cardiomegaly"] = 0.0
    if study.devices:
        labels["Support Devices"] = 1.0
    for label, value in labels.items():
        if value == value and rng.random() < config.labeller_noise:
            labels[label] = float("nan") if rng.random() < 0.5 else float(rng.choice([-1.0, 0.0, 1.0]))
    findings = [label for label in CHEXPERT_LABELS if label not in ("No Finding", "Support Devices")]
    if not any(labels[label] in (1.0, -1.0) for label in findings):
        labels["No Finding"] = 1.0
    return labels
