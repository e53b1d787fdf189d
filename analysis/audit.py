"""The audit: what can this platform see, and does it see what is not there?

What lives here: the planted effects and the rows of its table, from the studies `audit_*` in the tracking store alone.
What must not: how trials are run; how often a statistic is right (calibration.py); its figure (audit_figure.py).
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from analysis import registry, statistics
from analysis.calibration import (
    LEVEL,
    SEEDS_OF_A_STUDY,
    Dose,
    Rate,
    Rejections,
    coverage,
    disjoint_rejections,
    dose_response,
    found_shift,
    rises,
    split_rejections,
)
from analysis.provenance import write_texts
from analysis.tidy import FINISHED, Study, StudySource, study_source
from medst import tracking

NAME = "audit"
TITLE = "What the instrument can and cannot see"
FORMAT = "medst-audit/1"
STUDIES = ("audit_seeds", "audit_lateral", "audit_change", "audit_order", "audit_sides", "audit_transfer")
SEEDS_STUDY = STUDIES[0]
WORLDS = {"second": "second geometry and grammar", "decorrelated": "devices tell nothing in the test"}
"""Where effects must keep their sign: as arms of `audit_transfer` begin -> in words."""


@dataclass(frozen=True)
class Planted:
    """An effect that must exist because the information is there, or is not."""

    name: str
    study: str
    metric: str
    dial: str
    transfer_arm: str
    """The arm of `audit_transfer` without the information."""
    has_pairs: bool
    """True: every dose has an arm that cannot use the information; else all doses are compared with dose 0."""

    def arms(self, plan: Sequence[str]) -> list[tuple[float, str, str]]:
        """(dose, arm with the information, arm without) in rising order."""
        doses = sorted(float(arm) for arm in plan if not arm.endswith(", cut"))
        return [(dose, f"{dose:g}", f"{dose:g}, cut" if self.has_pairs else "0") for dose in doses
                if self.has_pairs or dose > 0]


PLANTED = (
    Planted("lateral view", "audit_lateral", "test/finding_zero_shot/mean/auroc", "lateral_information",
            "no lateral view", True),
    Planted("text positions", "audit_order", "test/sentence_similarity/radgraph/auroc", "order_carries_meaning",
            "no positions", True),
    Planted("words of change, sentences", "audit_change", "test/sentence_similarity/all/auroc", "change_words",
            "no change words", False),
    Planted("words of change, direction", "audit_change", "test/direction/words/mean/auroc", "change_words",
            "no change words", False),
    Planted("side words", "audit_sides", "test/sides/mean/auroc", "word_localisation", "no side words", False),
)


@dataclass(frozen=True)
class Row:
    """A line of the audit's table. Numbers are in points (scores times 100) or shares; NaN where there is none."""

    check: str
    what: str
    value: float
    low: float
    high: float
    n: int
    """Seeds, or repetitions."""
    expected: str
    verdict: str
    study: str
    runs: tuple[str, ...]
    """Runs that it was made from."""
    detectable: float = math.nan


@dataclass(frozen=True)
class Audit:
    """All that the audit found."""

    rows: tuple[Row, ...]
    curves: Mapping[str, Sequence[Dose]]
    """Planted effect -> its doses."""
    powers: Mapping[str, Sequence[Rejections]]
    """Metric -> power by shift."""
    missing: tuple[str, ...]
    """Studies that have no finished trial yet, or too few."""
    fingerprint: str


def audit(studies: Mapping[str, Study]) -> Audit:
    """The audit of the studies there are; those that are absent or too small are named in `missing`."""
    rows: list[Row] = []
    missing = [f"{name}: no finished trial" for name in STUDIES if name not in studies]
    powers: dict[str, Sequence[Rejections]] = {}
    if SEEDS_STUDY in studies:
        try:
            rows += _same_arm_rows(studies[SEEDS_STUDY], powers)
        except ValueError as error:
            missing.append(f"{SEEDS_STUDY}: {error}")
    curves: dict[str, Sequence[Dose]] = {}
    for effect in PLANTED:
        if effect.study in studies:
            study = studies[effect.study]
            scores = study.scores(effect.metric)
            doses = dose_response({arm: scores[arm].to_numpy() for arm in study.plan.arms},
                                  effect.arms(study.plan.arms))
            doses = [dose for dose in doses if dose.difference.n > 1]
            if doses:
                curves[effect.name] = doses
                rows += _planted_rows(effect, doses, study)
    if "audit_transfer" in studies:
        rows += _transfer_rows(studies["audit_transfer"])
    return Audit(tuple(rows), curves, powers, tuple(missing), fingerprint_of(studies.values()))


