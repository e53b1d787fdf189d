"""Words and numbers as people read them; shared by tables and figures.

What lives here: pure functions from values to short texts. What must not: layout of any one output format.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

MINUS = "−"
NOTHING = "–"
INFINITE = "∞"


def in_unit(value: float | None, scale: float, digits: int, *, is_signed: bool = False) -> str:
    """A tracked value in the unit shown, with a true minus and no sign on zero; '–' for NaN and None."""
    if value is None or math.isnan(value):
        return NOTHING
    if math.isinf(value):
        return INFINITE
    text = f"{value * scale:{'+' if is_signed else ''}.{digits}f}"
    return (text if text.strip("+-0.") else text.lstrip("+-")).replace("-", MINUS)


def interval_text(mean: float | None, low: float | None, high: float | None, scale: float, digits: int) -> str:
    """A difference: '+1.2 [−0.3, +2.7]'; the mean alone where its bounds are not known, '–' without a mean."""
    told, *bounds = (in_unit(value, scale, digits, is_signed=True) for value in (mean, low, high))
    return told if NOTHING in (told, *bounds) else f"{told} [{', '.join(bounds)}]"


def median_and_range(values: Sequence[float], scale: float, digits: int) -> str:
    """Of values in rising order: '7.1 (2.3–22.1)'; the median alone where it says all."""
    half = len(values) // 2
    shown = [in_unit(value, scale, digits) for value in ((values[~half] + values[half]) / 2, values[0], values[-1])]
    return shown[0] if len(set(shown)) == 1 else f"{shown[0]} ({shown[1]}–{shown[2]})"


def counted(number: int, noun: str) -> str:
    """1, 'seed' -> '1 seed'; 3, 'seed' -> '3 seeds'."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def expert_names(routing: str | None, num_experts: int) -> list[str]:
    """What the experts of the image encoder serve, as in `model.experts`; numbers where no view decides."""
    by_view = {1: ["all views"], 2: ["frontal", "lateral"], 3: ["AP", "PA", "lateral"],
               4: ["AP", "PA", "LL", "LATERAL"]}
    if routing != "learned" and num_experts in by_view:
        return by_view[num_experts]
    return [f"expert {number}" for number in range(1, num_experts + 1)]


def finding_name(finding: str) -> str:
    """'pleural_effusion' -> 'pleural effusion'."""
    return finding.replace("_", " ")


def broken(text: str, width: int = 11, lines: int | None = None) -> str:
    """Lines of at most `width` characters, cut between words; beyond `lines` of them an ellipsis."""
    parts = [""]
    for word in text.split():
        if parts[-1] and len(parts[-1]) + 1 + len(word) > width:
            parts.append("")
        parts[-1] = f"{parts[-1]} {word}".strip()
    if lines is not None and len(parts) > lines:
        parts = [*parts[: lines - 1], f"{parts[lines - 1]} …"]
    return "\n".join(parts)


def seeds_text(numbers: Iterable[int]) -> str:
    """0, 1, 2, 5 -> '0–2, 5'."""
    runs: list[list[int]] = []
    for number in sorted({int(number) for number in numbers}):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs)


def distinct(*columns: Iterable[object]) -> str:
    """The distinct rows of parallel columns in order of appearance: 'first (second)'; missing values left out."""
    texts = (["" if value is None or value != value else str(value) for value in column] for column in columns)
    seen = dict.fromkeys(zip(*texts, strict=True))
    named = [(first, " ".join(filter(None, rest))) for first, *rest in seen if first or any(rest)]
    return ", ".join(f"{first} ({rest})" if rest else first for first, rest in named)
