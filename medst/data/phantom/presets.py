"""Every dial of the chest phantom with its one default, and the named presets.

What lives here: `PhantomConfig` and `PRESETS`. What must not: anything that draws, renders or writes.
A dial plants or removes information by degrees; none of them says whether a loss term should help.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, ValidationError, model_validator

from medst.config import Count, Fraction, NonNegative, Section, nearest

Weights = tuple[NonNegative, ...]


class FindingRates(Section):
    """Share of studies that show the finding, about."""

    consolidation: Fraction = 0.20
    edema: Fraction = 0.24
    pleural_effusion: Fraction = 0.32
    pneumonia: Fraction = 0.20
    pneumothorax: Fraction = 0.17


class PhantomConfig(Section):
    """All that decides what the phantom is. Equal configs give equal bytes."""

    seed: Annotated[int, Field(ge=0)] = 0
    image_size: Annotated[int, Field(ge=32)] = 72
    """Longest side of every image in pixels."""

    num_train: Count = 1500
    """Patients in the training split."""
    num_validate: Count = 60
    num_test: Count = 300
    test_minimum_studies: Count = 2
    """Fewest studies of a validation or test patient; 2 gives every one a pair for MS-CXR-T."""
    num_rsna: Annotated[int, Field(ge=0)] = 800
    """Images, one a patient, none of them a patient of the training data."""
    num_covidx_train: Annotated[int, Field(ge=0)] = 1500
    num_covidx_test: Annotated[int, Field(ge=0)] = 300
    num_sentence_pairs: Annotated[int, Field(ge=0)] = 720
    sequence_lengths: Weights = (0.36, 0.12, 0.06, 0.24, 0.05, 0.02, 0.02, 0.09, 0.02, 0.01, 0.005, 0.005)
    """Relative weight of patients with 1, 2, 3, ... studies; at most 60 entries."""

    finding_rates: FindingRates = FindingRates()
    progression_threshold: Fraction = 0.1
    """Change of severity beyond which a finding is improving or worsening."""
    lateral_rate_pa: Fraction = 0.9
    """Share of PA studies that have a lateral."""
    lateral_rate_ap: Fraction = 0.24
    """Share of AP studies that have a lateral."""
    second_frontal_rate: Fraction = 0.07
    """Share of studies with two frontals."""

    lateral_information: Fraction = 0.25
    """Share of opacities and effusions that are visible mainly on the lateral."""
    device_correlation: Fraction = 0.8
    """How far devices follow severity in training and validation; 0: drawn regardless of it."""
    test_device_correlation: Fraction = 0.8
    """The same for the test patients, RSNA and COVIDx: set it to 0 for the decorrelated test draw."""
    inspiration_strength: NonNegative = 1.0
    """Factor on the spread of inspiration depth, the main false change."""
    rotation_strength: NonNegative = 1.0
    pose_strength: NonNegative = 1.0
    """Factor on the spread of centring and tilt."""
    body_strength: NonNegative = 1.0
    """Factor on the differences between bodies."""
    noise_strength: NonNegative = 1.0
    """Factor on the standard deviation of the quantum noise."""
    exposure_strength: NonNegative = 1.0
    """Factor on the spread of exposure."""
    geometry: Literal["first", "second"] = "first"
    """second: other habitus, source distances, scatter and noise (transfer test)."""

    grammar: Literal["first", "second"] = "first"
    change_words: Fraction = 0.85
    """How much the reports speak of change."""
    degree_words: Fraction = 0.35
    """Share of findings whose degree is told. 36 of 107 sentences with a positive finding in 300 reports of the Indiana
    University collection (Open-i) do."""
    word_localisation: Fraction = 0.85
    """How well words localise: share of side and zone words that are kept."""
    order_carries_meaning: Fraction = 0.1
    """Share of reports with a sentence whose meaning hangs on word order, and of RadGraph pairs of sentences."""
    presence_by_order: Fraction = 0.0
    """Share of reports of the same words, whatever is seen: only their order tells which findings are present."""
    stable_contradictions: Fraction = 0.0
    """Share of contradicting pairs of sentences that set a change against 'stable', not against the opposite change."""
    copy_forward: Fraction = 0.1
    """Share of sentences copied from the previous report."""
    omission: Fraction = 0.1
    """Share of findings that the report does not mention."""
    hedge: Fraction = 0.25
    """Share of findings that are hedged."""
    labeller_noise: Fraction = 0.05
    """Share of wrong labels in the CheXpert table, apart from the truth."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if not 1 <= len(self.sequence_lengths) <= 60:
            raise ValueError(f"sequence_lengths has {len(self.sequence_lengths)} entries; 1 to 60 are possible")
        if sum(self.sequence_lengths) <= 0:
            raise ValueError("sequence_lengths has no positive weight")
        if sum(self.sequence_lengths[self.test_minimum_studies - 1:]) <= 0:
            raise ValueError(f"test_minimum_studies={self.test_minimum_studies} has no weight in sequence_lengths")
        if self.num_patients > 150_000:
            raise ValueError(f"{self.num_patients} patients; at most 150000 have distinct identifiers")
        return self

    @property
    def num_patients(self) -> int:
        """Patients of the MIMIC layout."""
        return self.num_train + self.num_validate + self.num_test


