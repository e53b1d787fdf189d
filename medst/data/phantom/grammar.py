"""Radiology reports of the phantom: whole MIMIC-layout texts made from the truth of `course`.

What lives here: which facts a report mentions, what it says about change, and how sentences become a
report with sections; likewise the grounding phrases of MS-CXR. The words are data (`grammar_first`,
`grammar_second`). What must not: anything about pixels, and labeller noise (the label files are made
elsewhere from `Report.mentioned`).

    write_report(patient, study_index, dials, rng, grammar="first") -> Report
    phrase(finding, rng, grammar="first") -> str
    sentence_pairs(num_pairs, rng, grammar="first") -> DataFrame (lives in `sentence_pairs`)

All are pure functions of their arguments and of the generator's state. Words of change are true: they
follow `course.progression` between the study and the one that the report was compared with
(`Report.compared_with`), or are not spoken. Only a first study compared with an examination that the data
do not hold may be called unchanged, without saying what, and no truth stands behind that.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from medst.data.phantom.course import FINDINGS, Finding, FindingName, Patient, Progression, Study, progression
from medst.data.phantom.lexicon import Group
from medst.data.phantom.sentence_pairs import sentence_pairs
from medst.data.phantom.sentences import (
    LEXICONS,
    Change,
    Dials,
    GrammarName,
    Mention,
    PlainDials,
    SentenceWriter,
    Statement,
    degree_of,
)

__all__ = ["Dials", "GrammarName", "Mention", "Report", "phrase", "sentence_pairs", "write_report"]

GROUP_OF_FINDING: Mapping[FindingName, Group] = {
    "consolidation": "lungs",
    "edema": "lungs",
    "pneumonia": "lungs",
    "pleural_effusion": "pleura",
    "pneumothorax": "pleura",
}

# Habits of dictation that no dial governs.
LARGE_HEART, MODERATELY_LARGE_HEART = 0.52, 0.6
"""Cardiothoracic ratios."""
BIG_CHANGE_OF_HEART = 0.03
"""Ratios closer than this are called stable."""
COMPARED_WITH_OLDER = 0.1
"""Share of reports compared with the study before the previous one."""
COMPARED_OUTSIDE = 0.15
"""Share of first studies compared with an examination that the data do not hold."""
NO_FINDINGS_SECTION, NO_IMPRESSION_SECTION, MERGED_SECTION, NO_HEADINGS = 0.12, 0.06, 0.06, 0.04
"""Shares of layouts; the rest has FINDINGS and IMPRESSION."""
PNEUMONIA_WITHOUT_FEVER, FEVER_WITHOUT_PNEUMONIA = 0.15, 0.1
"""Shares of pneumonias without their indication, and of the indication without pneumonia."""
UNNAMED_CHANGE = 0.25
"""Share of reports with one common change that say it without naming what has changed."""
REPEATED_CHANGE = 0.5
"""Share of changes in FINDINGS that the IMPRESSION repeats."""
NUMBERED_IMPRESSION = 0.4
LINE_WIDTH = 78
SHALLOW, DEEP = -0.4, 0.4
"""Inspiration that is remarked on."""

COMPLAINTS: Mapping[FindingName, tuple[str, ...]] = {
    "pneumonia": (
        "fever and cough // pneumonia?",
        "cough, fever // evaluate for pneumonia",
        "productive cough // infiltrate?",
    ),
    "edema": (
        "shortness of breath // edema?",
        "CHF // evaluate volume status",
        "hypoxia // pulmonary edema?",
    ),
    "pneumothorax": (
        "chest pain // pneumothorax?",
        "chest tube // evaluate pneumothorax",
        "trauma // ptx?",
    ),
    "pleural_effusion": ("dyspnea // effusion?", "shortness of breath // evaluate effusion"),
}
"""Indications, in the order in which one is taken where several findings are present. The cleaned text
that the model reads never holds them."""
COMPLAINTS_WITH_DEVICE = ("line placement // position?", "intubation // evaluate tube position")
COMPLAINTS_OF_OTHERS = (
    "chest pain // acute process?",
    "dyspnea // evaluate for acute process",
    "weakness // infiltrate?",
)


@dataclass(frozen=True)
class Report:
    text: str
    mentioned: dict[FindingName, Mention]
    """What the words say; a finding that is not mentioned has no entry."""
    compared_with: int | None
    """Index of the patient's study that words of change refer to; None where there is none."""


