"""What the command line calls: run a study, plan a study, tell how it stands.

Running is resuming: both are the same call, which computes what the ledger does not have.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout
from rich.console import Console

from medst.config import parse_overrides
from medst.data.store import StoreError
from medst.tracking import (
    PRIVATE_NOTICE,
    TrackingPlace,
    TrialState,
    describe_environment,
    drain_spools,
    ensure_study_run,
    is_private_tracking_allowed,
    metric_history,
)
from medst.tracking.connection import find_experiment, reaching
from medst.tracking.drain import find_run
from medst.tracking.names import STUDY
from medst.tracking.studies import StudyKind, end_study_run, log_study_cost
from sweeps.accounting import Account, account
from sweeps.data import ensure_data, existing_data
from sweeps.dry_run import show_dry_run
from sweeps.ledger import Ledger, adopt_shared, read_ledger, reap_lost
from sweeps.live import LiveView, progress_line
from sweeps.planning import Plan
from sweeps.preflight import check_trials
from sweeps.sharing import run_with_others
from sweeps.study import Study, describe_study, find_study, load_study, plan_document
from sweeps.trials import DataFacts, StoreId, Trial, checkpoint_dir, expand, expand_tuning, needed_data, specify
from sweeps.tuning import Choice, candidates, choose, report, tuning_name
from sweeps.worker import TrialFunction

ExecutorName = Literal["ray", "inline"]

FINISHED_CODE = 0
UNFINISHED_CODE = 1
"""Some trials failed or are still missing."""
INTERRUPTED_CODE = 130

DRAIN_SECONDS = 120.0
"""How long the end of a sweep waits for an absent store to take what the trials have left for it."""


class StudyBusyError(ValueError):
    """Another process runs the same study on this project."""


def run_sweep(study: str, assignments: Sequence[str] = (), executor: ExecutorName = "ray", jobs: int | None = None,
              base: Path | None = None, data_root: Path | None = None, *, project: Path | None = None,
              should_retry_failed: bool = False, trial_function: TrialFunction | None = None,
              known_metrics: Iterable[str] | None = None, console: Console | None = None) -> int:
    """Run the trials of a study that are not finished, and say what became of them.

    Where the study tunes nuisance parameters, the trials that choose them come first.

    Args:
        study: name (`sweeps/<name>.yaml`) or path of a study file.
        assignments: `key=value` settings of all arms; what an arm sets itself stands.
        executor: `ray`, or `inline` for one trial after another in this process.
        jobs: trials at a time; default: the processors of this machine.
        base: experiment file instead of the study's own.
        data_root: data folder instead of the base's.
        project: folder of `mlflow.db` and `runs/`, and the start of relative paths; default: the current folder.
        should_retry_failed: compute failed trials again; otherwise they stay failed.
        known_metrics: what the metrics of a study may be; None takes any.

    Returns:
        Exit code: 0 all finished, 1 some failed or missing, 130 interrupted.

    Raises:
        ValueError: a study, override, data folder or store that cannot be used; nothing was started.
    """
    console = console or Console()
    project = (project or Path.cwd()).absolute()
    loaded = _load(study, assignments, base, data_root, project, known_metrics)
    return run_study(loaded, executor, jobs, project=project, should_retry_failed=should_retry_failed,
                     trial_function=trial_function, console=console)


def run_study(loaded: Study, executor: ExecutorName, jobs: int | None, *, project: Path, console: Console,
              kind: StudyKind = "study", should_retry_failed: bool = False,
              trial_function: TrialFunction | None = None) -> int:
    """`run_sweep` of a study that is loaded already.

    Args:
        kind: `rung`: a proxy of a study, whose run no list of studies shows.
    """
    place = TrackingPlace.of_project(project)
    num_parallel = 1 if executor == "inline" else jobs or os.cpu_count() or 1
    facts = ensure_data(loaded, project, os.cpu_count() or 1, progress_line(console))

    def run(plan: Plan, to_run: Sequence[Trial], study_run: str, name: str) -> None:
        run_with_others(to_run, lambda trials: compute(plan, trials, study_run, name), place, console)

    def compute(plan: Plan, to_run: Sequence[Trial], study_run: str, name: str) -> None:
        if is_private_tracking_allowed() and any(trial.data.is_credentialed for trial in to_run):
            console.print(PRIVATE_NOTICE, highlight=False, soft_wrap=True)
        specs = specify(to_run, study=name, place=place, project=project, parent_run_id=study_run,
                        environment=describe_environment(project), is_private_tracked=is_private_tracking_allowed())
        with LiveView(name, len(specs), sum(plan.seconds(to_run)), num_parallel, console) as view:
            if executor == "inline":
                from sweeps.inline import run_inline

                run_inline(specs, view, trial_function)
            else:
                from sweeps.cluster import run_on_ray

                run_on_ray(specs, view, place.folder / "ray" / loaded.name, num_parallel, trial_function)

    with _only_driver(place, loaded.name), reaching(place.uri):
        drain_spools(place, patience_seconds=10.0)
        plan = make_plan(loaded, place, facts, num_parallel, should_reap=True)
        finished_before = frozenset(plan.ledger.keys_in(TrialState.FINISHED, plan.all_keys))
        to_run = _to_run(plan, should_retry_failed)
        plan.show(console, to_run)
        if trial_function is None:
            check_trials(to_run, project)
        study_run = _track_plan(plan, place, bool(to_run), kind)
        is_interrupted = False
        try:
            choosing = [trial for trial in to_run if trial.candidate is not None]
            if choosing:
                run(plan, choosing, study_run, tuning_name(loaded.name))
                plan = make_plan(loaded, place, facts, num_parallel, should_reap=True)
                _track_plan(plan, place, True, kind)
            evaluating = [trial for trial in _to_run(plan, should_retry_failed) if trial.candidate is None]
            if evaluating:
                run(plan, evaluating, study_run, loaded.name)
        except KeyboardInterrupt:
            is_interrupted = True
        finally:
            drain_spools(place, 0.0 if is_interrupted else DRAIN_SECONDS)
            plan = make_plan(loaded, place, facts, num_parallel, should_reap=True)
            # Another study may have brought in trials that this one asked for as well.
            _track_plan(plan, place, True, kind)
            cost = account(plan.ledger, plan.all_keys, study_run, finished_before)
            log_study_cost(place.uri, study_run, cost.hours())
            end_study_run(place.uri, study_run, plan.is_complete, plan.has_failed)
        return _conclude(plan, place, console, is_interrupted, cost)


def plan_sweep(study: str, assignments: Sequence[str] = (), executor: ExecutorName = "ray", jobs: int | None = None,
               base: Path | None = None, data_root: Path | None = None, *, project: Path | None = None,
               should_retry_failed: bool = False, known_metrics: Iterable[str] | None = None,
               is_dry_run: bool = False, console: Console | None = None) -> int:
    """Print what `run_sweep` with the same arguments would do. Makes and runs nothing.

    Args:
        is_dry_run: also estimate steps, memory, time and disk of what is to run, from a few pairs of each kind.

    Raises:
        ValueError: as `run_sweep`; a dry run of data that are not prepared.
    """
    console = console or Console()
    project = (project or Path.cwd()).absolute()
    place = TrackingPlace.of_project(project)
    loaded = _load(study, assignments, base, data_root, project, known_metrics)
    num_parallel = 1 if executor == "inline" else jobs or os.cpu_count() or 1
    facts = existing_data(loaded, project)
    if facts is None and is_dry_run:
        raise StoreError("--dry-run computes a few pairs, and the data are not prepared yet; do it with: medst data "
                         f"prepare --data {loaded.reference.config.data.root}")
    if facts is None:
        console.print("The data are not prepared yet: what is done already shows when they are.", highlight=False)
        facts = dict.fromkeys(needed_data(loaded), DataFacts("not prepared", "", is_credentialed=True))
    plan = make_plan(loaded, place, facts, num_parallel)
    to_run = _to_run(plan, should_retry_failed)
    plan.show(console, to_run)
    if is_dry_run:
        show_dry_run(to_run, project, num_parallel, console)
    return FINISHED_CODE


def show_status(study: str, assignments: Sequence[str] = (), base: Path | None = None, data_root: Path | None = None, *,
                project: Path | None = None, console: Console | None = None) -> int:
    """Print how a study stands: its arms, what runs at this moment, why trials failed, what it has cost.

    Returns:
        Exit code: 0 all finished, 1 otherwise.
    """
    console = console or Console()
    project = (project or Path.cwd()).absolute()
    place = TrackingPlace.of_project(project)
    loaded = _load(study, assignments, base, data_root, project, None)
    facts = existing_data(loaded, project)
    if facts is None:
        console.print(f"{loaded.name}: its data are not prepared, so none of its trials was run.", highlight=False)
        return UNFINISHED_CODE
    with reaching(place.uri):
        plan = make_plan(loaded, place, facts, os.cpu_count() or 1)
        experiment = find_experiment(place.uri, place.experiment)
        run = find_run(place.uri, experiment.experiment_id, STUDY, loaded.name) if experiment is not None else None
    plan.show(console, _to_run(plan, should_retry_failed=False))
    for trial in (*plan.tuning, *plan.trials):
        entry = plan.ledger[trial.key]
        if entry.state is TrialState.RUNNING:
            console.print(f"running: {trial.name} (run {entry.run_id})", markup=False, highlight=False, soft_wrap=True)
    _show_failures(plan, console)
    _show_account(account(plan.ledger, plan.all_keys, run.info.run_id if run is not None else None), console)
    return FINISHED_CODE if plan.is_complete else UNFINISHED_CODE


def make_plan(study: Study, place: TrackingPlace, facts: Mapping[StoreId, DataFacts], num_parallel: int,
              should_reap: bool = False) -> Plan:
    """The study's trials against the ledger as it is now.

    Args:
        should_reap: end runs that the store calls RUNNING although their process is gone.
    """
    choosing = expand_tuning(study, facts)
    chosen = {}
    if choosing:
        ledger = read_ledger(place, [trial.key for trial in choosing])
        if should_reap:
            reap_lost(place, ledger)
        chosen = choose_candidates(study, choosing, ledger, place)
    trials = expand(study, facts, {arm: choice.candidate.settings for arm, choice in chosen.items()})
    ledger = read_ledger(place, [trial.key for trial in (*choosing, *trials)])
    if should_reap:
        reap_lost(place, ledger)
    return Plan(study, trials, ledger, num_parallel, choosing, chosen)


def choose_candidates(study: Study, choosing: Sequence[Trial], ledger: Ledger, place: TrackingPlace
                      ) -> dict[str, Choice]:
    """Arm -> the best candidate, for every arm whose tuning trials have all ended."""
    tuning = study.file.tuning
    assert tuning is not None
    tried = candidates(tuning)
    run_ids = {trial.key: run_id for trial in choosing
               if ledger[trial.key].state is TrialState.FINISHED and (run_id := ledger[trial.key].run_id) is not None}
    history = metric_history(list(run_ids.values()), [tuning.metric], place.uri)
    measured = history.drop_duplicates("run_id", keep="last").set_index("run_id")["value"].to_dict()

    def score(trial: Trial) -> float | None:
        if ledger[trial.key].state is TrialState.FAILED:
            return math.nan
        return float(measured.get(run_ids[trial.key], math.nan)) if trial.key in run_ids else None

    by_arm: dict[str, dict[str, list[float | None]]] = {}
    for trial in choosing:
        assert trial.candidate is not None
        by_arm.setdefault(trial.arm, {}).setdefault(trial.candidate.name, []).append(score(trial))
    choices = {arm: choose(tuning, tried, [scores[candidate.name] for candidate in tried])
               for arm, scores in by_arm.items()}
    return {arm: choice for arm, choice in choices.items() if choice is not None}


def _track_plan(plan: Plan, place: TrackingPlace, is_running: bool, kind: StudyKind) -> str:
    """Write the plan into the study's run, and the study's name on its trials; returns the id of the study's run."""
    study = plan.study
    tuning = study.file.tuning
    document = plan_document(
        study, [{"key": trial.key, "arm": trial.arm, "seed": trial.seed} for trial in plan.trials],
        (*plan.trials, *plan.tuning)[0].data.name,
        None if tuning is None else report(tuning, candidates(tuning), plan.chosen))
    study_run = ensure_study_run(place.uri, place.experiment, study.name, describe_study(study), document, is_running,
                                 kind)
    adopt_shared(place, plan.ledger, study.name, [(trial.key, trial.arm) for trial in plan.trials])
    return study_run


