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
    split_rejections,
    stated_difference,
    trend,
)
from analysis.document import AUDIT_FORMAT
from analysis.provenance import write_texts
from analysis.tables import warnings_of
from analysis.tidy import Study, StudySource, study_source
from medst import tracking

NAME = "audit"
TITLE = "What the instrument can and cannot see"
STUDIES = ("audit_seeds", "audit_lateral", "audit_change", "audit_order", "audit_sides", "audit_transfer")
SEEDS_STUDY, TRANSFER_STUDY = STUDIES[0], STUDIES[-1]
WORLDS = {"second": "second geometry and grammar", "decorrelated": "devices tell nothing in the test"}
"""Where effects must keep their sign: as arms of `audit_transfer` begin -> in words."""


@dataclass(frozen=True)
class Planted:
    """An effect that must exist because the information is there, or is not."""

    name: str
    study: str
    metric: str
    dial: str
    transfer: tuple[str, str]
    """The arms of `audit_transfer` with the information and without it."""
    has_pairs: bool
    """True: every dose has an arm that cannot use the information; else all doses are compared with dose 0."""

    def arms(self, plan: Sequence[str]) -> list[tuple[float, str, str]]:
        """(dose, arm with the information, arm without) in rising order."""
        doses = sorted(float(arm) for arm in plan if not arm.endswith(", cut"))
        return [(dose, f"{dose:g}", f"{dose:g}, cut" if self.has_pairs else "0") for dose in doses
                if self.has_pairs or dose > 0]


