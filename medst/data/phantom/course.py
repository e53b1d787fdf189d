"""The truth of the phantom: patients, visits and findings over time, before any pixel or word.

What lives here: the carriers of truth and (in `draw_patient`) the random course of a patient. Images
(`anatomy`, `imaging`) and words (`grammar`) are both made from these and know nothing of each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from medst.data.phantom.presets import PhantomConfig

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


# Weights of the five findings' places. Zones follow where each finding is usually met.
_OPACITY_ZONES: tuple[Zone, ...] = ("lower", "middle", "upper")
_OPACITY_ZONE_WEIGHTS = (0.5, 0.25, 0.25)
_SMALLEST_SEVERITY = 0.12
_LATERAL_ONLY_EFFUSION = 0.25
"""Largest severity of an effusion that stays behind the dome on the frontal."""


@dataclass(frozen=True)
class _Track:
    """One finding of a patient through time."""

    name: FindingName
    side: Side
    zone: Zone
    is_lateral_only: bool
    severities: NDArray[np.float64]
    """(num_studies,), 0 where absent."""


def subject_number(index: int) -> int:
    """Subject id of the patient with running number `index`: 8 digits, scattered over p10 to p19, unique."""
    return 10_000_000 + (index * 6_700_417 + 1_234_567) % 9_999_991


def study_number(index: int, study_index: int) -> int:
    """Study id: 8 digits from 50000000 on, unique for fewer than 64 studies a patient."""
    return 50_000_000 + ((index * 64 + study_index) * 7_368_787 + 414_267) % 9_999_991


def stream(seed: int, *key: int) -> np.random.Generator:
    """The random stream named by `key`; independent of every other, whoever draws first."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, *key])))


def draw_patient(config: PhantomConfig, split: Literal["train", "validate", "test"], index: int) -> Patient:
    """The course of one patient, a function of (seed, index) and the dials of course alone.

    Args:
        index: running number over the whole corpus; decides the ids and the random stream.
    """
    rng = stream(config.seed, 0, index)
    num_studies = _draw_length(config, split, rng)
    # Long sequences belong to the sick, who lie in bed: AP, portable, no lateral.
    is_inpatient = bool(rng.random() < (0.3 if num_studies <= 2 else 0.5 if num_studies <= 4 else 0.7))
    age = int(np.clip(rng.normal(64 if is_inpatient else 56, 17), 18, 91))
    body_size = float(np.clip(rng.normal(1.0, 0.055 * config.body_strength), 0.85, 1.15))
    sex: Literal["F", "M"] = "F" if rng.random() < 0.48 else "M"
    has_failure = bool(rng.random() < (0.42 if is_inpatient else 0.18))
    tracks = _draw_tracks(config, num_studies, is_inpatient, has_failure, rng)
    base_heart = float(np.clip(rng.normal(0.455 + 0.065 * has_failure, 0.03), 0.38, 0.62))
    device_draws: dict[str, float] = {kind: float(rng.random()) for kind in _DEVICES}
    device_sides: dict[str, Side] = {kind: "left" if rng.random() < 0.3 else "right" for kind in _DEVICES}
    correlation = config.test_device_correlation if split == "test" else config.device_correlation
    time = datetime(2110, 1, 1) + timedelta(days=int(rng.integers(0, 80 * 365)), seconds=int(rng.integers(0, 86_400)))

    studies = []
    for number in range(num_studies):
        if number:
            gap = np.exp(rng.normal(0.7, 0.9) if is_inpatient else rng.normal(4.2, 1.2))
            time += timedelta(days=max(0.2, float(gap)), seconds=int(rng.integers(0, 3600)))
        severity = {name: max((track.severities[number] for track in tracks if track.name == name), default=0.0)
                    for name in FINDINGS}
        worst = max(severity.values())
        is_ap = bool(rng.random() < (0.80 + 0.15 * worst if is_inpatient else 0.18 + 0.25 * worst))
        is_portable = is_ap and bool(rng.random() < (0.9 if is_inpatient else 0.6))
        is_supine = is_portable and bool(rng.random() < 0.25 + 0.3 * worst)
        wants_lateral = rng.random() < (config.lateral_rate_ap if is_ap else config.lateral_rate_pa)
        lateral_name: Literal["LL", "LATERAL"] = "LL" if rng.random() < 0.3 else "LATERAL"
        lateral_view = lateral_name if wants_lateral and not is_supine else None
        frontal: Literal["AP", "PA"] = "AP" if is_ap else "PA"
        frontal_views = (frontal,) * (2 if rng.random() < config.second_frontal_rate else 1)
        heart = base_heart + 0.06 * severity["edema"] + float(rng.normal(0, 0.006))
        inspiration = rng.normal(-0.25 if is_ap else 0.1, 0.42) * config.inspiration_strength
        rotation = rng.normal(0, 3.5 if is_ap else 1.8) * config.rotation_strength
        findings = tuple(
            Finding(track.name, round(float(track.severities[number]), 4), track.side, track.zone,
                    track.is_lateral_only)
            for track in tracks
            # A finding that only a lateral shows does not exist for anyone without a lateral.
            if track.severities[number] > 0 and (lateral_view is not None or not track.is_lateral_only))
        studies.append(Study(
            subject_id=subject_number(index), study_id=study_number(index, number), time=time.replace(microsecond=0),
            frontal_views=frontal_views, lateral_view=lateral_view, is_portable=is_portable, is_supine=is_supine,
            heart_size=float(np.clip(heart, 0.38, 0.70)), findings=findings,
            devices=_choose_devices(severity, is_ap, has_failure, correlation, device_draws, device_sides, findings),
            inspiration=float(np.clip(inspiration, -1, 1)), rotation=float(np.clip(rotation, -10, 10))))
    return Patient(subject_id=subject_number(index), sex=sex, age=age, body_size=body_size, split=split,
                   studies=tuple(studies))


