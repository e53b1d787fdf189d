"""Published numbers: a data file with source and grade, read strictly. What must not live here: our own results."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, model_validator

PUBLISHED = Path(__file__).parent / "published.yaml"


class PublishedNumber(BaseModel):
    """One number that others published."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    model: str
    metric: str
    """Our metric of the same task."""
    value: float
    protocol: str
    source: str
    grade: Literal["primary", "aggregator"]
    """primary: the authors' own paper, card or repository; aggregator: somebody else's table."""
    comparable: bool
    """True only where protocol and data are ours too."""
    why_not: str = ""

    @model_validator(mode="after")
    def _reasoned(self) -> PublishedNumber:
        if self.comparable == bool(self.why_not):
            raise ValueError("exactly the numbers that are not comparable say why_not")
        return self


def load_published(path: Path = PUBLISHED) -> tuple[PublishedNumber, ...]:
    """All published numbers, in the file's order.

    Raises:
        ValueError: not such a file, or a number stands twice; names entry and field.
    """
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))
        numbers = TypeAdapter(tuple[PublishedNumber, ...]).validate_python(tuple(entries or ()))
    except (yaml.YAMLError, TypeError) as error:
        raise ValueError(f"{path}: not a list of numbers: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{path}: entry {place}: {first['msg']}") from None
    seen: set[tuple[str, str, str]] = set()
    for number in numbers:
        identity = (number.model, number.metric, number.protocol)
        if identity in seen:
            raise ValueError(f"{path}: {number.model} has {number.metric} twice under one protocol")
        seen.add(identity)
    return numbers


def reproduction(ours: Mapping[str, float], numbers: tuple[PublishedNumber, ...]) -> list[tuple[str, ...]]:
    """Rows metric, ours, published, model, grade, comparison: every metric of ours with what others published for it.

    A metric without a published number keeps its row; a number that may not be compared says why.
    """
    rows: list[tuple[str, ...]] = []
    for metric, value in ours.items():
        found = [number for number in numbers if number.metric == metric]
        if not found:
            rows.append((metric, f"{value:.4f}", "", "", "", "no published number on file"))
        for number in found:
            difference = f"{value - number.value:+.4f}" if number.comparable else f"not comparable: {number.why_not}"
            rows.append((metric, f"{value:.4f}", f"{number.value:.4f}", number.model, number.grade, difference))
    return rows
