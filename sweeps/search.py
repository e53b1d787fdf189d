"""What the command line calls: run a search. Running is resuming, as with studies.

What lives here: the order of things. What must not: how a trial is proposed, judged or run (sweeps/searching/).
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from filelock import FileLock, Timeout
from rich.console import Console

from medst.config import Config, parse_overrides
from medst.data.provision import provide
from medst.records import Progress
from medst.tracking import (
    TrackingPlace,
    TrialState,
    describe_environment,
    drain_spools,
    is_private_tracking_allowed,
)
from medst.tracking.members import ensure_group_run, log_group_artifacts
from medst.tracking.studies import end_study_run
from sweeps.commands import FINISHED_CODE, INTERRUPTED_CODE, UNFINISHED_CODE, ExecutorName, StudyBusyError
from sweeps.ledger import read_ledger, reap_lost
from sweeps.live import LiveView, duration, progress_line
from sweeps.preflight import require_gpus
from sweeps.searching.conductor import Conductor, Setting
from sweeps.searching.history import Attempt, definition_of, read_attempts
from sweeps.searching.importance import importances
from sweeps.searching.rungs import Rungs, watched
from sweeps.searching.search_file import Search, find_search, load_search
from sweeps.trials import DataFacts
from sweeps.worker import TrialFunction, default_trial_function, execute

ARTIFACTS = "search"
"""Artifact folder of the search's run: trials.parquet, importance.parquet, best.yaml."""
FRESH_SEEDS = 6
"""Seeds on which the best is to be measured again: the fewest with which a test can reach 0.05."""


def run_search(name: str, assignments: Sequence[str] = (), executor: ExecutorName = "ray", jobs: int | None = None,
               base: Path | None = None, data_root: Path | None = None, *, num_trials: int | None = None,
               project: Path | None = None, should_retry_failed: bool = False,
               trial_function: TrialFunction | None = None, console: Console | None = None) -> int:
    """Run what a search has not run yet, and track its trials and importances.

    Args:
        name: name (`sweeps/searches/<name>.yaml`) or path of a search file.
        assignments: `key=value` overrides of every trial.
        executor: `ray`, or `inline` for one trial after another in this process: the same proposals on every machine.
        jobs: trials at a time; default: the processors of this machine.
        num_trials: instead of the file's; more of them go on with the same search.
        project: folder of `mlflow.db` and `runs/`, and the start of relative paths; default: the current folder.

    Returns:
        Exit code: 0 all ended, 1 some failed or missing, 130 interrupted.

    Raises:
        ValueError: a search, override, data folder or store that cannot be used.
    """
    console = console or Console()
    project = (project or Path.cwd()).absolute()
    place = TrackingPlace.of_project(project)
    overrides = parse_overrides(assignments)
    if data_root is not None:
        overrides["data.root"] = str(data_root)
    search = load_search(find_search(name, project), overrides=overrides, base=[base] if base else [],
                         num_trials=num_trials, project=project)
    num_parallel = 1 if executor == "inline" else jobs or os.cpu_count() or 1
    data = data_of(search, project, console)
    definition = definition_of(search, data.fingerprint)

    with _only_driver(place, search.name):
        if drain_spools(place, patience_seconds=10.0).waiting:
            raise ValueError(f"tracking store {place.uri} is away, and ended trials wait for it; start it, or set "
                             "MLFLOW_TRACKING_URI")
        attempts = _known_attempts(place, search, definition)
        run_id = ensure_group_run(place.uri, place.experiment, "search", search.name, describe_search(search),
                                  _plan(search, definition, data.name), is_running=True)
        conductor = Conductor(search, definition, Setting(
            place, project, data, run_id, describe_environment(project), is_private_tracking_allowed()),
            attempts, should_retry_failed)
        _announce(search, conductor, num_parallel, console)
        is_interrupted = False
        try:
            if conductor.num_left:
                _compute(search, conductor, place, executor, num_parallel, trial_function, console)
        except KeyboardInterrupt:
            is_interrupted = True
        finally:
            drain_spools(place)
            attempts = _known_attempts(place, search, definition)
            _track_results(search, attempts, place)
            is_done = sum(_has_ended(attempt) for attempt in attempts) >= search.num_trials
            end_study_run(place.uri, run_id, is_done)
        return _conclude(search, attempts, place, console, is_interrupted)


def data_of(search: Search, project: Path, console: Console) -> DataFacts:
    """Make sure that the data are there and prepared. All trials of a search read one store."""
    data = search.config({}).data
    placed = data.model_copy(update={"root": str((project / data.root).absolute()),
                                     "store": str((project / data.store).absolute()) if data.store else None})
    store = provide(placed, os.cpu_count() or 1, progress_line(console))
    return DataFacts(store.name, store.fingerprint, store.is_credentialed)