def _draw_length(config: PhantomConfig, split: str, rng: np.random.Generator) -> int:
    weights = np.array(config.sequence_lengths)
    if split != "train":
        weights[:config.test_minimum_studies - 1] = 0
    return int(rng.choice(len(weights), p=weights / weights.sum())) + 1


def _draw_tracks(config: PhantomConfig, num_studies: int, is_inpatient: bool, has_failure: bool,
                 rng: np.random.Generator) -> list[_Track]:
    # Factors with mean near 1 over the patients, so that the rates stay what the config says.
    sick = 1.25 if is_inpatient else 0.75
    infection = 2.2 if rng.random() < 0.25 else 0.6
    factor = {"consolidation": sick * infection, "pneumonia": sick * infection, "pneumothorax": sick,
              "edema": sick * (2.1 if has_failure else 0.5),
              "pleural_effusion": sick * (1.7 if has_failure else 0.7)}
    shared_trends = rng.random(num_studies)
    tracks = []
    for name in FINDINGS:
        rate = getattr(config.finding_rates, name)
        # A track is visible in about 0.75 of its patient's studies.
        if rng.random() >= min(0.95, rate * factor[name] / 0.75):
            continue
        side, zone = _draw_place(name, has_failure, rng)
        can_hide = name in ("consolidation", "pneumonia", "pleural_effusion")
        # The bedridden have few laterals, so what only a lateral shows is seen in the others.
        hidden_share = min(1.0, config.lateral_information * (0.4 if is_inpatient else 1.6))
        is_lateral_only = can_hide and bool(rng.random() < hidden_share)
        trends = np.where(rng.random(num_studies) < 0.5, shared_trends, rng.random(num_studies))
        severities = _draw_severities(num_studies, trends, rng)
        if is_lateral_only and name == "pleural_effusion":
            severities = np.where(severities > 0, 0.08 + (_LATERAL_ONLY_EFFUSION - 0.08) * severities, 0.0)
        elif is_lateral_only:
            side, zone = "left", "retrocardiac"
        tracks.append(_Track(name, side, zone, is_lateral_only, severities))
    return tracks


def _draw_place(name: FindingName, has_failure: bool, rng: np.random.Generator) -> tuple[Side, Zone]:
    sides: tuple[Side, ...] = ("right", "left", "bilateral")
    if name == "edema":
        return "bilateral", "middle"
    if name == "pleural_effusion":
        return sides[rng.choice(3, p=(0.25, 0.2, 0.55) if has_failure else (0.42, 0.38, 0.2))], "lower"
    if name == "pneumothorax":
        return sides[rng.choice(2, p=(0.55, 0.45))], "upper"
    return sides[rng.choice(3, p=(0.48, 0.38, 0.14))], _OPACITY_ZONES[rng.choice(3, p=_OPACITY_ZONE_WEIGHTS)]


