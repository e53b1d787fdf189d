"""The ledger: for every trial key the one state it is in, read from the tracking store.

The store alone decides; the locks on this disk only tell a run that is alive from one whose process was
killed a moment ago.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from medst.tracking import TrackingPlace, TrialState
from medst.tracking.reading import trial_runs
from medst.tracking.spool import has_spool, is_held
from medst.tracking.studies import reap, tag_trials


@dataclass(frozen=True)
class LedgerEntry:
    """What the store knows about one key."""

    state: TrialState
    run_id: str | None = None
    seconds: float | None = None
    """Seconds of computing, where finished."""
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

    def __getitem__(self, key: str) -> LedgerEntry:
        return self.entries.get(key, ABSENT)

    def keys_in(self, state: TrialState, keys: Iterable[str]) -> list[str]:
        return [key for key in keys if self[key].state is state]

    def measured_seconds(self, keys: Iterable[str]) -> list[float]:
        """Seconds of the finished trials among `keys`."""
        return [seconds for key in keys if (seconds := self[key].seconds) is not None]


def read_ledger(place: TrackingPlace, keys: Iterable[str]) -> Ledger:
    """The state of each key. One key has one run; were there two, the finished one stands."""
    wanted = set(keys)
    entries: dict[str, LedgerEntry] = {}
    for run in trial_runs(place.uri, place.experiment):
        if run.key not in wanted or (run.key in entries and run.state is not TrialState.FINISHED):
            continue
        state = run.state
        if run.is_marked_running and has_spool(place.folder, run.key):
            # Computed on this machine: the lock knows better than the clock.
            state = TrialState.RUNNING if is_held(place.folder, run.key) else TrialState.MISSING
        entries[run.key] = LedgerEntry(state, run.run_id, run.seconds if state is TrialState.FINISHED else None,
                                       run.reason, run.studies, run.is_marked_running)
    return Ledger(entries)


def reap_lost(place: TrackingPlace, ledger: Ledger) -> int:
    """End the runs that the store calls RUNNING although their process is gone; returns their number."""
    lost = [entry.run_id for entry in ledger.entries.values()
            if entry.is_marked_running and entry.state is TrialState.MISSING and entry.run_id is not None]
    reap(place.uri, lost)
    return len(lost)


def adopt_shared(place: TrackingPlace, ledger: Ledger, study: str, arms: Iterable[tuple[str, str]]) -> int:
    """Tag runs that are there already as trials of `study`; returns how many were new to it.

    Args:
        arms: (key, arm) of the study's trials.
    """
    new = list(_new_to(ledger, study, arms))
    tag_trials(place.uri, study, new)
    return len(new)


def _new_to(ledger: Ledger, study: str, arms: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    for key, arm in arms:
        entry = ledger[key]
        if entry.run_id is not None and (entry.studies or {}).get(study) != arm:
            yield entry.run_id, arm
