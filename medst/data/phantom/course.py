"""The truth of the phantom: patients, visits and findings over time, before any pixel or word.

What lives here: the carriers of truth and (in `draw_patient`) the random course of a patient. Images
(`anatomy`, `imaging`) and words (`grammar`) are both made from these and know nothing of each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

FindingName = Literal["consolidation", "edema", "pleural_effusion", "pneumonia", "pneumothorax"]
FINDINGS: tuple[FindingName, ...] = ("consolidation", "edema", "pleural_effusion", "pneumonia", "pneumothorax")
"""The five findings of MS-CXR-T, by its column names."""
Side = Literal["left", "right", "bilateral"]
Zone = Literal["upper", "middle", "lower", "retrocardiac"]
Progression = Literal["improving", "stable", "worsening"]


@dataclass(frozen=True)
class Finding:
    """One finding in one study."""

    name: FindingName
    severity: float
    """In (0, 1]; 0.1 is barely visible, 1 is massive."""
    side: Side
    zone: Zone
    is_lateral_only: bool = False
    """True: visible mainly on the lateral (small posterior effusion, retrocardiac opacity)."""


@dataclass(frozen=True)
class Device:
    """A tube, line, pacemaker or drain."""

    kind: Literal["endotracheal_tube", "nasogastric_tube", "central_line", "pacemaker", "chest_tube", "sternal_wires"]
    side: Side = "right"


@dataclass(frozen=True)
class Study:
    """One visit."""

    subject_id: int
    study_id: int
    time: datetime
    frontal_views: tuple[Literal["AP", "PA"], ...]
    """One view name per frontal image (sometimes two in one study)."""
    lateral_view: Literal["LL", "LATERAL"] | None
    is_portable: bool
    is_supine: bool
    heart_size: float
    """Cardiothoracic ratio of the PA geometry, about 0.40 to 0.68."""
    findings: tuple[Finding, ...]
    devices: tuple[Device, ...]
    inspiration: float
    """In [-1, 1]: shallow to deep; the main false change."""
    rotation: float
    """Degrees, about -10 to 10."""


@dataclass(frozen=True)
class Patient:
    subject_id: int
    sex: Literal["F", "M"]
    age: int
    body_size: float
    """Factor on all lengths, about 0.85 to 1.15."""
    split: Literal["train", "validate", "test"]
    studies: tuple[Study, ...]
    """In time order."""


def progression(previous: Study, current: Study, name: FindingName, threshold: float) -> Progression | None:
    """Truth about the change of one finding between two studies.

    None where neither study shows the finding. The change of severity beyond `threshold` is
    improving or worsening; appearing counts as worsening and resolving as improving, as in MS-CXR-T.
    """
    def severity(study: Study) -> float:
        return max((finding.severity for finding in study.findings if finding.name == name), default=0.0)

    before, now = severity(previous), severity(current)
    if before == 0.0 and now == 0.0:
        return None
    if now - before > threshold:
        return "worsening"
    if before - now > threshold:
        return "improving"
    return "stable"
