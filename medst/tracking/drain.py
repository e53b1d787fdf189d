"""Spool -> MLflow, each thing once, however often it is tried and wherever it was cut short.

Three things make that so: the run is found by its trial key before it is created; metrics carry the
time of their spool entry and a (name, step) that the run already has is left out; and the tag
`medst.drained`, sent with every batch, says up to which entry the run is complete.
"""

from __future__ import annotations

import logging
import time as clock
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import Timeout
from mlflow.entities import Metric, Param, Run, RunTag

from medst.tracking import names
from medst.tracking.connection import TrackingPlace, client, ensure_experiment, is_away
from medst.tracking.spool import Entry, Spool, spool_lock

_LOG = logging.getLogger(__name__)

BATCH_METRICS = 900
BATCH_OTHERS = 90
"""MLflow takes 1000 metrics, 100 params and 100 tags in one batch; some tags are added on the way."""

_FIRST_WAIT_SECONDS = 5.0
_LONGEST_WAIT_SECONDS = 60.0


def find_run(uri: str, experiment_id: str, tag: str, value: str) -> Run | None:
    """The run that carries `tag` = `value`.

    A create request whose answer was lost may have left a second, empty run: the earliest stays, later
    ones without metrics are deleted.
    """
    quoted = value.replace("'", "''")
    runs = sorted(client(uri).search_runs([experiment_id], f"tags.`{tag}` = '{quoted}'", max_results=10),
                  key=lambda run: (run.info.status != "FINISHED", run.info.start_time, run.info.run_id))
    for extra in runs[1:]:
        if not extra.data.metrics:
            client(uri).delete_run(extra.info.run_id)
    return runs[0] if runs else None


def find_or_create_run(uri: str, experiment_id: str, tag: str, value: str, name: str,
                       tags: dict[str, str], start_time: int | None = None) -> Run:
    """The run that carries `tag` = `value`, made with `tags` if absent."""
    found = find_run(uri, experiment_id, tag, value)
    if found is not None:
        return found
    return client(uri).create_run(experiment_id, start_time=start_time, tags={tag: value, **tags}, run_name=name)


class Drain:
    """Carries one spool into its run; keeps what it knows of the run between calls."""

    def __init__(self, spool: Spool, uri: str, experiment: str) -> None:
        self.spool = spool
        self._uri = uri
        self._experiment = experiment
        self.run_id: str | None = None
        self._done = 0
        self._is_terminated = False
        self._known_params: frozenset[str] = frozenset()
        self._known_metrics: set[tuple[str, int]] = set()
        self._wait_seconds = _FIRST_WAIT_SECONDS
        self._not_before = 0.0

    @property
    def is_complete(self) -> bool:
        """True where the run has all that the spool holds."""
        return (self.run_id is not None and self._done == len(self.spool.entries)
                and self._is_terminated == has_ended(self.spool))

    def attempt(self) -> bool:
        """Drain if the store answers; True where nothing is left. Does not ask an absent store too often.

        Raises:
            MlflowException: the store understood and refused.
        """
        if clock.monotonic() < self._not_before:
            return False
        try:
            self._drain()
        except Exception as error:
            if not is_away(error):
                raise
            _LOG.warning("tracking store %s is away (%s); the trial goes on, next try in %.0f s",
                         self._uri, type(error).__name__, self._wait_seconds)
            self._not_before = clock.monotonic() + self._wait_seconds
            self._wait_seconds = min(2 * self._wait_seconds, _LONGEST_WAIT_SECONDS)
            return False
        self._wait_seconds = _FIRST_WAIT_SECONDS
        return True

    def insist(self, patience_seconds: float) -> bool:
        """Drain, and try again for `patience_seconds` while the store is away."""
        deadline = clock.monotonic() + patience_seconds
        self._not_before = 0.0
        while not self.attempt():
            remaining = deadline - clock.monotonic()
            if remaining <= 0:
                return False
            clock.sleep(min(remaining, max(0.0, self._not_before - clock.monotonic())))
            self._not_before = 0.0
        return True

    def _drain(self) -> None:
        if self.run_id is None:
            self._open_run()
        assert self.run_id is not None
        store = client(self._uri)
        entries = self.spool.entries
        end = entries[-1].end if entries else None
        for batch in _batches(entries[self._done:]):
            for artifact in dict.fromkeys(artifact for entry in batch for artifact in entry.artifacts):
                self._upload(artifact)
            metrics = {(name, entry.step): Metric(name, value, entry.time, entry.step)
                       for entry in reversed(batch) for name, value in entry.metrics.items()
                       if (name, entry.step) not in self._known_metrics}
            params = {name: value for entry in batch for name, value in entry.params.items()
                      if name not in self._known_params}
            tags = {name: value for entry in batch for name, value in entry.tags.items()}
            if end != names.TrialState.FAILED.value:
                # The failure of an earlier attempt, from which the trial went on.
                tags.pop(names.FAILURE, None)
            tags[names.HEARTBEAT] = str(int(clock.time()))
            tags[names.DRAINED] = f"{self.spool.identity}:{batch[-1].number}"
            store.log_batch(self.run_id, list(metrics.values()), [Param(*item) for item in params.items()],
                            [RunTag(*item) for item in tags.items()])
            self._known_params |= params.keys()
            self._known_metrics |= metrics.keys()
            self._done = batch[-1].number
        if end is not None and not self._is_terminated:
            store.set_terminated(self.run_id, names.MLFLOW_STATUS[end], end_time=entries[-1].time)
            self._is_terminated = True

    def _open_run(self) -> None:
        described = self.spool.run
        store = client(self._uri)
        run = find_or_create_run(
            self._uri, ensure_experiment(self._uri, self._experiment), names.KEY, described["key"], described["name"],
            {names.KIND: "trial", **described["tags"]}, start_time=described["time"])
        run_id = run.info.run_id
        spool_id, _, number = run.data.tags.get(names.DRAINED, "").partition(":")
        done = int(number) if spool_id == self.spool.identity else 0
        if done < len(self.spool.entries):
            self._known_params = frozenset(run.data.params)
            self._known_metrics = {(name, metric.step) for name in run.data.metrics
                                   for metric in store.get_metric_history(run_id, name)}
        if run.info.status != "RUNNING" and not has_ended(self.spool):
            # A new attempt of a run that was interrupted, or that failed and is tried again.
            store.update_run(run_id, status="RUNNING")
            if names.FAILURE in run.data.tags:
                store.delete_tag(run_id, names.FAILURE)
        # Last: an error above leaves the run to be opened again.
        self._done, self.run_id = done, run_id

    def _upload(self, artifact: str) -> None:
        assert self.run_id is not None
        path = self.spool.file_of(artifact)
        if path.is_dir():
            client(self._uri).log_artifacts(self.run_id, str(path), artifact)
        else:
            parent = str(Path(artifact).parent)
            client(self._uri).log_artifact(self.run_id, str(path), None if parent == "." else parent)


