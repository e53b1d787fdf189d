"""What a ledger must know of every trial in the store.

What lives here: one small record a run, and, beside a server, the file that keeps those of ended runs between two
readings. What must not: metrics, curves, tables (see `reading` and `snapshot`); any judgement of what is to be run.

A SQLite store is read whole each time, from its tables. Any other is read again only where it can have changed: MLflow
gives whole runs or nothing, at about a millisecond each, and does not say when a run was last changed. But
whatever this package changes of an ended run leaves a trace that is cheap to ask for: a run that goes on is RUNNING
and afterwards ends later than the last reading; tags of further studies move `medst.tagged` of the study's run. Runs
that were deleted are asked for as such. Where something else is found (another experiment of that name, a run that is
gone, a deleted one that came back, a reading older than a day), everything is read again.
"""

from __future__ import annotations

import hashlib
import json
import os
import time as clock
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mlflow.entities import Run, ViewType
from mlflow.exceptions import MlflowException

from medst.tracking import names
from medst.tracking.connection import TrackingPlace, client, find_experiment, is_away, reaching
from medst.tracking.names import TrialState
from medst.tracking.reading import search_all_runs, state_from
from medst.tracking.source import database_source

_TAGS = (names.KIND, names.KEY, names.STATE, names.HEARTBEAT, names.OWNER, names.PARENT, names.CPUS, names.GPUS,
         names.FAILURE)
_METRICS = (names.SECONDS_METRIC, names.LOST_SECONDS_METRIC)
"""What of a run is asked for; besides the tags that name its studies."""
_IS_TRIAL = f"tags.`{names.KIND}` = 'trial'"
_LAYOUT = 1
"""Version of the file; one of another version is not read."""
_WORTH_KEEPING = 300
"""Ended runs below which a store is read whole each time: it takes less than a second."""
_OVERLAP_MILLISECONDS = 3_600_000
"""How far the clocks of the machines that share a store may differ."""
_LONGEST_MILLISECONDS = 24 * 3_600_000
"""Age of the last whole reading beyond which everything is read again."""


@dataclass(frozen=True)
class TrialRun:
    """What a ledger must know of a run."""

    key: str
    run_id: str
    status: str
    """MLflow's."""
    start_time: int
    """Milliseconds since 1970, as all times here."""
    end_time: int | None = None
    state_tag: str | None = None
    heartbeat: str | None = None
    owner: str | None = None
    """Identity of the spool from which it is written."""
    parent_run_id: str | None = None
    """Run of the study for which it was computed first."""
    seconds: float | None = None
    """Of computing over all attempts that ended in an orderly way, and the lost ones that it went on from."""
    lost_seconds: float = 0.0
    cpus: float = 1.0
    gpus: float = 0.0
    reason: str | None = None
    """Why it failed or was pruned."""
    studies: Mapping[str, str] = field(default_factory=dict)
    """Study -> arm."""

    @property
    def state(self) -> TrialState:
        """As far as the store knows: RUNNING without a sign of life counts as missing."""
        return state_from(self.status, self.state_tag, self.heartbeat, self.start_time)

    @property
    def is_marked_running(self) -> bool:
        return self.status == "RUNNING"


def trial_runs(place: TrackingPlace) -> list[TrialRun]:
    """All trials of the experiment, oldest first.

    Raises:
        TrackingError: the store is away.
    """
    with reaching(place.uri):
        experiment = find_experiment(place.uri, place.experiment)
        if experiment is None:
            return []
        tables = database_source(place.uri, experiment.experiment_id) if place.is_local else None
        if tables is not None:
            return [_trial_run(*row) for row in tables.some(_TAGS, names.STUDY_PREFIX, _METRICS)
                    if row[4].get(names.KIND) == "trial"]
        path = _file(place)
        kept = _load(path, place, [place.uri, experiment.experiment_id, experiment.creation_time])
        runs = {run.run_id: run for run in kept.read().values()}
        kept.save(path, runs.values())
    return sorted(runs.values(), key=lambda run: (run.start_time, run.run_id))


def _file(place: TrackingPlace) -> Path:
    digest = hashlib.sha256(f"{place.uri}\0{place.experiment}".encode()).hexdigest()[:16]
    return place.folder / "cache" / f"trials-{digest}.json"


