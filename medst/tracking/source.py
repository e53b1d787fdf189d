"""Where whole experiments are read from: MLflow's public interface, or the tables of a SQLite store.

MLflow's interface gives whole runs or nothing, and takes a minute for ten thousand. A SQLite store of a known layout is
read by SQL, without a write, in a second; any other store through the interface. What lives here: these two ways to the
same rows. What must not: what the rows mean (see `index` and `snapshot`).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from medst.tracking.connection import client, database_of
from medst.tracking.reading import search_all_runs

METRIC_COLUMNS = ("run_id", "metric", "value")

_LAYOUT = {
    "runs": {"run_uuid", "status", "start_time", "end_time", "lifecycle_stage", "experiment_id"},
    "tags": {"key", "value", "run_uuid"},
    "params": {"key", "value", "run_uuid"},
    "latest_metrics": {"key", "value", "is_nan", "run_uuid"},
}
"""Columns of MLflow's tables on which the SQL below stands."""
_PER_QUERY = 500
"""Run ids in one statement."""
_IS_IN = "r.experiment_id = ? AND r.lifecycle_stage = 'active'"


class Source:
    """Reads the runs of an experiment that are not deleted, through MLflow's public interface."""

    def __init__(self, uri: str, experiment_id: str) -> None:
        name = client(uri).get_experiment(experiment_id).name
        self._runs = {run.info.run_id: run for run in search_all_runs(uri, name, "")}

    def heads(self) -> pd.DataFrame:
        """run_id, status, start_time, end_time, oldest first."""
        return pd.DataFrame([(run.info.run_id, run.info.status, run.info.start_time, run.info.end_time)
                             for run in self._runs.values()], columns=["run_id", "status", "start_time", "end_time"])

    def tags(self) -> pd.DataFrame:
        """run_id, key, value."""
        return pd.DataFrame([(run_id, key, value) for run_id, run in self._runs.items()
                             for key, value in run.data.tags.items()], columns=["run_id", "key", "value"])

    def metrics(self, run_ids: Sequence[str]) -> pd.DataFrame:
        """METRIC_COLUMNS: last values, without NaN; `run_id` and `metric` are categories."""
        found = [(run_id, name, value) for run_id in run_ids for name, value in self._runs[run_id].data.metrics.items()]
        return _tall(*zip(*found, strict=True)) if found else _tall([], [], [])

    def params(self, run_ids: Sequence[str]) -> dict[str, dict[str, str]]:
        return {run_id: dict(self._runs[run_id].data.params) for run_id in run_ids}


def _tall(runs: Iterable[str], metrics: Iterable[str], values: Iterable[float]) -> pd.DataFrame:
    frame = pd.DataFrame({"run_id": pd.Categorical(list(runs)), "metric": pd.Categorical(list(metrics)),
                          "value": np.fromiter(values, dtype=np.float64)})
    return frame[frame["value"].notna()].reset_index(drop=True)


