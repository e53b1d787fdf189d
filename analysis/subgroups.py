"""Who the model serves: scores by subgroup, with uncertainty over patients, from per-example predictions.

What lives here: the table of subgroups on zero-shot classification, the task with every held-out study. What must not:
the bootstrap itself (analysis/statistics.py), reading the store (analysis/results.py).

Seeds say how much training varies; patients say how much the test set does. Here every replicate draws patients
with all their studies, the same ones for all arms and seeds, so that arms stay paired.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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
    frames = _frames(study, predictions)
    if not any(trait in frame for own in frames.values() for frame in own.values() for trait in TRAITS):
        return None
    everyone = [frame["group"] for own in frames.values() for frame in own.values()]
    patients = pd.Index(sorted(set(pd.concat(everyone))))
    weights = statistics.resampled_weights(len(patients), num_replicates)
    panels, metrics = [], {}
    parts: list[tuple[str, str, dict[str, str]]] = [("all", "All studies", {"": "all"})]
    parts += [(trait, title, dict(values)) for trait, (title, values) in TRAITS.items()]
    for trait, title, values in parts:
        shown = []
        for value, name in values.items():
            metric = Metric(f"subgroup/{trait}/{value or 'all'}", f"Zero-shot AUROC, mean over findings, {name}",
                            name, "subgroups", title, name, chance=0.5)
            scores = {arm: _scores(own, trait, value, patients, weights) for arm, own in frames.items()}
            if any(scores.values()):
                shown.append(metric)
                metrics[metric.key] = scores
        if shown:
            panels.append(Panel(title, tuple(shown)))
    rows = [Row(arm, "arm", arm == study.plan.reference, study.states(arm).get(FINISHED, 0),
                {key: _cell(arm, scores, study) for key, scores in metrics.items()},
                {state: number for state, number in study.states(arm).items() if state != FINISHED})
            for arm in study.plan.arms]
    return ResultTable(
        "subgroups", f"Zero-shot classification by subgroup, arms of study {study.plan.name}", study.plan.name,
        study.plan.reference, study.plan.primary, study.plan.seeds, study.fingerprint, tuple(panels), tuple(rows),
        caption=(
            f"AUROC of two-view zero-shot classification, mean of {', '.join(map(finding_name, FINDINGS))} and over "
            "seeds, times 100; n counts trials, the last line of a part its patients. ± 1.96 standard errors from "
            f"{num_replicates} bootstrap replicates that draw {counted(len(patients), 'held-out patient')} with all "
            "their studies, the same for all arms and seeds: uncertainty over patients, not over seeds. "
            f"Differences are to '{study.plan.reference}', paired by patient and seed; no test is made. A finding with "
            f"fewer than {MIN_EXAMPLES} studies with or without it in a subgroup is left out there, so "
            "that they are compared down a column, not along a row.",),
        warnings=tuple(warnings_of(study, current_source)), is_one_task=True, counts="patients")


_NORMAL = 1.96
"""Half width of a 95 % interval in standard errors."""


@dataclass(frozen=True)
class _Score:
    """One arm at one seed in one subgroup."""

    level: float
    replicates: Floats
    num_patients: int


def _frames(study: Study, predictions: Mapping[str, pd.DataFrame]) -> dict[str, dict[int, pd.DataFrame]]:
    """Arm -> seed -> its predictions on the five findings, where there are any."""
    done = study.trials[study.trials["state"] == FINISHED]
    frames: dict[str, dict[int, pd.DataFrame]] = {arm: {} for arm in study.plan.arms}
    for arm, seed, run in zip(done["arm"], done["seed"], done["run_id"], strict=True):
        if run in predictions:
            frame = predictions[run]
            frames[arm][int(seed)] = frame[frame["finding"].isin(FINDINGS)]
    return frames


def _scores(frames: Mapping[int, pd.DataFrame], trait: str, value: str, patients: pd.Index, weights: Floats
            ) -> dict[int, _Score]:
    """Seed -> mean over findings with its replicates; seeds with too little to judge are left out.

    Args:
        weights: (replicates, patients) how often each patient was drawn.
    """
    scores = {}
    for seed, frame in frames.items():
        part = frame if trait == "all" else frame[frame[trait] == value] if trait in frame else frame.iloc[:0]
        levels, replicates = [], []
        for _, rows in part.groupby("finding"):
            labels = rows["label"].to_numpy(dtype=int)
            if min(labels.sum(), len(labels) - labels.sum()) < MIN_EXAMPLES:
                continue
            drawn = np.take(weights, patients.get_indexer(pd.Index(rows["group"])), axis=1)
            together = np.concatenate([np.ones((1, len(rows))), drawn])
            found = statistics.weighted_auroc(labels, rows["score"].to_numpy(float), together)
            levels.append(found[0])
            replicates.append(found[1:])
        if levels:
            scores[seed] = _Score(float(np.mean(levels)), np.mean(replicates, axis=0), part["group"].nunique())
    return scores


def _cell(arm: str, scores: Mapping[str, Mapping[int, _Score]], study: Study) -> Cell:
    own, reference = scores[arm], scores[study.plan.reference]
    if not own:
        return Cell(statistics.mean_interval([]), None, math.nan, math.nan, "", {}, {})
    difference = None
    common = [seed for seed in own if seed in reference]
    if arm != study.plan.reference and common:
        difference = statistics.PairedDifference(_interval(
            [own[seed].level - reference[seed].level for seed in common],
            [own[seed].replicates - reference[seed].replicates for seed in common],
            min(own[common[0]].num_patients, reference[common[0]].num_patients)), math.nan)
    runs = study.trials[(study.trials["arm"] == arm) & study.trials["seed"].isin(list(own))]
    first = next(iter(own.values()))
    return Cell(_interval([score.level for score in own.values()], [score.replicates for score in own.values()],
                          first.num_patients), difference, math.nan, math.nan, "",
                {seed: score.level for seed, score in own.items()},
                {int(seed): str(run) for seed, run in zip(runs["seed"], runs["run_id"], strict=True)})


def _interval(levels: Sequence[float], replicates: Sequence[Floats], n: int) -> statistics.Interval:
    """Mean over seeds, standard error over the replicates of it; one that drew no positive or negative is left out.

    Its `deviation` is unknown: neither seeds nor patients have one in which a mean of AUROCs could be measured.
    """
    error = float(np.nanstd(np.mean(replicates, axis=0), ddof=1))
    return statistics.Interval(float(np.mean(levels)), _NORMAL * error, n, math.nan)
