"""Trials: arm x seed x data, each with the key under which it is computed once.

What lives here: the expansion of a study, and the specification that travels to a worker. What must not:
how trials are run, what became of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medst.config import Config, DataConfig, flatten, override, source_fingerprint, trial_key
from medst.tracking import TrackingPlace, TrialDescription, torch_version
from sweeps.designs import Assignment
from sweeps.study import Replicate, Study
from sweeps.study_file import Resources
from sweeps.tuning import TASKS, Candidate, candidates


@dataclass(frozen=True)
class DataFacts:
    """What a trial's key and run must know about a prepared store."""

    name: str
    fingerprint: str
    is_credentialed: bool
    missing_tasks: Mapping[str, str] = field(default_factory=dict)
    """Tasks that have no result on it, with the reason."""


ONE_CPU = Resources()
_TIMM_FOLDER = "local-dir:"


@dataclass(frozen=True)
class Trial:
    """One arm at one replicate on one data set."""

    arm: str
    seed: int
    config: Config
    key: str
    data: DataFacts
    resources: Resources = ONE_CPU
    candidate: Candidate | None = None
    """What it tries; None for the trials that a study is evaluated by."""

    @property
    def label(self) -> str:
        """The arm, with what is tried on it."""
        return self.arm if self.candidate is None else f"{self.arm}, {self.candidate.name}"

    @property
    def name(self) -> str:
        return f"{self.label} · seed {self.seed}"

    @property
    def num_gpus(self) -> float:
        """Share of the GPUs that it takes."""
        if self.resources.gpus is not None:
            return self.resources.gpus
        return 1.0 if self.config.training.device.startswith("cuda") else 0.0


StoreId = tuple[str, str | None, int]
"""What distinguishes prepared stores: data.root, data.store, data.image_size."""


def store_id(data: DataConfig) -> StoreId:
    return data.root, data.store, data.image_size


def needed_data(study: Study) -> dict[StoreId, DataConfig]:
    """The distinct stores that a study's trials read."""
    configs = (replicate.config(arm.config).data for arm in study.arms for replicate in study.replicates)
    return {store_id(data): data for data in configs}


def expand(study: Study, data: Mapping[StoreId, DataFacts], chosen: Mapping[str, Assignment] | None = None
           ) -> list[Trial]:
    """The trials that a study is evaluated by: replicates outside, arms inside, so that early results compare all arms.

    Arms of other studies that resolve to the same numbers get the same keys.

    Args:
        chosen: arm -> its nuisance parameters, where the study tunes some; arms without are not decided yet.
    """
    trials = []
    for index, replicate in enumerate(study.replicates):
        for arm in study.arms:
            config = replicate.config(arm.config)
            if study.file.tuning is not None:
                if arm.name not in (chosen or {}):
                    continue
                config = override(config, (chosen or {})[arm.name], f"arm '{arm.name}'")
            if index == 0 and arm.name in study.flagged_arms:
                # Not part of the key: what is tracked besides does not change the numbers.
                config = _with_evaluation(config, track_embeddings=True, track_attention=True)
            trials.append(_trial(study, arm.name, config, data))
    return trials


def expand_tuning(study: Study, data: Mapping[StoreId, DataFacts]) -> list[Trial]:
    """The trials that choose the nuisance parameters; they see validation patients only. Empty where nothing is tuned.

    All of them are on the first draw of the phantom.
    """
    tuning = study.file.tuning
    if tuning is None:
        return []
    trials = []
    for seed in tuning.seeds:
        for arm in study.arms:
            for candidate in candidates(tuning):
                config = Replicate(seed, study.file.phantom_draws[0]).config(
                    override(arm.config, candidate.settings, f"arm '{arm.name}'"))
                config = _with_evaluation(config, tasks=TASKS)
                trials.append(_trial(study, arm.name, config, data, candidate))
    return trials


def _with_evaluation(config: Config, **changes: Any) -> Config:
    return config.model_copy(update={"evaluation": config.evaluation.model_copy(update=changes)})


