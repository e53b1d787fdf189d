"""From what was tracked of a study to tidy frames: planned trials with their state, and their numbers.

What lives here: the study's plan, the choice of the one run that stands for a planned trial, frames of one
row per trial and per trial x metric. What must not: statistics, rendering, or MLflow itself (medst.tracking
speaks it).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import yaml
from numpy.typing import NDArray

from medst import tracking
from medst.config import nearest, source_fingerprint

TRIAL_COLUMNS = ("arm", "arm_order", "seed", "state", "run_id", "key", "source_fingerprint", "data_fingerprint",
                 "data_name", "processor", "reason", "withheld")
"""One row per planned trial, in the order of arms, then seeds."""
VALUE_COLUMNS = ("study", "arm", "arm_order", "seed", "state", "metric", "value", "run_id", "key",
                 "source_fingerprint", "data_fingerprint")
"""One row per finished trial and metric."""
Floats = NDArray[np.float64]
Strings = NDArray[np.object_]
FINISHED = "finished"
MISSING = "missing"


@dataclass(frozen=True)
class Expectation:
    """What an arm should do to a metric, against the reference."""

    arm: str
    metric: str
    direction: str
    """`lower`, `higher` or `equal`."""


@dataclass(frozen=True)
class Plan:
    """What a study set out to do, as its study run tracks it."""

    name: str
    arms: tuple[str, ...]
    """In the study's order."""
    reference: str
    primary: str
    """Key of the registered primary metric."""
    seeds: tuple[int, ...]
    secondary: tuple[str, ...] = ()
    question: str = ""
    base: tuple[str, ...] = ()
    """Experiment files."""
    data: str = ""
    """Name of the data set or of the phantom's preset."""
    common: Mapping[str, Any] = field(default_factory=dict)
    """Dotted config key -> value, over the base in all arms."""
    assignments: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Arm -> dotted config key -> value; only what differs from the base."""
    expectations: tuple[Expectation, ...] = ()
    """Registered before any result."""
    num_draws: int = 1
    """Draws of the phantom that the seeds are crossed with."""
    tuning: Mapping[str, Any] | None = None
    """How nuisance parameters were chosen: metric, direction, seeds, candidates, chosen and edges by arm."""
    keys: frozenset[str] | None = None
    """Keys of the planned trials; None accepts any trial under the study's arms and seeds."""

    def __post_init__(self) -> None:
        if self.reference not in self.arms:
            raise ValueError(f"study {self.name}: reference '{self.reference}' is none of its arms: "
                             f"{', '.join(self.arms)}")

    @staticmethod
    def from_tracked(document: Mapping[str, Any]) -> Plan:
        """The plan as `plan.json` holds it."""
        return Plan(
            name=document["name"], arms=tuple(arm["name"] for arm in document["arms"]),
            reference=document["reference"], primary=document["primary_metric"], seeds=tuple(document["seeds"]),
            secondary=tuple(document["secondary_metrics"]), question=document["question"].strip(),
            base=tuple(document["base"]), data=document["data"], common=document["settings"],
            assignments={arm["name"]: arm["settings"] for arm in document["arms"]},
            expectations=tuple(Expectation(**expectation) for expectation in document["expectations"]),
            # Plans of earlier versions have neither.
            num_draws=len(document.get("phantom_draws", [0])), tuning=document.get("tuning"),
            keys=frozenset(trial["key"] for trial in document["trials"]),
        )