class DatabaseSource(Source):
    """Reads them from a SQLite store by SQL."""

    def __init__(self, database: Path, experiment_id: str) -> None:
        self._database = database
        self._experiment = int(experiment_id)

    def heads(self) -> pd.DataFrame:
        return self._frame("SELECT run_uuid AS run_id, status, start_time, end_time FROM runs r "
                           f"WHERE {_IS_IN} ORDER BY start_time, run_uuid")

    def tags(self) -> pd.DataFrame:
        return self._frame("SELECT t.run_uuid AS run_id, t.key, t.value FROM tags t JOIN runs r USING (run_uuid) "
                           f"WHERE {_IS_IN}")

    def metrics(self, run_ids: Sequence[str]) -> pd.DataFrame:
        with closing(self._connect()) as connection:
            # Numbers for names: a name is text of 32 digits, and there are millions of values.
            run_code = {run_id: code for code, run_id in enumerate(run_ids)}
            metric_code: dict[str, int] = {}
            runs, metrics, values = [], [], []
            for part in _parts(run_ids):
                rows = connection.execute(
                    "SELECT run_uuid, key, value FROM latest_metrics WHERE is_nan = 0 AND run_uuid IN "
                    f"({_marks(part)})", part).fetchall()
                runs += [run_code[row[0]] for row in rows]
                metrics += [metric_code.setdefault(row[1], len(metric_code)) for row in rows]
                values += [row[2] for row in rows]
        return pd.DataFrame({
            "run_id": pd.Categorical.from_codes(np.array(runs, dtype=np.int32), pd.Index(list(run_ids))),
            "metric": pd.Categorical.from_codes(np.array(metrics, dtype=np.int32), pd.Index(list(metric_code))),
            "value": np.array(values, dtype=np.float64)})

    def params(self, run_ids: Sequence[str]) -> dict[str, dict[str, str]]:
        found: dict[str, dict[str, str]] = {run_id: {} for run_id in run_ids}
        with closing(self._connect()) as connection:
            for part in _parts(run_ids):
                for run_id, key, value in connection.execute(
                        f"SELECT run_uuid, key, value FROM params WHERE run_uuid IN ({_marks(part)})", part):
                    found[run_id][key] = value
        return found

    def some(self, tags: Sequence[str], tag_prefix: str, metrics: Sequence[str]
             ) -> list[tuple[str, str, int, int | None, dict[str, str], dict[str, float]]]:
        """Of every run: id, status, start, end, and of its tags and last metric values those that are asked for.

        Args:
            tag_prefix: tags that begin so are asked for, too.
        """
        with closing(self._connect()) as connection, connection:
            # One transaction: the three belong to one moment.
            connection.execute("BEGIN")
            heads = connection.execute("SELECT run_uuid, status, start_time, end_time FROM runs r "
                                       f"WHERE {_IS_IN} ORDER BY start_time, run_uuid", [self._experiment]).fetchall()
            tags_of: dict[str, dict[str, str]] = {head[0]: {} for head in heads}
            metrics_of: dict[str, dict[str, float]] = {head[0]: {} for head in heads}
            for run_id, key, value in connection.execute(
                    f"SELECT t.run_uuid, t.key, t.value FROM tags t JOIN runs r USING (run_uuid) WHERE {_IS_IN} "
                    f"AND (t.key IN ({_marks(tags)}) OR substr(t.key, 1, ?) = ?)",
                    [self._experiment, *tags, len(tag_prefix), tag_prefix]):
                tags_of[run_id][key] = value
            for run_id, key, number in connection.execute(
                    f"SELECT m.run_uuid, m.key, m.value FROM latest_metrics m JOIN runs r USING (run_uuid) "
                    f"WHERE {_IS_IN} AND m.is_nan = 0 AND m.key IN ({_marks(metrics)})", [self._experiment, *metrics]):
                metrics_of[run_id][key] = number
        return [(*head, tags_of[head[0]], metrics_of[head[0]]) for head in heads]

    def has_known_layout(self) -> bool:
        with closing(self._connect()) as connection:
            return all(columns <= {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}
                       for table, columns in _LAYOUT.items())

    def _frame(self, query: str) -> pd.DataFrame:
        with closing(self._connect()) as connection:
            return pd.read_sql_query(query, connection, params=(self._experiment,))

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(f"{self._database.as_uri()}?mode=ro", uri=True, timeout=20.0)


def _parts(run_ids: Sequence[str]) -> Iterator[list[str]]:
    for start in range(0, len(run_ids), _PER_QUERY):
        yield list(run_ids[start:start + _PER_QUERY])


def _marks(values: Sequence[Any]) -> str:
    return ",".join("?" * len(values))


def database_source(uri: str, experiment_id: str) -> DatabaseSource | None:
    """The tables of a SQLite store; None for other stores, and for a layout of tables that is not known here."""
    database = database_of(uri)
    if database is None:
        return None
    source = DatabaseSource(database, experiment_id)
    return source if source.has_known_layout() else None


def source_of(uri: str, experiment_id: str) -> Source:
    """The fastest way to the runs of an experiment."""
    return database_source(uri, experiment_id) or Source(uri, experiment_id)
