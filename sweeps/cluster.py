"""Runs trials on Ray Tune: a quiet local Ray, or the cluster that RAY_ADDRESS names.

Tune schedules, reuses warm actors and restarts lost ones; what is done and what is missing is the ledger's
business, so no state of Tune outlives a sweep.
"""

from __future__ import annotations

import os

# Before Ray is imported; a value that the user set stands.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("DO_NOT_TRACK", "1")
# Our tracker writes; Tune's own loggers, state and prints would only cost time.
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "3600")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS", "0")
# Ray fills a whole core with prestarted workers otherwise, and warns of a small shared memory.
os.environ.setdefault("RAY_OBJECT_STORE_ALLOW_SLOW_STORAGE", "1")

import logging
import shutil
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import ray
import ray.exceptions
from ray import tune
from ray.tune.experiment import Trial as TuneTrial
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from medst.records import Progress
from medst.tracking import TrialState
from sweeps.live import LiveView
from sweeps.ranks import on_bundles
from sweeps.trials import TrialSpec
from sweeps.worker import Outcome, TrialFunction, at_home, default_trial_function, execute, give_up

REPORT_SECONDS = 1.0
"""Least time between two signs of progress of a trial to the driver."""
MAX_LOST_WORKERS = 3
"""How often a trial whose worker vanished starts again within one sweep."""
MAX_FITS = 4
"""How often Tune itself is started, without one trial coming to its end, before we give up."""
MAX_STARTS = 4
"""How often a local Ray is started before we give up."""
_OBJECT_STORE_BYTES = 100 * 1024**2
"""Specifications and reports are all that passes through it."""


def _train(config: dict[str, Any], specs: Sequence[TrialSpec], trial_function: TrialFunction | None) -> None:
    """The function trainable: one trial of the study. Its actor, and the data that it opened, serve many."""
    spec = specs[config["index"]]
    reported = time.monotonic()

    def report(progress: Progress) -> None:
        nonlocal reported
        if time.monotonic() - reported > REPORT_SECONDS:
            reported = time.monotonic()
            tune.report({"step": progress.step, "num_steps": progress.num_steps})

    function = trial_function or (on_bundles if spec.world_size > 1 else default_trial_function())
    outcome = execute(spec, function, report)
    tune.report({"state": outcome.state.value, "reason": outcome.reason})


class Messenger(tune.Callback):
    """Carries what Tune tells to the live view and collects the outcomes."""

    def __init__(self, spec_of: Callable[[dict[str, Any]], TrialSpec], view: LiveView) -> None:
        """`spec_of` finds the specification from the configuration that Tune gave the trial."""
        self._spec_of = spec_of
        self._view = view
        self.outcomes: dict[str, Outcome] = {}
        self.running: set[str] = set()
        """Keys of the trials that a worker has."""

    def __getstate__(self) -> dict[str, Any]:
        # Tune saves its callbacks for a restore that never comes; a live view cannot be saved.
        return {}

    def _spec(self, trial: TuneTrial) -> TrialSpec:
        return self._spec_of(trial.config)

    def on_step_end(self, iteration: int, trials: list[TuneTrial], **info: Any) -> None:
        self._view.tick()

    def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        self.running.add(self._spec(trial).key)
        self._view.started(self._spec(trial).name)

    def on_trial_result(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, result: dict[str, Any],
                        **info: Any) -> None:
        spec = self._spec(trial)
        if "state" in result:
            outcome = Outcome(spec.key, spec.name, TrialState(result["state"]), result["reason"])
            self.ended(outcome)
        elif "step" in result:
            self._view.progressed(spec.name, result["step"], result["num_steps"])

    def on_trial_recover(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        self._view.lost(self._spec(trial).name)

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        spec = self._spec(trial)
        if spec.key not in self.outcomes:
            error = str(trial.get_error() or "no reason known").strip().splitlines()
            last = at_home(spec, error[-1])
            self.ended(Outcome(spec.key, spec.name, TrialState.MISSING,
                               f"its worker was lost {MAX_LOST_WORKERS + 1} times, last by: {last}. If the system "
                               "killed it for want of memory: fewer trials at a time (--jobs), or a smaller "
                               "training.micro_batch"))

    def ended(self, outcome: Outcome) -> None:
        self.running.discard(outcome.key)
        self.outcomes[outcome.key] = outcome
        self._view.ended(outcome)


@contextmanager
def ray_session(num_parallel: int) -> Iterator[None]:
    """A Ray to run on, ended afterwards unless it was there before."""
    if ray.is_initialized():
        yield
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "include_dashboard": False}
    if os.environ.get("RAY_ADDRESS"):
        del quiet["include_dashboard"]
        ray.init(**quiet)
    else:
        _start_local(num_cpus=num_parallel, object_store_memory=_OBJECT_STORE_BYTES, **quiet)
    try:
        yield
    finally:
        ray.shutdown()


class RayStartError(ValueError):
    """A Ray of our own could not be started; the message says what to do."""


def _start_local(**settings: Any) -> None:
    """Start a Ray of our own; again where a busy machine was slower than the 30 s that Ray allows.

    Raises:
        RayStartError: it was too slow every time.
    """
    before = set(psutil.Process().children(recursive=True))
    for start in range(1, MAX_STARTS + 1):
        try:
            ray.init(address="local", **settings)
            return
        except Exception as error:
            ray.shutdown()
            # Ray has no class of its own for a start that took too long.
            if type(error) is not Exception:
                raise
            # It leaves behind what it had started, which would keep the machine busier still.
            _end(set(psutil.Process().children(recursive=True)) - before)
            if start == MAX_STARTS:
                raise RayStartError(
                    f"Ray did not start within 30 s, {MAX_STARTS} times: the machine is too busy; run the same command "
                    "again when it has time, or with --executor inline, which needs no Ray") from error
            logging.getLogger(__name__).warning("Ray did not start in time; once more")


