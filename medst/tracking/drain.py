"""Spool -> MLflow, each thing once, however often it is tried and wherever it was cut short.

Three things make that so: the run is found by its trial key before it is created; metrics carry the
time of their spool entry and a (name, step) that the run already has is left out; and the tag
`medst.drained`, sent with every batch, says up to which entry the run is complete.

Who may write a run: beside a store that is a file, whoever holds the trial's lock. A server has no
lock and no compare-and-set, so the run itself is the claim: it carries its writer in `medst.owner`; a
writer claims by creating the run, or by putting its name on one that has shown no sign of life, waits
until every rival's claim must be visible, and looks again. Of two runs of one key the older one stands;
of two names on one run the last. The loser deletes what it made and stops. It looks again at
every heartbeat and before the run is ended, so that a claim that arrived late costs doubled work, never a
doubled result.
"""

from __future__ import annotations

import logging
import math
import time as clock
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import Timeout
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException

from medst.tracking import names
from medst.tracking.connection import TrackingPlace, client, ensure_experiment, is_away
from medst.tracking.spool import Entry, Spool, spool_lock

_LOG = logging.getLogger(__name__)

BATCH_METRICS = 900
BATCH_OTHERS = 90
"""MLflow takes 1000 metrics, 100 params and 100 tags in one batch; some tags are added on the way."""

SETTLE_SECONDS = 1.0
"""How long a claim in a server's store may take to become visible to rivals."""
HEARTBEAT_SECONDS = 60.0
"""Time between two signs of life of a run."""
STALE_SECONDS = 900.0
"""A run that is RUNNING without a sign of life for so long has lost its process."""

_FIRST_WAIT_SECONDS = 5.0
_LONGEST_WAIT_SECONDS = 60.0


class TrialBusyError(ValueError):
    """Another process computes the trial, or has computed it."""

    def __init__(self, trial: str, uri: str, is_finished: bool) -> None:
        super().__init__(f"trial {trial}: another process that uses {uri} {'computed' if is_finished else 'computes'} "
                         "it")
        self.is_finished = is_finished


def is_alive(run: Run, now: float | None = None) -> bool:
    """True where the store calls the run RUNNING and it has shown a sign of life lately."""
    if run.info.status != "RUNNING":
        return False
    heartbeat = float(run.data.tags.get(names.HEARTBEAT, run.info.start_time / 1000))
    return (clock.time() if now is None else now) - heartbeat < STALE_SECONDS


def find_run(uri: str, experiment_id: str, tag: str, value: str) -> Run | None:
    """The run that carries `tag` = `value`.

    There may be a second one: made by a create request whose answer was lost, or by a rival in the same moment.
    A finished one stands, else the oldest; the others are deleted unless a rival is at them, who will see to it.
    """
    quoted = value.replace("'", "''")
    runs = sorted(client(uri).search_runs([experiment_id], f"tags.`{tag}` = '{quoted}'", max_results=10),
                  key=lambda run: (run.info.status != "FINISHED", run.info.start_time, run.info.run_id))
    for extra in runs[1:]:
        if extra.data.tags.get(names.OWNER) == runs[0].data.tags.get(names.OWNER) or not is_alive(extra):
            delete_run(uri, extra.info.run_id)
    return runs[0] if runs else None


def delete_run(uri: str, run_id: str) -> None:
    """Delete a run that a rival may be deleting, too."""
    try:
        client(uri).delete_run(run_id)
    except MlflowException as error:
        if is_away(error):
            raise


def find_or_create_run(uri: str, experiment_id: str, tag: str, value: str, name: str,
                       tags: dict[str, str], start_time: int | None = None) -> tuple[Run, bool]:
    """The run that carries `tag` = `value`, made with `tags` if absent, and whether it was made."""
    found = find_run(uri, experiment_id, tag, value)
    if found is not None:
        return found, False
    made = client(uri).create_run(experiment_id, start_time=start_time, tags={tag: value, **tags}, run_name=name)
    # Asked again after a lost answer, a server has made two.
    return find_run(uri, experiment_id, tag, value) or made, True