class PhantomError(ValueError):
    """A phantom that cannot be described or written; the message says what, where and the remedy."""


def mimic_sequence_lengths() -> Weights:
    """Weights of 1 to 40 studies a patient with MIMIC-CXR's mean, 227 835 / 65 379 = 3.48.

    A power law in (number + 1) with the exponent that gives the mean; MIMIC's tail is long (up to 174).
    """
    number = np.arange(1, 41)
    low, high = 1.0, 4.0
    for _ in range(60):
        exponent = (low + high) / 2
        weights = (number + 1.0) ** -exponent
        if (weights * number).sum() / weights.sum() > 227_835 / 65_379:
            low = exponent
        else:
            high = exponent
    return tuple(float(weight) for weight in np.round(weights / weights.sum(), 5))


PRESETS: dict[str, PhantomConfig] = {
    "smoke": PhantomConfig(num_train=40, num_validate=6, num_test=12, num_rsna=24, num_covidx_train=45,
                           num_covidx_test=24, num_sentence_pairs=60),
    "effusions": PhantomConfig(
        num_train=1000, num_validate=6, num_test=200, num_rsna=24, num_covidx_train=45, num_covidx_test=24,
        num_sentence_pairs=60, change_words=0.0, degree_words=0.0,
        finding_rates=FindingRates(consolidation=0.0, edema=0.0, pleural_effusion=0.6, pneumonia=0.0,
                                   pneumothorax=0.0)),
    "tiny": PhantomConfig(),
    "small": PhantomConfig(num_train=6000, num_validate=240, num_test=800, num_rsna=2000, num_covidx_train=3000,
                           num_covidx_test=600, num_sentence_pairs=1440),
    "paper": PhantomConfig(
        image_size=256, num_train=6000, num_validate=200, num_test=400, num_rsna=2000, num_covidx_train=3000,
        num_covidx_test=400, sequence_lengths=mimic_sequence_lengths(),
        finding_rates=FindingRates(consolidation=0.06, edema=0.15, pleural_effusion=0.25, pneumonia=0.10,
                                   pneumothorax=0.05)),
}
"""smoke: under 500 images; effusions: one finding alone, for the audit; tiny: the default sweep; small: four times the
patients; paper: MIMIC's proportions."""


def load_preset(name: str, overrides: dict[str, object] | None = None) -> PhantomConfig:
    """The preset `name` with some dials replaced, strictly checked.

    Raises:
        PhantomError: unknown preset or dial (with the nearest valid name), wrong type, impossible value.
    """
    if name not in PRESETS:
        guess = nearest(name, PRESETS)
        raise PhantomError(f"no phantom preset '{name}'" + (f"; did you mean '{guess}'?" if guess else "")
                           + f" Presets: {', '.join(PRESETS)}")
    tree = PRESETS[name].model_dump()
    for key, value in (overrides or {}).items():
        section, _, leaf = key.rpartition(".")
        target = tree.get(section) if section else tree
        if not isinstance(target, dict) or leaf not in target:
            known = [*tree, *(f"finding_rates.{finding}" for finding in tree["finding_rates"])]
            guess = nearest(key, known)
            raise PhantomError(f"unknown dial '{key}' of the phantom"
                               + (f"; the nearest is '{guess}'" if guess else ""))
        target[leaf] = value
    try:
        return PhantomConfig.model_validate(tree)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        raise PhantomError(f"phantom preset '{name}': {problems}") from None
