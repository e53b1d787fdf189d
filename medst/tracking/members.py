"""Searches and ladders: the run that speaks for many trials, and the trials that carry its tag.

What lives here: finding and making such a run, its plan, its files, its members. What must not: the meaning of a
plan; ablation studies, whose tables these runs must never enter (medst/tracking/studies.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mlflow.entities import Run, RunTag

from medst.tracking import names
from medst.tracking.connection import EXPERIMENT, TrackingError, client, default_uri, find_experiment
from medst.tracking.drain import find_run
from medst.tracking.names import TrialState
from medst.tracking.planned import ensure_planned_run
from medst.tracking.reading import artifact_path, search_all_runs, state_of

Kind = Literal["search", "ladder"]

_NAME_TAGS = {"search": names.SEARCH, "ladder": names.LADDER}


@dataclass(frozen=True)
class MemberTrial:
    """A trial's run, as far as a search must know it."""

    key: str
    run_id: str
    state: TrialState
    is_marked_running: bool
    reason: str | None
    """Why it failed or was pruned."""
    seconds: float | None
    """Of computing, where it ended by itself."""
    metrics: Mapping[str, float]
    """Last values."""
    tags: Mapping[str, str]
    params: Mapping[str, str]
    """Dotted config key -> text."""


def ensure_group_run(uri: str, experiment: str, kind: Kind, name: str, description: str, plan: Mapping[str, Any],
                     is_running: bool) -> str:
    """Id of the run of a search or ladder, made if absent, with description (Markdown) and plan as they are now."""
    return ensure_planned_run(uri, experiment, kind, _NAME_TAGS[kind], name, description, plan, is_running)


def group_run_id(kind: Kind, name: str, uri: str | None = None, experiment: str = EXPERIMENT) -> str:
    """Raises TrackingError where the store has no such search or ladder."""
    uri = uri or default_uri()
    found = find_experiment(uri, experiment)
    run = find_run(uri, found.experiment_id, _NAME_TAGS[kind], name) if found is not None else None
    if run is None:
        raise TrackingError(f"tracking store {uri}: no {kind} '{name}'; run it first")
    return str(run.info.run_id)


def list_groups(kind: Kind, uri: str | None = None, experiment: str = EXPERIMENT) -> list[str]:
    """Names of the searches or ladders in the store, oldest first."""
    runs = search_all_runs(uri or default_uri(), experiment, f"tags.`{names.KIND}` = '{kind}'")
    return [run.data.tags[_NAME_TAGS[kind]] for run in runs]


def load_group_plan(kind: Kind, name: str, uri: str | None = None, experiment: str = EXPERIMENT) -> dict[str, Any]:
    """The plan of a search or ladder as it was last run.

    Raises:
        TrackingError: the store has none of that name.
    """
    path = group_artifact(kind, name, names.PLAN_ARTIFACT, uri, experiment)
    plan: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return plan


def group_artifact(kind: Kind, name: str, artifact: str, uri: str | None = None, experiment: str = EXPERIMENT) -> Path:
    """Local path of a file of the run of a search or ladder."""
    return artifact_path(group_run_id(kind, name, uri, experiment), artifact, uri)


def log_group_artifacts(kind: Kind, name: str, folder: Path, under: str, uri: str | None = None,
                        experiment: str = EXPERIMENT) -> None:
    """Track the files of `folder` in the run of a search or ladder, under the artifact folder `under`."""
    client(uri or default_uri()).log_artifacts(group_run_id(kind, name, uri, experiment), str(folder), under)


def member_trials(uri: str, experiment: str, search: str) -> Iterator[MemberTrial]:
    """All trials that a search asked for, oldest first."""
    return map(_member, search_all_runs(
        uri, experiment, f"tags.`{names.KIND}` = 'trial' AND tags.`{names.SEARCH_PREFIX}{search}` LIKE '%'"))


def trial_of(uri: str, experiment: str, key: str) -> MemberTrial | None:
    """The trial of that key, if the store has it."""
    found = find_experiment(uri, experiment)
    run = find_run(uri, found.experiment_id, names.KEY, key) if found is not None else None
    return None if run is None else _member(run)


def label_run(uri: str, run_id: str, labels: Mapping[str, str]) -> None:
    """Set tags of a run."""
    client(uri).log_batch(run_id, tags=[RunTag(*label) for label in labels.items()])


def _member(run: Run) -> MemberTrial:
    tags, metrics = run.data.tags, run.data.metrics
    return MemberTrial(tags[names.KEY], run.info.run_id, state_of(run), run.info.status == "RUNNING",
                       tags.get(names.FAILURE), metrics.get(names.SECONDS_METRIC), metrics, tags, run.data.params)