def _load(study: str, assignments: Sequence[str], base: Path | None, data_root: Path | None, project: Path,
          known_metrics: Iterable[str] | None) -> Study:
    overrides = parse_overrides(assignments)
    if data_root is not None:
        overrides["data.root"] = str(data_root)
    return load_study(find_study(study, project), overrides=overrides, base=[base] if base else [], project=project,
                      known_metrics=known_metrics)


def _to_run(plan: Plan, should_retry_failed: bool) -> list[Trial]:
    return [trial for trial in (*plan.tuning, *plan.trials) if _is_to_run(plan, trial, should_retry_failed)]


def _is_to_run(plan: Plan, trial: Trial, should_retry_failed: bool) -> bool:
    """Missing trials; pruned ones: pruning belongs to a search; and those that others compute: they are waited for."""
    match plan.ledger[trial.key].state:
        case TrialState.FINISHED:
            return False
        case TrialState.FAILED:
            return should_retry_failed
    return True


@contextmanager
def _only_driver(place: TrackingPlace, study: str) -> Iterator[None]:
    """Refuse a second driver of one study: they would only wait for each other's trials."""
    place.locks.mkdir(parents=True, exist_ok=True)
    lock = FileLock(place.locks / f"study-{study}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise StudyBusyError(f"study '{study}' is being run by another process in {place.folder.parent}; wait for it "
                             "or stop it, then run the same command again") from None
    try:
        yield
    finally:
        lock.release()


