"""Searches from the tracking store: what was tried, what was best, how soon, and where the range was too narrow.

What lives here: reading, pure functions of the trials, the table. What must not: drawing (analysis/isolation.py), and
the sampler's library: importances are computed where the search ran and read as a table.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medst import tracking
from medst.config import ConfigError, build_partial
from medst.tracking.members import group_artifact, group_run_id, list_groups, load_group_plan

Floats = NDArray[np.float64]
EDGE_SHARE = 0.05
"""Of a range, in the scale in which it was drawn: so near to its end the best is told to lie at the edge."""


@dataclass(frozen=True)
class SearchResult:
    """A search as far as it was run."""

    plan: Mapping[str, Any]
    trials: pd.DataFrame
    """One row per trial, by number: number, state, key, run_id, seconds, reason, objectives.<metric>."""
    values: tuple[Mapping[str, Any], ...]
    """Of each trial: parameter -> value, where it existed."""
    importance: pd.DataFrame
    """objective, parameter, pedanova, fanova, num_trials."""
    rungs: tuple[Mapping[int, float], ...]
    """Of each trial: pairs seen -> the objective at that rung."""

    @property
    def name(self) -> str:
        return str(self.plan["name"])

    @property
    def objectives(self) -> list[str]:
        return list(self.plan["objectives"])

    @property
    def signs(self) -> Floats:
        """+1 where the objective is maximised, else -1."""
        return np.array([1.0 if direction == "maximize" else -1.0 for direction in self.plan["directions"]])

    @property
    def parameters(self) -> list[Mapping[str, Any]]:
        """As the search's space documents them; the scientific ones first."""
        scientific = list(self.plan["scientific"])
        return sorted(self.plan["space"], key=lambda parameter: (
            scientific.index(parameter["key"]) if parameter["key"] in scientific else len(scientific)))

    def scores(self, index: int = 0) -> Floats:
        """(trials,) of one objective; NaN where the trial did not finish."""
        return self.trials[f"objectives.{self.objectives[index]}"].to_numpy(float)

    def seconds(self) -> Floats:
        """(trials,) seconds of computing; 0 where unknown."""
        return self.trials["seconds"].fillna(0.0).to_numpy(float)

    def best(self) -> int | None:
        """Row of the best trial of a single objective; the earliest among equals."""
        scores = self.scores() * self.signs[0]
        return None if np.isnan(scores).all() else int(np.nanargmax(scores))


def load_search(uri: str, experiment: str, name: str) -> SearchResult | None:
    """A search from the tracking store; None where it has no results yet (killed early, or running).

    Raises:
        TrackingError: the store has no such search.
    """
    plan = load_group_plan("search", name, uri, experiment)
    files = tracking.list_artifacts(group_run_id("search", name, uri, experiment), uri)
    if not {"search/trials.parquet", "search/importance.parquet"} <= set(files):
        return None
    trials = pd.read_parquet(group_artifact("search", name, "search/trials.parquet", uri, experiment))
    importance = pd.read_parquet(group_artifact("search", name, "search/importance.parquet", uri, experiment))
    heads = [column for column in trials.columns if column.startswith("values.")]
    values = tuple({head.removeprefix("values."): json.loads(row[head]) for head in heads if isinstance(row[head], str)}
                   for _, row in trials.iterrows())
    rungs = tuple({int(pairs): float(value) for pairs, value in json.loads(text).items()} for text in trials["rungs"])
    return SearchResult(plan, trials.drop(columns="rungs"), values, importance, rungs)


def running_best(scores: Floats, sign: float) -> Floats:
    """(trials,) the best so far; NaN before the first finished trial."""
    filled = np.where(np.isnan(scores), -np.inf, scores * sign)
    best = np.maximum.accumulate(filled) * sign
    return np.where(np.isinf(best), np.nan, best)


@dataclass(frozen=True)
class Contest:
    """A search against another way of choosing, on the same objective."""

    other: str
    best: float
    """Of the other."""
    num_trials: int
    """Of the other, all of them: only then is its best known."""
    seconds: float
    trials_to_reach: int | None
    """Of the search, until it was as good; None: it never was."""
    seconds_to_reach: float | None


