"""Runs trials one after another in this process: for the debugger, the profiler, and machines without Ray."""

from __future__ import annotations

from collections.abc import Sequence

from medst.records import Progress
from sweeps.live import LiveView
from sweeps.trials import TrialSpec
from sweeps.worker import Outcome, TrialFunction, default_trial_function, execute


def run_inline(specs: Sequence[TrialSpec], view: LiveView,
               trial_function: TrialFunction | None = None) -> list[Outcome]:
    """The outcome of every trial, in order."""
    function = trial_function or default_trial_function()
    outcomes = []
    for spec in specs:
        view.started(spec.name)

        def report(progress: Progress, name: str = spec.name) -> None:
            view.progressed(name, progress.step, progress.num_steps)

        outcome = execute(spec, function, report)
        view.ended(outcome)
        outcomes.append(outcome)
    return outcomes