def _draw_severities(num_studies: int, trends: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """A walk that improves, stays, worsens, appears or resolves.

    `trends` are uniform draws, one a study: the lowest third improves, the highest worsens.
    """
    severity = 0.15 + 0.8 * rng.beta(1.8, 1.8) if rng.random() < 0.68 else 0.0
    steps = rng.uniform(0.16, 0.45, num_studies)
    severities = np.zeros(num_studies)
    for number in range(num_studies):
        if number:
            if severity == 0.0:
                severity = 0.15 + steps[number] if trends[number] > 0.55 else 0.0
            elif trends[number] < 0.34:
                severity -= steps[number]
            elif trends[number] > 0.67:
                severity += steps[number]
            else:
                severity += float(rng.normal(0, 0.02))
            severity = 0.0 if severity < _SMALLEST_SEVERITY else min(severity, 1.0)
        severities[number] = severity
    return severities


_DEVICES: tuple[Literal["endotracheal_tube", "nasogastric_tube", "central_line", "pacemaker", "chest_tube",
                        "sternal_wires"], ...] = (
    "endotracheal_tube", "nasogastric_tube", "central_line", "pacemaker", "chest_tube", "sternal_wires")


def _choose_devices(severity: dict[FindingName, float], is_ap: bool, has_failure: bool, correlation: float,
                    draws: dict[str, float], sides: dict[str, Side],
                    findings: tuple[Finding, ...]) -> tuple[Device, ...]:
    """Devices of a study. `draws` belong to the patient, so that a device stays while its cause stays.

    With correlation 0 each has its overall rate; with 1 it hangs on severity alone.
    """
    worst = max(severity.values())
    ill = max(severity["edema"], severity["pneumonia"], severity["consolidation"])
    air = severity["pneumothorax"]
    overall = {"endotracheal_tube": 0.13, "nasogastric_tube": 0.14, "central_line": 0.2, "pacemaker": 0.08,
               "chest_tube": 0.07, "sternal_wires": 0.1}
    caused = {"endotracheal_tube": 0.65 * ill if is_ap else 0.0, "nasogastric_tube": 0.6 * ill if is_ap else 0.0,
              "central_line": 0.55 * worst, "pacemaker": 0.25 if has_failure else 0.02,
              "chest_tube": 0.7 if air > 0.3 else 0.25 if severity["pleural_effusion"] > 0.6 else 0.01,
              "sternal_wires": 0.28 if has_failure else 0.03}
    drained: Side = next((finding.side for finding in findings if finding.name == "pneumothorax"),
                         next((finding.side for finding in findings if finding.name == "pleural_effusion"), "right"))
    devices = []
    for kind in _DEVICES:
        if draws[kind] < (1 - correlation) * overall[kind] + correlation * caused[kind]:
            side = drained if kind == "chest_tube" and drained != "bilateral" else sides[kind]
            devices.append(Device(kind, side))
    return tuple(devices)


def draw_visitor(config: PhantomConfig, group: int, index: int, findings: tuple[Finding, ...],
                 rng: np.random.Generator) -> Patient:
    """A patient of another hospital with one frontal and the given findings (RSNA, COVIDx).

    Args:
        group: keeps the identifiers of the collections apart.
    """
    number = config.num_patients + group * 1_000_000 + index
    severity = {name: max((finding.severity for finding in findings if finding.name == name), default=0.0)
                for name in FINDINGS}
    has_failure = severity["edema"] > 0
    is_ap = bool(rng.random() < 0.3 + 0.4 * max(severity.values()))
    is_supine = is_ap and bool(rng.random() < 0.25)
    sides: dict[str, Side] = {kind: "right" if rng.random() < 0.6 else "left" for kind in _DEVICES}
    devices = _choose_devices(severity, is_ap, has_failure, config.test_device_correlation,
                              {kind: float(rng.random()) for kind in _DEVICES}, sides, findings)
    heart = rng.normal(0.465 + 0.05 * has_failure, 0.035) + 0.05 * severity["edema"]
    study = Study(
        subject_id=number, study_id=number, time=datetime(2120, 1, 1), frontal_views=("AP" if is_ap else "PA",),
        lateral_view=None, is_portable=is_ap, is_supine=is_supine, heart_size=float(np.clip(heart, 0.38, 0.70)),
        findings=findings, devices=devices,
        inspiration=float(np.clip(rng.normal(-0.2 if is_ap else 0.1, 0.42) * config.inspiration_strength, -1, 1)),
        rotation=float(np.clip(rng.normal(0, 2.5) * config.rotation_strength, -10, 10)))
    return Patient(subject_id=number, sex="F" if rng.random() < 0.45 else "M",
                   age=int(np.clip(rng.normal(52, 17), 18, 91)),
                   body_size=float(np.clip(rng.normal(1.0, 0.055 * config.body_strength), 0.85, 1.15)),
                   split="test", studies=(study,))


def draw_opacity(name: FindingName, rng: np.random.Generator) -> Finding:
    """Pneumonia or consolidation that readers of the frontal alone would mark: they label what they see."""
    side, zone = _draw_place(name, False, rng)
    return Finding(name, 0.35 + 0.6 * float(rng.beta(1.8, 1.8)), side, zone)
