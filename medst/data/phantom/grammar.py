"""Radiology reports of the phantom: whole MIMIC-layout texts made from the truth of `course`.

What lives here: which facts a report mentions, what it says about change, and how sentences become a
report with sections; likewise the grounding phrases of MS-CXR. The words are data (`grammar_first`,
`grammar_second`). What must not: anything about pixels, and labeller noise (the label files are made
elsewhere from `Report.mentioned`).

    write_report(patient, study_index, dials, rng, grammar="first") -> Report
    phrase(finding, rng, grammar="first") -> str

Both are pure functions of their arguments and of the generator's state. Words of change are true: they
follow `course.progression` between the study and the one that the report was compared with
(`Report.compared_with`), or are not spoken.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, TypeVar

import numpy as np

from medst.data.phantom import grammar_first, grammar_second
from medst.data.phantom.course import FINDINGS, Finding, FindingName, Patient, Progression, Side, Study, progression
from medst.data.phantom.lexicon import Degree, Group, Lexicon, Part

GrammarName = Literal["first", "second"]
Mention = Literal["positive", "negative", "uncertain"]
Change = Literal["improving", "stable", "worsening", "new", "resolved"]

LEXICONS: Mapping[GrammarName, Lexicon] = {"first": grammar_first.LEXICON, "second": grammar_second.LEXICON}
OPPOSITE: Mapping[Side, Side] = {"left": "right", "right": "left"}
PARTS: tuple[Part, ...] = ("verb", "adjective", "predicate", "noun")
GROUP_OF_FINDING: Mapping[FindingName, Group] = {
    "consolidation": "lungs",
    "edema": "lungs",
    "pneumonia": "lungs",
    "pleural_effusion": "pleura",
    "pneumothorax": "pleura",
}

# Habits of dictation that no dial governs.
BIG_CHANGE_OF_HEART = 0.03
"""Cardiothoracic ratios closer than this are called stable."""
COMPARED_WITH_OLDER = 0.1
"""Share of reports compared with the study before the previous one."""
COMPARED_OUTSIDE = 0.15
"""Share of first studies compared with an examination that the data do not hold."""
NO_FINDINGS_SECTION, NO_IMPRESSION_SECTION, MERGED_SECTION, NO_HEADINGS = 0.12, 0.06, 0.06, 0.04
PLACED_AFTER_NOUN = 0.35
PNEUMONIA_BY_NAME = 0.3
UNNAMED_CHANGE = 0.25
NUMBERED_IMPRESSION = 0.4
LINE_WIDTH = 78

Item = TypeVar("Item")


class Dials(Protocol):
    """The dials that a grammar needs: probabilities, but for the threshold."""

    @property
    def change_words(self) -> float:
        """That a change relative to the compared study is spoken."""

    @property
    def word_localisation(self) -> float:
        """That words of side and of zone are kept, each by itself."""

    @property
    def copy_forward(self) -> float:
        """That a finding is described as it was in the previous study, as copied text does."""

    @property
    def omission(self) -> float:
        """That a fact is left out."""

    @property
    def hedge(self) -> float:
        """That a finding is called possible; pneumonia, of which one picture is never proof, more often."""

    @property
    def order_carries_meaning(self) -> float:
        """That a side or a direction is told by the order of words alone ('on the left but not on the
        right', 'from small to moderate')."""

    @property
    def change_threshold(self) -> float:
        """Change of severity above which a finding improves or worsens, as for the labels."""


@dataclass(frozen=True)
class Report:
    text: str
    mentioned: dict[FindingName, Mention]
    """What the words say; a finding that is not mentioned has no entry."""
    compared_with: int | None
    """Index of the patient's study that words of change refer to; None where there is none."""


@dataclass(frozen=True)
class _NounPhrase:
    text: str
    is_plural: bool
    is_countable: bool

    def fill(self, frame: str, **words: str) -> str:
        """The frame with this phrase and its agreement; a space is left to each word by its frame."""
        head = frame[max(frame.find("{a}"), 0) :].removeprefix("{a}").split("{np}")[0]
        following = head + self.text
        article = "" if self.is_plural or not self.is_countable else "an " if following[0] in "aeiou" else "a "
        return frame.format(
            np=self.text,
            a=article,
            be="are" if self.is_plural else "is",
            have="have" if self.is_plural else "has",
            **words,
        )


@dataclass(frozen=True)
class _Statement:
    """What a report says about one finding."""

    name: FindingName
    mention: Mention
    parts: tuple[Finding, ...]
    """The finding as described, strongest first; more than one where sides differ; empty for a negation."""
    change: Change | None
    degree_before: Degree | None


@dataclass(frozen=True)
class _Body:
    """Sentences without their full stops."""

    findings: list[str]
    impression: list[str]
    unnamed_change: list[str]
    """None or one; closes FINDINGS where no IMPRESSION follows, else opens the IMPRESSION."""


def degree_of(severity: float) -> Degree:
    return "small" if severity < 0.34 else "moderate" if severity < 0.67 else "large"


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
    writer = _Writer(LEXICONS[grammar], dials, rng)
    study = patient.studies[study_index]
    compared_with = writer.compared_study(study_index)
    is_compared_outside = study_index == 0 and writer.happens(COMPARED_OUTSIDE)
    prior = None if compared_with is None else patient.studies[compared_with]
    previous = patient.studies[study_index - 1] if study_index > 0 else None
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
    return _Writer(LEXICONS[grammar], _PlainDials(), rng).noun_phrase(finding.name, (finding,), False).text


@dataclass(frozen=True)
class _PlainDials:
    """Everything that is known is said."""

    change_words: float = 1.0
    word_localisation: float = 1.0
    copy_forward: float = 0.0
    omission: float = 0.0
    hedge: float = 0.0
    order_carries_meaning: float = 0.0
    change_threshold: float = 0.0


class _Writer:
    """Draws the choices of one report."""

    def __init__(self, lexicon: Lexicon, dials: Dials, rng: np.random.Generator) -> None:
        self.lexicon = lexicon
        self.dials = dials
        self.rng = rng

    def pick(self, options: Sequence[Item]) -> Item:
        return options[int(self.rng.integers(len(options)))]

    def happens(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    # ---------------------------------------------------------------- facts

    def compared_study(self, study_index: int) -> int | None:
        if study_index == 0:
            return None
        return study_index - 2 if study_index > 1 and self.happens(COMPARED_WITH_OLDER) else study_index - 1

    def statement(
        self, name: FindingName, study: Study, previous: Study | None, prior: Study | None
    ) -> _Statement | None:
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
        before: tuple[Finding, ...] = ()
        if prior is not None and self.happens(self.dials.change_words):
            before = _findings_of(prior, name)
            change = _named_change(progression(prior, described, name, self.dials.change_threshold), before, now)
        if not now:
            is_resolved = change == "resolved"
            return _Statement(name, "negative", before if is_resolved else (), change if is_resolved else None, None)
        # A single picture hardly proves pneumonia: it is hedged more often than the rest.
        hedge = 1.0 - (1.0 - self.dials.hedge) ** 2 if name == "pneumonia" else self.dials.hedge
        return _Statement(
            name=name,
            mention="uncertain" if self.happens(hedge) else "positive",
            parts=now,
            change=change,
            degree_before=degree_of(before[0].severity) if before else None,
        )

    # ---------------------------------------------------------------- phrases

    def noun_phrase(self, name: FindingName, parts: tuple[Finding, ...], is_uncertain: bool) -> _NounPhrase:
        """'small left pleural effusion', 'moderate consolidation in the right upper lobe', ..."""
        return self._noun_phrase(name, parts, is_uncertain, has_degree=True, clause="")

    def _noun_phrase(
        self, name: FindingName, parts: tuple[Finding, ...], is_uncertain: bool, has_degree: bool, clause: str
    ) -> _NounPhrase:
        words = self.lexicon.findings[name]
        noun = self.pick(words.nouns)
        prefix = diagnosis = degree = ""
        if name == "pneumonia" and is_uncertain:
            diagnosis = " " + self.pick(self.lexicon.pneumonia_uncertain)
        elif name == "pneumonia" and self.happens(PNEUMONIA_BY_NAME):
            noun = self.lexicon.pneumonia_direct
        elif name == "pneumonia":
            diagnosis = " " + self.pick(self.lexicon.pneumonia_certain)
        elif is_uncertain:
            prefix = self.pick(self.lexicon.uncertain_prefixes)
        if has_degree and not self.happens(self.dials.omission):
            degree = self.pick(words.degrees[degree_of(parts[0].severity)])
        side, before, after = self.place(name, parts)
        is_plural = side == "bilateral" and noun.plural is not None
        head = noun.plural if is_plural and noun.plural is not None else noun.text
        text = " ".join(word for word in (prefix, degree, *before, head) if word)
        return _NounPhrase(text + after + diagnosis + clause, is_plural, noun.is_countable)

    def place(self, name: FindingName, parts: tuple[Finding, ...]) -> tuple[Side | None, list[str], str]:
        """The side that is told, the words of place before the noun, and those after it."""
        words = self.lexicon.findings[name]
        side: Side = parts[0].side if all(part.side == parts[0].side for part in parts) else "bilateral"
        has_side = self.happens(self.dials.word_localisation)
        has_zone = self.happens(self.dials.word_localisation)
        is_told_by_order = self.happens(self.dials.order_carries_meaning)
        is_after = self.happens(PLACED_AFTER_NOUN)
        zone = parts[0].zone
        adjectives = [self.pick(words.zone_adjectives[zone])] if has_zone and words.zone_adjectives[zone] else []
        if not has_side:
            return None, adjectives, ""
        if is_told_by_order and side != "bilateral":
            contrast = self.pick(self.lexicon.contrasts).format(side=side, other=OPPOSITE[side])
            return side, adjectives, f" {contrast}"
        if is_told_by_order and parts[0].side != "bilateral":
            asymmetry = self.pick(self.lexicon.asymmetries).format(side=parts[0].side, other=OPPOSITE[parts[0].side])
            return side, adjectives, f" {asymmetry}"
        if is_after and has_zone and words.zone_places[zone]:
            singular, plural = self.pick(words.zone_places[zone])
            return side, [], f" in both {plural}" if side == "bilateral" else f" in the {side} {singular}"
        if is_after:
            return side, adjectives, f" {self.pick(self.lexicon.side_places[side])}"
        return side, [self.pick(self.lexicon.sides[side]), *adjectives], ""

    # ---------------------------------------------------------------- sentences

    def sentence(self, statement: _Statement, study: Study, is_terse: bool) -> str:
        """One sentence for a finding that is present, or that has resolved; without its full stop."""
        lexicon = self.lexicon
        name, parts, change = statement.name, statement.parts, statement.change
        is_uncertain = statement.mention == "uncertain"
        if change == "resolved":
            gone = self._noun_phrase(name, parts, False, has_degree=False, clause="")
            return gone.fill(self.pick(lexicon.resolved_frames), since=self.pick(lexicon.since))
        clause = self.clause(name, parts[0], study)
        now = degree_of(parts[0].severity)
        if change is None:
            if is_uncertain and name != "pneumonia" and not is_terse and self.happens(0.5):
                plain = self._noun_phrase(name, parts, False, has_degree=True, clause=clause)
                return plain.fill(self.pick(lexicon.uncertain_statements))
            subject = self._noun_phrase(name, parts, is_uncertain, has_degree=True, clause=clause)
            return subject.fill(self.pick(lexicon.summary_statements if is_terse else lexicon.statements))
        if change == "new":
            subject = self._noun_phrase(name, parts, is_uncertain, has_degree=True, clause=clause)
            return subject.fill(self.pick(lexicon.new_frames), since=self.pick(lexicon.since))
        before = statement.degree_before
        if before is not None and before != now and change != "stable":
            if self.happens(self.dials.order_carries_meaning):
                subject = self._noun_phrase(name, parts, is_uncertain, has_degree=False, clause=clause)
                degrees = lexicon.findings[name].degrees
                return subject.fill(
                    self.pick(lexicon.order_frames),
                    before=self.pick(degrees[before]),
                    now=self.pick(degrees[now]),
                    since=self.pick(lexicon.since),
                )
        subject = self._noun_phrase(name, parts, is_uncertain, has_degree=True, clause=clause)
        return subject.fill(
            self.pick(lexicon.change_frames), since=self.pick(lexicon.since), **self.terms(name, change)
        )

    def terms(self, name: FindingName, change: Progression) -> dict[str, str]:
        """One term of change for each part of speech."""
        terms = {part: self.pick(self.lexicon.terms[change][part]) for part in PARTS}
        if self.happens(0.4):
            terms["predicate"] = self.pick(self.lexicon.findings[name].sizes[change])
        return terms

    def clause(self, name: FindingName, finding: Finding, study: Study) -> str:
        """What tells how the finding was seen."""
        if finding.is_lateral_only:
            is_placed = name == "pleural_effusion" and self.happens(self.dials.word_localisation)
            return " " + self.pick(self.lexicon.lateral_only_effusion if is_placed else self.lexicon.lateral_only)
        if name == "pneumothorax" and study.is_supine and not self.happens(self.dials.omission):
            return " " + self.pick(self.lexicon.supine_pneumothorax)
        return ""

    def negation(self, names: Sequence[FindingName]) -> str:
        nouns = [self.pick(self.lexicon.findings[name].negated) for name in names]
        if self.happens(0.5):
            nouns.reverse()
        listed = nouns[0] if len(nouns) == 1 else f"{', '.join(nouns[:-1])} or {nouns[-1]}"
        return self.pick(self.lexicon.negations).format(list=listed)

    def body(
        self, study: Study, prior: Study | None, is_compared_outside: bool, statements: Sequence[_Statement]
    ) -> _Body:
        unnamed = self.unnamed_change(statements, is_compared_outside)
        if unnamed is not None:
            statements = [replace(statement, change=None) for statement in statements]
        groups: dict[Group, list[str]] = {group: [] for group in self.lexicon.order}
        self.add_findings(groups, study, statements)
        self.add_surroundings(groups, study, prior)
        findings = [sentence for group in self.lexicon.order for sentence in groups[group]]
        return _Body(findings, self.impression(study, statements), [] if unnamed is None else [unnamed])

    def unnamed_change(self, statements: Sequence[_Statement], is_compared_outside: bool) -> str | None:
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

    def add_findings(self, groups: dict[Group, list[str]], study: Study, statements: Sequence[_Statement]) -> None:
        absent = [statement.name for statement in statements if not statement.parts]
        for statement in statements:
            if statement.parts:
                groups[GROUP_OF_FINDING[statement.name]].append(self.sentence(statement, study, is_terse=False))
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
            if size > 0.52 and is_stable and self.happens(0.5 * self.dials.change_words):
                options = lexicon.heart_stable
            else:
                options = (
                    lexicon.heart_normal if size <= 0.52 else lexicon.heart_mild if size <= 0.6 else lexicon.heart_large
                )
            groups["heart"].append(self.pick(options))
        if study.inspiration < -0.4 and not self.happens(omission):
            groups["volumes"].append(self.pick(lexicon.low_volumes))
        elif study.inspiration > 0.4 and self.happens(0.4 * (1.0 - omission)):
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

    def impression(self, study: Study, statements: Sequence[_Statement]) -> list[str]:
        sentences = []
        for statement in statements:
            if statement.parts and (statement.change != "resolved" or self.happens(0.5)):
                is_repeated = statement.change == "resolved" or self.happens(0.5)
                said = statement if is_repeated else replace(statement, change=None)
                sentences.append(self.sentence(said, study, is_terse=True))
        if not study.findings:
            sentences.append(self.pick(self.lexicon.nothing_acute))
        elif absent := [statement.name for statement in statements if not statement.parts]:
            if not sentences or self.happens(0.25):
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
        sections = [
            ("EXAMINATION", examination),
            ("INDICATION", f"___{patient.sex} with {self.complaint(study)}"),
            ("TECHNIQUE", technique),
            ("COMPARISON", comparison),
        ]
        return sections

    def complaint(self, study: Study) -> str:
        """Why the study was asked for. Fever and cough go with pneumonia; not every fever is one."""
        names = {finding.name for finding in study.findings}
        if "pneumonia" in names and self.happens(0.85) or self.happens(0.1):
            return self.pick(
                (
                    "fever and cough // pneumonia?",
                    "cough, fever // evaluate for pneumonia",
                    "productive cough // infiltrate?",
                )
            )
        if "edema" in names:
            return self.pick(
                ("shortness of breath // edema?", "CHF // evaluate volume status", "hypoxia // pulmonary edema?")
            )
        if "pneumothorax" in names:
            return self.pick(("chest pain // pneumothorax?", "chest tube // evaluate pneumothorax", "trauma // ptx?"))
        if "pleural_effusion" in names:
            return self.pick(("dyspnea // effusion?", "shortness of breath // evaluate effusion"))
        if study.devices:
            return self.pick(("line placement // position?", "intubation // evaluate tube position"))
        return self.pick(
            ("chest pain // acute process?", "dyspnea // evaluate for acute process", "weakness // infiltrate?")
        )

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


def _named_change(change: Progression | None, before: Sequence[Finding], now: Sequence[Finding]) -> Change | None:
    """Refines a progression by appearing and resolving; None where no word of change would be apt."""
    if now and not before:
        return "new" if change == "worsening" else None
    if before and not now:
        return "resolved" if change == "improving" else None
    return change
