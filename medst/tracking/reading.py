"""What the store holds, as DataFrames: trials, curves, tables, arrays, configs, plans.

Everything goes through MLflow's public interface, so that any store serves: SQLite, a server, a database.
"""

from __future__ import annotations

import gc
import json
import time as clock
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow.artifacts import download_artifacts
from mlflow.entities import Run, ViewType

from medst.config import Config, load_config
from medst.tracking import names
from medst.tracking.connection import EXPERIMENT, client, default_uri, find_experiment
from medst.tracking.drain import STALE_SECONDS
from medst.tracking.names import TrialState
from medst.tracking.studies import study_run_id

_PAGE = 1000
"""Largest page that MLflow gives; it stops there without a word unless asked for the next one."""


@contextmanager
def _collector_paused() -> Iterator[None]:
    """A page of runs is some hundred thousand objects without cycles. While they are made, the garbage collector would
    look through all that the process holds again and again, in vain: half of the time that MLflow takes."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def search_all_runs(uri: str, experiment: str, filter_string: str, view: int = ViewType.ACTIVE_ONLY) -> Iterator[Run]:
    """Every run of the experiment that passes the filter, in pages, oldest first."""
    found = find_experiment(uri, experiment)
    token: str | None = None
    while found is not None:
        with _collector_paused():
            page = client(uri).search_runs([found.experiment_id], filter_string, view, max_results=_PAGE,
                                           order_by=["attributes.start_time ASC"], page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def state_of(run: Run, now: float | None = None) -> TrialState:
    """State of a trial's run as far as the store knows; RUNNING without a sign of life counts as missing."""
    tags = run.data.tags
    return state_from(run.info.status, tags.get(names.STATE), tags.get(names.HEARTBEAT), run.info.start_time, now)


def state_from(status: str, state: str | None, heartbeat: str | None, start_time: int, now: float | None = None
               ) -> TrialState:
    """`state_of` from MLflow's status, the tags STATE and HEARTBEAT, and the start in ms since 1970."""
    match status:
        case "FINISHED":
            return TrialState.FINISHED
        case "FAILED":
            return TrialState.FAILED
        case "KILLED":
            return TrialState.PRUNED if state == TrialState.PRUNED.value else TrialState.MISSING
    beat = start_time / 1000 if heartbeat is None else float(heartbeat)
    is_alive = (clock.time() if now is None else now) - beat < STALE_SECONDS
    return TrialState.RUNNING if is_alive else TrialState.MISSING


def load_runs(uri: str | None = None, experiment: str = EXPERIMENT, study: str | None = None) -> pd.DataFrame:
    """One row for every trial of the experiment, or of one study, oldest first.

    Columns: run_id, key, name, arm (in `study` if given, else under which it was computed), seed, state (value of
    TrialState), status (MLflow's), reason (of a failure), source_fingerprint, data_fingerprint, data_name,
    start_time, end_time (UTC), seconds (of computing), and whatever the runs have under `params.<dotted key>`
    (texts), `metrics.<name>` (last values), `tags.<name>`.
    """
    filter_string = f"tags.`{names.KIND}` = 'trial'"
    if study is not None:
        filter_string += f" AND tags.`{names.STUDY_PREFIX}{study}` LIKE '%'"
    arm_tag = names.ARM if study is None else f"{names.STUDY_PREFIX}{study}"
    rows = [_row(run, arm_tag) for run in search_all_runs(uri or default_uri(), experiment, filter_string)]
    frame = pd.DataFrame(rows, columns=None if rows else list(_COLUMNS))
    for column in ("start_time", "end_time"):
        frame[column] = pd.to_datetime(frame[column], unit="ms", utc=True)
    return frame


_COLUMNS = ("run_id", "key", "name", "arm", "seed", "state", "status", "reason", "source_fingerprint",
            "data_fingerprint", "data_name", "start_time", "end_time", "seconds")


def _row(run: Run, arm_tag: str) -> dict[str, Any]:
    tags, metrics = run.data.tags, run.data.metrics
    values = (run.info.run_id, tags[names.KEY], run.info.run_name, tags[arm_tag], int(tags[names.SEED]),
              state_of(run).value, run.info.status, tags.get(names.FAILURE), tags.get(names.SOURCE),
              tags.get(names.DATA), tags.get(names.DATA_NAME), run.info.start_time, run.info.end_time,
              metrics.get(names.SECONDS_METRIC, np.nan))
    return {**dict(zip(_COLUMNS, values, strict=True)),
            **{f"params.{name}": value for name, value in run.data.params.items()},
            **{f"metrics.{name}": value for name, value in metrics.items()},
            **{f"tags.{name}": value for name, value in tags.items()}}


