"""The schema of a study file, `sweeps/*.yaml`: what may stand where, and of which type.

What lives here: the sections and their meaning. What must not: checks that need the config tree, the base or other
parts of the file (sweeps/study.py), nor lines and columns (sweeps/study_errors.py).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainValidator


def _plain(value: Any) -> Any:
    """What a setting can be: a plain value, or a list of texts."""
    if isinstance(value, list):
        if all(isinstance(item, str) for item in value):
            return value
    elif value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError("a plain value or a list of texts is expected")


Scalar = Annotated[Any, PlainValidator(_plain)]
"""bool, int, float, text, list of texts or null."""
Settings = dict[str, Scalar]
"""Dotted config key -> value."""
Seed = Annotated[int, Field(ge=0)]
NonEmpty = Field(min_length=1)


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Factor(Section):
    """A dotted config key and its levels."""

    levels: Annotated[tuple[Scalar, ...], NonEmpty]
    label: str | None = None
    """Name in the arms' names; the last part of the key if not given."""
    when: dict[str, Scalar | Annotated[list[Scalar], NonEmpty]] = {}
    """The factor exists only where each of these settings has the value, or one of the values."""


class TwoLevels(Section):
    """A factor of a fraction; its first level is the one of the fraction's first arm."""

    levels: Annotated[tuple[Scalar, ...], Field(min_length=2, max_length=2)]
    label: str | None = None


class Fractional(Section):
    """A two-level fractional factorial."""

    resolution: Annotated[int, Field(ge=3)]
    """3: main effects apart from each other; 4: also apart from interactions of two; 5: those apart too."""
    factors: Annotated[dict[str, TwoLevels], Field(min_length=2, max_length=20)]


class TuningFactor(Section):
    """A nuisance parameter: levels to try, or a range to draw from."""

    levels: Annotated[tuple[Scalar, ...], Field(min_length=2)] | None = None
    range: Annotated[tuple[float, ...], Field(min_length=2, max_length=2)] | None = None
    scale: Literal["log", "linear"] = "log"
    label: str | None = None


class Tuning(Section):
    """Nuisance parameters, tuned for every arm with the same candidates on validation patients."""

    factors: Annotated[dict[str, TuningFactor], NonEmpty]
    draws: Annotated[int, Field(ge=2)] | None = None
    """Candidates drawn from the factors (a Latin hypercube); without it, every combination of their levels."""
    metric: Annotated[str, Field(pattern="^validation/")]
    direction: Literal["lower", "higher"]
    seeds: Annotated[tuple[Seed, ...], NonEmpty]
    """Set apart: none of the study's own."""


class Resources(Section):
    """What one trial takes."""

    cpus: Annotated[int, Field(ge=1)] = 1
    """Also its processor threads. With one, a trial repeats bit for bit; with several, to rounding."""
    gpus: Annotated[float, Field(ge=0)] | None = None
    """Share of the GPUs; default: 1 where the trial's device is `cuda`, else 0."""


class Expectation(Section):
    """Registered before any result: what an arm should do to a metric against the reference."""

    arm: str
    metric: str
    direction: Literal["lower", "higher", "equal"]


class StudyFile(Section):
    """A study file as it is written. `docs/studies.md` explains it by examples."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_\-]+$")]
    question: str
    base: Annotated[tuple[str, ...], NonEmpty]
    """Experiment files, later ones over earlier ones; relative to the project."""
    reference: str
    """Name of the arm against which all others are compared."""
    primary_metric: str
    secondary_metrics: tuple[str, ...] = ()
    seeds: Annotated[tuple[Seed, ...], NonEmpty]
    phantom_draws: Annotated[tuple[Seed, ...], NonEmpty] = (0,)
    """Draws of the phantom that the seeds are crossed with; 0 is the preset as it is."""
    settings: Settings = {}
    """Overrides of the base that hold for all arms."""
    flagged_arms: tuple[str, ...] = ()
    """Arms whose first seed also tracks embeddings, attention maps and the model; default: the reference."""
    seconds_per_trial: Annotated[float, Field(gt=0)] = 60.0
    """First guess, until trials have been measured."""
    resources: Resources = Resources()
    arm_resources: dict[str, Resources] = {}
    """Arms that need other resources than the rest."""

    arms: dict[str, Settings] = {}
    leave_one_out: dict[str, Settings] = {}
    """Component -> the settings that take it away from the reference; the arm is named `no <component>`."""
    one_at_a_time: dict[str, Factor] = {}
    grid: dict[str, Factor] = {}
    fractional: Fractional | None = None
    constraints: tuple[str, ...] = ()
    """Expressions over settings that every arm must fulfil; combinations that do not are left out."""
    tuning: Tuning | None = None
    expectations: tuple[Expectation, ...] = ()


def section_at(path: tuple[str, ...]) -> type[Section]:
    """The section that the entry at `path` stands in."""
    section: type[Section] = StudyFile
    for part in path[:-1]:
        if part in section.model_fields:
            section = _section_in(section.model_fields[part].annotation) or section
    return section


def _section_in(annotation: Any) -> type[Section] | None:
    """The one section that a field's annotation mentions, at any depth."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    found = (_section_in(part) for part in getattr(annotation, "__args__", ()))
    return next(filter(None, found), None)