def contest(scores: Floats, seconds: Floats, sign: float, other: str, other_scores: Floats, other_seconds: Floats
            ) -> Contest | None:
    """How many trials and seconds of computing until a search had found the best of another.

    Args:
        scores, other_scores: (trials,) in the order of the trials; NaN where pruned or failed, which cost all the same.
    """
    if np.isnan(other_scores).all():
        return None
    best = float(np.nanmax(other_scores * sign) * sign)
    reached = np.flatnonzero(running_best(scores, sign) * sign >= best * sign)
    first = int(reached[0]) if len(reached) else None
    return Contest(other, best, len(other_scores), float(np.sum(other_seconds)),
                   None if first is None else first + 1,
                   None if first is None else float(np.sum(seconds[: first + 1])))


def load_rival(uri: str, experiment: str, name: str, result: SearchResult) -> tuple[Floats, Floats] | None:
    """(trials,) scores and seconds of a search, or of a study's trials at the search's seed; None without any."""
    if name in list_groups("search", uri, experiment):
        other = load_search(uri, experiment, name)
        if other is None or result.objectives[0] not in other.objectives:
            return None
        return other.scores(other.objectives.index(result.objectives[0])), other.seconds()
    if name in tracking.list_studies(uri, experiment):
        runs = tracking.load_runs(uri, experiment, study=name)
        column = f"metrics.{result.objectives[0]}"
        runs = runs[(runs["state"] == "finished") & (runs["seed"] == result.plan["seed"])]
        if column in runs and len(runs):
            return runs[column].to_numpy(float), runs["seconds"].fillna(0.0).to_numpy(float)
    return None


def position_in(parameter: Mapping[str, Any], value: float) -> float:
    """Where a value lies between low (0) and high (1), in the scale in which it was drawn."""
    low, high = parameter["low"], parameter["high"]
    if parameter["is_log"]:
        low, high, value = math.log(low), math.log(high), math.log(value)
    return (value - low) / (high - low)


def boundary_warnings(result: SearchResult) -> list[str]:
    """Parameters whose best value lies at the edge of their range, where a wider range is possible."""
    row = result.best()
    if row is None or len(result.objectives) > 1:
        return []
    warnings = []
    for parameter in result.parameters:
        key = parameter["key"]
        if parameter["choices"] or key not in result.values[row]:
            continue
        value = result.values[row][key]
        position = position_in(parameter, value)
        edge = "low" if position <= EDGE_SHARE else "high" if position >= 1 - EDGE_SHARE else None
        if edge is not None and _can_go_beyond(parameter, edge):
            side = "lower" if edge == "low" else "upper"
            warnings.append(f"The best {parameter['label']} ({value:.3g}) lies at the {side} edge of its range "
                            f"({parameter['low']:g} to {parameter['high']:g}): widen it and go on.")
    return warnings


def _can_go_beyond(parameter: Mapping[str, Any], edge: str) -> bool:
    """False where the edge of the range is the limit of the setting itself."""
    low, high = parameter["low"], parameter["high"]
    if parameter["is_integer"]:
        beyond: float = int(low) - 1 if edge == "low" else int(high) + 1
    elif parameter["is_log"]:
        beyond = low / 2 if edge == "low" else high * 2
    else:
        beyond = low - (high - low) / 2 if edge == "low" else high + (high - low) / 2
    try:
        build_partial({parameter["key"]: beyond}, source="range")
    except ConfigError:
        return False
    return True


def front(scores: Floats) -> NDArray[np.bool_]:
    """(trials, objectives), all maximised -> (trials,) True where no other is as good in all and better in one."""
    known: NDArray[np.bool_] = np.all(np.isfinite(scores), axis=1)
    as_good = (scores[None] >= scores[:, None]).all(axis=2)
    better = (scores[None] > scores[:, None]).any(axis=2)
    beaten: NDArray[np.bool_] = np.any(as_good & better & known[None], axis=1)
    return np.logical_and(known, ~beaten)


