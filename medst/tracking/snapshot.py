"""The whole experiment at once: every trial, the studies it serves, its last metric values.

What lives here: one pass over the store for all studies together, so that the time for tables grows with the number
of runs and not with runs times studies. What must not: anything about what the numbers mean.

Values of finished runs never change: with a cache folder they are read from the store once.
"""

from __future__ import annotations

import hashlib
import json
import time as clock
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from medst.tracking import names
from medst.tracking.adoptions import adopted_keys
from medst.tracking.connection import find_experiment
from medst.tracking.names import TrialState
from medst.tracking.reading import artifact_path, state_from
from medst.tracking.source import METRIC_COLUMNS, Source, source_of

RUN_COLUMNS = ("run_id", "key", "seed", "state", "reason", "source_fingerprint", "data_fingerprint", "data_name",
               "withheld", "processor", "start_time", "end_time")
_TAG_COLUMNS = {"key": names.KEY, "seed": names.SEED, "reason": names.FAILURE, "source_fingerprint": names.SOURCE,
                "data_fingerprint": names.DATA, "data_name": names.DATA_NAME, "withheld": names.WITHHELD,
                "processor": names.PROCESSOR}


@dataclass(frozen=True)
class Snapshot:
    """An experiment as it was at one moment."""

    uri: str
    experiment_id: str
    studies: dict[str, str]
    """Study -> id of its own run, oldest first."""
    runs: pd.DataFrame
    """RUN_COLUMNS: one row a trial, oldest first; `state` as a TrialState's value, times in ms since 1970."""
    arms: pd.DataFrame
    """run_id, study, arm: a row for every study that a trial serves."""
    metrics: pd.DataFrame
    """METRIC_COLUMNS: last values, without NaN; `run_id` and `metric` are categories."""
    adopted: dict[str, str] = field(default_factory=dict)
    """Trial key as tracked -> the key under which the trial stands under the present code, though other code computed
    it."""

    def plan(self, study: str) -> dict[str, Any]:
        """The plan of a study as it was last run."""
        path = artifact_path(self.studies[study], names.PLAN_ARTIFACT, self.uri)
        plan: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return plan

    def params(self, run_ids: Sequence[str]) -> dict[str, dict[str, str]]:
        """Run -> dotted config key -> text."""
        return source_of(self.uri, self.experiment_id).params(run_ids)


def read_snapshot(uri: str, experiment: str, cache: Path | None = None) -> Snapshot:
    """All trials and studies of an experiment.

    Args:
        cache: folder, made if absent, that keeps the values of finished runs for the next call.
    """
    found = find_experiment(uri, experiment)
    if found is None:
        return Snapshot(uri, "", {}, pd.DataFrame(columns=list(RUN_COLUMNS)),
                        pd.DataFrame(columns=["run_id", "study", "arm"]), pd.DataFrame(columns=list(METRIC_COLUMNS)))
    experiment_id = str(found.experiment_id)
    source = source_of(uri, experiment_id)
    heads, tags = source.heads(), source.tags()
    kind = tags.loc[tags["key"] == names.KIND].set_index("run_id")["value"]
    heads["kind"] = heads["run_id"].map(kind)
    study_names = tags.loc[tags["key"] == names.STUDY].set_index("run_id")["value"]
    study_runs = heads.loc[heads["kind"] == "study", "run_id"]
    runs = _runs(heads[heads["kind"] == "trial"], tags)
    is_arm = tags["key"].str.startswith(names.STUDY_PREFIX)
    arms = tags.loc[is_arm & tags["run_id"].isin(set(runs["run_id"]))]
    arms = pd.DataFrame({"run_id": arms["run_id"], "study": arms["key"].str.removeprefix(names.STUDY_PREFIX),
                         "arm": arms["value"]}).reset_index(drop=True)
    kept = None if cache is None else cache / f"values-{_digest(uri, experiment_id)}.parquet"
    return Snapshot(uri, experiment_id, {study_names[run]: run for run in study_runs}, runs, arms,
                    _metrics(source, runs, kept), adopted_keys(uri, experiment))


def _runs(heads: pd.DataFrame, tags: pd.DataFrame) -> pd.DataFrame:
    wanted = {*_TAG_COLUMNS.values(), names.STATE, names.HEARTBEAT}
    wide = tags[tags["key"].isin(wanted)].pivot(index="run_id", columns="key", values="value")
    wide = wide.reindex(index=heads["run_id"], columns=sorted(wanted)).reset_index(drop=True)
    wide = wide.astype(object).where(wide.notna(), None)
    now = clock.time()
    states = [state_from(status, state, heartbeat, int(start), now).value for status, state, heartbeat, start in
              zip(heads["status"], wide[names.STATE], wide[names.HEARTBEAT], heads["start_time"], strict=True)]
    columns: dict[str, Any] = {column: wide[tag].to_numpy() for column, tag in _TAG_COLUMNS.items()}
    return pd.DataFrame({
        **columns, "run_id": heads["run_id"].to_numpy(), "seed": wide[names.SEED].astype(int).to_numpy(),
        "state": states, "start_time": heads["start_time"].to_numpy(), "end_time": heads["end_time"].to_numpy(),
    })[list(RUN_COLUMNS)]


def _metrics(source: Source, runs: pd.DataFrame, kept: Path | None) -> pd.DataFrame:
    """Values of all runs: of finished ones from the file `kept`, where they are there."""
    finished = runs.loc[runs["state"] == TrialState.FINISHED.value, "run_id"]
    known = pd.read_parquet(kept) if kept is not None and kept.exists() else None
    known_ids = set() if known is None else set(known["run_id"].cat.categories)
    missing = [run for run in runs["run_id"] if run not in known_ids]
    frames = [] if known is None else [known]
    if missing:
        frames.append(source.metrics(missing))
    if not frames:
        return pd.DataFrame(columns=list(METRIC_COLUMNS))
    together = frames[0] if len(frames) == 1 else _concatenate(frames)
    if kept is not None and set(finished) - known_ids:
        stays = together["run_id"].cat.categories.isin(finished)
        complete = together[stays[together["run_id"].cat.codes]]
        complete = complete.assign(run_id=complete["run_id"].cat.remove_unused_categories())
        kept.parent.mkdir(parents=True, exist_ok=True)
        temporary = kept.with_suffix(".new")
        complete.to_parquet(temporary, index=False)
        temporary.replace(kept)
    return together


def _concatenate(frames: list[pd.DataFrame]) -> pd.DataFrame:
    columns = {name: pd.api.types.union_categoricals([frame[name] for frame in frames])
               for name in ("run_id", "metric")}
    return pd.DataFrame({**columns, "value": np.concatenate([frame["value"].to_numpy() for frame in frames])})


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]