def _trial(study: Study, arm: str, config: Config, data: Mapping[StoreId, DataFacts],
           candidate: Candidate | None = None) -> Trial:
    facts = data[store_id(config.data)]
    return Trial(arm, config.seed, config, trial_key(config, facts.fingerprint, torch_version()), facts,
                 study.resources(arm), candidate)


@dataclass(frozen=True)
class TrialSpec:
    """All that a worker needs, as plain values that any process can take."""

    name: str
    key: str
    settings: Mapping[str, Any]
    """The flat config as it is tracked: paths as the user wrote them."""
    places: Mapping[str, Any]
    """Dotted keys that point the config to absolute paths: a worker has a folder of its own."""
    checkpoint_dir: str
    uri: str
    folder: str
    experiment: str
    description: Mapping[str, Any]
    """Arguments of TrialDescription besides config and key."""
    num_threads: int
    """Also the CPUs that are kept for it."""
    num_gpus: float = 0.0
    """Of each of its processes, as the threads and CPUs are."""

    @property
    def world_size(self) -> int:
        """Processes of the trial."""
        return int(self.settings["training.world_size"])

    def tracked_config(self) -> Config:
        return override(Config(), self.settings, source=f"trial {self.name}")

    def run_config(self) -> Config:
        return override(self.tracked_config(), self.places, source=f"trial {self.name}")

    def tracking_place(self) -> TrackingPlace:
        return TrackingPlace(self.uri, Path(self.folder), self.experiment)

    def trial_description(self) -> TrialDescription:
        return TrialDescription(config=self.tracked_config(), key=self.key, **self.description)


def specify(trials: Sequence[Trial], *, study: str, place: TrackingPlace, project: Path, parent_run_id: str,
            environment: Mapping[str, str], is_private_tracked: bool) -> list[TrialSpec]:
    """The specifications of trials that are to run for `study`."""
    source = source_fingerprint()
    specs = []
    for trial in trials:
        specs.append(TrialSpec(
            name=trial.name, key=trial.key, settings=flatten(trial.config),
            places=absolute_places(trial.config, project),
            checkpoint_dir=str(checkpoint_dir(place, trial.key)), uri=place.uri, folder=str(place.folder),
            experiment=place.experiment, num_threads=trial.resources.cpus,
            num_gpus=trial.num_gpus,
            description={
                "arm": trial.label, "studies": {study: trial.label}, "data_name": trial.data.name,
                "source_fingerprint": source, "data_fingerprint": trial.data.fingerprint,
                "is_credentialed": trial.data.is_credentialed, "torch_version": torch_version(),
                "environment": dict(environment), "parent_run_id": parent_run_id,
                "is_private_tracked": is_private_tracked,
                "num_cpus": float(trial.resources.cpus) * trial.config.training.world_size,
                "num_gpus": trial.num_gpus * trial.config.training.world_size,
            }))
    return specs


def absolute_places(config: Config, folder: Path) -> dict[str, str]:
    """The dotted keys of `config` that hold relative paths, with the paths made absolute from `folder`."""
    places = {"data.root": config.data.root, "data.store": config.data.store}
    # These may be names of a hub instead of paths.
    names = {"data.vocabulary": config.data.vocabulary, "model.image.name": config.model.image.name,
             "model.text.name": config.model.text.name, "model.weights": config.model.weights}
    found = {key: str((folder / path).absolute()) for key, path in places.items() if path is not None}
    for key, name in names.items():
        if name is None:
            continue
        # timm marks folders by a scheme.
        scheme = _TIMM_FOLDER if name.startswith(_TIMM_FOLDER) else ""
        path = folder / name.removeprefix(scheme)
        if path.exists():
            found[key] = scheme + str(path.absolute())
    return found


def checkpoint_dir(place: TrackingPlace, key: str) -> Path:
    """Where a trial keeps its checkpoints until it is finished."""
    return place.folder / "checkpoints" / key