def hypervolume(scores: Floats, reference: Floats) -> float:
    """Volume that the trials dominate above a reference point; (trials, objectives), all maximised.

    By slices along the last objective, exact for any number of objectives.
    """
    scores = scores[(scores > reference).all(axis=1)]
    if not len(scores):
        return 0.0
    if scores.shape[1] == 1:
        return float(scores.max() - reference[0])
    levels = np.unique(scores[:, -1])
    bounds = np.concatenate([[reference[-1]], levels])
    return float(sum((level - below) * hypervolume(scores[scores[:, -1] >= level, :-1], reference[:-1])
                     for below, level in zip(bounds[:-1], levels, strict=True)))


def shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def table_text(result: SearchResult, contests: Sequence[Contest], num_best: int = 5) -> str:
    """The search in Markdown: what it cost, the best trials, importances, contests, warnings."""
    states = result.trials["state"].value_counts()
    lines = [f"# Search {result.name}", "", str(result.plan["question"]), "",
             f"{len(result.trials)} of {result.plan['trials']} trials by {result.plan['sampler']['kind']} on "
             f"{result.plan['data']}: {', '.join(f'{count} {state}' for state, count in states.items())}; "
             f"{result.seconds().sum():.0f} s of computing. Objective on validation patients: "
             f"{', '.join(result.objectives)}. One seed ({result.plan['seed']}): differences between the best are "
             "guesses until they are measured again on fresh seeds (`best.yaml` in the run's artifacts).", ""]
    lines += [f"**Warning.** {warning}" for warning in boundary_warnings(result)]
    labels = [parameter["label"] for parameter in result.parameters]
    lines += ["", "## Best trials", "", "| trial | " + " | ".join([*result.objectives, *labels, "run"]) + " |",
              "| --: |" + " --: |" * (len(result.objectives) + len(labels)) + " :-- |"]
    for row in best_rows(result, num_best):
        values = [shown(result.values[row][parameter["key"]]) if parameter["key"] in result.values[row] else ""
                  for parameter in result.parameters]
        scores = [f"{result.scores(index)[row]:.4f}" for index in range(len(result.objectives))]
        lines.append(f"| {result.trials['number'].iloc[row]} | " + " | ".join(
            [*scores, *values, str(result.trials["run_id"].iloc[row])]) + " |")
    if len(result.importance):
        names = {parameter["key"]: parameter["label"] for parameter in result.parameters}
        lines += ["", "## Importance", "", "Shares within an objective. PED-ANOVA: for being among the best quarter; "
                  "fANOVA: of the variance over the whole space, for parameters that exist in all trials.", "",
                  "| objective | parameter | PED-ANOVA | fANOVA |", "| :-- | :-- | --: | --: |"]
        table = result.importance.sort_values(["objective", "pedanova"], ascending=[True, False])
        for objective, key, ped, fanova in zip(table["objective"], table["parameter"], table["pedanova"].astype(float),
                                               table["fanova"].astype(float), strict=True):
            share = "" if math.isnan(fanova) else f"{fanova:.2f}"
            lines.append(f"| {objective} | {names[key]} | {ped:.2f} | {share} |")
    if contests:
        lines += ["", "## Against others", "", "Trials and seconds of computing until this search was as good as the "
                  "best of the other, which is known only after all of its trials.", "",
                  "| other | its best | its trials | its seconds | trials to reach | seconds to reach |",
                  "| :-- | --: | --: | --: | --: | --: |"]
        for entry in contests:
            lines.append(f"| {entry.other} | {entry.best:.4f} | {entry.num_trials} | {entry.seconds:.0f} | "
                         f"{'not reached' if entry.trials_to_reach is None else entry.trials_to_reach} | "
                         f"{'' if entry.seconds_to_reach is None else f'{entry.seconds_to_reach:.0f}'} |")
    return "\n".join(lines) + "\n"


def best_rows(result: SearchResult, num_best: int) -> list[int]:
    """Rows of the best trials, or with several objectives of the front, best of the first objective first."""
    scores = np.stack([result.scores(index) for index in range(len(result.objectives))], axis=1) * result.signs
    rows = np.flatnonzero(front(scores) if scores.shape[1] > 1 else ~np.isnan(scores[:, 0]))
    ordered = sorted(rows, key=lambda row: (-scores[row, 0], row))
    return [int(row) for row in (ordered if scores.shape[1] > 1 else ordered[:num_best])]
