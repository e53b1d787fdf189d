"""The words of the zero-shot tasks, in the plain English of radiology reports. No model here.

A prompt is a short report: the statement as an impression, then as a finding between two sentences that say nothing
about it and are the same for and against. Bare statements are shorter than any report, and the length of a report
tells sick from healthy patients, which is the first thing that a text encoder learns; with like surroundings that
cancels. (On validation patients of the tiny phantom, early in training, bare statements scored a mean AUROC of
0.45 and 0.64 with two objectives, short reports 0.62 and 0.60.)

`join` makes a prompt the text that a caption would be, through the same cleaning and joining as the reports. The words
are our own; they are those of ordinary reports, and none is special to one data set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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
"""Sentences before and after the statement of the first, second, third and fourth prompt."""


def _reports(*statements: Prompt) -> tuple[Prompt, ...]:
    """At most four statements as short reports."""
    return tuple((*statement, before, *statement, after)
                 for statement, (before, after) in zip(statements, _SURROUNDINGS, strict=False))


PNEUMONIA: Mapping[str, tuple[Prompt, ...]] = {
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
    "consolidation": {
        "positive": _reports(
            ("there is consolidation in the right lower lobe",),
            ("focal consolidation at the left lung base",),
            ("dense airspace consolidation in the right upper lobe",),
            ("patchy left upper lobe consolidation is seen",),
        ),
        "negative": _reports(
            ("there is no focal consolidation",),
            ("no consolidation is seen", "the lungs are clear"),
            ("no evidence of consolidation",),
            ("the lungs are clear",),
        ),
    },
    "edema": {
        "positive": _reports(
            ("there is mild pulmonary edema",),
            ("moderate interstitial edema is present",),
            ("severe pulmonary edema",),
            ("findings of pulmonary edema",),
        ),
        "negative": _reports(
            ("there is no pulmonary edema",),
            ("no overt edema is seen", "the lungs are clear"),
            ("no evidence of pulmonary edema",),
            ("the lungs are clear",),
        ),
    },
    "pleural_effusion": {
        "positive": _reports(
            ("there is a small right pleural effusion",),
            ("moderate left pleural effusion is present",),
            ("large right pleural effusion",),
            ("small bilateral pleural effusions",),
        ),
        "negative": _reports(
            ("there is no pleural effusion",),
            ("no pleural effusion is seen", "the lungs are clear"),
            ("no evidence of pleural effusion",),
            ("no pleural effusion or pneumothorax",),
        ),
    },
    "pneumonia": PNEUMONIA,
    "pneumothorax": {
        "positive": _reports(
            ("there is a small right apical pneumothorax",),
            ("moderate left pneumothorax is present",),
            ("large right pneumothorax",),
            ("small left pneumothorax is seen",),
        ),
        "negative": _reports(
            ("there is no pneumothorax",),
            ("no pneumothorax is seen", "the lungs are clear"),
            ("no evidence of pneumothorax",),
            ("no pleural effusion or pneumothorax",),
        ),
    },
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
