"""What the command line calls: run a study, plan a study.

Running is resuming: both are the same call, which computes what the ledger does not have.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout
from rich.console import Console

from medst.config import parse_overrides
from medst.tracking import (
    TrackingPlace,
    TrialState,
    describe_environment,
    drain_spools,
    ensure_study_run,
    is_private_tracking_allowed,
)
from medst.tracking.spool import has_spool
from medst.tracking.studies import end_study_run
from sweeps.data import ensure_data, existing_data, needed_stores
from sweeps.ledger import adopt_shared, read_ledger, reap_lost
from sweeps.live import LiveView, progress_line
from sweeps.planning import Plan
from sweeps.study import Study, describe_study, find_study, load_study, plan_document
from sweeps.trials import DataFacts, Trial, checkpoint_dir, expand, specify
from sweeps.worker import TrialFunction

ExecutorName = Literal["ray", "inline"]

FINISHED_CODE = 0
UNFINISHED_CODE = 1
"""Some trials failed or are still missing."""
INTERRUPTED_CODE = 130


class StudyBusyError(ValueError):
    """Another process runs the same study on this project."""


def run_sweep(study: str, assignments: Sequence[str] = (), executor: ExecutorName = "ray", jobs: int | None = None,
              base: Path | None = None, data_root: Path | None = None, *, project: Path | None = None,
              should_retry_failed: bool = False, gpus_per_trial: float | None = None,
              trial_function: TrialFunction | None = None, console: Console | None = None) -> int:
    """Run the trials of a study that are not finished, and say what became of them.

    Args:
        study: name (`sweeps/<name>.yaml`) or path of a study file.
        assignments: `key=value` overrides of every arm.
        executor: `ray`, or `inline` for one trial after another in this process.
        jobs: trials at a time; default: the processors of this machine.
        base: experiment file instead of the study's own.
        data_root: data folder instead of the base's.
        project: folder of `mlflow.db` and `runs/`, and the start of relative paths; default: the current folder.
        should_retry_failed: compute failed trials again; otherwise they stay failed.
        gpus_per_trial: share of a GPU that a trial on `cuda` takes; default 1.

    Returns:
        Exit code: 0 all finished, 1 some failed or missing, 130 interrupted.

    Raises:
        ValueError: a study, override, data folder or store that cannot be used; nothing was started.
    """
    console = console or Console()
    project = (project or Path.cwd()).absolute()
    place = TrackingPlace.of_project(project)
    loaded = _load(study, assignments, base, data_root, project)
    num_parallel = 1 if executor == "inline" else jobs or os.cpu_count() or 1
    facts = ensure_data(loaded, project, os.cpu_count() or 1, progress_line(console))
    trials = expand(loaded, facts)

    with _only_driver(place, loaded.name):
        left_over = drain_spools(place, patience_seconds=10.0)
        if left_over.waiting:
            raise ValueError(f"tracking store {place.uri} is away, and {len(left_over.waiting)} ended trials wait for "
                             "it; start it, or set MLFLOW_TRACKING_URI")
        ledger = read_ledger(place, [trial.key for trial in trials])
        reap_lost(place, ledger)
        plan = Plan(loaded, trials, ledger, num_parallel)
        to_run = [trial for trial in trials if _is_to_run(plan, place, trial, should_retry_failed)]
        plan.show(console, len(to_run))
        study_run = ensure_study_run(
            place.uri, place.experiment, loaded.name, describe_study(loaded), plan_document(loaded, [
                {"key": trial.key, "arm": trial.arm, "seed": trial.seed} for trial in trials], trials[0].data.name),
            is_running=bool(to_run))
        adopt_shared(place, ledger, loaded.name, [(trial.key, trial.arm) for trial in trials])
        is_interrupted = False
        try:
            if to_run:
                specs = specify(to_run, study=loaded.name, place=place, project=project, parent_run_id=study_run,
                                environment=describe_environment(project),
                                is_private_tracked=is_private_tracking_allowed())
                seconds, _ = plan.seconds_per_trial()
                with LiveView(loaded.name, len(specs), seconds, num_parallel, console) as view:
                    if executor == "inline":
                        from sweeps.inline import run_inline

                        run_inline(specs, view, trial_function)
                    else:
                        from sweeps.cluster import run_on_ray

                        is_on_gpu = to_run[0].config.training.device.startswith("cuda")
                        run_on_ray(specs, view, place.folder / "ray" / loaded.name, num_parallel, trial_function,
                                   (1.0 if gpus_per_trial is None else gpus_per_trial) if is_on_gpu else 0.0)
        except KeyboardInterrupt:
            is_interrupted = True
        finally:
            drain_spools(place)
            ledger = read_ledger(place, plan.keys)
            reap_lost(place, ledger)
            # Another study may have brought in trials that this one asked for as well.
            adopt_shared(place, ledger, loaded.name, [(trial.key, trial.arm) for trial in trials])
            end_study_run(place.uri, study_run, len(ledger.keys_in(TrialState.FINISHED, plan.keys)) == len(trials))
        return _conclude(Plan(loaded, trials, ledger, num_parallel), place, console, is_interrupted)


def plan_sweep(study: str, assignments: Sequence[str] = (), executor: ExecutorName = "ray", jobs: int | None = None,
               base: Path | None = None, data_root: Path | None = None, *, project: Path | None = None,
               should_retry_failed: bool = False, console: Console | None = None) -> int:
    """Print what `run_sweep` with the same arguments would do. Makes and runs nothing."""
    console = console or Console()
    project = (project or Path.cwd()).absolute()
    place = TrackingPlace.of_project(project)
    loaded = _load(study, assignments, base, data_root, project)
    num_parallel = 1 if executor == "inline" else jobs or os.cpu_count() or 1
    facts = existing_data(loaded, project)
    if facts is None:
        console.print("The data are not prepared yet: what is done already shows when they are.", highlight=False)
        facts = dict.fromkeys(needed_stores(loaded), DataFacts("not prepared", "", is_credentialed=True))
    trials = expand(loaded, facts)
    plan = Plan(loaded, trials, read_ledger(place, [trial.key for trial in trials]), num_parallel)
    plan.show(console, sum(_is_to_run(plan, place, trial, should_retry_failed) for trial in trials))
    return FINISHED_CODE


def _load(study: str, assignments: Sequence[str], base: Path | None, data_root: Path | None, project: Path) -> Study:
    overrides = parse_overrides(assignments)
    if data_root is not None:
        overrides["data.root"] = str(data_root)
    return load_study(find_study(study, project), overrides=overrides, base=[base] if base else [], project=project)


def _is_to_run(plan: Plan, place: TrackingPlace, trial: Trial, should_retry_failed: bool) -> bool:
    """Missing trials, and pruned ones: pruning belongs to a search. What another study computes on this disk
    counts too: the worker waits for it."""
    match plan.ledger[trial.key].state:
        case TrialState.FINISHED:
            return False
        case TrialState.FAILED:
            return should_retry_failed
        case TrialState.RUNNING:
            return has_spool(place.folder, trial.key)
    return True


@contextmanager
def _only_driver(place: TrackingPlace, study: str) -> Iterator[None]:
    """Refuse a second driver of one study: they would only wait for each other's trials."""
    locks = place.folder / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    lock = FileLock(locks / f"study-{study}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise StudyBusyError(f"study '{study}' is being run by another process in {place.folder.parent}; wait for it "
                             "or stop it, then run the same command again") from None
    try:
        yield
    finally:
        lock.release()


