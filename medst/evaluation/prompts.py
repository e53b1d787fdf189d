"""The words of the zero-shot tasks, in the plain English of radiology reports. No model here.

Every finding has an ensemble of prompts: each side and zone alike, several degrees and nouns, and each statement twice,
bare and as a short report (the statement as an impression, then as a finding between two sentences that say nothing
about it). Bare statements are shorter than any report, short reports carry what surrounds them; the length of a report
tells sick from healthy patients, which is the first thing that a text encoder learns, and over both kinds it cancels
better than over one. (On a tuning draw of the small phantom, two models: mean AUROC of five findings 0.77 and 0.78 with
short reports alone, 0.74 and 0.73 bare, 0.80 and 0.80 with both.)

`join` makes a prompt the text that a caption would be, through the same cleaning and joining as the reports. The words
are our own; they are those of ordinary reports, and none is special to one data set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle, product

from medst.config import Config
from medst.data.report_text import join_prompt

Prompt = tuple[str, ...]
"""Sentences without the full stop."""

_SURROUNDINGS = (
    ("lung volumes are low", "the heart is normal in size"),
    ("the lungs are well expanded", "the heart is mildly enlarged"),
    ("the cardiac silhouette is normal", "bony structures are intact"),
    ("low lung volumes", "the heart is moderately enlarged"),
)
"""Sentences before and after the statement of a short report, taken in turn."""


def _reports(*statements: Prompt) -> tuple[Prompt, ...]:
    """Statements as short reports."""
    return tuple((*statement, before, *statement, after)
                 for statement, (before, after) in zip(statements, cycle(_SURROUNDINGS), strict=False))


def _ensemble(positive: Sequence[str], negative: Sequence[str]) -> Mapping[str, tuple[Prompt, ...]]:
    """Statements for and against a finding, bare and as short reports; against it also that nothing is wrong."""
    statements = {"positive": [(text,) for text in positive], "negative": [(text,) for text in (*negative, *_CLEAR)]}
    return {answer: (*prompts, *_reports(*prompts)) for answer, prompts in statements.items()}


_CLEAR = ("the lungs are clear", "no acute cardiopulmonary abnormality")
_PLACES = tuple(place.format(side=side) for side, place in product(
    ("right", "left"),
    ("in the {side} lower lobe", "at the {side} lung base", "in the {side} upper lobe", "in the {side} mid lung")))
_DEGREES = ("small", "moderate", "large", "there is a")

PNEUMONIA_AS_PUBLISHED: Mapping[str, tuple[Prompt, ...]] = {
    "positive": _reports(
        ("there is a patchy opacity in the right lower lobe", "findings are consistent with pneumonia"),
        ("airspace opacity at the left lung base concerning for pneumonia",),
        ("focal consolidation in the right upper lobe compatible with pneumonia",),
        ("bilateral opacities suspicious for pneumonia",),
    ),
    "negative": _reports(
        ("the lungs are clear", "there is no evidence of pneumonia"),
        ("no focal consolidation or pleural effusion", "no acute cardiopulmonary process"),
        ("the lungs are clear",),
        ("no acute cardiopulmonary abnormality", "no pneumonia"),
    ),
}
"""Four prompts for and four against pneumonia, as many as published (RSNA)."""

FINDINGS: Mapping[str, Mapping[str, tuple[Prompt, ...]]] = {
    "consolidation": _ensemble(
        [f"{texture} consolidation {place}" for texture, place in product(
            ("patchy", "dense", "there is focal"), _PLACES)],
        ("there is no focal consolidation", "no consolidation is seen", "no evidence of consolidation"),
    ),
    "edema": _ensemble(
        [f"{degree} {noun}" for degree, noun in product(
            ("mild", "moderate", "severe", "there is"),
            ("pulmonary edema", "interstitial edema", "bilateral pulmonary edema"))],
        ("there is no pulmonary edema", "no overt edema is seen", "no evidence of pulmonary edema"),
    ),
    "pleural_effusion": _ensemble(
        [f"{degree} {side} pleural effusion" for degree, side in product(_DEGREES, ("left", "right", "bilateral"))],
        ("there is no pleural effusion", "no pleural effusion is seen", "no evidence of pleural effusion"),
    ),
    "pneumonia": _ensemble(
        [f"{opacity} {place} {link} pneumonia" for (opacity, link), place in product(
            (("patchy opacity", "consistent with"), ("there is an airspace opacity", "concerning for"),
             ("focal opacity", "compatible with")), _PLACES)],
        ("there is no pneumonia", "no acute pneumonia", "no evidence of pneumonia"),
    ),
    "pneumothorax": _ensemble(
        [f"{degree} {side} {noun}" for degree, side, noun in product(
            _DEGREES, ("left", "right"), ("pneumothorax", "apical pneumothorax"))],
        ("there is no pneumothorax", "no pneumothorax is seen", "no evidence of pneumothorax"),
    ),
}
"""Prompts for and against each finding of MS-CXR-T."""

_CHANGED = {
    "consolidation": "consolidation", "edema": "pulmonary edema", "pleural_effusion": "pleural effusion",
    "pneumonia": "opacity", "pneumothorax": "pneumothorax",
}
CHANGES: Mapping[str, Mapping[str, tuple[Prompt, ...]]] = {
    finding: {
        "improving": _reports((f"the {noun} has improved",), (f"decreased {noun}",),
                              (f"interval improvement of the {noun}",)),
        "worsening": _reports((f"the {noun} has worsened",), (f"increased {noun}",),
                              (f"interval worsening of the {noun}",)),
    }
    for finding, noun in _CHANGED.items()
}
"""Prompts that say in which direction a finding changes, alike in all but the word of direction."""


def join(prompts: Sequence[Prompt], config: Config) -> list[str]:
    """The texts of prompts under `evaluation.prompt_joining`."""
    return [join_prompt(prompt, config.evaluation.prompt_joining) for prompt in prompts]
