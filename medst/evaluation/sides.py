"""Does an image find the words of the right side? Left against right, for findings that are on one side only.

Held-out studies in which the truth of the phantom has a finding on the left or on the right alone. The score is the
cosine with the prompts that say "left" minus the cosine with those that say "right"; the AUROC is that of "left". What
the finding is, and whether it is there, is given: only the side is asked.

Not among the default tasks: it asks for what the dial `word_localisation` plants (the audit).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from medst.data.store import MimicStore
from medst.evaluation.context import EvaluationContext, skipped
from medst.evaluation.metrics import auroc
from medst.evaluation.prompts import FINDINGS, Prompt
from medst.evaluation.zero_shot import prompt_scores
from medst.records import Facts, Record

TASK = "sides"
SIDES = ("left", "right")
MIN_EXAMPLES = 3
"""Studies of either side below which a finding is not judged."""


def side_prompts(finding: str) -> dict[str, list[Prompt]]:
    """`positive`: the finding's prompts that say left; `negative`: those that say right."""
    said = {side: [prompt for prompt in FINDINGS[finding]["positive"]
                   if side in {word for sentence in prompt for word in sentence.split()}] for side in SIDES}
    return {"positive": said["left"], "negative": said["right"]}


def side_labels(mimic: MimicStore, rows: np.ndarray, finding: str) -> np.ndarray:
    """(n,) truth of studies: 1 the finding is on the left alone, 0 on the right alone, -1 neither."""
    assert mimic.findings is not None
    truth = mimic.findings[mimic.findings["finding"] == finding]
    study_of_image = mimic.views.set_index("image")["study_id"]
    sides = truth.groupby(study_of_image.loc[truth["image"]].to_numpy())["finding_side"].agg(set)
    told = {study: found for study, found in sides.items() if found in ({"left"}, {"right"})}
    return np.array([-1 if study not in told else int(told[study] == {"left"})
                     for study in mimic.studies["study_id"].to_numpy()[rows]], dtype=np.int64)


def sides(context: EvaluationContext) -> Iterator[Record]:
    """`test/sides/<finding>/auroc` and their mean `test/sides/mean/auroc`."""
    mimic = context.store.mimic
    if mimic is None or mimic.findings is None or "finding_side" not in mimic.findings:
        yield skipped(TASK, "the data has no truth about the side of findings")
        return
    rows = np.flatnonzero((mimic.studies["split"] == "test").to_numpy())
    values: dict[str, float] = {}
    facts: dict[str, object] = {}
    for finding in FINDINGS:
        prompts = side_prompts(finding)
        if not all(prompts.values()):
            continue
        labels = side_labels(mimic, rows, finding)
        is_judged = labels >= 0
        facts[f"{TASK}.{finding}.num_studies"] = int(is_judged.sum())
        if min((labels == 1).sum(), (labels == 0).sum()) < MIN_EXAMPLES:
            facts[f"skipped.{TASK}.{finding}"] = f"fewer than {MIN_EXAMPLES} studies of either side"
            continue
        scores = prompt_scores(context, context.cache.studies(rows[is_judged]), prompts)
        values[f"test/{TASK}/{finding}/auroc"] = auroc(labels[is_judged], scores)
    yield Facts(facts)
    if values:
        yield context.metrics({**values, f"test/{TASK}/mean/auroc": float(np.mean(list(values.values())))})
