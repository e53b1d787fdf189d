"""What a report grammar consists of: the parts of speech and sentence frames that `grammar` fills in.

What lives here: the carrier `Lexicon` and its parts. Two instances exist, in `grammar_first` and
`grammar_second`; they share the meaning of every field and differ in words, frames and order. What must
not: any random choice, and anything that knows patients.

Frames are `str.format` strings. `{np}` is a noun phrase without its article, `{a}` its indefinite article
with the space after it, `{be}` and `{have}` agree in number with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from medst.data.phantom.course import FindingName, Progression, Side, Zone

Degree = Literal["small", "moderate", "large"]
Part = Literal["verb", "adjective", "predicate", "noun"]
Group = Literal["devices", "volumes", "lungs", "pleura", "heart", "bones"]


@dataclass(frozen=True)
class Noun:
    """A name of a finding. `plural` serves two-sided ones; None where English has none."""

    text: str
    plural: str | None = None
    is_countable: bool = True


@dataclass(frozen=True)
class FindingWords:
    """How one finding is called, graded and placed."""

    nouns: tuple[Noun, ...]
    degrees: Mapping[Degree, tuple[str, ...]]
    zone_adjectives: Mapping[Zone, tuple[str, ...]]
    """Before the noun: 'apical' pneumothorax. An empty tuple: the zone goes without saying."""
    zone_places: Mapping[Zone, tuple[tuple[str, str], ...]]
    """After the noun, as singular and plural: 'in the left lower lobe', 'in both lower lobes'."""
    negated: tuple[str, ...]
    """The noun in a negation: 'no focal consolidation'."""
    sizes: Mapping[Progression, tuple[str, ...]]
    """Predicates of change that suit this finding only: an effusion gets smaller, edema less severe."""


@dataclass(frozen=True)
class DeviceWords:
    """`statement` and `position` hold `{side}`, which is 'right ' or nothing."""

    name: tuple[str, ...]
    statements: tuple[str, ...]


@dataclass(frozen=True)
class Lexicon:
    findings: Mapping[FindingName, FindingWords]
    sides: Mapping[Side, tuple[str, ...]]
    side_places: Mapping[Side, tuple[str, ...]]
    contrasts: tuple[str, ...]
    """One-sided in a way that only the order tells: 'on the {side} but not on the {other}'."""
    asymmetries: tuple[str, ...]
    """Two-sided, unequal: '{side} greater than {other}'."""
    uncertain_prefixes: tuple[str, ...]
    pneumonia_certain: tuple[str, ...]
    """After an opacity: 'consistent with pneumonia'."""
    pneumonia_uncertain: tuple[str, ...]
    pneumonia_direct: Noun
    lateral_only: tuple[str, ...]
    """Clauses for what only the lateral view shows."""
    lateral_only_effusion: tuple[str, ...]
    """The same, naming the place where small effusions gather (these are words of place)."""
    supine_pneumothorax: tuple[str, ...]

    statements: tuple[str, ...]
    uncertain_statements: tuple[str, ...]
    """Full frames of doubt, for a phrase without an uncertain prefix."""
    negations: tuple[str, ...]
    """Hold `{list}`: 'pleural effusion or pneumothorax'."""
    summary_statements: tuple[str, ...]
    """Terse frames for the impression."""

    terms: Mapping[Progression, Mapping[Part, tuple[str, ...]]]
    change_frames: tuple[str, ...]
    """Each with exactly one term slot ({verb}, {adjective}, {predicate} or {noun}) and `{since}`; the
    same for the three progressions, so that a frame alone never tells the direction."""
    order_frames: tuple[str, ...]
    """Direction told by the order of two degrees: '{np} {have} gone from {before} to {now}{since}'."""
    presence_by_order: tuple[str, str, str]
    """The same words for any set of findings: what begins, what parts the present from the absent, what ends."""
    new_frames: tuple[str, ...]
    resolved_frames: tuple[str, ...]
    since: tuple[str, ...]
    """Anchors in time, '' among them."""
    unnamed_change: Mapping[Progression, tuple[str, ...]]
    """Impressions that do not say what has changed."""

    outside: tuple[str, ...]
    """Anchors to an examination that the data do not hold."""

    heart_normal: tuple[str, ...]
    heart_mild: tuple[str, ...]
    heart_large: tuple[str, ...]
    heart_stable: tuple[str, ...]
    low_volumes: tuple[str, ...]
    good_volumes: tuple[str, ...]
    lungs_clear: tuple[str, ...]
    bones: tuple[str, ...]
    nothing_acute: tuple[str, ...]
    devices: Mapping[str, DeviceWords]
    device_same: tuple[str, ...]
    device_new: tuple[str, ...]
    device_removed: tuple[str, ...]
    order: tuple[Group, ...]
    """Order of the groups of sentences in FINDINGS."""
