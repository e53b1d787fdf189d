"""The training loop as a generator of records; it knows neither the tracker nor the sweep."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from medst.config import Config
from medst.data.batch import Batch
from medst.objectives import curriculum
from medst.records import Checkpoint, Metrics, Progress, Record
from medst.training.checkpoint import load_checkpoint, save_checkpoint
from medst.training.distributed import Ranks
from medst.training.optimizer import build_optimizer, gated_step
from medst.training.schedule import learning_rate

_LOG_POINTS = 60
"""Points of a learning curve over the whole training."""


class NonFiniteLossError(RuntimeError):
    """A loss or gradient became infinite or not a number; the message names step and term."""


@dataclass(frozen=True)
class TemporalWeights:
    """What the schedules say of one step: the factors of the two temporal terms, and whether prototypes learn."""

    fmc: float
    rmr: float
    prototypes_learn: bool = True


ObjectiveFunction = Callable[[Batch, TemporalWeights], dict[str, Tensor]]
"""Batch and weights -> terms; `loss` is the one that is differentiated."""


class TrainBatches(Protocol):
    """What the loop asks of a loader."""

    def __len__(self) -> int:
        """Steps of one epoch."""
        ...

    def batches(self, epoch: int, start: int = 0, sequence_length: int | None = None) -> Iterator[Batch]: ...


class _Flagged:
    """Terms of a step and whether all of it was finite: read one step later.

    The flag travels to the host behind the step that made it, and reading it waits for that step alone: an
    accelerator goes on with the next one meanwhile.
    """

    def __init__(self, step: int, terms: dict[str, Tensor], is_finite: Tensor) -> None:
        self.step = step
        self.terms = terms
        self.is_finite = is_finite.to("cpu", non_blocking=True)
        self.arrived = torch.Event(is_finite.device) if is_finite.device.type != "cpu" else None
        if self.arrived is not None:
            self.arrived.record()

    def check(self) -> None:
        if self.arrived is not None:
            self.arrived.synchronize()
        if bool(self.is_finite):
            return
        bad = [name for name, value in self.terms.items() if not math.isfinite(float(value))]
        raise NonFiniteLossError(
            f"step {self.step}: {', '.join(bad) or 'the gradient'} is not finite; the update was not applied. "
            "Lower training.learning_rate, or set training.clip_norm or training.precision=float32"
        )


class _Averages:
    """Means of the terms over the steps since the last point of the curve, kept on the device."""

    def __init__(self, sums: Mapping[str, Tensor] | None = None, counts: Mapping[str, int] | None = None) -> None:
        self.sums = dict(sums or {})
        self.counts = dict(counts or {})

    def add(self, terms: Mapping[str, Tensor]) -> None:
        for name, value in terms.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
            self.counts[name] = self.counts.get(name, 0) + 1

    def take(self) -> dict[str, float]:
        means = {name: float(total) / self.counts[name] for name, total in self.sums.items()}
        self.sums, self.counts = {}, {}
        return means


def num_steps(config: Config, steps_per_epoch: int) -> int:
    """Steps of the whole training: the budget in epochs, rounded to whole batches."""
    return round(config.training.epochs * steps_per_epoch)


def train(
    model: nn.Module,
    objective: ObjectiveFunction,
    loader: TrainBatches,
    validation: Iterable[Batch],
    config: Config,
    checkpoint_dir: Path | None = None,
    ranks: Ranks | None = None,
) -> Iterator[Record]:
    """Train `model` in place and yield curves, validation losses, progress and checkpoints.

    Several ranks run this loop side by side, each on its share of the batches, and yield the same curves; the first
    alone writes checkpoints, and theirs is the one that all go on from.

    A run that finds a checkpoint in `checkpoint_dir` goes on from it and then yields exactly the records
    that an undisturbed run would have yielded from there on.

    Raises:
        NonFiniteLossError: one step after a non-finite loss or gradient; no weight was touched by it.
    """
    ranks = ranks or Ranks()
    training = config.training
    device = torch.device(training.device)
    steps_per_epoch = len(loader)
    total_steps = num_steps(config, steps_per_epoch)
    log_steps = max(1, total_steps // _LOG_POINTS)
    checkpoint_steps = max(1, round(training.checkpoint_epochs * steps_per_epoch))
    validation_steps = max(1, round(config.evaluation.validation_epochs * steps_per_epoch))

    optimizer = build_optimizer(model, training)
    scaler = torch.amp.GradScaler(device.type, enabled=training.precision == "float16")
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    averages = _Averages()
    step = 0
    state = ranks.from_first(load_checkpoint(checkpoint_dir) if checkpoint_dir and ranks.is_first else None)
    if state is not None:
        step = state["step"]
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["random"][ranks.rank])
        averages = _Averages(state["sums"], state["counts"])

    previous: _Flagged | None = None
    model.train()
    while step < total_steps:
        epoch, position = divmod(step, steps_per_epoch)
        length = curriculum.sequence_length(
            config.objective.curriculum.kind, step / total_steps, config.data.sequence_length
        )
        for batch in loader.batches(epoch, start=position, sequence_length=length):
            if step >= total_steps:
                break
            weights = temporal_weights(config, step / total_steps)
            rate = learning_rate(
                step,
                total_steps,
                peak=training.learning_rate,
                minimum=training.min_learning_rate,
                warmup_fraction=training.warmup_fraction,
            )
            for group in optimizer.param_groups:
                group["lr"] = rate
            with autocast(config):
                terms = objective(batch.to(device), weights)
            loss = terms["loss"]
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()
            if scaler.is_enabled():
                scaler.unscale_(optimizer)
            norm = nn.utils.clip_grad_norm_(parameters, training.clip_norm or math.inf)
            if scaler.is_enabled():
                # Half precision overflows by design: the scaler skips such a step and lowers its scale.
                scaler.step(optimizer)
                scaler.update()
                is_finite = ranks.all_true(loss.detach().isfinite())
            else:
                is_finite = ranks.all_true(loss.detach().isfinite() & norm.isfinite())
                gated_step(optimizer, is_finite)
            logged = ranks.mean({name: value.detach() for name, value in terms.items()})
            if previous is not None:
                previous.check()
            previous = _Flagged(step, logged, is_finite)
            averages.add({**logged, "gradient_norm": norm.detach()})
            step += 1
            yield Progress(step, total_steps)
            if step % log_steps == 0 or step == total_steps:
                previous.check()
                values = {f"train/{name}": value for name, value in averages.take().items()}
                yield Metrics(step, {**values, "train/learning_rate": rate, "train/epoch": step / steps_per_epoch,
                                     "train/fmc_weight": weights.fmc, "train/rmr_weight": weights.rmr,
                                     "train/sequence_length": float(length)})
            if step % validation_steps == 0 or step == total_steps:
                yield Metrics(step, validate(model, objective, validation, config, ranks))
            if checkpoint_dir and step % checkpoint_steps == 0 and step < total_steps:
                previous.check()
                random_states = ranks.collect(torch.get_rng_state())
                if ranks.is_first:
                    yield Checkpoint(step, save_checkpoint(checkpoint_dir, step, {
                        "step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict(),
                        "scaler": scaler.state_dict(), "random": random_states,
                        "sums": averages.sums, "counts": averages.counts,
                    }))
    if previous is not None:
        previous.check()


def temporal_weights(config: Config, progress: float) -> TemporalWeights:
    """Weights of FMC and RMR at `progress` in [0, 1) under the configured curriculum; prototypes learn later."""
    schedule = config.objective.curriculum
    fmc, rmr = curriculum.weights(schedule.kind, progress, schedule.start_fraction, schedule.ramp_fraction)
    temporal = config.objective.temporal
    return TemporalWeights(fmc * temporal.fmc_weight, rmr * temporal.rmr_weight,
                           progress >= config.objective.prototypes.frozen_fraction)


def autocast(config: Config) -> Any:
    """Autocast to the configured precision; does nothing for float32."""
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[config.training.precision]
    kind = torch.device(config.training.device).type
    return torch.autocast(kind, dtype=dtype, enabled=dtype is not torch.float32)


@torch.no_grad()
def validate(
    model: nn.Module, objective: ObjectiveFunction, batches: Iterable[Batch], config: Config, ranks: Ranks | None = None
) -> dict[str, float]:
    """Mean of every term over the validation batches, weighted by their pairs, in evaluation mode.

    The temporal terms have the full weights of the config whatever the curriculum says at this step, so
    that the curve of one trial compares with itself. Of several ranks each takes every so many-th batch, whole.
    """
    ranks = ranks or Ranks()
    was_training = model.training
    model.eval()
    device = torch.device(config.training.device)
    weights = TemporalWeights(config.objective.temporal.fmc_weight, config.objective.temporal.rmr_weight)
    scored: list[tuple[int, int, dict[str, float]]] = []
    for number, batch in enumerate(batches):
        if number % ranks.world_size != ranks.rank:
            continue
        with autocast(config):
            terms = objective(batch.to(device), weights)
        scored.append((number, batch.num_pairs, {name: float(value) for name, value in terms.items()}))
    model.train(was_training)
    sums: dict[str, float] = {}
    pairs: dict[str, int] = {}
    # In the order of the batches, so that the sum does not depend on who took which.
    for _, num_pairs, values in sorted(itertools.chain(*ranks.collect(scored)), key=lambda item: item[0]):
        for name, value in values.items():
            sums[name] = sums.get(name, 0.0) + value * num_pairs
            pairs[name] = pairs.get(name, 0) + num_pairs
    return {f"validation/{name}": total / pairs[name] for name, total in sums.items()}
