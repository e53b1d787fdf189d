"""What one process does for one trial, whichever executor started it."""

from __future__ import annotations

import atexit
import ctypes
import gc
import shutil
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from medst.config import Config, source_fingerprint
from medst.records import Progress, Pruned, Record
from medst.tracking import TrialState, track, without_identifiers
from medst.tracking.drain import TrialBusyError
from medst.tracking.spool import is_disk_full
from sweeps.trials import TrialSpec

TrialFunction = Callable[[Config, Path | None], Iterator[Record]]
"""(config, checkpoint folder) -> records; `medst.trial.run_trial` unless a test says otherwise."""


@dataclass(frozen=True)
class Outcome:
    """How the execution of one trial ended."""

    key: str
    name: str
    state: TrialState
    """FINISHED, FAILED, PRUNED by a search, RUNNING where another driver computes it, or MISSING where it has to be run
    again."""
    reason: str = ""


def at_home(spec: TrialSpec, reason: str) -> str:
    """A reason as it may leave the worker: an outcome passes through files of Ray and the terminal."""
    return without_identifiers(reason) if spec.description["is_credentialed"] else reason


def default_trial_function() -> TrialFunction:
    from medst.trial import run_trial

    return run_trial


def _give_memory_back() -> None:
    """Return what a trial held to the system, for the next trial of this process.

    Its tensors hang in reference cycles, and among a million older objects the collector comes too seldom. Ray runs
    every trial in a new thread, whose heap glibc keeps full of freed pages unless it is asked to trim.

    What is there after the first trial are modules and open stores, which stay: later collections leave them out.
    """
    gc.collect()
    if gc.get_freeze_count() == 0:
        gc.freeze()
        # Libraries that look for leaks at the end of the process would take the frozen objects for such.
        atexit.register(gc.unfreeze)
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)


def execute(spec: TrialSpec, trial_function: TrialFunction, on_progress: Callable[[Progress], None]) -> Outcome:
    """Run one trial, tracked, from its checkpoint where there is one.

    An exception of the trial is its outcome, not ours; what ends the process (a signal, lost memory) passes. A full
    disk is no fault of the trial: it is missing, and goes on where it stopped.
    """
    import torch

    if source_fingerprint() != spec.description["source_fingerprint"]:
        # Its numbers would belong to another key.
        return Outcome(spec.key, spec.name, TrialState.MISSING, "the source changed after the sweep had begun")
    torch.set_num_threads(spec.num_threads)
    folder = Path(spec.checkpoint_dir)
    outcome = Outcome(spec.key, spec.name, TrialState.FINISHED)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        config = spec.run_config()
        # The trial leaves its model there; flagged trials keep it.
        model_folder = folder / "model" if config.evaluation.track_embeddings else None
        for record in track(trial_function(config, folder), spec.trial_description(), spec.tracking_place(),
                            model_folder):
            if isinstance(record, Progress):
                on_progress(record)
            elif isinstance(record, Pruned):
                outcome = Outcome(spec.key, spec.name, TrialState.PRUNED, record.reason)
    except TrialBusyError as error:
        state = TrialState.FINISHED if error.is_finished else TrialState.RUNNING
        return Outcome(spec.key, spec.name, state, str(error))
    except Exception as error:
        if is_disk_full(error):
            return Outcome(spec.key, spec.name, TrialState.MISSING, f"no space is left for {spec.folder}: free some, "
                           "then run the same command again; the trial goes on from its last checkpoint")
        reason = traceback.format_exception_only(error)[-1].strip()
        return Outcome(spec.key, spec.name, TrialState.FAILED, at_home(spec, reason))
    finally:
        _give_memory_back()
    shutil.rmtree(folder, ignore_errors=True)
    return outcome


def give_up(spec: TrialSpec, error: Exception) -> Outcome:
    """Write down that a trial failed whose process could not do so itself."""
    def fail() -> Record:
        raise error

    return execute(spec, lambda config, folder: iter(fail, None), lambda progress: None)