def has_ended(spool: Spool) -> bool:
    """True where the last attempt ended in an orderly way, well or badly."""
    return bool(spool.entries) and spool.entries[-1].end is not None


def _batches(entries: Sequence[Entry]) -> Iterator[list[Entry]]:
    """Consecutive entries that fit one batch."""
    batch: list[Entry] = []
    metrics = others = 0
    for entry in entries:
        size = max(len(entry.params), len(entry.tags))
        if batch and (metrics + len(entry.metrics) > BATCH_METRICS or others + size > BATCH_OTHERS):
            yield batch
            batch, metrics, others = [], 0, 0
        batch.append(entry)
        metrics += len(entry.metrics)
        others += size
    if batch:
        yield batch


@dataclass(frozen=True)
class DrainReport:
    """What `drain_spools` did."""

    completed: tuple[str, ...]
    """Keys of ended trials that are now complete in the store."""
    waiting: tuple[str, ...]
    """Keys of ended trials that could not be brought there: the store is away."""


def drain_spools(place: TrackingPlace, patience_seconds: float = 0.0) -> DrainReport:
    """Bring spools that earlier processes left on this disk into the store.

    Spools of trials that other processes compute at this moment are left to them; spools of trials that
    were killed are drained and kept, for the trial goes on from there.
    """
    completed: list[str] = []
    waiting: list[str] = []
    for path in sorted((place.folder / "spool").glob("*")):
        lock = spool_lock(place.folder, path.name)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue
        try:
            if not Spool.exists(path):
                continue
            spool = Spool(path, {})
            is_ended = has_ended(spool)
            is_drained = Drain(spool, place.uri, place.experiment).insist(patience_seconds)
            if is_ended:
                (completed if is_drained else waiting).append(path.name)
            if is_drained and is_ended and spool.entries[-1].end == names.TrialState.FINISHED.value:
                spool.remove()
            else:
                spool.close()
        finally:
            lock.release()
    return DrainReport(tuple(completed), tuple(waiting))


def batches_of(values: dict[str, Any], size: int) -> Iterator[dict[str, Any]]:
    """`values` cut into mappings of at most `size` items, at least one."""
    items = list(values.items())
    for start in range(0, max(1, len(items)), size):
        yield dict(items[start:start + size])
