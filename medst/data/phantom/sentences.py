"""Phrases and sentences about one finding, drawn from a lexicon: the lower half of the report grammar.

What lives here: the dials, noun phrases, statements, change, negation. What must not: reports and their
sections (`grammar`), words (`grammar_first`, `grammar_second`), pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

import numpy as np

from medst.data.phantom import grammar_first, grammar_second
from medst.data.phantom.course import Finding, FindingName, Progression, Side
from medst.data.phantom.lexicon import Degree, Lexicon, Part

GrammarName = Literal["first", "second"]
Mention = Literal["positive", "negative", "uncertain"]
Change = Literal["improving", "stable", "worsening", "new", "resolved"]

LEXICONS: Mapping[GrammarName, Lexicon] = {"first": grammar_first.LEXICON, "second": grammar_second.LEXICON}
OPPOSITE: Mapping[Side, Side] = {"left": "right", "right": "left"}
PARTS: tuple[Part, ...] = ("verb", "adjective", "predicate", "noun")
PLACED_AFTER_NOUN = 0.35
"""Share of phrases like 'opacity in the left upper lobe' rather than 'left upper lobe opacity'."""
PNEUMONIA_BY_NAME = 0.3
"""Share of certain pneumonias that are called by this name, not as an opacity consistent with it."""
FITTING_PREDICATE = 0.4
"""Share of predicates of change that suit one finding only ('smaller', 'less severe')."""

Item = TypeVar("Item")


class Dials(Protocol):
    """The dials that a grammar needs: probabilities, but for the threshold."""

    @property
    def change_words(self) -> float:
        """That a change relative to the compared study is spoken."""

    @property
    def degree_words(self) -> float:
        """That the degree of a finding is told."""

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
    def presence_by_order(self) -> float:
        """That the whole report is the same words for any set of findings, in an order that tells which are present."""

    @property
    def progression_threshold(self) -> float:
        """Change of severity above which a finding improves or worsens, as for the labels."""


@dataclass(frozen=True)
class PlainDials:
    """Everything that is known is said."""

    change_words: float = 1.0
    degree_words: float = 1.0
    word_localisation: float = 1.0
    copy_forward: float = 0.0
    omission: float = 0.0
    hedge: float = 0.0
    order_carries_meaning: float = 0.0
    presence_by_order: float = 0.0
    progression_threshold: float = 0.0


@dataclass(frozen=True)
class NounPhrase:
    text: str
    is_plural: bool
    is_countable: bool

    def fill(self, frame: str, **words: str) -> str:
        """The frame with this phrase and what agrees with it in number and sound; `words` fill the rest."""
        following = f"{frame.partition('{a}')[2].partition('{np}')[0]}{self.text}"
        article = "" if self.is_plural or not self.is_countable else "an " if following[0] in "aeiou" else "a "
        return frame.format(
            np=self.text,
            a=article,
            be="are" if self.is_plural else "is",
            have="have" if self.is_plural else "has",
            **words,
        )


@dataclass(frozen=True)
class Statement:
    """What a report says about one finding."""

    name: FindingName
    mention: Mention
    parts: tuple[Finding, ...]
    """The finding as described, strongest first; more than one where sides differ; empty for a negation."""
    change: Change | None
    degree_before: Degree | None


def degree_of(severity: float) -> Degree:
    return "small" if severity < 0.34 else "moderate" if severity < 0.67 else "large"


class SentenceWriter:
    """Draws the choices of one report, phrase or pair of sentences."""

    def __init__(self, lexicon: Lexicon, dials: Dials, rng: np.random.Generator) -> None:
        self.lexicon = lexicon
        self.dials = dials
        self.rng = rng

    def pick(self, options: Sequence[Item]) -> Item:
        return options[int(self.rng.integers(len(options)))]

    def happens(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def noun_phrase(
        self,
        name: FindingName,
        parts: tuple[Finding, ...],
        is_uncertain: bool = False,
        has_degree: bool = True,
        clause: str = "",
    ) -> NounPhrase:
        """'small left pleural effusion', 'moderate consolidation in the right upper lobe', ...

        Args:
            parts: the finding, strongest first; the degree is that of the strongest.
            clause: closes the phrase: 'seen on the lateral view'.
        """
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
        if has_degree and self.happens(self.dials.degree_words):
            degree = self.pick(words.degrees[degree_of(parts[0].severity)])
        side, before, after = self.place(name, parts)
        is_plural = side == "bilateral" and noun.plural is not None
        head = noun.plural if is_plural and noun.plural is not None else noun.text
        text = " ".join(word for word in (prefix, degree, *before, head) if word)
        return NounPhrase(f"{text}{after}{diagnosis}{clause}", is_plural, noun.is_countable)

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

    def sentence(self, statement: Statement, clause: str, is_terse: bool) -> str:
        """One sentence for a finding that is present or has resolved; no capital, no full stop."""
        lexicon = self.lexicon
        name, parts, change = statement.name, statement.parts, statement.change
        is_uncertain = statement.mention == "uncertain"
        since = self.pick(lexicon.since)
        if change == "resolved":
            return self.noun_phrase(name, parts, has_degree=False).fill(self.pick(lexicon.resolved_frames), since=since)
        if self.is_told_by_order(statement):
            subject = self.noun_phrase(name, parts, is_uncertain, has_degree=False, clause=clause)
            return self.told_by_order(subject, statement, since)
        has_frame_of_doubt = change is None and is_uncertain and name != "pneumonia" and not is_terse
        if has_frame_of_doubt and self.happens(0.5):
            return self.noun_phrase(name, parts, clause=clause).fill(self.pick(lexicon.uncertain_statements))
        subject = self.noun_phrase(name, parts, is_uncertain, clause=clause)
        if change is None:
            return subject.fill(self.pick(lexicon.summary_statements if is_terse else lexicon.statements))
        if change == "new":
            return subject.fill(self.pick(lexicon.new_frames), since=since)
        return subject.fill(self.pick(lexicon.change_frames), since=since, **self.terms(name, change))

    def is_told_by_order(self, statement: Statement) -> bool:
        return (
            statement.change in ("improving", "worsening")
            and statement.degree_before is not None
            and statement.degree_before != degree_of(statement.parts[0].severity)
            and self.happens(self.dials.order_carries_meaning)
        )

    def told_by_order(self, subject: NounPhrase, statement: Statement, since: str) -> str:
        """'effusion has gone from small to moderate': the same words tell the opposite in another order."""
        assert statement.degree_before is not None
        degrees = self.lexicon.findings[statement.name].degrees
        return subject.fill(
            self.pick(self.lexicon.order_frames),
            before=self.pick(degrees[statement.degree_before]),
            now=self.pick(degrees[degree_of(statement.parts[0].severity)]),
            since=since,
        )

    def terms(self, name: FindingName, change: Progression) -> dict[str, str]:
        """One term of change for each part of speech."""
        terms: dict[str, str] = {part: self.pick(self.lexicon.terms[change][part]) for part in PARTS}
        if self.happens(FITTING_PREDICATE):
            terms["predicate"] = self.pick(self.lexicon.findings[name].sizes[change])
        return terms

    def presence_by_order(self, present: Sequence[FindingName], absent: Sequence[FindingName]) -> list[str]:
        """'There is edema, pneumonia', 'no pneumothorax, other process': equal words for any division of the names."""
        begin, part, end = self.lexicon.presence_by_order
        seen, unseen = ([self.lexicon.findings[name].negated[0] for name in names] for names in (present, absent))
        denial = f"{part} {', '.join([*unseen, end])}"
        return [f"{begin} {', '.join(seen)}", denial] if seen else [f"{begin} {denial}"]

    def negation(self, names: Sequence[FindingName]) -> str:
        nouns = [self.pick(self.lexicon.findings[name].negated) for name in names]
        if self.happens(0.5):
            nouns.reverse()
        listed = nouns[0] if len(nouns) == 1 else f"{', '.join(nouns[:-1])} or {nouns[-1]}"
        return self.pick(self.lexicon.negations).format(list=listed)
