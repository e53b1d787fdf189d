"""The run of a study: its description, plan, tables and figures; and the tags of the trials that serve it."""

from __future__ import annotations

import time as clock
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from mlflow.entities import Metric, RunTag

from medst.tracking import names
from medst.tracking.connection import (
    EXPERIMENT,
    TrackingError,
    client,
    default_uri,
    find_experiment,
)
from medst.tracking.drain import find_run
from medst.tracking.planned import ensure_planned_run

StudyKind = Literal["study", "rung"]
"""rung: a proxy of a study, at a share of its budget or of its data; no list of studies shows it."""


def ensure_study_run(uri: str, experiment: str, study: str, description: str, plan: Mapping[str, Any],
                     is_running: bool, kind: StudyKind = "study") -> str:
    """Id of the study's run, made if absent, with the description (Markdown) and the plan as they are now."""
    return ensure_planned_run(uri, experiment, kind, names.STUDY, study, description, plan, is_running)


def log_study_cost(uri: str, run_id: str, cost: Mapping[str, float]) -> None:
    """Track what the study has cost so far, as metrics `cost/<name>`; a point for every time the study is run."""
    number = 1 + int(client(uri).get_run(run_id).data.tags.get(names.SWEEPS, 0))
    now = int(clock.time() * 1000)
    client(uri).log_batch(run_id, [Metric(f"{names.COST_PREFIX}{name}", value, now, number)
                                   for name, value in cost.items()], tags=[RunTag(names.SWEEPS, str(number))])


def end_study_run(uri: str, run_id: str, is_complete: bool, has_failed: bool = False) -> None:
    """Say whether all trials of the study are finished; if not, whether nothing but failures stands in the way."""
    client(uri).set_terminated(run_id, "FINISHED" if is_complete else "FAILED" if has_failed else "KILLED")


def tag_trials(uri: str, experiment: str, study: str, arms: Iterable[tuple[str, str]]) -> None:
    """Tag trial runs that are in the store already, given as (run id, arm), as trials of `study` too.

    Raises:
        TrackingError: the store has no run of that study.
    """
    arms = list(arms)
    if not arms:
        return
    for run_id, arm in arms:
        client(uri).log_batch(run_id, tags=[RunTag(f"{names.STUDY_PREFIX}{study}", arm)])
    # Last: who reads in between finds the stamp changed and reads again.
    client(uri).set_tag(study_run_id(study, uri, experiment), names.TAGGED, str(clock.time_ns()))


def reap(uri: str, run_ids: Iterable[str]) -> None:
    """End runs whose process is gone, so that none is left RUNNING; they go on when they are run again."""
    for run_id in run_ids:
        client(uri).log_batch(run_id, tags=[RunTag(names.STATE, names.INTERRUPTED)])
        client(uri).set_terminated(run_id, "KILLED", end_time=int(clock.time() * 1000))


def log_study_artifacts(study: str, folder: Path, uri: str | None = None, experiment: str = EXPERIMENT,
                        under: str = "results") -> str:
    """Track the files of `folder` in the run of the study, under the artifact folder `under`.

    Raises:
        TrackingError: the store has no run of that study.
    """
    uri = uri or default_uri()
    run_id = study_run_id(study, uri, experiment)
    client(uri).log_artifacts(run_id, str(folder), under)
    return run_id


def study_run_id(study: str, uri: str, experiment: str) -> str:
    """Raises TrackingError where the store has no run of that study."""
    found = find_experiment(uri, experiment)
    run = find_run(uri, found.experiment_id, names.STUDY, study) if found is not None else None
    if run is None:
        raise TrackingError(f"tracking store {uri}: no study '{study}'; run it first with `medst sweep run {study}`")
    return str(run.info.run_id)
