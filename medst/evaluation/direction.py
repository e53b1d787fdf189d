"""Direction probe: does the representation know forward from backward in time?

The temporal loss is blind to the direction of time: permuting the images and reports of a sequence together leaves it
(nearly) as it was. Direction can come from the words alone, or from a drift that all patients share. Four
questions keep these apart; e is the unit embedding of a frontal image.

- `order/auroc`: a drift in the images. Consecutive studies (a, b) of held-out patients, shown as (a, b) and as (b, a);
  a linear probe on [first, second] says which is the true order. Nothing but a course common to the patients can
  help here; 0.5 is no fault.
- `reports/accuracy`: do images follow their reports? Of consecutive studies with different reports, share of pairs for
  which e_a.r_a + e_b.r_b exceeds e_a.r_b + e_b.r_a: the reports are laid beside the images forward and backward in
  time. No probe is fitted; chance 0.5.
- `change/<finding>/auroc`, `change/mean/auroc`: the change in the images. Pairs of MS-CXR-T labelled improving or
  worsening; a worsening read backward is an improvement, so that each pair serves in both orders, with its label
  turned: is the pair, shown in this order, a worsening? Linear probe.
- `words/<finding>/auroc`, `words/mean/auroc`: the words of direction. Same pairs, no probe: the difference
  e_current - e_previous against the prompts for worsening minus those for improving.

The probes are logistic regressions on standardised features, five folds that never share a patient, mean over folds; a
pair and its reverse are always in the same fold.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from medst.data.readers.ms_cxr_t import PROGRESSIONS
from medst.data.store import MimicStore
from medst.evaluation.context import EvaluationContext, held_out, skipped
from medst.evaluation.metrics import auroc
from medst.evaluation.predictions import prediction_frame, prediction_table
from medst.evaluation.probes import ProbeResult, TooFewExamplesError, grouped_probe
from medst.evaluation.prompts import CHANGES
from medst.evaluation.retrieval import report_column
from medst.evaluation.temporal_image import progression_classes
from medst.evaluation.traits import studies_of, study_traits
from medst.evaluation.zero_shot import prompt_direction
from medst.records import Facts, Record

TASK = "direction"
MIN_EXAMPLES = 3


def consecutive_studies(mimic: MimicStore, split: str) -> np.ndarray:
    """(n, 2) rows of studies of one patient that follow each other in time, for the patients of a split."""
    studies = mimic.studies.reset_index(drop=True)
    studies = studies[studies["split"] == split].sort_values(["subject_id", "time"], kind="stable")
    follows = (studies["subject_id"] == studies["subject_id"].shift(1)).to_numpy()
    rows = studies.index.to_numpy()
    return np.stack([rows[np.flatnonzero(follows) - 1], rows[follows]], axis=1)


def order_probe(first: np.ndarray, second: np.ndarray, is_forward: np.ndarray, groups: np.ndarray) -> ProbeResult:
    """Probe of ordered pairs, each shown in both orders.

    Args:
        first, second: (n, E) embeddings of the earlier and the later image.
        is_forward: (n,) label of the pair in its own order, 0 or 1; reversed it has the other one.
        groups: (n,) patients.

    Returns:
        The outcome over 2 n examples: the pairs, then the reversed pairs.
    """
    features = np.concatenate([np.concatenate([first, second], axis=1), np.concatenate([second, first], axis=1)])
    labels = np.concatenate([is_forward, 1 - is_forward])
    return grouped_probe(features, labels, np.concatenate([groups, groups]), 2)


def report_alignment(images: np.ndarray, reports: np.ndarray) -> np.ndarray:
    """(n,) forward minus backward alignment of two images with two reports.

    Args:
        images, reports: (n, 2, E) unit embeddings, earlier first.
    """
    similarities = np.einsum("nae,nbe->nab", images.astype(np.float64), reports.astype(np.float64))
    return np.einsum("naa->n", similarities) - similarities[:, 0, 1] - similarities[:, 1, 0]


def alignment_accuracy(alignment: np.ndarray) -> float:
    """Share of the pairs whose forward alignment is larger, ties counting half."""
    return float(np.mean((alignment > 0) + 0.5 * (alignment == 0)))


def consecutive_alignment(context: EvaluationContext, pairs: np.ndarray) -> np.ndarray:
    """(n,) `report_alignment` of pairs of studies by their frontal images; NaN where reports are equal or missing."""
    assert context.store.mimic is not None
    studies = context.store.mimic.studies
    texts = studies[report_column(context)].fillna("").to_numpy()[pairs]
    is_told = (texts[:, 0] != texts[:, 1]) & (texts != "").all(axis=1)
    alignment = np.full(len(pairs), np.nan)
    if is_told.any():
        told = pairs[is_told]
        images = context.cache.frontal("mimic", studies["frontal"].to_numpy()[told].ravel())
        reports = context.cache.texts(texts[is_told].ravel().tolist())
        alignment[is_told] = report_alignment(images.reshape(len(told), 2, -1), reports.reshape(len(told), 2, -1))
    return alignment


def direction(context: EvaluationContext) -> Iterator[Record]:
    """`test/direction/{order,reports,change,words}/...` as listed in the head of this file."""
    mimic = context.store.mimic
    if mimic is None:
        yield skipped(TASK, "the data has no MIMIC-CXR")
        return
    values: dict[str, float] = {}
    facts: dict[str, object] = {}
    frames: list[pd.DataFrame] = []
    _consecutive(context, mimic, values, facts, frames)
    if context.store.ms_cxr_t is None:
        facts[f"skipped.{TASK}.change"] = facts[f"skipped.{TASK}.words"] = "the data has no MS-CXR-T"
    else:
        _labelled(context, mimic, context.store.ms_cxr_t.pairs, values, facts, frames)
    yield Facts(facts)
    if values:
        yield context.metrics({f"test/{TASK}/{name}": value for name, value in values.items()})
    yield prediction_table(TASK, frames)


def _consecutive(context: EvaluationContext, mimic: MimicStore, values: dict[str, float], facts: dict[str, object],
                 frames: list[pd.DataFrame]) -> None:
    pairs = consecutive_studies(mimic, "test")
    facts[f"{TASK}.num_consecutive_pairs"] = len(pairs)
    if len(pairs) == 0:
        facts[f"skipped.{TASK}.order"] = facts[f"skipped.{TASK}.reports"] = "no held-out patient has two studies"
        return
    studies = mimic.studies
    groups = context.groups(studies["subject_id"].to_numpy()[pairs[:, 0]])
    traits = study_traits(mimic, pairs[:, 1])
    first, second = (context.cache.frontal("mimic", studies["frontal"].to_numpy()[pairs[:, column]])
                     for column in (0, 1))
    try:
        result = order_probe(first, second, np.ones(len(pairs), dtype=np.int64), groups)
        values["order/auroc"] = result.auroc
        frames.append(_probe_frame(pairs[:, 1], groups, np.ones(len(pairs), dtype=np.int64), result, "order",
                                   traits))
    except TooFewExamplesError as error:
        facts[f"skipped.{TASK}.order"] = str(error)
    alignment = consecutive_alignment(context, pairs)
    told = np.flatnonzero(~np.isnan(alignment))
    if len(told) == 0:
        facts[f"skipped.{TASK}.reports"] = "no consecutive studies have different reports"
        return
    values["reports/accuracy"] = alignment_accuracy(alignment[told])
    frames.append(prediction_frame(example=pairs[told, 1], group=groups[told], label=np.ones(len(told), dtype=np.int64),
                                   score=alignment[told], finding="reports", traits=traits.iloc[told]))


def _labelled(context: EvaluationContext, mimic: MimicStore, pairs: pd.DataFrame, values: dict[str, float],
              facts: dict[str, object], frames: list[pd.DataFrame]) -> None:
    current = context.cache.frontal("mimic", pairs["image"].to_numpy())
    previous = context.cache.frontal("mimic", pairs["previous_image"].to_numpy())
    groups = context.groups(pairs["subject_id"])
    is_held_out = held_out(mimic, pairs["subject_id"])
    traits = study_traits(mimic, studies_of(mimic, pairs["study_id"]))
    found: dict[str, list[float]] = {"change": [], "words": []}
    for finding, prompts in CHANGES.items():
        classes = progression_classes(pairs[finding])
        is_directed = np.isin(classes, [PROGRESSIONS.index("improving"), PROGRESSIONS.index("worsening")])
        rows = np.flatnonzero(is_directed & is_held_out)
        labels = (classes[rows] == PROGRESSIONS.index("worsening")).astype(np.int64)
        facts[f"{TASK}.{finding}.num_pairs"] = len(rows)
        if min(labels.sum(), len(labels) - labels.sum()) < MIN_EXAMPLES:
            facts[f"skipped.{TASK}.{finding}"] = f"fewer than {MIN_EXAMPLES} improving or worsening held-out pairs"
            continue
        contrast = prompt_direction(context, prompts["worsening"]) - prompt_direction(context, prompts["improving"])
        scores = (current[rows] - previous[rows]).astype(np.float64) @ contrast.astype(np.float64)
        found["words"].append(auroc(labels, scores))
        values[f"words/{finding}/auroc"] = found["words"][-1]
        frames.append(prediction_frame(example=rows, group=groups[rows], label=labels, score=scores,
                                       finding=f"words/{finding}", traits=traits.iloc[rows]))
        try:
            result = order_probe(previous[rows], current[rows], labels, groups[rows])
        except TooFewExamplesError as error:
            facts[f"skipped.{TASK}.change.{finding}"] = str(error)
            continue
        found["change"].append(result.auroc)
        values[f"change/{finding}/auroc"] = result.auroc
        frames.append(_probe_frame(rows, groups[rows], labels, result, f"change/{finding}", traits.iloc[rows]))
    values |= {f"{kind}/mean/auroc": float(np.mean(scores)) for kind, scores in found.items() if scores}


def _probe_frame(rows: np.ndarray, groups: np.ndarray, labels: np.ndarray, result: ProbeResult, finding: str,
                 traits: pd.DataFrame) -> pd.DataFrame:
    """Both orders of every pair, the reversed ones after the others."""
    return prediction_frame(example=np.tile(rows, 2), group=np.tile(groups, 2),
                            label=np.concatenate([labels, 1 - labels]), score=result.probabilities[:, 1],
                            fold=result.fold, finding=finding, traits=pd.concat([traits, traits]))
