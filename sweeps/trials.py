"""Trials: arm x seed x data, each with the key under which it is computed once.

What lives here: the expansion of a study, and the specification that travels to a worker. What must not:
how trials are run, what became of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medst.config import Config, DataConfig, flatten, override, source_fingerprint, trial_key
from medst.tracking import TrackingPlace, TrialDescription, torch_version
from sweeps.study import Study


@dataclass(frozen=True)
class DataFacts:
    """What a trial's key and run must know about a prepared store."""

    name: str
    fingerprint: str
    is_credentialed: bool


@dataclass(frozen=True)
class Trial:
    """One arm at one seed on one data set."""

    arm: str
    seed: int
    config: Config
    key: str
    data: DataFacts

    @property
    def name(self) -> str:
        return f"{self.arm} · seed {self.seed}"


StoreId = tuple[str, str | None, int]
"""What distinguishes prepared stores: data.root, data.store, data.image_size."""


def store_id(data: DataConfig) -> StoreId:
    return data.root, data.store, data.image_size


def expand(study: Study, data: Mapping[StoreId, DataFacts]) -> list[Trial]:
    """All trials of a study: seeds outside, arms inside, so that early results compare all arms.

    Arms of other studies that resolve to the same numbers get the same keys.
    """
    flagged = study.file.flagged_arms or (study.file.reference,)
    trials = []
    for index, seed in enumerate(study.file.seeds):
        for arm in study.arms:
            config = arm.config.model_copy(update={"seed": seed})
            if index == 0 and arm.name in flagged:
                # Not part of the key: what is tracked besides does not change the numbers.
                evaluation = config.evaluation.model_copy(update={"track_embeddings": True, "track_attention": True})
                config = config.model_copy(update={"evaluation": evaluation})
            facts = data[store_id(config.data)]
            trials.append(Trial(arm.name, seed, config, trial_key(config, facts.fingerprint, torch_version()), facts))
    return trials


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

    def tracked_config(self) -> Config:
        return override(Config(), self.settings, source=f"trial {self.name}")

    def run_config(self) -> Config:
        return override(self.tracked_config(), self.places, source=f"trial {self.name}")

    def tracking_place(self) -> TrackingPlace:
        return TrackingPlace(self.uri, Path(self.folder), self.experiment)

    def trial_description(self) -> TrialDescription:
        return TrialDescription(config=self.tracked_config(), key=self.key, **self.description)


def specify(trials: Sequence[Trial], *, study: str, place: TrackingPlace, project: Path, parent_run_id: str,
            environment: Mapping[str, str], is_private_tracked: bool, num_threads: int = 1) -> list[TrialSpec]:
    """The specifications of trials that are to run for `study`."""
    source = source_fingerprint()
    specs = []
    for trial in trials:
        specs.append(TrialSpec(
            name=trial.name, key=trial.key, settings=flatten(trial.config),
            places=absolute_places(trial.config, project),
            checkpoint_dir=str(checkpoint_dir(place, trial.key)), uri=place.uri, folder=str(place.folder),
            experiment=place.experiment, num_threads=num_threads,
            description={
                "arm": trial.arm, "studies": {study: trial.arm}, "data_name": trial.data.name,
                "source_fingerprint": source, "data_fingerprint": trial.data.fingerprint,
                "is_credentialed": trial.data.is_credentialed, "torch_version": torch_version(),
                "environment": dict(environment), "parent_run_id": parent_run_id,
                "is_private_tracked": is_private_tracked,
            }))
    return specs


def absolute_places(config: Config, folder: Path) -> dict[str, str]:
    """The dotted keys of `config` that hold relative paths, with the paths made absolute from `folder`."""
    places = {"data.root": config.data.root, "data.store": config.data.store}
    # These may be names of a hub instead of paths.
    names = {"data.vocabulary": config.data.vocabulary, "model.image.name": config.model.image.name,
             "model.text.name": config.model.text.name}
    places.update({key: name for key, name in names.items() if name is not None and (folder / name).exists()})
    return {key: str((folder / path).absolute()) for key, path in places.items() if path is not None}


def checkpoint_dir(place: TrackingPlace, key: str) -> Path:
    """Where a trial keeps its checkpoints until it is finished."""
    return place.folder / "checkpoints" / key