@dataclass(frozen=True)
class Study:
    """A study as far as it was computed."""

    plan: Plan
    trials: pd.DataFrame
    """TRIAL_COLUMNS: one row per planned arm x seed."""
    values: pd.DataFrame
    """VALUE_COLUMNS: one row per finished trial x metric."""
    params: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Arm -> dotted config key -> text: the resolved config of one of its trials."""

    adopted: Mapping[str, int] = field(default_factory=dict)
    """Earlier code -> number of finished trials that it computed and that stand under the present code."""
    fingerprint: str = ""
    """Of all that tables and figures are made from: the plan and its runs with their states. What a finished run says
    never changes, so that its id stands for its numbers."""

    def states(self, arm: str) -> dict[str, int]:
        """State -> number of the arm's planned trials in it."""
        counts = self.trials.loc[self.trials["arm"] == arm, "state"].value_counts()
        return {str(state): int(number) for state, number in counts.items()}

    def level(self, arm: str, key: str) -> Any:
        """What `key` is in `arm`: as the study says, else as a trial of it resolved it; None where neither is known."""
        assigned = self.plan.assignments.get(arm, {})
        if key in assigned:
            return assigned[key]
        text = self.params.get(arm, {}).get(key)
        return None if text is None else yaml.safe_load(text)

    @cached_property
    def _grids(self) -> dict[str, tuple[Floats, Strings]]:
        """Metric -> values and run ids, both (seeds x arms) in the plan's order."""
        plan, values = self.plan, self.values
        rows = pd.Index(plan.seeds).get_indexer(pd.Index(values["seed"]))
        columns = pd.Index(plan.arms).get_indexer(pd.Index(values["arm"]))
        numbers, runs = values["value"].to_numpy(float), values["run_id"].to_numpy(object)
        grids: dict[str, tuple[Floats, Strings]] = {}
        for metric, places in values.groupby("metric", sort=False).indices.items():
            score = np.full((len(plan.seeds), len(plan.arms)), np.nan)
            run = np.full(score.shape, "", dtype=object)
            score[rows[places], columns[places]] = numbers[places]
            run[rows[places], columns[places]] = runs[places]
            grids[str(metric)] = score, run
        return grids

    @property
    def metrics(self) -> set[str]:
        """Keys of the metrics that at least one finished trial has."""
        return set(self._grids)

    def scores(self, metric: str) -> pd.DataFrame:
        """(seeds x arms) of a metric in the plan's order; NaN where no trial finished."""
        plan = self.plan
        empty = np.full((len(plan.seeds), len(plan.arms)), np.nan)
        grid = self._grids[metric][0].copy() if metric in self._grids else empty
        return pd.DataFrame(grid, index=list(plan.seeds), columns=list(plan.arms))

    def run_ids(self, metric: str) -> dict[str, dict[int, str]]:
        """Arm -> seed -> the run behind its number."""
        if metric not in self._grids:
            return {arm: {} for arm in self.plan.arms}
        runs = self._grids[metric][1]
        return {arm: {seed: run for seed, run in zip(self.plan.seeds, runs[:, column], strict=True) if run}
                for column, arm in enumerate(self.plan.arms)}


def assemble(plan: Plan, runs: pd.DataFrame, numbers: pd.DataFrame, current_source: str) -> Study:
    """Give every planned trial its run, or the state `missing`.

    Where several runs claim a trial, a finished one stands before an unfinished one, one of the current
    source before a stale one, and the latest before the others.

    Args:
        runs: one row per run: run_id, arm, seed, state, key, source_fingerprint, data_fingerprint, data_name,
            processor, reason, withheld, start_time.
        numbers: run_id, metric, value: the last value of every metric.
        current_source: fingerprint of the numerics' source as it is now.
    """
    planned = pd.MultiIndex.from_product([plan.arms, plan.seeds], names=["arm", "seed"])
    ranked = runs.assign(
        is_finished=runs["state"] == FINISHED, is_current=runs["source_fingerprint"] == current_source
    ).sort_values(["is_finished", "is_current", "start_time", "run_id"])
    chosen = ranked.drop_duplicates(["arm", "seed"], keep="last").set_index(["arm", "seed"])
    trials = chosen.reindex(planned).reset_index()
    trials["state"] = trials["state"].fillna(MISSING)
    trials["arm_order"] = trials["arm"].map({arm: order for order, arm in enumerate(plan.arms)})
    trials = trials[list(TRIAL_COLUMNS)]
    finished = trials[trials["state"] == FINISHED]
    values = finished.drop(columns=["data_name", "processor", "reason", "withheld"]).merge(numbers, on="run_id")
    values = values.assign(study=plan.name)
    return Study(plan, trials, values[list(VALUE_COLUMNS)].dropna(subset=["value"]).reset_index(drop=True))


