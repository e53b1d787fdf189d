"""The words of the zero-shot tasks, in the plain English of radiology reports. No model here.

A prompt is one or more sentences; `join` makes it the text that a caption would be, through the same
cleaning and joining as the reports. The words are our own; they are those of ordinary reports, and none is
special to one data set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from medst.config import Config
from medst.data.report_text import join_prompt

Prompt = tuple[str, ...]
"""Sentences without the full stop."""

PNEUMONIA: Mapping[str, tuple[Prompt, ...]] = {
    "positive": (
        ("there is a patchy opacity in the right lower lobe", "findings are consistent with pneumonia"),
        ("airspace opacity at the left lung base concerning for pneumonia",),
        ("focal consolidation in the right upper lobe compatible with pneumonia",),
        ("bilateral opacities suspicious for pneumonia",),
    ),
    "negative": (
        ("the lungs are clear", "there is no evidence of pneumonia"),
        ("no focal consolidation or pleural effusion", "no acute cardiopulmonary process"),
        ("the lungs are well expanded and clear", "the heart is normal in size"),
        ("no acute cardiopulmonary abnormality", "no pneumonia"),
    ),
}
"""Four prompts for and four against pneumonia, as many as published (RSNA)."""

FINDINGS: Mapping[str, Mapping[str, tuple[Prompt, ...]]] = {
    "consolidation": {
        "positive": (
            ("there is consolidation in the right lower lobe",),
            ("focal consolidation at the left lung base",),
            ("dense airspace consolidation in the right upper lobe",),
            ("patchy left upper lobe consolidation is seen",),
        ),
        "negative": (
            ("there is no focal consolidation",),
            ("no consolidation is seen", "the lungs are clear"),
            ("no evidence of consolidation",),
            ("the lungs are clear",),
        ),
    },
    "edema": {
        "positive": (
            ("there is mild pulmonary edema",),
            ("moderate interstitial edema is present",),
            ("severe pulmonary edema",),
            ("findings of pulmonary edema",),
        ),
        "negative": (
            ("there is no pulmonary edema",),
            ("no overt edema is seen", "the lungs are clear"),
            ("no evidence of pulmonary edema",),
            ("the lungs are clear",),
        ),
    },
    "pleural_effusion": {
        "positive": (
            ("there is a small right pleural effusion",),
            ("moderate left pleural effusion is present",),
            ("large right pleural effusion",),
            ("small bilateral pleural effusions",),
        ),
        "negative": (
            ("there is no pleural effusion",),
            ("no pleural effusion is seen", "the lungs are clear"),
            ("no evidence of pleural effusion",),
            ("no pleural effusion or pneumothorax",),
        ),
    },
    "pneumonia": PNEUMONIA,
    "pneumothorax": {
        "positive": (
            ("there is a small right apical pneumothorax",),
            ("moderate left pneumothorax is present",),
            ("large right pneumothorax",),
            ("small left pneumothorax is seen",),
        ),
        "negative": (
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
        "improving": ((f"the {noun} has improved",), (f"decreased {noun}",), (f"interval improvement in the {noun}",)),
        "worsening": ((f"the {noun} has worsened",), (f"increased {noun}",), (f"interval worsening of the {noun}",)),
    }
    for finding, noun in _CHANGED.items()
}
"""Prompts that say in which direction a finding changes, alike in all but the word of direction."""


def join(prompts: Sequence[Prompt], config: Config) -> list[str]:
    """The texts of prompts under `evaluation.prompt_joining`."""
    return [join_prompt(prompt, config.evaluation.prompt_joining) for prompt in prompts]