PLANTED = (
    Planted("lateral view", "audit_lateral", "test/retrieval/image_to_report/r1", "lateral_information",
            ("laterals", "no laterals"), True),
    Planted("text positions", "audit_order", "test/retrieval/r5", "presence_by_order",
            ("positions", "no positions"), True),
    Planted("words of change, sentences", "audit_change", "test/sentence_similarity/all/auroc", "change_words",
            ("change words", "no change words"), False),
    Planted("words of change, direction", "audit_change", "test/direction/words/mean/auroc", "change_words",
            ("change words", "no change words"), False),
    Planted("side words", "audit_sides", "test/sides/mean/auroc", "word_localisation",
            ("side words", "no side words"), False),
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
    runs: Mapping[str, str]
    """`<arm>, seed <seed>` -> run that it was made from."""
    detectable: float = math.nan


@dataclass(frozen=True)
class Audit:
    """All that the audit found."""

    rows: tuple[Row, ...]
    curves: Mapping[str, Sequence[Dose]]
    """Planted effect -> its doses."""
    powers: Mapping[str, Sequence[Rejections]]
    """Metric -> power by shift."""
    warnings: tuple[str, ...]
    """What makes it incomplete or stale; sentences, shown before its table and in the caption of its figure."""
    fingerprint: str


def audit(studies: Mapping[str, Study], current_source: str) -> Audit:
    """The audit of the studies there are; what is absent, unfinished or of other code is said in its warnings.

    Args:
        current_source: fingerprint of the numerics' source as it is now.
    """
    rows: list[Row] = []
    gaps = [f"{name}: no finished trial" for name in STUDIES if name not in studies]
    powers: dict[str, Sequence[Rejections]] = {}
    if SEEDS_STUDY in studies:
        rows += _same_arm_rows(studies[SEEDS_STUDY], powers, gaps)
    curves: dict[str, Sequence[Dose]] = {}
    highest: dict[str, Row] = {}
    for effect in PLANTED:
        if effect.study in studies:
            study = studies[effect.study]
            planned = effect.arms(study.plan.arms)
            scores = study.scores(effect.metric)
            doses = [dose for dose in dose_response({arm: scores[arm].to_numpy() for arm in study.plan.arms}, planned)
                     if dose.difference.n > 1]
            absent = [f"{dose:g}" for dose, _, _ in planned if dose not in {found.dose for found in doses}]
            if absent:
                gaps.append(f"{study.plan.name}: {effect.name}, no two pairs of seeds at {effect.dial} = "
                            f"{', '.join(absent)}")
            if doses:
                curves[effect.name] = doses
                made = _planted_rows(effect, doses, study)
                if doses[-1].dose == planned[-1][0]:
                    highest[effect.name] = made[len(doses) - 1]
                rows += made
    if TRANSFER_STUDY in studies:
        rows += _transfer_rows(studies[TRANSFER_STUDY], highest, gaps)
    warnings = [f"INCOMPLETE: {gap}." for gap in gaps] + [
        f"{name}: {warning}" for name, study in studies.items() for warning in warnings_of(study, current_source)]
    return Audit(tuple(rows), curves, powers, tuple(warnings), fingerprint_of(studies.values()))


def fingerprint_of(studies: Iterable[Study | StudySource]) -> str:
    """Of all the runs of these studies, loaded or not."""
    return hashlib.sha256(" ".join(study.fingerprint for study in studies).encode()).hexdigest()[:16]


def _same_arm_rows(study: Study, powers: dict[str, Sequence[Rejections]], gaps: list[str]) -> list[Row]:
    rows: list[Row] = []
    full, other = study.plan.arms[:2]
    for metric in (study.plan.primary, *study.plan.secondary):
        name, scores = registry.describe(metric).short, study.scores(metric)
        pool, single, both = scores[full].to_numpy(), _runs(study, metric, full), _runs(study, metric, full, other)
        try:
            same = split_rejections(pool)
        except ValueError as error:
            gaps.append(f"{SEEDS_STUDY}: {name}, {error}")
            continue
        rows += [_rate_row("A/A, test", name, same.by_test, LEVEL, "at most", single),
                 _rate_row("A/A, interval excludes 0", name, same.by_interval, LEVEL, "about", single)]
        shift, powers[metric] = found_shift(pool)
        rows.append(Row("A/A, difference found 4 times in 5", name, 100 * shift, math.nan, math.nan, SEEDS_OF_A_STUDY,
                        "stated", "stated", SEEDS_STUDY, single, 100 * stated_difference(pool)))
        rows += [_rate_row("coverage, score", name, coverage(pool), 1 - LEVEL, "about", single),
                 _rate_row("coverage, difference", name, coverage(scores[other].to_numpy() - pool), 1 - LEVEL, "about",
                           both)]
        # The metrics of one trial hang together: only the comparisons of one metric make a rate.
        real = disjoint_rejections(scores[arm].to_numpy() for arm in (full, other))
        if real.trials:
            rows.append(_rate_row("A/A, disjoint seeds, once each", f"{name}, 2 arms with the same seeds", real, LEVEL,
                                  "at most", both))
    try:
        joint = split_rejections(study.scores(study.plan.primary)[full].to_numpy(), num_arms=2)
    except ValueError as error:
        gaps.append(f"{SEEDS_STUDY}: two arms at once, {error}")
        return rows
    return [*rows, _rate_row("A/A, test, 2 arms at once", registry.describe(study.plan.primary).short, joint.by_test,
                             LEVEL, "at most", _runs(study, study.plan.primary, full))]


def _runs(study: Study, metric: str, *arms: str) -> dict[str, str]:
    by_arm = study.run_ids(metric)
    return {f"{arm}, seed {seed}": run for arm in arms for seed, run in by_arm[arm].items()}


def _rate_row(check: str, what: str, rate: Rate, nominal: float, bound: str, runs: Mapping[str, str]) -> Row:
    low, high = rate.interval
    is_right = low <= nominal if bound == "at most" else low <= nominal <= high
    verdict = "holds" if is_right else f"off by {100 * abs(rate.value - nominal):.1f} points"
    return Row(check, what, 100 * rate.value, 100 * low, 100 * high, rate.trials, f"{bound} {100 * nominal:.0f} %",
               verdict, SEEDS_STUDY, runs)


def _planted_rows(effect: Planted, doses: Sequence[Dose], study: Study) -> list[Row]:
    """A line for every dose, then one for what they do together."""
    rows = []
    planned = effect.arms(study.plan.arms)
    arms = {dose: (whole, cut) for dose, whole, cut in planned}
    for dose in doses:
        difference = dose.difference
        expected = "not found" if dose.dose == 0 else "found" if dose.dose == planned[-1][0] else "between"
        rows.append(Row("planted", f"{effect.name}, {effect.dial} = {dose.dose:g}", 100 * difference.mean,
                        100 * difference.low, 100 * difference.high, difference.n, expected, _verdict(dose),
                        effect.study, _runs(study, effect.metric, *arms[dose.dose]), 100 * dose.detectable))
    scores = study.scores(effect.metric)
    shown = [entry for entry in planned if entry[0] in {dose.dose for dose in doses}]
    slope = trend({arm: scores[arm].to_numpy() for arm in study.plan.arms}, shown)
    if slope.n > 1:
        verdict = "rises" if slope.low > 0 else "falls" if slope.high < 0 else "rise not shown"
        rows.append(Row("planted, trend", f"{effect.name}, points per unit of {effect.dial}", 100 * slope.mean,
                        100 * slope.low, 100 * slope.high, slope.n, "above 0", verdict, effect.study,
                        _runs(study, effect.metric, *dict.fromkeys(arm for entry in shown for arm in entry[1:]))))
    return rows


def _verdict(dose: Dose) -> str:
    if math.isnan(dose.adjusted_p):
        return "too few seeds to test"
    if dose.adjusted_p > LEVEL:
        return "not found"
    if dose.dose == 0:
        return "found, though nothing is planted"
    return "found" if dose.is_found else "found, the wrong way"


def _transfer_rows(study: Study, highest: Mapping[str, Row], gaps: list[str]) -> list[Row]:
    """What planted effects do elsewhere, beside what they did in their own study.

    Args:
        highest: effect -> its line at the highest dose.
    """
    rows = []
    for effect in PLANTED:
        scores = study.scores(effect.metric)
        own = highest.get(effect.name)
        seen = "there: not measured" if own is None else f"there: {_number(own.value)}, {own.verdict}"
        for world in dict.fromkeys(arm.partition(",")[0] for arm in study.plan.arms):
            whole, cut = (f"{world}, {arm}" for arm in effect.transfer)
            difference = statistics.paired_difference(scores[whole].to_numpy(), scores[cut].to_numpy())
            if difference.n < 2:
                gaps.append(f"{study.plan.name}: {effect.name}, no two pairs of seeds for {WORLDS[world]}")
                continue
            is_above, is_found = difference.low > 0, own is not None and own.verdict == "found"
            verdict = ("reversed (interval below 0)" if difference.high < 0 else "not shown" if not is_above else
                       "kept (interval above 0)" if is_found else "interval above 0 here alone")
            rows.append(Row(
                "transfer", f"{effect.name}, {WORLDS[world]}", 100 * difference.mean, 100 * difference.low,
                100 * difference.high, difference.n, f"above 0 ({seen})", verdict, study.plan.name,
                _runs(study, effect.metric, whole, cut), 100 * statistics.minimum_detectable_difference(
                    difference.interval.deviation, difference.n)))
    return rows


COLUMNS: tuple[tuple[str, Callable[[Row], str]], ...] = (
    ("Check", lambda row: row.check), ("What", lambda row: row.what), ("Value", lambda row: _number(row.value)),
    ("95 % interval", lambda row: "" if math.isnan(row.low) else f"[{_number(row.low)}, {_number(row.high)}]"),
    ("n", lambda row: str(row.n)), ("MDD", lambda row: "∞" if math.isinf(row.detectable) else _number(row.detectable)),
    ("Expected", lambda row: row.expected), ("Verdict", lambda row: row.verdict),
)
NOTE = ("Rates in %, differences in points (scores times 100), with information minus without. n: repetitions of a "
        "rate, seeds of a difference. Trend: slope of the difference over the doses, a seed at a time. MDD: the "
        "difference that the test of these arms, adjusted for all of them, finds four times in five (∞: none, below 6 "
        "seeds); of a transfer, whose interval alone is read, the paired t test.")


def _number(value: float) -> str:
    if math.isnan(value):
        return ""
    return "none on the curve" if math.isinf(value) else f"{value:.1f}".replace("-", "−")


def markdown(found: Audit) -> str:
    """The audit's table, under its title."""
    lines = ["| " + " | ".join(title for title, _ in COLUMNS) + " |",
             "| :-- | :-- | --: | --: | --: | --: | :-- | :-- |"]
    lines += ["| " + " | ".join(show(row) for _, show in COLUMNS) + " |" for row in found.rows]
    warnings = [f"> **{warning}**" for warning in found.warnings]
    return "\n".join([f"# {TITLE}", "", *(line for warning in warnings for line in (warning, "")), *lines, "",
                      f"*{NOTE}*", "", f"<!-- fingerprint {found.fingerprint} -->", ""])


def audit_sources(snapshot: tracking.Snapshot) -> list[StudySource]:
    """The studies of the audit that are in the store and have a finished trial."""
    sources = [study_source(snapshot, name) for name in STUDIES if name in snapshot.studies]
    return [source for source in sources if source.has_finished]


def write_tables(found: Audit, folder: Path) -> list[Path]:
    """`audit.md`, `.csv` and `.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*(title for title, _ in COLUMNS), "study", "run_ids", "fingerprint"])
    writer.writerows([*(show(row) for _, show in COLUMNS), row.study, " ".join(row.runs.values()), found.fingerprint]
                     for row in found.rows)
    texts = {"md": markdown(found), "csv": text.getvalue(),
             "json": json.dumps(audit_document(found), indent=1, ensure_ascii=False) + "\n"}
    return write_texts(folder, NAME, texts)


def audit_document(found: Audit) -> dict[str, Any]:
    """The audit as plain values; numbers that do not exist or are infinite are None."""
    return {"format": AUDIT_FORMAT, "fingerprint": found.fingerprint, "name": NAME, "title": TITLE, "note": NOTE,
            "warnings": list(found.warnings),
            "rows": [{key: _plain(value) for key, value in asdict(row).items()}
                     | {"shown": {title: show(row) for title, show in COLUMNS}} for row in found.rows]}


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