@dataclass(frozen=True)
class StudySource:
    """A study in a snapshot of the store, not yet assembled."""

    snapshot: tracking.Snapshot
    name: str
    plan: Plan
    runs: pd.DataFrame
    """One row per run of the plan's trials: `Snapshot.runs` and the column `arm`."""
    fingerprint: str
    adopted: Mapping[str, int] = field(default_factory=dict)
    """Earlier code -> number of finished trials that it computed and that stand under the present code."""

    @property
    def num_planned(self) -> int:
        return len(self.plan.arms) * len(self.plan.seeds)

    @property
    def num_finished(self) -> int:
        """Planned trials that are finished."""
        return len(self.runs.loc[self.runs["state"] == FINISHED, ["arm", "seed"]].drop_duplicates())

    @property
    def has_finished(self) -> bool:
        return self.num_finished > 0

    def load(self) -> Study:
        """Assemble it."""
        numbers = self.snapshot.metrics
        if len(numbers):
            is_own = numbers["run_id"].cat.categories.isin(self.runs["run_id"])
            numbers = numbers[is_own[numbers["run_id"].cat.codes]].astype({"run_id": object, "metric": object})
        study = assemble(self.plan, self.runs, numbers, source_fingerprint())
        first = study.trials.dropna(subset=["run_id"]).drop_duplicates("arm").set_index("arm")["run_id"]
        params = self.snapshot.params(first.tolist())
        return replace(study, params={str(arm): params[run] for arm, run in first.items()},
                       fingerprint=self.fingerprint, adopted=self.adopted)


def study_source(snapshot: tracking.Snapshot, name: str) -> StudySource:
    """A study by its name.

    Raises:
        medst.tracking.TrackingError: the store has no such study; names the nearest.
    """
    if name not in snapshot.studies:
        known = list(snapshot.studies)
        guess = nearest(name, known)
        hint = f"did you mean '{guess}'?" if guess else f"it has {', '.join(known) or 'none'}"
        raise tracking.TrackingError(f"study '{name}' is not in the tracking store {snapshot.uri}; {hint}")
    document = snapshot.plan(name)
    plan = Plan.from_tracked(document)
    served = snapshot.arms.loc[snapshot.arms["study"] == name].set_index("run_id")["arm"]
    runs = snapshot.runs[snapshot.runs["run_id"].isin(served.index)]
    standing = runs["key"].map(snapshot.adopted)
    if plan.keys is not None:
        # An earlier version of the study may have other trials under the same arms and seeds.
        is_planned = runs["key"].isin(plan.keys) | standing.isin(plan.keys)
        runs, standing = runs[is_planned], standing[is_planned]
    adopted = runs.loc[standing.notna() & (runs["state"] == FINISHED), "source_fingerprint"].value_counts()
    runs = runs.assign(source_fingerprint=runs["source_fingerprint"].where(standing.isna(), source_fingerprint()))
    runs = runs.assign(arm=runs["run_id"].map(served)).sort_values("run_id").reset_index(drop=True)
    told = runs[["run_id", "arm", "seed", "state", "reason", "source_fingerprint", "data_fingerprint"]]
    text = json.dumps([document, told.astype(object).where(told.notna(), None).values.tolist()], sort_keys=True)
    return StudySource(snapshot, name, plan, runs, hashlib.sha256(text.encode()).hexdigest()[:16],
                       {str(code): int(number) for code, number in adopted.items()})


def load_study(uri: str, experiment: str, name: str) -> Study:
    """One study from the tracking store.

    Raises:
        medst.tracking.TrackingError: the store has no such study.
    """
    return study_source(tracking.read_snapshot(uri, experiment), name).load()


def combine(studies: Sequence[Study]) -> pd.DataFrame:
    """All studies' numbers in one tidy frame."""
    frames = [study.values for study in studies]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=list(VALUE_COLUMNS))
