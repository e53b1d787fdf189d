"""Who the model serves: scores with their uncertainty over patients, and by subgroup, from per-example predictions.

What lives here: the table of the tasks over all their patients, and of subgroups on zero-shot classification, the task
with every held-out study. What must not: the bootstrap itself (analysis/statistics.py), reading the store
(analysis/results.py).

Seeds say how much training varies; patients say how much the test set does. Here every replicate draws patients
with all their examples, the same ones for all arms and seeds, so that arms stay paired.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis import statistics
from analysis.registry import FINDINGS, Metric
from analysis.statistics import Floats
from analysis.tables import Cell, Panel, ResultTable, Row, warnings_of
from analysis.text import counted, finding_name
from analysis.tidy import FINISHED, Study

NUM_REPLICATES = 500
MIN_EXAMPLES = 10
"""Examples of every label below which a finding is not judged, in a subgroup or at all."""
TRAITS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "view": ("View of the frontal", {"AP": "AP", "PA": "PA"}),
    "sex": ("Sex", {"F": "female", "M": "male"}),
    "age": ("Age in years", {"0-39": "0–39", "40-59": "40–59", "60-79": "60–79", "80+": "80 and over"}),
    "prior": ("Earlier study", {"yes": "with prior", "no": "without prior"}),
}
"""Column of the predictions -> its title, and the values that are shown with their names, in order."""


Measure = Callable[[pd.DataFrame, Floats], Floats]
"""(predictions of one finding, (weightings, n) weights of its rows) -> (weightings,) scores."""


def _auroc(rows: pd.DataFrame, weights: Floats) -> Floats:
    return statistics.weighted_auroc(rows["label"].to_numpy(dtype=int), rows["score"].to_numpy(float), weights)


def _accuracy_of_signs(rows: pd.DataFrame, weights: Floats) -> Floats:
    """Balanced; a score of 0 or more says label 1."""
    labels = rows["label"].to_numpy(dtype=int)
    return statistics.weighted_balanced_accuracy(labels, (rows["score"].to_numpy(float) >= 0) == labels, weights)


def _accuracy_of_margins(rows: pd.DataFrame, weights: Floats) -> Floats:
    """Balanced; a score above 0 is right, whatever the class."""
    return statistics.weighted_balanced_accuracy(rows["label"].to_numpy(), rows["score"].to_numpy(float) > 0, weights)


@dataclass(frozen=True)
class _Outcome:
    """What is scored over the patients of one task."""

    predictions: str
    findings: Sequence[str]
    """Of the predictions; the score is the mean over them."""
    measure: Measure
    title: str
    column: str
    chance: float


ZERO_SHOT = _Outcome("predictions/finding_zero_shot", FINDINGS, _auroc, "Zero-shot AUROC, mean over findings", "all",
                     0.5)
OTHER_TASKS = (
    _Outcome("predictions/rsna_zero_shot", ("pneumonia",), _auroc, "RSNA zero-shot AUROC", "RSNA, AUROC", 0.5),
    _Outcome("predictions/temporal_image", FINDINGS, _accuracy_of_margins,
             "Temporal image classification, balanced accuracy, mean over findings", "temporal, bal. acc.", 1 / 3),
    _Outcome("predictions/sentence_similarity", ("all",), _accuracy_of_signs,
             "Sentence similarity, balanced accuracy", "sentences, bal. acc.", 0.5),
    _Outcome("predictions/covidx_linear", ("100",), _accuracy_of_margins,
             "COVIDx, all labels, balanced accuracy", "COVIDx 100 %, bal. acc.", 1 / 3),
)
"""Tasks of which a score over all examples is made of the predictions; corrected protocols."""
PREDICTIONS = tuple(outcome.predictions for outcome in (ZERO_SHOT, *OTHER_TASKS))
"""Tables that the trials must have tracked."""


def subgroup_table(study: Study, predictions: Mapping[str, Mapping[str, pd.DataFrame]], current_source: str,
                   num_replicates: int = NUM_REPLICATES) -> ResultTable | None:
    """The tasks over all their patients, then zero-shot classification by subgroup, for every arm.

    Args:
        predictions: name of a table, of PREDICTIONS -> run -> example, group, label, score, finding, protocol and the
            columns of TRAITS.

    Returns:
        None where no prediction carries traits.
    """
    zero_shot = _Sample.of(study, ZERO_SHOT, predictions, num_replicates)
    if not any(trait in frame for own in zero_shot.frames.values() for frame in own.values() for trait in TRAITS):
        return None
    panels, metrics = [], {}

    def add(title: str, asked: Sequence[tuple[str, str, _Sample, str, str]]) -> None:
        """A panel of the columns that have a score: key, column, sample, trait, value."""
        shown = []
        for key, column, sample, trait, value in asked:
            scores = {arm: _scores(own, sample, trait, value) for arm, own in sample.frames.items()}
            if any(scores.values()):
                metrics[key] = scores
                shown.append(Metric(key, f"{sample.outcome.title}, {column}", column, "subgroups", title, column,
                                    chance=sample.outcome.chance))
        if shown:
            panels.append(Panel(title, tuple(shown)))

    add("All studies", [("subgroup/all/all", "all", zero_shot, "all", "")])
    samples = [_Sample.of(study, outcome, predictions, num_replicates) for outcome in OTHER_TASKS]
    add("Other tasks", [(f"subgroup/{sample.outcome.predictions.removeprefix('predictions/')}/all",
                         sample.outcome.column, sample, "all", "") for sample in samples])
    for trait, (title, values) in TRAITS.items():
        add(title, [(f"subgroup/{trait}/{value}", name, zero_shot, trait, value) for value, name in values.items()])
    rows = [Row(arm, "arm", arm == study.plan.reference, study.states(arm).get(FINISHED, 0),
                {key: _cell(arm, scores, study) for key, scores in metrics.items()},
                {state: number for state, number in study.states(arm).items() if state != FINISHED})
            for arm in study.plan.arms]
    return ResultTable(
        "subgroups", f"Uncertainty over patients, and subgroups, arms of study {study.plan.name}", study.plan.name,
        study.plan.reference, study.plan.primary, study.plan.seeds, study.fingerprint, tuple(panels), tuple(rows),
        caption=(
            "Scores times 100, mean over seeds; n counts trials, the last line of a part its patients (of sentences, "
            f"pairs). ± 1.96 standard errors from {num_replicates} bootstrap replicates that draw patients with all "
            "their examples, the same for all arms and seeds: uncertainty over patients, not over seeds. "
            f"Differences are to '{study.plan.reference}', paired by patient and seed; no test is made.",
            f"All studies and subgroups: AUROC of two-view zero-shot classification, mean of "
            f"{', '.join(map(finding_name, FINDINGS))}, {counted(len(zero_shot.patients), 'held-out patient')}. A "
            f"finding with fewer than {MIN_EXAMPLES} studies with or without it in a subgroup is left out there, so "
            "that they are compared down a column, not along a row.",
            "Other tasks: corrected protocols; balanced accuracy over the examples of all folds together, not the mean "
            "over folds of the task tables. Probes and thresholds are those of the trial and not fitted anew in a "
            "replicate.",),
        warnings=tuple(warnings_of(study, current_source)), is_one_task=True, counts="patients")


_NORMAL = 1.96
"""Half width of a 95 % interval in standard errors."""


@dataclass(frozen=True)
class _Score:
    """One arm at one seed in one subgroup."""

    level: float
    replicates: Floats
    num_patients: int


@dataclass(frozen=True)
class _Sample:
    """The predictions that an outcome is made of, and the draws of its patients."""

    outcome: _Outcome
    frames: Mapping[str, Mapping[int, pd.DataFrame]]
    """Arm -> seed -> its predictions, where there are any."""
    patients: pd.Index
    weights: Floats
    """(replicates, patients) how often each patient was drawn."""

    @classmethod
    def of(cls, study: Study, outcome: _Outcome, predictions: Mapping[str, Mapping[str, pd.DataFrame]],
           num_replicates: int) -> _Sample:
        by_run = predictions.get(outcome.predictions, {})
        done = study.trials[study.trials["state"] == FINISHED]
        frames: dict[str, dict[int, pd.DataFrame]] = {arm: {} for arm in study.plan.arms}
        for arm, seed, run in zip(done["arm"], done["seed"], done["run_id"], strict=True):
            if run in by_run:
                frame = by_run[run]
                frames[arm][int(seed)] = frame[frame["finding"].isin(outcome.findings)
                                               & (frame["protocol"] == "corrected")]
        groups = [set(frame["group"]) for own in frames.values() for frame in own.values()]
        patients = pd.Index(sorted(set().union(*groups)))
        return cls(outcome, frames, patients, statistics.resampled_weights(len(patients), num_replicates))


def _scores(frames: Mapping[int, pd.DataFrame], sample: _Sample, trait: str, value: str) -> dict[int, _Score]:
    """Seed -> mean over findings with its replicates; seeds with too little to judge are left out."""
    scores = {}
    for seed, frame in frames.items():
        part = frame if trait == "all" else frame[frame[trait] == value] if trait in frame else frame.iloc[:0]
        levels, replicates = [], []
        for _, rows in part.groupby("finding"):
            sizes = rows["label"].value_counts()
            if len(sizes) < 2 or sizes.min() < MIN_EXAMPLES:
                continue
            drawn = np.take(sample.weights, sample.patients.get_indexer(pd.Index(rows["group"])), axis=1)
            found = sample.outcome.measure(rows, np.concatenate([np.ones((1, len(rows))), drawn]))
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