@dataclass(frozen=True)
class _Body:
    """Sentences without their full stops."""

    findings: list[str]
    impression: list[str]
    unnamed_change: list[str]
    """None or one; closes FINDINGS where no IMPRESSION follows, else opens the IMPRESSION."""


def write_report(
    patient: Patient,
    study_index: int,
    dials: Dials,
    rng: np.random.Generator,
    grammar: GrammarName = "first",
) -> Report:
    """The report of one study.

    Args:
        study_index: into `patient.studies`.
        rng: its state is advanced by a number of draws that depends on the text.
    Raises:
        KeyError: `grammar` is not one of `LEXICONS`.
    """
    writer = _ReportWriter(LEXICONS[grammar], dials, rng)
    study = patient.studies[study_index]
    compared_with = writer.compared_study(study_index)
    is_compared_outside = study_index == 0 and writer.happens(COMPARED_OUTSIDE)
    prior = None if compared_with is None else patient.studies[compared_with]
    previous = patient.studies[study_index - 1] if study_index > 0 else None
    if writer.tells_presence_by_order():
        statements = writer.plain_statements(study)
        body = writer.ordered_body(statements)
    else:
        statements = [
            statement for name in FINDINGS if (statement := writer.statement(name, study, previous, prior)) is not None
        ]
        body = writer.body(study, prior, is_compared_outside, statements)
    comparison = writer.comparison(study_index, compared_with, is_compared_outside)
    header = writer.header(patient, study_index, comparison)
    return Report(
        text=writer.layout(header, body),
        mentioned={statement.name: statement.mention for statement in statements},
        compared_with=compared_with,
    )


def phrase(finding: Finding, rng: np.random.Generator, grammar: GrammarName = "first") -> str:
    """A grounding phrase for one finding, with degree, side and zone: 'small left pleural effusion'."""
    return SentenceWriter(LEXICONS[grammar], PlainDials(), rng).noun_phrase(finding.name, (finding,)).text


