"""Who the model serves: scores by subgroup, with uncertainty over patients, from per-example predictions.

What lives here: the table of subgroups on zero-shot classification, the task with every held-out study. What must not:
the bootstrap itself (analysis/statistics.py), reading the store (analysis/results.py).

Seeds say how much training varies; patients say how much the test set does. Here every replicate draws patients
with all their studies, the same ones for all arms and seeds, so that arms stay paired.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from analysis import statistics
from analysis.registry import FINDINGS, Metric
from analysis.statistics import Floats
from analysis.tables import Cell, Panel, ResultTable, Row, warnings_of
from analysis.text import counted, finding_name
from analysis.tidy import FINISHED, Study

PREDICTIONS = "predictions/finding_zero_shot"
NUM_REPLICATES = 500
MIN_EXAMPLES = 10
"""Studies with and without a finding below which a subgroup is not judged on it."""
TRAITS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "view": ("View of the frontal", {"AP": "AP", "PA": "PA"}),
    "sex": ("Sex", {"F": "female", "M": "male"}),
    "age": ("Age in years", {"0-39": "0–39", "40-59": "40–59", "60-79": "60–79", "80+": "80 and over"}),
    "prior": ("Earlier study", {"yes": "with prior", "no": "without prior"}),
}
"""Column of the predictions -> its title, and the values that are shown with their names, in order."""


def subgroup_table(study: Study, predictions: Mapping[str, pd.DataFrame], current_source: str,
                   num_replicates: int = NUM_REPLICATES) -> ResultTable | None:
    """Mean AUROC of five findings by subgroup for every arm; None where no prediction carries traits.

    Args:
        predictions: run -> example, group, label, score, finding and the columns of TRAITS.
    """
    arms = {arm: [run for run in runs if run in predictions] for arm, runs in _runs(study).items()}
    frames = {run: _judged(predictions[run]) for runs in arms.values() for run in runs}
    frames = {run: frame for run, frame in frames.items() if len(frame)}
    if not frames or not any(trait in next(iter(frames.values())) for trait in TRAITS):
        return None
    patients = pd.Index(sorted({group for frame in frames.values() for group in frame["group"]}))
    weights = statistics.resampled_weights(len(patients), num_replicates)
    panels, metrics = [], {}
    parts: list[tuple[str, str, dict[str, str]]] = [("all", "All studies", {"": "all"})]
    parts += [(trait, title, dict(values)) for trait, (title, values) in TRAITS.items()]
    for trait, title, values in parts:
        shown = []
        for value, name in values.items():
            metric = Metric(f"subgroup/{trait}/{value or 'all'}", f"Zero-shot AUROC, mean over findings, {name}",
                            name, "subgroups", title, name, chance=0.5)
            scores = {arm: _scores([frames[run] for run in runs if run in frames], trait, value, patients, weights)
                      for arm, runs in arms.items()}
            if any(score is not None for score in scores.values()):
                shown.append(metric)
                metrics[metric.key] = scores
        if shown:
            panels.append(Panel(title, tuple(shown)))
    rows = [Row(arm, "arm", arm == study.plan.reference, len(arms[arm]),
                {key: _cell(arm, scores, study) for key, scores in metrics.items()},
                {state: number for state, number in study.states(arm).items() if state != FINISHED})
            for arm in study.plan.arms]
    return ResultTable(
        "subgroups", f"Zero-shot classification by subgroup, arms of study {study.plan.name}", study.plan.name,
        study.plan.reference, study.plan.primary, study.plan.seeds, study.fingerprint, tuple(panels), tuple(rows),
        caption=(
            f"AUROC of two-view zero-shot classification, mean of {', '.join(map(finding_name, FINDINGS))} and over "
            f"seeds, times 100; n counts patients. ± 1.96 standard errors from {num_replicates} bootstrap replicates "
            f"that draw {counted(len(patients), 'held-out patient')} with all their studies, the same for all arms "
            "and seeds: uncertainty over patients, not over seeds. Differences are to "
            f"'{study.plan.reference}', paired by patient and seed; no test is made. A finding with fewer than "
            f"{MIN_EXAMPLES} studies with or without it in a subgroup is left out there, so that subgroups are "
            "compared down a column, not along a row.",),
        warnings=tuple(warnings_of(study, current_source)), is_one_task=True)


_NORMAL = 1.96
"""Half width of a 95 % interval in standard errors."""


def _runs(study: Study) -> dict[str, list[str]]:
    done = study.trials[study.trials["state"] == FINISHED]
    return {arm: done.loc[done["arm"] == arm, "run_id"].tolist() for arm in study.plan.arms}


def _judged(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[frame["finding"].isin(FINDINGS)]


def _scores(frames: Sequence[pd.DataFrame], trait: str, value: str, patients: pd.Index, weights: Floats
            ) -> tuple[float, Floats, int] | None:
    """Mean over seeds and findings, its replicates, and the patients in the subgroup; None where there is too little.

    Args:
        weights: (replicates, patients) how often each patient was drawn.
    """
    levels, replicates, members = [], [], 0
    for frame in frames:
        part = frame if trait == "all" else frame[frame[trait] == value] if trait in frame else frame.iloc[:0]
        members = max(members, part["group"].nunique())
        for _, rows in part.groupby("finding"):
            labels = rows["label"].to_numpy(dtype=int)
            if min(labels.sum(), len(labels) - labels.sum()) < MIN_EXAMPLES:
                continue
            drawn = np.take(weights, patients.get_indexer(pd.Index(rows["group"])), axis=1)
            together = np.concatenate([np.ones((1, len(rows))), drawn])
            found = statistics.weighted_auroc(labels, rows["score"].to_numpy(float), together)
            levels.append(found[0])
            replicates.append(found[1:])
    if not levels:
        return None
    return float(np.mean(levels)), np.nanmean(np.array(replicates), axis=0), members


def _cell(arm: str, scores: Mapping[str, tuple[float, Floats, int] | None], study: Study) -> Cell:
    own, reference = scores[arm], scores[study.plan.reference]
    if own is None:
        return Cell(statistics.mean_interval([]), None, math.nan, math.nan, "", {}, {})
    difference = None
    if arm != study.plan.reference and reference is not None:
        difference = statistics.PairedDifference(
            _interval(own[0] - reference[0], own[1] - reference[1], min(own[2], reference[2])), math.nan)
    runs = study.trials[(study.trials["arm"] == arm) & (study.trials["state"] == FINISHED)]
    return Cell(_interval(*own), difference, math.nan, math.nan, "", {},
                dict(zip(runs["seed"].tolist(), runs["run_id"].tolist(), strict=True)))


def _interval(mean: float, replicates: Floats, n: int) -> statistics.Interval:
    error = float(np.nanstd(replicates, ddof=1))
    # `deviation` is per patient, as a standard error times the root of n would be.
    return statistics.Interval(mean, _NORMAL * error, n, error * math.sqrt(n))