def _end(processes: Collection[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=10)


def run_on_ray(specs: Sequence[TrialSpec], view: LiveView, folder: Path, num_parallel: int,
               trial_function: TrialFunction | None = None) -> list[Outcome]:
    """The outcome of every trial.

    Args:
        folder: absolute; Tune's scratch folder, of this caller alone; removed before and afterwards.
        num_parallel: trials at a time on this machine; a cluster runs as many as it has CPUs for.
    """
    messenger = Messenger(lambda config: specs[config["index"]], view)
    # A killed driver leaves it behind.
    shutil.rmtree(folder, ignore_errors=True)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    try:
        with ray_session(num_parallel):
            refuse_unshared(folder)
            _run_all(specs, messenger, trial_function, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return [messenger.outcomes.get(spec.key, Outcome(spec.key, spec.name, TrialState.MISSING, "it was not run"))
            for spec in specs]


def _run_all(specs: Sequence[TrialSpec], messenger: Messenger, trial_function: TrialFunction | None, folder: Path
             ) -> None:
    """Start Tune until every trial has an outcome.

    Ray's memory monitor kills the largest worker and thereby ends Tune. The trials that ran then go on one by one: one
    that is killed even alone has failed, the others had too many beside them.
    """
    suspects: set[str] = set()
    num_vain = 0
    while True:
        missing = [index for index, spec in enumerate(specs) if spec.key not in messenger.outcomes]
        together = [index for index in missing if specs[index].key not in suspects]
        if not missing:
            return
        messenger.running.clear()
        num_ended = len(messenger.outcomes)
        try:
            _fit(together or missing[:1], specs, trial_function, messenger, folder)
        except RuntimeError as error:
            num_vain = num_vain + 1 if len(messenger.outcomes) == num_ended else 0
            if is_memory_kill(error):
                if not together:
                    spec = specs[missing[0]]
                    messenger.ended(give_up(spec, HostMemoryError(
                        "the memory of the machine does not hold this trial, even alone; set a smaller "
                        f"training.micro_batch (now {spec.settings['training.micro_batch'] or 'the whole batch'}; it "
                        "is part of the trial key, so set it for all arms) or training.recompute=true")))
                suspects |= messenger.running
            elif num_vain == MAX_FITS:
                raise
            logging.getLogger(__name__).warning("Ray Tune gave up (%s); going on", error)


class HostMemoryError(RuntimeError):
    """A trial was killed because the machine had no memory left."""


def is_memory_kill(error: BaseException) -> bool:
    """True where Ray's memory monitor is behind an error of Tune."""
    causes: list[BaseException] = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None and cause not in causes:
        causes.append(cause)
    return any(isinstance(cause, ray.exceptions.OutOfMemoryError) for cause in causes)


def refuse_unshared(folder: Path) -> None:
    """Make sure that every node of the cluster sees the driver's `folder`.

    Raises:
        ValueError: one does not; a trial that moved there would neither find its checkpoint nor its spool.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if len(nodes) < 2:
        return
    folder.mkdir(parents=True, exist_ok=True)
    token = uuid.uuid4().hex
    mark = folder / "driver"
    mark.write_text(token)

    def sees(path: str) -> bool:
        return Path(path).is_file() and Path(path).read_text() == token

    look = ray.remote(sees)
    answers = {node["NodeManagerAddress"]: look.options(
        num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(str(mark))
        for node in nodes}
    blind = [address for address, answer in answers.items() if not ray.get(answer)]
    mark.unlink()
    if blind:
        raise ValueError(f"nodes {', '.join(sorted(blind))} do not see {folder.parent.parent}, where trials keep their "
                         "checkpoints until they are finished; run the sweep from a project folder on a file system "
                         "that all nodes of the cluster share, under the same path")


def _fit(indices: Sequence[int], specs: Sequence[TrialSpec], trial_function: TrialFunction | None,
         messenger: Messenger, folder: Path) -> None:
    # Plain values: this is asked for on the driver for every trial.
    kept = [[{"CPU": float(spec.num_threads), **({"GPU": spec.num_gpus} if spec.num_gpus else {})}] * spec.world_size
            for spec in specs]
    trainable = tune.with_resources(
        tune.with_parameters(_train, specs=list(specs), trial_function=trial_function),
        lambda config: tune.PlacementGroupFactory(kept[config["index"]]))
    run_tune(trainable, tune.TuneConfig(reuse_actors=True, trial_dirname_creator=lambda trial: trial.trial_id),
             messenger, folder, {"index": tune.grid_search(list(indices))})


def run_tune(trainable: Any, tune_config: tune.TuneConfig, messenger: Messenger, folder: Path,
             param_space: dict[str, Any] | None = None) -> None:
    """Run Tune once, in a subfolder of `folder` that does not outlive it; trials whose worker vanished start again."""
    name = uuid.uuid4().hex[:8]
    tuner = tune.Tuner(
        trainable, param_space=param_space, tune_config=tune_config,
        run_config=tune.RunConfig(
            name=name, storage_path=str(folder), verbose=0, callbacks=[messenger],
            failure_config=tune.FailureConfig(max_failures=MAX_LOST_WORKERS),
            checkpoint_config=tune.CheckpointConfig(num_to_keep=1)))
    try:
        tuner.fit()
    finally:
        shutil.rmtree(folder / name, ignore_errors=True)