def metric_history(run_ids: Sequence[str], metrics: Sequence[str], uri: str | None = None) -> pd.DataFrame:
    """Curves: DataFrame[run_id, name, step, value], ordered by run, name and step."""
    store = client(uri or default_uri())
    rows = [(run_id, name, point.step, point.value) for run_id in run_ids for name in metrics
            for point in sorted(store.get_metric_history(run_id, name), key=lambda point: point.step)]
    return pd.DataFrame(rows, columns=["run_id", "name", "step", "value"])


def list_artifacts(run_id: str, uri: str | None = None) -> list[str]:
    """Paths of all artifact files of a run."""
    store = client(uri or default_uri())
    files: list[str] = []
    folders = [""]
    while folders:
        for item in store.list_artifacts(run_id, folders.pop() or None):
            (folders if item.is_dir else files).append(item.path)
    return sorted(files)


def artifact_path(run_id: str, artifact: str, uri: str | None = None) -> Path:
    """Local path of an artifact, fetched where the store is remote."""
    uri = uri or default_uri()
    # By the place of the run's artifacts: by the run's id MLflow searches the models of the run as well and reads the
    # run twice, which takes longer than the rest.
    place = client(uri).get_run(run_id).info.artifact_uri
    return Path(download_artifacts(artifact_uri=f"{place}/{artifact}", tracking_uri=uri))


def load_table(run_id: str, name: str, uri: str | None = None) -> pd.DataFrame:
    """The per-example table that the trial tracked as `Table(name, ...)`."""
    return pd.read_parquet(artifact_path(run_id, f"{name}{names.TABLE_SUFFIX}", uri))


def load_arrays(run_id: str, name: str, uri: str | None = None) -> dict[str, np.ndarray]:
    """The arrays that the trial tracked as `Arrays(name, ...)`."""
    with np.load(artifact_path(run_id, f"{name}{names.ARRAYS_SUFFIX}", uri)) as arrays:
        return dict(arrays)


def find_tables(run_id: str, asked: Sequence[str], uri: str | None = None) -> dict[str, pd.DataFrame]:
    """`load_table` of those names whose table the trial tracked."""
    there = _artifacts(run_id, {_folder(name) for name in asked}, uri)
    return {name: load_table(run_id, name, uri) for name in asked if f"{name}{names.TABLE_SUFFIX}" in there}


def find_arrays(run_id: str, name: str, uri: str | None = None) -> dict[str, np.ndarray] | None:
    """`load_arrays`, or None where the trial tracked no such arrays."""
    is_there = f"{name}{names.ARRAYS_SUFFIX}" in _artifacts(run_id, {_folder(name)}, uri)
    return load_arrays(run_id, name, uri) if is_there else None


def _folder(name: str) -> str:
    return name.rpartition("/")[0]


def _artifacts(run_id: str, folders: Iterable[str], uri: str | None) -> set[str]:
    """Paths of the files in these folders of a run's artifacts."""
    reader = client(uri or default_uri())
    return {item.path for folder in folders for item in reader.list_artifacts(run_id, folder or None)}


def load_config_of(run_id: str, uri: str | None = None) -> Config:
    """The resolved config of a trial."""
    return load_config(artifact_path(run_id, names.CONFIG_ARTIFACT, uri))


def list_studies(uri: str | None = None, experiment: str = EXPERIMENT) -> list[str]:
    """Names of the studies in the store, oldest first."""
    runs = search_all_runs(uri or default_uri(), experiment, f"tags.`{names.KIND}` = 'study'")
    return [run.data.tags[names.STUDY] for run in runs]


def load_plan(study: str, uri: str | None = None, experiment: str = EXPERIMENT) -> dict[str, Any]:
    """The plan of a study as it was last run: question, arms in order, reference, metrics, seeds, trial keys.

    Raises:
        TrackingError: the store has no run of that study.
    """
    uri = uri or default_uri()
    path = artifact_path(study_run_id(study, uri, experiment), names.PLAN_ARTIFACT, uri)
    plan: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return plan
