"""The paper's exhibits: twelve tables and seven figures, what each shows, and which study it stands on.

What lives here: the one list that `make results`, the notebooks and the report go by, and what to run for an exhibit
that cannot be made yet. What must not: how any of them is made (analysis/tables.py, figures.py, pictures.py).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

COMPONENT_STUDIES = ("components", "overview")
"""The paper's task tables and pictures show the arms of the first of these that has results."""


@dataclass(frozen=True)
class Exhibit:
    """One table or figure of the paper."""

    kind: Literal["table", "figure"]
    name: str
    """File name without its ending."""
    title: str
    studies: tuple[str, ...]
    """Shown is the first of these that has results."""
    needs: str = ""
    """What a trial must have tracked besides its numbers; shown where it is absent."""

    @property
    def remedy(self) -> str:
        """What to run for it."""
        return f"make sweep SWEEP={self.studies[0]}"

    def study(self, available: Collection[str]) -> str | None:
        """The study that it is made from; None where none has results.

        An exhibit that shows any study's arms takes the first there is.
        """
        others = available if self.studies == COMPONENT_STUDIES else ()
        return next((name for name in (*self.studies, *others) if name in available), None)


FLAGGED = "arrays of flagged arms (flagged_arms of the study file), which credentialed data withhold"

TABLES = (
    Exhibit("table", "task_temporal_image", "Temporal image classification: five findings, average, 5 and 10 folds",
            COMPONENT_STUDIES),
    Exhibit("table", "task_sentence_similarity", "Temporal sentence similarity", COMPONENT_STUDIES),
    Exhibit("table", "task_rsna_zero_shot", "Zero-shot pneumonia detection on RSNA", COMPONENT_STUDIES),
    Exhibit("table", "task_covidx_linear", "COVIDx with 1, 10 and 100 % of the labels", COMPONENT_STUDIES),
    Exhibit("table", "components", "Components removed one at a time", ("components",)),
    Exhibit("table", "baselines", "Med-ST beside ConVIRT, MGCA, and MGCA continued for as long", ("baselines",)),
    Exhibit("table", "lambda", "Weights of the local (λ1) and the temporal (λ2) loss", ("lambda",)),
    Exhibit("table", "experts", "View experts, with parameters and operations", ("experts",)),
    Exhibit("table", "curriculum", "Temporal curriculum", ("curriculum",)),
    Exhibit("table", "sequence_length", "Length of sequences", ("sequence_length",)),
    Exhibit("table", "lateral_fraction", "Share of lateral views", ("lateral_fraction",)),
    Exhibit("table", "fidelity", "Released against corrected behaviour", ("fidelity",)),
)
FIGURES = (
    Exhibit("figure", "data", "Patients over time: both views and reports", COMPONENT_STUDIES, FLAGGED),
    Exhibit("figure", "architecture", "The model as it was trained", COMPONENT_STUDIES),
    Exhibit("figure", "view_expert_use", "Use of the view experts", ("experts", *COMPONENT_STUDIES)),
    Exhibit("figure", "attention", "Where words and patches look", COMPONENT_STUDIES, FLAGGED),
    Exhibit("figure", "tsne", "Image features over time", COMPONENT_STUDIES, FLAGGED),
    Exhibit("figure", "lambda_surface", "Response to both loss weights, with its uncertainty", ("lambda",)),
    Exhibit("figure", "learning_curves", "Learning curves of every loss term", COMPONENT_STUDIES),
)
EXHIBITS = {exhibit.name: exhibit for exhibit in (*TABLES, *FIGURES)}


def placeholder(exhibit: Exhibit, available: Collection[str]) -> str:
    """The sentence that stands where the exhibit will be."""
    study = exhibit.study(available)
    if study is None:
        return f"Not made yet: no trial of {' or '.join(exhibit.studies)} is finished. Run: {exhibit.remedy}"
    if exhibit.needs:
        return f"Not made: study {study} has tracked no {exhibit.needs}. Run: {exhibit.remedy}"
    return f"Not made: the trials of study {study} have nothing to show of it. Run: {exhibit.remedy}"
