"""Pairs of sentences about change, in the manner of the text part of MS-CXR-T.

RadGraph pairs are two differently built sentences with the same entities (finding, degree, side, zone) that tell the
same progression (paraphrase) or contradict each other. Swaps pairs are one sentence twice, with one term of change
swapped for a synonym or for a term of another progression. Within a pair the two terms share no word and
all else is drawn alike for both categories, so that the overlap of words says nothing about the category.

Contradictions set improving against worsening; a dial lets others set a change against 'stable'. Whether a finding is
large or small can be seen in one picture, and tells much about where it came from; that it stayed as it was cannot be
seen in one picture, and a text encoder without pretrained knowledge of words has no other source for it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from medst.data.phantom.course import FINDINGS, Finding, FindingName, Progression, Side, Zone
from medst.data.phantom.lexicon import Lexicon, Part
from medst.data.phantom.sentences import (
    LEXICONS,
    PARTS,
    GrammarName,
    NounPhrase,
    PlainDials,
    SentenceWriter,
    Statement,
    degree_of,
)

PROGRESSIONS: tuple[Progression, ...] = ("improving", "stable", "worsening")
CHANGES: tuple[Progression, ...] = ("improving", "worsening")
SIDES: tuple[Side, ...] = ("left", "right", "bilateral")
ZONES: tuple[Zone, ...] = ("upper", "middle", "lower")


def sentence_pairs(
    num_pairs: int,
    rng: np.random.Generator,
    grammar: GrammarName = "first",
    order_carries_meaning: float = 0.0,
    stable_contradictions: float = 0.0,
    degree_words: float = 1.0,
) -> pd.DataFrame:
    """Balanced pairs: every second is a contradiction, every second two of RadGraph.

    Args:
        order_carries_meaning: share of RadGraph pairs that tell the progression by the order of two
            degrees alone; 0 where the reports never do so.
        stable_contradictions: share of contradictions between 'stable' and a change.
        degree_words: share of pairs that tell the finding's degree, as the reports do.
    Returns:
        Columns sentence_1, sentence_2, category (paraphrase | contradiction), subset_name (RadGraph | Swaps).
    Raises:
        KeyError: `grammar` is not one of `LEXICONS`.
    """
    writer = _PairWriter(LEXICONS[grammar], rng, stable_contradictions, degree_words)
    rows = []
    for pair in range(num_pairs):
        is_paraphrase, is_swap = pair % 2 == 0, pair // 2 % 2 == 1
        if is_swap:
            first, second = writer.swap(is_paraphrase)
        elif writer.happens(order_carries_meaning):
            first, second = writer.reordered(is_paraphrase)
        else:
            first, second = writer.reworded(is_paraphrase)
        rows.append(
            {
                "sentence_1": f"{first[0].upper()}{first[1:]}.",
                "sentence_2": f"{second[0].upper()}{second[1:]}.",
                "category": "paraphrase" if is_paraphrase else "contradiction",
                "subset_name": "Swaps" if is_swap else "RadGraph",
            }
        )
    return pd.DataFrame(rows, columns=["sentence_1", "sentence_2", "category", "subset_name"])


@dataclass(frozen=True)
class _Term:
    progression: Progression
    part: Part
    text: str

    def is_comparable(self, other: _Term) -> bool:
        """As many words, none shared, so that swapping shows in the overlap as any other swap does."""
        words, others = self.text.split(), other.text.split()
        return len(words) == len(others) and not set(words) & set(others)


class _PairWriter(SentenceWriter):
    def __init__(
        self, lexicon: Lexicon, rng: np.random.Generator, stable_contradictions: float, degree_words: float
    ) -> None:
        super().__init__(lexicon, PlainDials(degree_words=degree_words), rng)
        self.stable_contradictions = stable_contradictions

    def finding(self) -> Finding:
        return Finding(
            name=self.pick(FINDINGS),
            severity=float(self.rng.uniform(0.1, 1.0)),
            side=self.pick(SIDES),
            zone=self.pick(ZONES),
        )

    def contradiction(self) -> tuple[Progression, Progression]:
        if not self.happens(self.stable_contradictions):
            return "improving", "worsening"
        return "stable", self.pick(CHANGES)

    def frame_for(self, part: Part) -> str:
        return self.pick([frame for frame in self.lexicon.change_frames if f"{{{part}}}" in frame])

    def term_pair(self, name: FindingName, is_paraphrase: bool, parts: tuple[Part, Part]) -> tuple[_Term, _Term]:
        """Two terms of change without a common word, of the same or of different progressions."""
        first, second = (self.pick(PROGRESSIONS),) * 2 if is_paraphrase else self.contradiction()
        partners = {
            one: [two for two in self.candidates(name, second, parts[1]) if one.is_comparable(two)]
            for one in self.candidates(name, first, parts[0])
        }
        one = self.pick([one for one, comparable in partners.items() if comparable])
        two = self.pick(partners[one])
        return (one, two) if self.happens(0.5) else (two, one)

    def candidates(self, name: FindingName, progression: Progression, part: Part) -> list[_Term]:
        texts = self.lexicon.terms[progression][part]
        if part == "predicate":
            texts += self.lexicon.findings[name].sizes[progression]
        return [_Term(progression, part, text) for text in texts]

    def swap(self, is_paraphrase: bool) -> tuple[str, str]:
        finding = self.finding()
        part = self.pick(PARTS)
        terms = self.term_pair(finding.name, is_paraphrase, (part, part))
        subject = self.noun_phrase(finding.name, (finding,))
        frame, since = self.frame_for(part), self.pick(self.lexicon.since)
        first, second = (subject.fill(frame, since=since, **{part: term.text}) for term in terms)
        return first, second

    def reworded(self, is_paraphrase: bool) -> tuple[str, str]:
        finding = self.finding()
        terms = self.term_pair(finding.name, is_paraphrase, (self.pick(PARTS), self.pick(PARTS)))
        subject = self.noun_phrase(finding.name, (finding,))
        first, second = (
            subject.fill(self.frame_for(term.part), since=self.pick(self.lexicon.since), **{term.part: term.text})
            for term in terms
        )
        return first, second

    def reordered(self, is_paraphrase: bool) -> tuple[str, str]:
        finding = self.finding()
        subject = self.noun_phrase(finding.name, (finding,), has_degree=False)
        lesser, greater = self.pick(((0.2, 0.5), (0.2, 0.9), (0.5, 0.9)))
        is_worse = self.happens(0.5)
        first = second = self.course(subject, finding, lesser, greater, is_worse)
        while second == first:
            second = self.course(subject, finding, lesser, greater, is_worse if is_paraphrase else not is_worse)
        return first, second

    def course(self, subject: NounPhrase, finding: Finding, lesser: float, greater: float, is_worse: bool) -> str:
        """The finding's way between two severities, told by the order of their degrees."""
        before, now = (lesser, greater) if is_worse else (greater, lesser)
        statement = Statement(
            name=finding.name,
            mention="positive",
            parts=(replace(finding, severity=now),),
            change="worsening" if is_worse else "improving",
            degree_before=degree_of(before),
        )
        return self.told_by_order(subject, statement, self.pick(self.lexicon.since))