@dataclass
class _Kept:
    """The ended runs of the last reading, and what tells whether they still are as they were."""

    place: TrackingPlace
    identity: list[Any]
    whole_at: int = 0
    """When everything was read; 0: never."""
    read_at: int = 0
    runs: dict[str, TrialRun] = field(default_factory=dict)
    deleted: set[str] = field(default_factory=set)
    tagged: dict[str, str] = field(default_factory=dict)
    """Study -> its `medst.tagged`."""

    def read(self) -> dict[str, TrialRun]:
        """All runs as they are now."""
        now = clock.time_ns() // 1_000_000
        # Asked for first: what changes while the runs are read shows the next time.
        tagged = {run.data.tags[names.STUDY]: run.data.tags.get(names.TAGGED, "")
                  for run in self._search(f"tags.`{names.KIND}` = 'study'")}
        deleted = {run.info.run_id for run in self._search(_IS_TRIAL, ViewType.DELETED_ONLY)}
        if self._is_in_doubt(now, deleted):
            found = {run.info.run_id: _told(run) for run in self._search(_IS_TRIAL)}
            self.whole_at = now
        else:
            since = self.read_at - _OVERLAP_MILLISECONDS
            changed = [f"{_IS_TRIAL} AND attributes.status = 'RUNNING'",
                       f"{_IS_TRIAL} AND attributes.end_time >= {since}",
                       *(f"{_IS_TRIAL} AND tags.`{names.STUDY_PREFIX}{study}` LIKE '%'"
                         for study, stamp in tagged.items() if stamp != self.tagged.get(study, ""))]
            found = {run_id: run for run_id, run in self.runs.items() if run_id not in deleted}
            found.update({run.info.run_id: _told(run) for filter_string in changed
                          for run in self._search(filter_string)})
        self.read_at, self.deleted, self.tagged = now, deleted, tagged
        return found

    def _search(self, filter_string: str, view: int = ViewType.ACTIVE_ONLY) -> Iterator[Run]:
        return search_all_runs(self.place.uri, self.place.experiment, filter_string, view)

    def _is_in_doubt(self, now: int, deleted: set[str]) -> bool:
        if not 0 <= now - self.whole_at < _LONGEST_MILLISECONDS or not self.runs or self.deleted - deleted:
            return True
        newest = max(self.runs.values(), key=lambda run: run.end_time or 0)
        try:
            return bool(client(self.place.uri).get_run(newest.run_id).info.end_time != newest.end_time)
        except MlflowException as error:
            if is_away(error):
                raise
            return True

    def save(self, path: Path, runs: Iterable[TrialRun]) -> None:
        """Keep the ended runs where that is worth it. A disk that refuses costs the next reader time, no more."""
        ended = [asdict(run) for run in runs if run.end_time is not None and not run.is_marked_running]
        if len(ended) < _WORTH_KEEPING:
            return
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps({
                "layout": _LAYOUT, "identity": self.identity, "whole_at": self.whole_at, "read_at": self.read_at,
                "deleted": sorted(self.deleted), "tagged": self.tagged, "runs": ended}), encoding="utf-8")
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)


def _load(path: Path, place: TrackingPlace, identity: list[Any]) -> _Kept:
    """What `path` holds of the experiment with that identity; nothing where it holds something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["layout"] == _LAYOUT and content["identity"] == identity:
            runs = {run["run_id"]: TrialRun(**run) for run in content["runs"]}
            return _Kept(place, identity, content["whole_at"], content["read_at"], runs, set(content["deleted"]),
                         content["tagged"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # Absent, damaged or foreign: everything is read.
    return _Kept(place, identity)


def _told(run: Run) -> TrialRun:
    """As MLflow's interface tells it."""
    info = run.info
    return _trial_run(info.run_id, info.status, info.start_time, info.end_time, run.data.tags, run.data.metrics)


def _trial_run(run_id: str, status: str, start_time: int, end_time: int | None, tags: Mapping[str, str],
               metrics: Mapping[str, float]) -> TrialRun:
    return TrialRun(
        key=tags[names.KEY], run_id=run_id, status=status, start_time=start_time, end_time=end_time,
        state_tag=tags.get(names.STATE), heartbeat=tags.get(names.HEARTBEAT),
        owner=tags.get(names.OWNER), parent_run_id=tags.get(names.PARENT),
        seconds=metrics.get(names.SECONDS_METRIC), lost_seconds=metrics.get(names.LOST_SECONDS_METRIC, 0.0),
        cpus=float(tags.get(names.CPUS, 1.0)), gpus=float(tags.get(names.GPUS, 0.0)), reason=tags.get(names.FAILURE),
        studies={name.removeprefix(names.STUDY_PREFIX): arm for name, arm in tags.items()
                 if name.startswith(names.STUDY_PREFIX)})
