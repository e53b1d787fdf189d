"""Findings of held-out studies without training, from prompts, with and without the lateral view.

Studies of the test split; a finding is present where its CheXpert label is 1, absent where it is 0 or blank, and
uncertain labels (-1) are left out. The score is that of `zero_shot.prompt_scores`.

- two views (frontal with its lateral, where there is one): `<finding>/auroc`, `mean/auroc`
- frontal image alone: `frontal/<finding>/auroc`, `frontal/mean/auroc`
- findings that show mainly on the lateral, by the truth of the phantom: `lateral_only/<finding>/auroc` and their mean
  `lateral_only/auroc`; studies that have a lateral; positives have the finding on the lateral only, negatives do not
  have it at all. `frontal/lateral_only/auroc` is the control: the same studies by the frontal image alone.

Which examples are judged never depends on the arm: an arm without laterals is asked the same questions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd

from medst.data.store import MimicStore
from medst.data.support import FEWEST_EXAMPLES
from medst.evaluation.context import EvaluationContext, skipped
from medst.evaluation.metrics import auroc
from medst.evaluation.predictions import prediction_frame, prediction_table
from medst.evaluation.prompts import FINDINGS
from medst.evaluation.traits import study_traits
from medst.evaluation.zero_shot import prompt_scores
from medst.records import Facts, Record

TASK = "finding_zero_shot"


def finding_labels(studies: pd.DataFrame, finding: str) -> np.ndarray:
    """(n,) 1 present, 0 absent or not mentioned, -1 uncertain, by the CheXpert label of the study."""
    return studies[f"label_{finding}"].fillna(0).to_numpy(dtype=np.int64)


def lateral_only_labels(mimic: MimicStore, rows: np.ndarray, finding: str) -> np.ndarray:
    """(n,) truth of studies: 1 the finding shows mainly on the lateral, 0 absent, -1 visible on the frontal too."""
    assert mimic.findings is not None
    truth = mimic.findings[mimic.findings["finding"] == finding]
    study_of_image = mimic.views.set_index("image")["study_id"]
    present = set(study_of_image.loc[truth["image"]])
    plain = set(study_of_image.loc[truth.loc[~truth["is_lateral_only"].astype(bool), "image"]])
    studies = mimic.studies["study_id"].to_numpy()[rows]
    return np.array([0 if study not in present else -1 if study in plain else 1 for study in studies], dtype=np.int64)


def is_judged(labels: np.ndarray) -> bool:
    """Whether there are enough positives and negatives."""
    return min((labels == 1).sum(), (labels == 0).sum()) >= FEWEST_EXAMPLES


def finding_aurocs(scores: Mapping[str, np.ndarray], labels: Mapping[str, np.ndarray]) -> dict[str, float]:
    """`<finding>` -> AUROC over the studies with a certain label, for the findings with enough of both."""
    return {finding: auroc(labels[finding][certain], scores[finding][certain])
            for finding, certain in ((name, labels[name] >= 0) for name in scores) if is_judged(labels[finding])}


def study_scores(context: EvaluationContext, rows: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
    """View (`two_view`, `frontal`) -> finding -> (n,) scores of the studies."""
    assert context.store.mimic is not None
    frontals = context.store.mimic.studies["frontal"].to_numpy()[rows]
    embeddings = {"two_view": context.cache.studies(rows), "frontal": context.cache.frontal("mimic", frontals)}
    return {view: {finding: prompt_scores(context, images, prompts) for finding, prompts in FINDINGS.items()}
            for view, images in embeddings.items()}


def finding_zero_shot(context: EvaluationContext) -> Iterator[Record]:
    """`test/finding_zero_shot/...` as listed in the head of this file."""
    mimic = context.store.mimic
    if mimic is None:
        yield skipped(TASK, "the data has no MIMIC-CXR")
        return
    rows = np.flatnonzero((mimic.studies["split"] == "test").to_numpy())
    if len(rows) == 0:
        yield skipped(TASK, "the test split is empty")
        return
    studies = mimic.studies.iloc[rows]
    labels = {finding: finding_labels(studies, finding) for finding in FINDINGS}
    scores = study_scores(context, rows)
    values: dict[str, float] = {}
    facts: dict[str, object] = {f"{TASK}.num_studies": len(rows)}
    for view, prefix in (("two_view", ""), ("frontal", "frontal/")):
        found = finding_aurocs(scores[view], labels)
        values |= {f"{prefix}{finding}/auroc": value for finding, value in found.items()}
        if found:
            values[f"{prefix}mean/auroc"] = float(np.mean(list(found.values())))
    for finding in FINDINGS:
        facts[f"{TASK}.{finding}.num_positive"] = int((labels[finding] == 1).sum())
        if not is_judged(labels[finding]):
            facts[f"skipped.{TASK}.{finding}"] = f"fewer than {FEWEST_EXAMPLES} studies with or without it"

    lateral_labels: dict[str, np.ndarray] = {}
    if mimic.findings is None:
        facts[f"skipped.{TASK}.lateral_only"] = "the data has no truth about what only the lateral view shows"
    else:
        has_lateral = (studies["lateral"] >= 0).to_numpy()
        lateral_labels = {finding: np.where(has_lateral, lateral_only_labels(mimic, rows, finding), -1)
                          for finding in FINDINGS}
        found = finding_aurocs(scores["two_view"], lateral_labels)
        control = finding_aurocs(scores["frontal"], lateral_labels)
        values |= {f"lateral_only/{finding}/auroc": value for finding, value in found.items()}
        facts |= {f"{TASK}.lateral_only.{finding}.num_positive": int((lateral_labels[finding] == 1).sum())
                  for finding in FINDINGS}
        if found:
            values["lateral_only/auroc"] = float(np.mean(list(found.values())))
            values["frontal/lateral_only/auroc"] = float(np.mean(list(control.values())))
        else:
            facts[f"skipped.{TASK}.lateral_only"] = "too few findings that only the lateral view shows"
    yield Facts(facts)
    if values:
        yield context.metrics({f"test/{TASK}/{name}": value for name, value in values.items()})
    groups = context.groups(studies["subject_id"])
    traits = study_traits(mimic, rows)
    yield prediction_table(TASK, [
        prediction_frame(example=rows[certain], group=groups[certain], label=truth[finding][certain],
                         score=scores[view][finding][certain], finding=f"{prefix}{finding}",
                         traits=traits[certain])
        for view, prefix, truth in (("two_view", "", labels), ("frontal", "frontal/", labels),
                                    ("two_view", "lateral_only/", lateral_labels))
        for finding in truth
        for certain in [truth[finding] >= 0]
    ])
