"""The ledger: for every trial key the one state it is in, read from the tracking store; and what it all cost.

The store alone decides; locks only tell a run that is alive from one whose process was killed a moment ago: those
beside a store that is a file, for all who use it; those on this disk, where the store is a server, for the trials that
this disk holds. For the trials of other machines a server's store knows the last sign of life.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from medst.tracking import TrackingPlace, TrialState, adopted_keys
from medst.tracking.connection import reaching
from medst.tracking.index import TrialRun, trial_runs
from medst.tracking.spool import is_held, spool_identity
from medst.tracking.studies import reap, tag_trials


@dataclass(frozen=True)
class LedgerEntry:
    """What the store knows about one key."""

    state: TrialState
    run_id: str | None = None
    seconds: float | None = None
    """Seconds of computing over all attempts, however the trial ended; None where it has not."""
    lost_seconds: float = 0.0
    """Of these, computed in vain: after the last checkpoint of an attempt that was cut short."""
    cpus: float = 1.0
    gpus: float = 0.0
    """What was kept for the trial."""
    parent_run_id: str | None = None
    """Run of the study for which it was computed first."""
    reason: str | None = None
    """Why it failed or was pruned."""
    studies: Mapping[str, str] | None = None
    """Study -> arm, for every study that the run serves."""
    is_marked_running: bool = False
    """True where the store still says RUNNING, alive or not."""


ABSENT = LedgerEntry(TrialState.MISSING)


@dataclass(frozen=True)
class Ledger:
    """Key -> entry; keys without a run are missing."""

    entries: Mapping[str, LedgerEntry]
    lost: tuple[str, ...] = ()
    """Runs, of any key, that the store calls RUNNING although their process is gone."""

    def __getitem__(self, key: str) -> LedgerEntry:
        return self.entries.get(key, ABSENT)

    def keys_in(self, state: TrialState, keys: Iterable[str]) -> list[str]:
        return [key for key in keys if self[key].state is state]

    def measured_seconds(self, keys: Iterable[str]) -> list[float]:
        """Seconds of the finished trials among `keys`."""
        entries = (self[key] for key in keys)
        return [entry.seconds for entry in entries
                if entry.state is TrialState.FINISHED and entry.seconds is not None]


def read_ledger(place: TrackingPlace, keys: Iterable[str]) -> Ledger:
    """The state of each key. One key has one run; were there two, the finished one stands.

    A finished trial of earlier code stands for its key under the present code where that was adopted.

    Raises:
        TrackingError: the store is away.
    """
    wanted = set(keys)
    with reaching(place.uri):
        adopted = adopted_keys(place.uri, place.experiment)
    entries: dict[str, LedgerEntry] = {}
    lost: list[str] = []
    for run in trial_runs(place):
        if run.is_marked_running and _state(place, run) is TrialState.MISSING:
            lost.append(run.run_id)
        is_finished = run.state is TrialState.FINISHED
        key = adopted.get(run.key, run.key) if is_finished else run.key
        if key not in wanted or (key in entries and not is_finished):
            continue
        entries[key] = LedgerEntry(
            _state(place, run), run.run_id, run.seconds, run.lost_seconds, run.cpus, run.gpus, run.parent_run_id,
            run.reason, run.studies, run.is_marked_running)
    return Ledger(entries, tuple(lost))


def _state(place: TrackingPlace, run: TrialRun) -> TrialState:
    if run.is_marked_running and (place.is_local or run.owner == spool_identity(place.folder, run.key)):
        # The lock knows better than the clock.
        return TrialState.RUNNING if is_held(place, run.key) else TrialState.MISSING
    return run.state


def reap_lost(place: TrackingPlace, ledger: Ledger) -> int:
    """End the runs that the store calls RUNNING although their process is gone; returns their number.

    Also those of keys that nobody asks for any more, as after a change of the code between a kill and the next start.
    """
    with reaching(place.uri):
        reap(place.uri, ledger.lost)
    return len(ledger.lost)


def adopt_shared(place: TrackingPlace, ledger: Ledger, study: str, arms: Iterable[tuple[str, str]]) -> int:
    """Tag runs that are there already as trials of `study`; returns how many were new to it.

    Args:
        arms: (key, arm) of the study's trials.
    """
    new = list(_new_to(ledger, study, arms))
    with reaching(place.uri):
        tag_trials(place.uri, place.experiment, study, new)
    return len(new)


def _new_to(ledger: Ledger, study: str, arms: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    for key, arm in arms:
        entry = ledger[key]
        if entry.run_id is not None and (entry.studies or {}).get(study) != arm:
            yield entry.run_id, arm
