"""The phase before a training that starts from MGCA's weights: what is trained, on which batches, under which names.

The published Med-ST started from MGCA's weights. With `training.mgca_epochs` a trial trains that MGCA itself, on the
same data, so that its key and its numbers depend on nothing outside. What must not live here: the loop, the losses.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from types import MappingProxyType

from medst.config import Config, override
from medst.data.batch import Batch
from medst.records import Checkpoint, Metrics, Progress, Record
from medst.training.loop import TrainBatches

MGCA = MappingProxyType({
    "data.views": "frontal",
    "model.experts.num_experts": 1,
    "model.experts.routing": "view",
    "model.heads.num_prototypes": 500,
    "objective.lambda_local": 0.7,
    "objective.lambda_prototype": 0.5,
    "objective.lambda_temporal": 0.0,
    "objective.global_temperature": 0.07,
    "objective.global_image_share": 0.5,
    "objective.local.temperature": 0.1,
    "objective.local.weighting": "attention",
    "objective.prototypes.temperature": 0.2,
    "objective.prototypes.epsilon": 0.05,
    "objective.prototypes.sinkhorn_iterations": 3,
    "objective.curriculum.kind": "joint",
})
"""What makes a model MGCA (Wang et al., 2022; loss weights and constants of its published program)."""


def first_phase(config: Config) -> Config:
    """The MGCA that is trained before `config`, for `training.mgca_epochs`; everything else as in `config`."""
    epochs = config.training.mgca_epochs
    settings = dict(MGCA)
    if config.model.heads.num_prototypes:
        # A training that goes on with prototypes goes on with the same number.
        settings["model.heads.num_prototypes"] = config.model.heads.num_prototypes
    return override(config, {**settings, "training.epochs": epochs, "training.mgca_epochs": 0.0, "model.weights": None})


class LaterEpochs:
    """A loader whose first epoch is that after the last of the main training.

    The main training sees the batches that it would see without a first phase, and none of them twice.
    """

    def __init__(self, loader: TrainBatches, main: Config) -> None:
        self._loader = loader
        self._first = math.ceil(main.training.epochs)

    def __len__(self) -> int:
        return len(self._loader)

    def batches(self, epoch: int, start: int = 0, sequence_length: int | None = None) -> Iterator[Batch]:
        return self._loader.batches(self._first + epoch, start, sequence_length)


def as_first_phase(records: Iterable[Record], num_later_steps: int) -> Iterator[Record]:
    """The first phase's records beside those of the main training: curves under `mgca/`, one common progress."""
    for record in records:
        if isinstance(record, Metrics):
            yield Metrics(record.step, {f"mgca/{name}": value for name, value in record.values.items()})
        elif isinstance(record, Progress):
            yield replace(record, num_steps=record.num_steps + num_later_steps)
        else:
            assert isinstance(record, Checkpoint)
            yield record


def after_first_phase(records: Iterable[Record], num_earlier_steps: int) -> Iterator[Record]:
    """The main training's records, whose progress counts the first phase's steps."""
    for record in records:
        yield (Progress(num_earlier_steps + record.step, num_earlier_steps + record.num_steps)
               if isinstance(record, Progress) else record)
