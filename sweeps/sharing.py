"""Several drivers on one store: each runs what is missing, waits for what others compute, takes over what they leave.

What lives here: the order of these steps. What must not: how a trial is claimed (`medst.tracking.drain`) or run.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from rich.console import Console

from medst.tracking import TrackingPlace, TrialState
from medst.tracking.connection import TrackingError
from sweeps.ledger import read_ledger, reap_lost
from sweeps.trials import Trial

POLL_SECONDS = 5.0
"""Between two looks at the trials of other drivers."""


def run_with_others(trials: Sequence[Trial], run: Callable[[Sequence[Trial]], None], place: TrackingPlace,
                    console: Console) -> None:
    """Run each of `trials` that nobody computes, then stay until the others have ended, whoever ends them.

    A trial whose driver or machine is lost turns missing when its lock is free or, beside a server, when it has shown
    no sign of life for `medst.tracking.drain.STALE_SECONDS`; then it is run here, once more.

    Args:
        run: runs trials; one that turns out to be another driver's is left alone.
    """
    ledger = read_ledger(place, [trial.key for trial in trials])
    waiting = [trial for trial in trials if ledger[trial.key].state is TrialState.RUNNING]
    own = [trial for trial in trials if ledger[trial.key].state is not TrialState.RUNNING]
    while True:
        if own:
            run(own)
            # Some may have been taken by others in between.
            waiting += _running(own, place, waiting)
        if not waiting:
            return
        console.print(f"{len(waiting)} trials are being computed by other drivers; waiting for them.", highlight=False)
        own = []
        while waiting and not own:
            time.sleep(POLL_SECONDS)
            try:
                ledger = read_ledger(place, [trial.key for trial in waiting])
                reap_lost(place, ledger)
            except TrackingError as error:
                logging.getLogger(__name__).warning("%s", error)
                continue
            own = [trial for trial in waiting if ledger[trial.key].state is TrialState.MISSING]
            waiting = [trial for trial in waiting if ledger[trial.key].state is TrialState.RUNNING]


def _running(trials: Sequence[Trial], place: TrackingPlace, waiting: Sequence[Trial]) -> list[Trial]:
    known = {trial.key for trial in waiting}
    try:
        ledger = read_ledger(place, [trial.key for trial in trials])
    except TrackingError:
        # What was computed waits in the spools; the driver's end says so.
        return []
    return [trial for trial in trials if trial.key not in known and ledger[trial.key].state is TrialState.RUNNING]