def fingerprint_of(studies: Iterable[Study | StudySource]) -> str:
    """Of all the runs of these studies, loaded or not."""
    return hashlib.sha256(" ".join(study.fingerprint for study in studies).encode()).hexdigest()[:16]


def _same_arm_rows(study: Study, powers: dict[str, Sequence[Rejections]]) -> list[Row]:
    rows: list[Row] = []
    metrics = [metric for metric in (study.plan.primary, *study.plan.secondary) if metric in study.metrics]
    full, other = study.plan.arms[:2]
    for metric in metrics:
        name, scores = registry.describe(metric).short, study.scores(metric)
        pool, single, both = scores[full].to_numpy(), _runs(study, metric, full), _runs(study, metric, full, other)
        same = split_rejections(pool)
        rows += [_rate_row("A/A, test", name, same.by_test, LEVEL, "at most", single),
                 _rate_row("A/A, interval excludes 0", name, same.by_interval, LEVEL, "about", single)]
        shift, powers[metric] = found_shift(pool)
        rows.append(Row("A/A, difference found 4 times in 5", name, 100 * shift, math.nan, math.nan, SEEDS_OF_A_STUDY,
                        "stated", "stated", SEEDS_STUDY, single, 100 * statistics.minimum_detectable_difference(
                            math.sqrt(2) * float(np.nanstd(pool, ddof=1)), SEEDS_OF_A_STUDY)))
        rows += [_rate_row("coverage, score", name, coverage(pool), 1 - LEVEL, "about", single),
                 _rate_row("coverage, difference", name, coverage(scores[other].to_numpy() - pool), 1 - LEVEL, "about",
                           both)]
    real = disjoint_rejections(study.scores(metric)[arm].to_numpy() for metric in metrics for arm in (full, other))
    if real.trials:
        rows.append(_rate_row("A/A, disjoint seeds, once each", f"{len(metrics)} metrics, 2 arms", real, LEVEL,
                              "at most", _runs(study, metrics[0], full, other)))
    try:
        joint = split_rejections(study.scores(metrics[0])[full].to_numpy(), num_arms=2)
    except ValueError:
        return rows
    return [*rows, _rate_row("A/A, test, 2 arms at once", registry.describe(metrics[0]).short, joint.by_test, LEVEL,
                             "at most", _runs(study, metrics[0], full))]


def _runs(study: Study, metric: str, *arms: str) -> tuple[str, ...]:
    by_arm = study.run_ids(metric)
    return tuple(run for arm in arms for run in by_arm[arm].values())


def _rate_row(check: str, what: str, rate: Rate, nominal: float, bound: str, runs: tuple[str, ...]) -> Row:
    low, high = rate.interval
    is_right = low <= nominal if bound == "at most" else low <= nominal <= high
    verdict = "holds" if is_right else f"off by {100 * abs(rate.value - nominal):.1f} points"
    return Row(check, what, 100 * rate.value, 100 * low, 100 * high, rate.trials, f"{bound} {100 * nominal:.0f} %",
               verdict, SEEDS_STUDY, runs)


def _planted_rows(effect: Planted, doses: Sequence[Dose], study: Study) -> list[Row]:
    rows = []
    arms = {dose: (whole, cut) for dose, whole, cut in effect.arms(study.plan.arms)}
    for dose in doses:
        difference = dose.difference
        verdict = ("found" if dose.is_found else "too few seeds to test" if math.isnan(dose.adjusted_p) else
                   "not found" if dose.adjusted_p > LEVEL else "found, the wrong way")
        is_highest = dose is doses[-1]
        if is_highest:
            verdict += ", rises" if rises(doses) else ", does not rise"
        rows.append(Row("planted", f"{effect.name}, {effect.dial} = {dose.dose:g}", 100 * difference.mean,
                        100 * difference.low, 100 * difference.high, difference.n,
                        "found" if is_highest else "between", verdict, effect.study,
                        _runs(study, effect.metric, *arms[dose.dose]), 100 * dose.detectable))
    return rows