def _known_attempts(place: TrackingPlace, search: Search, definition: str) -> list[Attempt]:
    """What the store has; runs whose process is gone are ended there, and go on from their checkpoints."""
    attempts = read_attempts(place.uri, place.experiment, search, definition)
    ledger = read_ledger(place, [attempt.key for attempt in attempts if not _has_ended(attempt)])
    reap_lost(place, ledger)
    return [attempt if _has_ended(attempt) else replace(attempt, state=ledger[attempt.key].state)
            for attempt in attempts]


def _has_ended(attempt: Attempt) -> bool:
    return attempt.state in (TrialState.FINISHED, TrialState.PRUNED, TrialState.FAILED)


def _compute(search: Search, conductor: Conductor, place: TrackingPlace, executor: ExecutorName, num_parallel: int,
             trial_function: TrialFunction | None, console: Console) -> None:
    rungs = None
    if search.file.pruning is not None:
        rungs = Rungs(search.name, conductor.definition, search.file.objectives[0], search.directions[0] == "maximize",
                      search.file.pruning.first_pairs, search.file.pruning.reduction, place.uri, place.experiment)
    seconds = _measured_seconds(conductor.attempts) or search.file.seconds_per_trial
    resources, config = search.file.resources, search.config({})
    num_gpus = resources.gpus if resources.gpus is not None else float(config.training.device.startswith("cuda"))
    if trial_function is None:
        require_gpus(config, num_gpus)
    with LiveView(search.name, conductor.num_left, conductor.num_left * seconds, num_parallel, console) as view:
        if executor == "inline":
            _compute_inline(conductor, rungs, view, trial_function or default_trial_function())
            return
        from sweeps.searching.on_ray import run_search_on_ray

        run_search_on_ray(conductor, rungs, view, place.folder / "ray" / f"search-{search.name}", num_parallel,
                          trial_function, resources.cpus, num_gpus)


def _compute_inline(conductor: Conductor, rungs: Rungs | None, view: LiveView, function: TrialFunction) -> None:
    while (spec := conductor.next_spec()) is not None:
        name = spec.name
        view.started(name)
        judged = function if rungs is None else watched(function, spec.key, rungs)

        def report(progress: Progress, name: str = name) -> None:
            view.progressed(name, progress.step, progress.num_steps)

        outcome = execute(spec, judged, report)
        conductor.ended(outcome)
        view.ended(outcome)


def _measured_seconds(attempts: Sequence[Attempt]) -> float | None:
    measured = [attempt.seconds for attempt in attempts if attempt.seconds]
    return sum(measured) / len(measured) if measured else None


def _announce(search: Search, conductor: Conductor, num_parallel: int, console: Console) -> None:
    file = search.file
    console.print(f"[bold]{file.name}[/bold]: {file.question.strip()}", highlight=False)
    judged = (f"; rungs at {file.pruning.first_pairs} pairs and times {file.pruning.reduction}" if file.pruning else "")
    objectives = ", ".join(f"{'lowest' if direction == 'minimize' else 'highest'} {metric}"
                           for metric, direction in zip(file.objectives, search.directions, strict=True))
    console.print(f"{search.num_trials} trials over {len(search.space.parameters)} parameters by {file.sampler.kind}"
                  f"{judged}; objective: {objectives}; {search.num_trials - conductor.num_left} done, "
                  f"{conductor.num_left} to run, {num_parallel} at a time.", highlight=False)
    seconds = _measured_seconds(conductor.attempts)
    if conductor.num_left:
        each = seconds or file.seconds_per_trial
        console.print(f"At most about {duration(conductor.num_left * each / num_parallel)} ({each:.0f} s a trial, "
                      f"{'measured' if seconds else 'a guess'}).", highlight=False)


def describe_search(search: Search) -> str:
    """The description of the search's run, in Markdown."""
    file = search.file
    lines = [f"## {file.name}", "", file.question.strip(), "",
             f"**Objectives** on validation patients: {', '.join(f'`{metric}`' for metric in file.objectives)}", "",
             f"**Sampler** {file.sampler.kind}, seed {file.sampler_seed}; every trial has seed {file.seed}", "",
             "**Space**", ""]
    for parameter in search.space.parameters:
        values = (", ".join(map(str, parameter.choices)) if parameter.choices else
                  f"{parameter.low:g} to {parameter.high:g}{', logarithmic' if parameter.is_log else ''}")
        when = "".join(f", where `{key}` is {' or '.join(map(str, allowed))}"
                       for key, allowed in parameter.when.items())
        lines.append(f"- `{parameter.key}`: {values}{when}")
    lines += ["", f"Trials, importances and the best as a study are under Artifacts, `{ARTIFACTS}/`. A search is no "
              "ablation: it says where to look. What it found is to be measured again on fresh seeds."]
    return "\n".join(lines)


def _plan(search: Search, definition: str, data_name: str) -> dict[str, Any]:
    return {**search.document(), "trials": search.file.trials, "definition": definition, "data": data_name,
            "scientific": list(search.file.scientific), "compare_with": list(search.file.compare_with)}