class _ReportWriter(SentenceWriter):
    """Draws the choices of one report."""

    # ---------------------------------------------------------------- facts

    def compared_study(self, study_index: int) -> int | None:
        if study_index == 0:
            return None
        return study_index - 2 if study_index > 1 and self.happens(COMPARED_WITH_OLDER) else study_index - 1

    def statement(
        self, name: FindingName, study: Study, previous: Study | None, prior: Study | None
    ) -> Statement | None:
        """What is said about one finding; None where nothing is."""
        if self.happens(self.dials.omission):
            return None
        described = study
        if previous is not None and self.happens(self.dials.copy_forward):
            described, prior = previous, None
        now = _findings_of(described, name)
        if any(finding.is_lateral_only for finding in now) and study.lateral_view is None:
            return None
        change = None
        before = () if prior is None else _findings_of(prior, name)
        is_spoken = self.happens(self.dials.change_words)
        if prior is not None and is_spoken and _is_comparable(prior, described, (*before, *now)):
            change = _named_change(progression(prior, described, name, self.dials.progression_threshold), before, now)
        if not now:
            is_resolved = change == "resolved"
            return Statement(name, "negative", before if is_resolved else (), change if is_resolved else None, None)
        # A single picture hardly proves pneumonia: it is hedged more often than the rest.
        hedge = 1.0 - (1.0 - self.dials.hedge) ** 2 if name == "pneumonia" else self.dials.hedge
        return Statement(
            name=name,
            mention="uncertain" if self.happens(hedge) else "positive",
            parts=now,
            change=change,
            degree_before=degree_of(before[0].severity) if before else None,
        )

    def tells_presence_by_order(self) -> bool:
        # No draw where the dial is 0: the reports of other phantoms stay as they are, byte for byte.
        return self.dials.presence_by_order > 0 and self.happens(self.dials.presence_by_order)

    def plain_statements(self, study: Study) -> list[Statement]:
        """Every finding, present or absent as the study's views show it."""
        has_lateral = study.lateral_view is not None
        seen = {
            name: tuple(part for part in _findings_of(study, name) if has_lateral or not part.is_lateral_only)
            for name in FINDINGS
        }
        return [Statement(name, "positive" if parts else "negative", parts, None, None) for name, parts in seen.items()]

    def ordered_body(self, statements: Sequence[Statement]) -> _Body:
        present = [statement.name for statement in statements if statement.parts]
        absent = [statement.name for statement in statements if not statement.parts]
        return _Body(self.presence_by_order(present, absent), [], [])

    def clause(self, statement: Statement, study: Study) -> str:
        """What tells how the finding was seen; for FINDINGS, which say more than the IMPRESSION."""
        name, lexicon = statement.name, self.lexicon
        if statement.parts[0].is_lateral_only:
            is_placed = name == "pleural_effusion" and self.happens(self.dials.word_localisation)
            return f" {self.pick(lexicon.lateral_only_effusion if is_placed else lexicon.lateral_only)}"
        if name == "pneumothorax" and study.is_supine and not self.happens(self.dials.omission):
            return f" {self.pick(lexicon.supine_pneumothorax)}"
        return ""

    def body(
        self, study: Study, prior: Study | None, is_compared_outside: bool, statements: Sequence[Statement]
    ) -> _Body:
        unnamed = self.unnamed_change(statements, is_compared_outside)
        if unnamed is not None:
            statements = [replace(statement, change=None) for statement in statements]
        groups: dict[Group, list[str]] = {group: [] for group in self.lexicon.order}
        self.add_findings(groups, study, statements)
        self.add_surroundings(groups, study, prior)
        findings = [sentence for group in self.lexicon.order for sentence in groups[group]]
        return _Body(findings, self.impression(study, statements), [] if unnamed is None else [unnamed])

    def unnamed_change(self, statements: Sequence[Statement], is_compared_outside: bool) -> str | None:
        """'No significant interval change': a change without its subject, where it is true of all."""
        is_present = [statement for statement in statements if statement.mention != "negative"]
        changes = {statement.change for statement in is_present}
        if is_compared_outside and is_present and self.happens(self.dials.change_words):
            return self.pick(self.lexicon.unnamed_change["stable"]) + self.pick(self.lexicon.outside)
        has_resolved = any(statement.change == "resolved" for statement in statements)
        if len(changes) != 1 or has_resolved or not self.happens(UNNAMED_CHANGE):
            return None
        (change,) = changes
        if change is None or change == "new" or change == "resolved":
            return None
        return self.pick(self.lexicon.unnamed_change[change])

    def add_findings(self, groups: dict[Group, list[str]], study: Study, statements: Sequence[Statement]) -> None:
        absent = [statement.name for statement in statements if not statement.parts]
        for statement in statements:
            if statement.parts:
                groups[GROUP_OF_FINDING[statement.name]].append(
                    self.sentence(statement, self.clause(statement, study), is_terse=False)
                )
        has_lung_finding = any(GROUP_OF_FINDING[finding.name] == "lungs" for finding in study.findings)
        if not has_lung_finding and not groups["lungs"] and self.happens(0.3):
            groups["lungs"].append(self.pick(self.lexicon.lungs_clear))
        if absent and self.happens(0.5):
            groups["pleura"].append(self.negation(absent))
            return
        for group in ("lungs", "pleura"):
            if names := [name for name in absent if GROUP_OF_FINDING[name] == group]:
                groups[group].append(self.negation(names))

    def add_surroundings(self, groups: dict[Group, list[str]], study: Study, prior: Study | None) -> None:
        """Heart, volumes, bones and devices."""
        lexicon, omission = self.lexicon, self.dials.omission
        if not self.happens(omission):
            size = study.heart_size
            is_stable = prior is not None and abs(prior.heart_size - size) < BIG_CHANGE_OF_HEART
            if size > LARGE_HEART and is_stable and self.happens(0.5 * self.dials.change_words):
                options = lexicon.heart_stable
            else:
                options = (
                    lexicon.heart_normal if size <= 0.52 else lexicon.heart_mild if size <= 0.6 else lexicon.heart_large
                )
            groups["heart"].append(self.pick(options))
        if study.inspiration < SHALLOW and not self.happens(omission):
            groups["volumes"].append(self.pick(lexicon.low_volumes))
        elif study.inspiration > DEEP and self.happens(0.4 * (1.0 - omission)):
            groups["volumes"].append(self.pick(lexicon.good_volumes))
        if self.happens(0.3 * (1.0 - omission)):
            groups["bones"].append(self.pick(lexicon.bones))
        earlier = {device.kind for device in prior.devices} if prior is not None else set()
        for device in study.devices:
            if self.happens(omission):
                continue
            words = lexicon.devices[device.kind]
            side = f"{device.side} " if self.happens(self.dials.word_localisation) else ""
            name = self.pick(words.name).format(side=side)
            options = words.statements
            if prior is not None and self.happens(0.5 * self.dials.change_words):
                options = lexicon.device_same if device.kind in earlier else lexicon.device_new
            distance = f"{self.rng.uniform(2.0, 6.0):.1f}"
            groups["devices"].append(self.pick(options).format(name=name, distance=distance))
        for kind in sorted(earlier - {device.kind for device in study.devices}):
            if self.happens(0.5 * self.dials.change_words):
                name = self.pick(lexicon.devices[kind].name).format(side="")
                groups["devices"].append(self.pick(lexicon.device_removed).format(name=name))

    def impression(self, study: Study, statements: Sequence[Statement]) -> list[str]:
        sentences = []
        for statement in statements:
            is_repeated = self.happens(REPEATED_CHANGE)
            if statement.parts and (statement.change != "resolved" or is_repeated):
                said = statement if is_repeated else replace(statement, change=None)
                sentences.append(self.sentence(said, "", is_terse=True))
        absent = [statement.name for statement in statements if not statement.parts]
        if not study.findings:
            sentences.append(self.pick(self.lexicon.nothing_acute))
        elif absent and (not sentences or self.happens(0.25)):
            sentences.append(self.negation([self.pick(absent)]))
        return sentences

    # ---------------------------------------------------------------- the page

    def header(self, patient: Patient, study_index: int, comparison: str) -> list[tuple[str, str]]:
        """EXAMINATION, INDICATION, TECHNIQUE and COMPARISON."""
        study = patient.studies[study_index]
        has_lateral = study.lateral_view is not None
        views = " and ".join(dict.fromkeys(study.frontal_views))
        if study.is_portable:
            examination = "CHEST (PORTABLE AP)"
            technique = f"Portable {'supine' if study.is_supine else 'upright'} AP radiograph of the chest."
        elif has_lateral:
            examination = "CHEST (PA AND LAT)" if "PA" in study.frontal_views else "CHEST (AP AND LAT)"
            technique = f"{views} and lateral views of the chest."
        else:
            examination = f"CHEST ({' AND '.join(dict.fromkeys(study.frontal_views))})"
            technique = f"Single {views} view of the chest."
        if study.is_portable and has_lateral:
            technique = f"{technique} Lateral view."
        return [
            ("EXAMINATION", examination),
            ("INDICATION", f"___{patient.sex} with {self.complaint(study)}"),
            ("TECHNIQUE", technique),
            ("COMPARISON", comparison),
        ]

    def complaint(self, study: Study) -> str:
        """Why the study was asked for. Fever and cough go with pneumonia; not every fever is one."""
        present = {finding.name for finding in study.findings}
        reason = next((name for name in COMPLAINTS if name in present), None)
        if reason == "pneumonia" and self.happens(PNEUMONIA_WITHOUT_FEVER):
            reason = None
        elif self.happens(FEVER_WITHOUT_PNEUMONIA):
            reason = "pneumonia"
        if reason is not None:
            return self.pick(COMPLAINTS[reason])
        return self.pick(COMPLAINTS_WITH_DEVICE if study.devices else COMPLAINTS_OF_OTHERS)

    def comparison(self, study_index: int, compared_with: int | None, is_compared_outside: bool) -> str:
        if is_compared_outside:
            return self.pick(("CT of the chest from ___.", "Outside hospital radiograph of ___."))
        if compared_with is None:
            return self.pick(("None.", "None available."))
        if compared_with < study_index - 1:
            return "Radiograph of ___. The most recent study is not available."
        return self.pick(("Chest radiograph ___.", "___.", "Prior radiograph from ___."))

    def layout(self, header: list[tuple[str, str]], body: _Body) -> str:
        """The page: indented headings and wrapped paragraphs, two spaces after a full stop."""
        draw = self.rng.random()
        sections = list(header)
        shares = np.cumsum([NO_FINDINGS_SECTION, NO_IMPRESSION_SECTION, MERGED_SECTION, NO_HEADINGS])
        everything = [*body.findings, *body.unnamed_change]
        impression = [*body.unnamed_change, *body.impression]
        if not body.findings:
            sections.append(("IMPRESSION", self.paragraph(impression)))
        elif draw < shares[0]:
            sections.append(("IMPRESSION", self.paragraph(everything)))
        elif draw < shares[1] or not impression:
            sections.append(("FINDINGS", _prose(everything)))
        elif draw < shares[2]:
            sections.append(("FINDINGS AND IMPRESSION", _prose(everything)))
        elif draw < shares[3]:
            sections.append(("", _prose(everything)))
        else:
            sections += [("FINDINGS", _prose(body.findings)), ("IMPRESSION", self.paragraph(impression))]
        page = [f"{'FINAL REPORT':>45}"]
        for heading, content in sections:
            page += _block(heading, content)
        return "\n".join(page) + "\n"

    def paragraph(self, sentences: list[str]) -> str:
        """Prose, or a numbered list."""
        if len(sentences) < 2 or not self.happens(NUMBERED_IMPRESSION):
            return _prose(sentences)
        return "\n".join(f"{number}.  {_prose([sentence])}" for number, sentence in enumerate(sentences, 1))