def _conclude(plan: Plan, place: TrackingPlace, console: Console, is_interrupted: bool) -> int:
    for key in plan.ledger.keys_in(TrialState.FINISHED, plan.keys):
        # Left by a process that was killed after the trial's end.
        shutil.rmtree(checkpoint_dir(place, key), ignore_errors=True)
    num_finished = plan.count(TrialState.FINISHED)
    num_left = len(plan.trials) - num_finished
    if is_interrupted:
        console.print(f"Stopped: {num_finished} of {len(plan.trials)} trials are finished. The same command goes on "
                      "from here.", highlight=False)
        return INTERRUPTED_CODE
    if num_left == 0:
        console.print(f"{plan.study.name}: all {num_finished} trials are finished. Store: {place.uri}",
                      highlight=False, soft_wrap=True)
        return FINISHED_CODE
    for trial in plan.trials:
        entry = plan.ledger[trial.key]
        if entry.state is TrialState.FAILED:
            console.print(f"failed: {trial.name}: {entry.reason} (run {entry.run_id})", markup=False, highlight=False,
                          soft_wrap=True)
    num_failed = plan.count(TrialState.FAILED)
    if num_failed:
        console.print(f"{num_failed} of {len(plan.trials)} trials failed; each run keeps its traceback under "
                      "Artifacts, failure/. `--retry-failed` computes them again.", highlight=False)
    if num_left - num_failed:
        console.print(f"{num_left - num_failed} trials are missing; the same command goes on from here.",
                      highlight=False)
    return UNFINISHED_CODE