class Drain:
    """Carries one spool into its run; keeps what it knows of the run between calls."""

    def __init__(self, spool: Spool, place: TrackingPlace) -> None:
        self.spool = spool
        self._place = place
        self._uri = place.uri
        self.run_id: str | None = None
        self._claimed_at = -math.inf
        self._confirmed_at: float | None = None
        self._beat_at = -math.inf
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
            TrialBusyError: the run belongs to another process.
            MlflowException: the store understood and refused.
        """
        if clock.monotonic() < self._not_before:
            return False
        try:
            self._drain()
        except Exception as error:
            if not is_away(error):
                raise
            _LOG.warning("tracking store %s is away (%s); nothing is lost, next try in %.0f s",
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

    def beat(self) -> None:
        """Give a sign of life where the last one is older than HEARTBEAT_SECONDS and the store answers."""
        now = clock.monotonic()
        if self.run_id is None or self._is_terminated or now - self._beat_at < HEARTBEAT_SECONDS \
                or now < self._not_before:
            return
        try:
            client(self._uri).set_tag(self.run_id, names.HEARTBEAT, str(int(clock.time())))
        except MlflowException as error:
            # An absent store, or a run that a rival deleted: the next drain finds out and says so.
            _LOG.debug("no sign of life could be given: %s", error)
        self._beat_at = now

    def _confirm(self, is_last: bool) -> None:
        """Make sure, where no lock does, that the run is still ours.

        Raises:
            TrialBusyError: it is not; what this process made of it is deleted.
        """
        if self._place.is_local:
            return
        waiting = self._claimed_at + SETTLE_SECONDS - clock.monotonic()
        if waiting > 0:
            if not is_last:
                return
            clock.sleep(waiting)
        elif self._confirmed_at is not None and not is_last \
                and clock.time() - self._confirmed_at < HEARTBEAT_SECONDS:
            # By the clock on the wall: it goes on while a machine sleeps.
            return
        assert self.run_id is not None
        experiment_id = ensure_experiment(self._uri, self._place.experiment)
        standing = find_run(self._uri, experiment_id, names.KEY, self.spool.run["key"])
        if standing is not None and standing.info.run_id == self.run_id \
                and standing.data.tags.get(names.OWNER) == self.spool.identity:
            self._confirmed_at = clock.time()
            return
        if standing is not None and standing.info.run_id != self.run_id:
            delete_run(self._uri, self.run_id)
        raise TrialBusyError(self.spool.run["name"], self._uri,
                             standing is not None and standing.info.status == "FINISHED")

    def _drain(self) -> None:
        if self.run_id is None:
            self._open_run()
        assert self.run_id is not None
        self._confirm(is_last=False)
        store = client(self._uri)
        # As they are now: the trial may add more meanwhile.
        entries = list(self.spool.entries)
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
            if end not in (names.TrialState.FAILED.value, names.TrialState.PRUNED.value):
                # The failure of an earlier attempt, from which the trial went on.
                tags.pop(names.FAILURE, None)
            tags[names.HEARTBEAT] = str(int(clock.time()))
            tags[names.DRAINED] = f"{self.spool.identity}:{batch[-1].number}"
            store.log_batch(self.run_id, list(metrics.values()), [Param(*item) for item in params.items()],
                            [RunTag(*item) for item in tags.items()])
            self._beat_at = clock.monotonic()
            self._known_params |= params.keys()
            self._known_metrics |= metrics.keys()
            self._done = batch[-1].number
        if end is not None and not self._is_terminated:
            self._confirm(is_last=True)
            # When the store learned of it, not when it was: the ledger asks for what ended since it last looked.
            store.set_terminated(self.run_id, names.MLFLOW_STATUS[end], end_time=int(clock.time() * 1000))
            self._is_terminated = True

    def _open_run(self) -> None:
        described = self.spool.run
        store = client(self._uri)
        run, _ = find_or_create_run(
            self._uri, ensure_experiment(self._uri, self._place.experiment), names.KEY, described["key"],
            described["name"], {names.KIND: "trial", names.OWNER: self.spool.identity, **described["tags"]},
            start_time=described["time"])
        run_id = run.info.run_id
        if run.data.tags.get(names.OWNER) != self.spool.identity:
            is_finished = run.info.status == "FINISHED"
            if is_finished or (not self._place.is_local and is_alive(run)):
                raise TrialBusyError(described["name"], self._uri, is_finished)
            store.log_batch(run_id, tags=[RunTag(names.OWNER, self.spool.identity),
                                          RunTag(names.HEARTBEAT, str(int(clock.time())))])
        self._claimed_at = clock.monotonic()
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

    Args:
        patience_seconds: how long an absent store is waited for, in all.
    """
    deadline = clock.monotonic() + patience_seconds
    is_reachable = True
    completed: list[str] = []
    waiting: list[str] = []
    for path in sorted((place.folder / "spool").glob("*")):
        lock = spool_lock(place, path.name)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue
        try:
            if not Spool.exists(path):
                continue
            spool = Spool(path, {})
            is_ended = has_ended(spool)
            try:
                # A store that is away for one is away for all.
                is_drained = is_reachable and Drain(spool, place).insist(deadline - clock.monotonic())
                is_reachable = is_drained
            except TrialBusyError as error:
                # Computed elsewhere after the process that wrote this was lost.
                if error.is_finished:
                    spool.remove()
                else:
                    spool.close()
                continue
            if is_ended:
                (completed if is_drained else waiting).append(path.name)
            if is_drained and is_ended and spool.entries[-1].end in names.SETTLED:
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