def _prose(sentences: Sequence[str]) -> str:
    return "  ".join(f"{sentence[0].upper()}{sentence[1:]}." for sentence in sentences)


def _block(heading: str, content: str) -> list[str]:
    """A section with an empty line after it; long sections start below their heading, as in MIMIC."""
    is_inline = heading in ("EXAMINATION", "INDICATION", "TECHNIQUE", "COMPARISON")
    first = f"{heading}:  {content}" if is_inline else content
    lines = [] if is_inline or not heading else [f" {heading}:", " "]
    for line in first.split("\n"):
        # Only spaces at a line's end go: the two after a full stop stay, as in the real files.
        lines += textwrap.wrap(line, LINE_WIDTH, initial_indent=" ", subsequent_indent=" ")
    return [*lines, " "]


def _findings_of(study: Study, name: FindingName) -> tuple[Finding, ...]:
    """The findings of one name, strongest first."""
    found = (finding for finding in study.findings if finding.name == name)
    return tuple(sorted(found, key=lambda finding: -finding.severity))


def _is_comparable(prior: Study, current: Study, findings: Sequence[Finding]) -> bool:
    """What only a lateral shows cannot be followed where one of the two studies has none."""
    has_both = prior.lateral_view is not None and current.lateral_view is not None
    return has_both or not any(finding.is_lateral_only for finding in findings)


def _named_change(change: Progression | None, before: Sequence[Finding], now: Sequence[Finding]) -> Change | None:
    """Refines a progression by appearing and resolving; None where no word of change would be apt."""
    if now and not before:
        return "new" if change == "worsening" else None
    if before and not now:
        return "resolved" if change == "improving" else None
    return change