def trials_frame(search: Search, attempts: Sequence[Attempt]) -> pd.DataFrame:
    """One row per trial: number, state, key, run_id, seconds, reason, `values.<key>` as JSON texts,
    `objectives.<metric>`, `rungs` (pairs -> value, as JSON)."""
    rows = []
    for attempt in attempts:
        values = attempt.proposal.values
        row: dict[str, Any] = {"number": attempt.number, "state": attempt.state.value, "key": attempt.key,
                               "run_id": attempt.run_id, "seconds": attempt.seconds, "reason": attempt.reason,
                               "rungs": json.dumps({str(pairs): value for pairs, value in attempt.rungs.items()})}
        row |= {f"values.{parameter.key}": json.dumps(values[parameter.key]) if parameter.key in values else None
                for parameter in search.space.parameters}
        row |= {f"objectives.{metric}": None if attempt.objectives is None else attempt.objectives[index]
                for index, metric in enumerate(search.file.objectives)}
        rows.append(row)
    return pd.DataFrame(rows)


def best_attempts(search: Search, attempts: Sequence[Attempt]) -> list[Attempt]:
    """The best finished trial, or with several objectives those that no other one beats in all of them."""
    signs = [1.0 if direction == "maximize" else -1.0 for direction in search.directions]
    scored = [([sign * value for sign, value in zip(signs, attempt.objectives, strict=True)], attempt)
              for attempt in attempts if attempt.objectives is not None]
    front = [attempt for score, attempt in scored if not any(
        other != score and all(there >= here for there, here in zip(other, score, strict=True)) for other, _ in scored)]
    return front[:1] if len(signs) == 1 else front


def _track_results(search: Search, attempts: Sequence[Attempt], place: TrackingPlace) -> None:
    if not attempts:
        return
    with tempfile.TemporaryDirectory() as folder:
        trials_frame(search, attempts).to_parquet(Path(folder) / "trials.parquet", index=False)
        importances(search, attempts).to_parquet(Path(folder) / "importance.parquet", index=False)
        best = best_attempts(search, attempts)
        if best:
            (Path(folder) / "best.yaml").write_text(study_of_best(search, best), encoding="utf-8")
        log_group_artifacts("search", search.name, Path(folder), ARTIFACTS, place.uri, place.experiment)


def study_of_best(search: Search, best: Sequence[Attempt]) -> str:
    """A study file that measures the best on seeds that the search has not seen, against the base."""
    first = search.file.seed + 1
    settings = {key: value for key, value in search.settings.items()
                if key not in ("seed", "evaluation.tasks", "evaluation.validation_scores")}
    study = {
        "name": f"{search.name}_best", "question": f"Is what the search '{search.name}' found better than the base?",
        "base": list(search.base), "reference": "base", "primary_metric": "test/finding_zero_shot/mean/auroc",
        "seeds": list(range(first, first + FRESH_SEEDS)), "settings": settings,
        "arms": {"base": {}} | {f"trial {attempt.number}": attempt.proposal.values for attempt in best
                                if not _is_base(search, attempt)},
    }
    return (f"# Made by the search '{search.name}'. Question: is what it found better, on fresh seeds?\n"
            f"# Command:  copy to sweeps/{search.name}_best.yaml, then: make sweep SWEEP={search.name}_best\n"
            + yaml.safe_dump(study, sort_keys=False, allow_unicode=True))


def _is_base(search: Search, attempt: Attempt) -> bool:
    found: Config = search.config(attempt.proposal.values)
    return found == search.config({})


def _conclude(search: Search, attempts: Sequence[Attempt], place: TrackingPlace, console: Console,
              is_interrupted: bool) -> int:
    counts = {state: sum(attempt.state is state for attempt in attempts)
              for state in (TrialState.FINISHED, TrialState.PRUNED, TrialState.FAILED)}
    told = ", ".join(f"{count} {state.value}" for state, count in counts.items() if count) or "none ended"
    if is_interrupted:
        console.print(f"Stopped: {told} of {search.num_trials}. The same command goes on from here.", highlight=False)
        return INTERRUPTED_CODE
    console.print(f"{search.name}: {told}. Store: {place.uri}", highlight=False, soft_wrap=True)
    for attempt in attempts:
        if attempt.state is TrialState.FAILED:
            console.print(f"failed: #{attempt.number}: {attempt.reason} (run {attempt.run_id})", markup=False,
                          highlight=False, soft_wrap=True)
    num_missing = search.num_trials - sum(counts.values())
    if num_missing > 0:
        console.print(f"Trials missing: {num_missing}; the same command goes on from here.", highlight=False)
    return FINISHED_CODE if num_missing <= 0 and not counts[TrialState.FAILED] else UNFINISHED_CODE


@contextmanager
def _only_driver(place: TrackingPlace, search: str) -> Any:
    """Refuse a second driver of one search: their proposals would not know of each other."""
    locks = place.folder / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    lock = FileLock(locks / f"search-{search}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise StudyBusyError(f"search '{search}' is being run by another process in {place.folder.parent}; wait for it "
                             "or stop it, then run the same command again") from None
    try:
        yield
    finally:
        lock.release()