def _conclude(plan: Plan, place: TrackingPlace, console: Console, is_interrupted: bool, cost: Account) -> int:
    for key in plan.ledger.keys_in(TrialState.FINISHED, plan.all_keys):
        # Left by a process that was killed after the trial's end.
        shutil.rmtree(checkpoint_dir(place, key), ignore_errors=True)
    num_finished = plan.count(TrialState.FINISHED)
    num_trials = len(plan.trials) + plan.num_undecided
    if is_interrupted:
        console.print(f"Stopped: {num_finished} of {num_trials} trials are finished. The same command goes on "
                      "from here.", highlight=False)
        return INTERRUPTED_CODE
    if plan.is_complete:
        console.print(f"{plan.study.name}: all {num_finished} trials are finished. Store: {place.uri}",
                      highlight=False, soft_wrap=True)
        _show_account(cost, console)
        return FINISHED_CODE
    _show_failures(plan, console)
    num_missing = len(plan.trials) - num_finished - plan.count(TrialState.FAILED)
    if num_missing or plan.num_undecided:
        waiting = f", and {plan.num_undecided} wait for the tuning of their arms" if plan.num_undecided else ""
        console.print(f"Trials missing: {num_missing}{waiting}; the same command goes on from here.",
                      highlight=False)
    _show_account(cost, console)
    return UNFINISHED_CODE


def _show_failures(plan: Plan, console: Console) -> None:
    failed = [trial for trial in (*plan.tuning, *plan.trials) if plan.ledger[trial.key].state is TrialState.FAILED]
    for trial in failed:
        entry = plan.ledger[trial.key]
        console.print(f"failed: {trial.name}: {entry.reason} (run {entry.run_id})", markup=False, highlight=False,
                      soft_wrap=True)
    if failed:
        num_trials = len(plan.trials) + plan.num_undecided + len(plan.tuning)
        console.print(f"{len(failed)} of {num_trials} trials failed; each run keeps its traceback under Artifacts, "
                      "failure/. `--retry-failed` computes them again.", highlight=False)


def _show_account(cost: Account, console: Console) -> None:
    for line in cost.lines():
        console.print(line, highlight=False, soft_wrap=True)