def _transfer_rows(study: Study) -> list[Row]:
    rows = []
    for effect in PLANTED:
        scores = study.scores(effect.metric)
        for world in dict.fromkeys(arm.partition(",")[0] for arm in study.plan.arms):
            whole, cut = f"{world}, whole", f"{world}, {effect.transfer_arm}"
            difference = statistics.paired_difference(scores[whole].to_numpy(), scores[cut].to_numpy())
            if difference.n > 1:
                verdict = "sign kept" if difference.mean > 0 else "sign lost"
                rows.append(Row(
                    "transfer", f"{effect.name}, {WORLDS[world]}", 100 * difference.mean, 100 * difference.low,
                    100 * difference.high, difference.n, "above 0", verdict, study.plan.name,
                    _runs(study, effect.metric, whole, cut), 100 * statistics.minimum_detectable_difference(
                        difference.interval.deviation, difference.n)))
    return rows


COLUMNS: tuple[tuple[str, Callable[[Row], str]], ...] = (
    ("Check", lambda row: row.check), ("What", lambda row: row.what), ("Value", lambda row: _number(row.value)),
    ("95 % interval", lambda row: "" if math.isnan(row.low) else f"[{_number(row.low)}, {_number(row.high)}]"),
    ("n", lambda row: str(row.n)), ("MDD", lambda row: _number(row.detectable)),
    ("Expected", lambda row: row.expected), ("Verdict", lambda row: row.verdict),
)
NOTE = ("Rates in %, differences in points (scores times 100), with information minus without. n: repetitions of a "
        "rate, seeds of a difference. MDD: the difference that the paired t test finds four times in five.")


def _number(value: float) -> str:
    if math.isnan(value):
        return ""
    return "none on the curve" if math.isinf(value) else f"{value:.1f}".replace("-", "−")


def markdown(found: Audit) -> str:
    """The audit's table, under its title."""
    lines = ["| " + " | ".join(title for title, _ in COLUMNS) + " |",
             "| :-- | :-- | --: | --: | --: | --: | :-- | :-- |"]
    lines += ["| " + " | ".join(show(row) for _, show in COLUMNS) + " |" for row in found.rows]
    gaps = [f"INCOMPLETE: {gap}." for gap in found.missing]
    return "\n".join([f"# {TITLE}", "", *gaps, *([""] if gaps else []), *lines, "", f"*{NOTE}*", "",
                      f"<!-- fingerprint {found.fingerprint} -->", ""])


def audit_sources(snapshot: tracking.Snapshot) -> list[StudySource]:
    """The studies of the audit that are in the store and have a finished trial."""
    sources = [study_source(snapshot, name) for name in STUDIES if name in snapshot.studies]
    return [source for source in sources if (source.runs["state"] == FINISHED).any()]


def write_tables(found: Audit, folder: Path) -> list[Path]:
    """`audit.md`, `.csv` and `.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([title for title, _ in COLUMNS])
    writer.writerows([show(row) for _, show in COLUMNS] for row in found.rows)
    texts = {"md": markdown(found), "csv": text.getvalue(),
             "json": json.dumps(audit_document(found), indent=1, ensure_ascii=False) + "\n"}
    return write_texts(folder, NAME, texts)


def audit_document(found: Audit) -> dict[str, Any]:
    """The audit as plain values; numbers that do not exist or are infinite are None."""
    return {"format": FORMAT, "fingerprint": found.fingerprint, "name": NAME, "title": TITLE, "note": NOTE,
            "missing": list(found.missing),
            "rows": [{key: _plain(value) for key, value in asdict(row).items()}
                     | {"shown": {title: show(row) for title, show in COLUMNS}} for row in found.rows]}


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
