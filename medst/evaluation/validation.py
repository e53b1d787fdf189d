"""Scores on validation patients, for searches and for the choice of loss weights. Test patients never enter here.

- `validation/finding_zero_shot/mean/auroc` (two views) and `<finding>/auroc`, as in `finding_zero_shot`
- `validation/retrieval/{r1,r5,r10}`, as in `retrieval`
- `validation/direction/reports/accuracy`, as in `direction`
- `validation/change/mean/auroc`: consecutive studies in which a finding appears or resolves by their CheXpert labels;
  does the zero-shot score of the finding rise or fall? AUROC of its difference, mean over findings.

The validation losses are the training loop's.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from medst.evaluation.context import EvaluationContext, skipped
from medst.evaluation.direction import alignment_accuracy, consecutive_alignment, consecutive_studies
from medst.evaluation.finding_zero_shot import finding_aurocs, finding_labels, study_scores
from medst.evaluation.prompts import FINDINGS
from medst.evaluation.retrieval import direction_ranks, report_column, retrieval_pool, retrieval_values
from medst.records import Record

TASK = "validation"
SPLIT = "validate"


def validation(context: EvaluationContext) -> Iterator[Record]:
    """The scores listed in the head of this file."""
    mimic = context.store.mimic
    if mimic is None:
        yield skipped(TASK, "the data has no MIMIC-CXR")
        return
    rows = np.flatnonzero((mimic.studies["split"] == SPLIT).to_numpy())
    if len(rows) == 0:
        yield skipped(TASK, "the validation split is empty")
        return
    values: dict[str, float] = {}
    labels = {finding: finding_labels(mimic.studies, finding) for finding in FINDINGS}
    scores = study_scores(context, rows)
    found = finding_aurocs(scores["two_view"], {finding: labels[finding][rows] for finding in FINDINGS})
    values |= {f"finding_zero_shot/{finding}/auroc": value for finding, value in found.items()}
    if found:
        values["finding_zero_shot/mean/auroc"] = float(np.mean(list(found.values())))

    pool = retrieval_pool(mimic, SPLIT, report_column(context))
    if len(pool) >= 2:
        texts = mimic.studies[report_column(context)].iloc[pool]
        ranks = direction_ranks(context.cache.studies(pool), context.cache.texts(texts.tolist()), texts)
        values |= {f"retrieval/{name}": value for name, value in retrieval_values(ranks).items() if "/" not in name}

    pairs = consecutive_studies(mimic, SPLIT)
    if len(pairs):
        alignment = consecutive_alignment(context, pairs)
        if not np.isnan(alignment).all():
            values["direction/reports/accuracy"] = alignment_accuracy(alignment[~np.isnan(alignment)])
        values |= _change(pairs, rows, labels, scores["frontal"])
    yield context.metrics({f"validation/{name}": value for name, value in values.items()})


def _change(pairs: np.ndarray, rows: np.ndarray, labels: dict[str, np.ndarray], scores: dict[str, np.ndarray]
            ) -> dict[str, float]:
    """AUROC of the rise of a finding's score between consecutive studies: it appeared against it resolved."""
    position = {int(row): index for index, row in enumerate(rows)}
    places = np.array([[position[int(row)] for row in pair] for pair in pairs])
    rises, changes = {}, {}
    for finding in FINDINGS:
        before, after = labels[finding][pairs[:, 0]], labels[finding][pairs[:, 1]]
        changes[finding] = np.where((before == 0) & (after == 1), 1, np.where((before == 1) & (after == 0), 0, -1))
        rises[finding] = scores[finding][places[:, 1]] - scores[finding][places[:, 0]]
    found = finding_aurocs(rises, changes)
    return {"change/mean/auroc": float(np.mean(list(found.values())))} if found else {}
