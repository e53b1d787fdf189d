"""The trials of a search on Ray Tune, one after the other as the conductor hands them out, on warm workers.

Tune schedules and restarts what is lost. What is proposed, judged and remembered is none of its business.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

# First: it settles the environment before Ray is imported.
from sweeps.cluster import MAX_FITS, REPORT_SECONDS, Messenger, ray_session, run_tune

# isort: split
from ray import tune
from ray.tune.search import Searcher

from medst.records import Progress
from medst.tracking import TrialState
from sweeps.live import LiveView
from sweeps.searching.conductor import Conductor
from sweeps.searching.rungs import Rungs, watched
from sweeps.trials import TrialSpec
from sweeps.worker import Outcome, TrialFunction, default_trial_function, execute

_NO_MORE: Any = Searcher.FINISHED
_SPEC = "spec"
"""Key of Tune's configuration of a trial: the whole specification as JSON, which Tune carries as it is."""


def run_search_on_ray(conductor: Conductor, rungs: Rungs | None, view: LiveView, folder: Path, num_parallel: int,
                      trial_function: TrialFunction | None = None, num_cpus: int = 1, num_gpus: float = 0.0) -> None:
    """Run trials until the conductor has no more.

    Args:
        folder: absolute; Tune's scratch folder, of this caller alone; removed before and afterwards.
        num_parallel: trials at a time; no proposal is made before a worker is free for it.
    """
    shutil.rmtree(folder, ignore_errors=True)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    with ray_session(num_parallel):
        for fit in range(MAX_FITS):
            try:
                _fit(conductor, rungs, view, folder, num_parallel, trial_function, num_cpus, num_gpus)
            except RuntimeError as error:
                if fit == MAX_FITS - 1:
                    raise
                logging.getLogger(__name__).warning("Ray Tune gave up (%s); going on", error)
                conductor.take_back()
            else:
                break
    shutil.rmtree(folder, ignore_errors=True)


def _train(config: dict[str, Any], rungs: Rungs | None, trial_function: TrialFunction | None) -> None:
    """The function trainable: one trial of the search."""
    spec = _spec(config)
    function = trial_function or default_trial_function()
    if rungs is not None:
        function = watched(function, spec.key, rungs)
    reported = time.monotonic()

    def report(progress: Progress) -> None:
        nonlocal reported
        if time.monotonic() - reported > REPORT_SECONDS:
            reported = time.monotonic()
            tune.report({"step": progress.step, "num_steps": progress.num_steps})

    outcome = execute(spec, function, report)
    tune.report({"state": outcome.state.value, "reason": outcome.reason})


def _spec(config: dict[str, Any]) -> TrialSpec:
    return TrialSpec(**json.loads(config[_SPEC]))


class _Asker(Searcher):
    """Tune's view of the conductor."""

    def __init__(self, conductor: Conductor, messenger: Messenger, num_parallel: int,
                 on_error: Callable[[Exception], None]) -> None:
        super().__init__()
        self._conductor = conductor
        self._messenger = messenger
        self._num_parallel = num_parallel
        self._on_error = on_error
        self._running: dict[str, TrialSpec] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        # Tune asks ahead of a free worker; a proposal should know what the trials before it found.
        if len(self._running) >= self._num_parallel:
            return None
        try:
            spec = self._conductor.next_spec()
        except Exception as error:
            # Tune would swallow it.
            self._on_error(error)
            return _NO_MORE
        if spec is None:
            return None if self._running else _NO_MORE
        self._running[trial_id] = spec
        return {_SPEC: json.dumps(asdict(spec))}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        pass

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        spec = self._running.pop(trial_id)
        lost = Outcome(spec.key, spec.name, TrialState.MISSING, "its worker was lost")
        try:
            self._conductor.ended(self._messenger.outcomes.get(spec.key, lost))
        except Exception as failure:
            self._on_error(failure)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the tracking store remembers."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: Tune is never restored."""


def _fit(conductor: Conductor, rungs: Rungs | None, view: LiveView, folder: Path, num_parallel: int,
         trial_function: TrialFunction | None, num_cpus: int, num_gpus: float) -> None:
    errors: list[Exception] = []
    messenger = Messenger(_spec, view)
    resources: dict[str, float] = {"cpu": num_cpus}
    if num_gpus:
        resources["gpu"] = num_gpus
    trainable = tune.with_resources(
        tune.with_parameters(_train, rungs=rungs, trial_function=trial_function), resources)
    run_tune(trainable, tune.TuneConfig(
        reuse_actors=True, search_alg=_Asker(conductor, messenger, num_parallel, errors.append), num_samples=-1,
        max_concurrent_trials=None, trial_dirname_creator=lambda trial: trial.trial_id), messenger, folder)
    if errors:
        raise errors[0]
