"""What the ranks of the tests run: functions that a process of their own can import."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from model_samples import LATERAL, LL, PA, small_batch, small_config, small_model
from torch import Tensor, nn

from medst.config import Config
from medst.data import loader
from medst.data.batch import Batch
from medst.objectives import medst_objective
from medst.records import Arrays, Metrics, Record
from medst.training.distributed import Ranks
from medst.training.loop import TemporalWeights, train
from medst.trial import run_rank

LATERALS: dict[str, tuple[tuple[int, int], ...]] = {
    "even": ((0, LATERAL), (2, LL), (5, LL), (6, LATERAL)),
    "uneven": ((0, LL), (1, LATERAL), (2, LL), (7, LATERAL)),
    "one rank has none": ((4, LATERAL), (6, LL), (7, LL)),
}
SETTINGS: dict[str, dict[str, Any]] = {
    "patch stem": {},
    "conv stem, four experts": {"model.image.stem": "conv", "model.experts.num_experts": 4},
    "learned routing": {"model.experts.routing": "learned", "model.experts.num_experts": 3},
    "released losses": {"objective.local.padding": "released", "objective.temporal.regression": "released",
                        "objective.global_negatives": "released"},
    "chunks": {"training.micro_batch": 2, "training.recompute": True},
}
CASES = [(laterals, "patch stem") for laterals in LATERALS] + [
    ("one rank has none", settings) for settings in SETTINGS if settings != "patch stem"]


def share_of(batch: Batch, rank: int, world_size: int) -> Batch:
    """The rows of one rank; study stays with its pair, sequences name rows of the whole batch."""
    size = batch.num_pairs // world_size
    own = slice(rank * size, (rank + 1) * size)
    has = (batch.lateral_row >= own.start) & (batch.lateral_row < own.stop)
    width = int(batch.attention_mask[own].sum(dim=1).max())
    return replace(batch, frontal=batch.frontal[own], frontal_view=batch.frontal_view[own], lateral=batch.lateral[has],
                   lateral_view=batch.lateral_view[has], lateral_row=batch.lateral_row[has] - own.start,
                   token_ids=batch.token_ids[own, :width], attention_mask=batch.attention_mask[own, :width],
                   word_of_token=batch.word_of_token[own, :width], study=batch.study[own])


class Scored(nn.Module):
    """A small model and its losses."""

    def __init__(self, config: Config, dtype: torch.dtype, ranks: Ranks) -> None:
        super().__init__()
        self.model = small_model(config).to(dtype)
        self._config = config
        self._ranks = ranks

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        routing = self._config.model.experts.routing
        scored = medst_objective(
            self.model(batch), batch.study, batch.sequences, self.model.word_pooling, self.model.patch_pooling,
            self._config.objective, fmc_weight=1.0, rmr_weight=0.7,
            balance_weight=0.5 if routing == "learned" else 0.0, gather=self._ranks.gather)
        return {**scored.terms, "loss": scored.total}


@contextmanager
def _counting_in(dtype: torch.dtype) -> Iterator[None]:
    """Shares of counted things, as of tokens sent to an expert, are of torch's default type."""
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(usual)


def gradients_of(laterals: str, settings: str, dtype: torch.dtype, ranks: Ranks) -> dict[str, Tensor]:
    """Gradients, buffers and terms after one backward pass on this rank's share of a batch of eight pairs."""
    config = small_config(**SETTINGS[settings])
    whole = small_batch((PA, 0, PA, PA, 0, PA, 0, PA), LATERALS[laterals], (5, 2, 9, 1, 4, 7, 3, 6))
    # The second sequence lies across the border of the two ranks.
    whole = replace(whole, sequences=torch.tensor([[0, 1, 2], [3, 4, 5]]), frontal=whole.frontal.to(dtype),
                    lateral=whole.lateral.to(dtype))
    scored = Scored(config, dtype, ranks)
    parallel = ranks.parallel(scored)
    with _counting_in(dtype):
        terms = parallel(share_of(whole, ranks.rank, ranks.world_size))
        terms["loss"].backward()
    found = {f"gradient {name}": parameter.grad for name, parameter in scored.model.named_parameters()
             if parameter.grad is not None}
    found |= {f"buffer {name}": buffer for name, buffer in scored.model.named_buffers() if buffer.is_floating_point()}
    return found | {f"term {name}": value for name, value in ranks.mean(terms).items()}


def mathematics(config: Config, checkpoint_dir: Path | None) -> Iterator[Record]:
    """The gradients of every case in both precisions, and the end of a poisoned training."""
    for laterals, settings in CASES:
        for dtype in (torch.float64, torch.float32):
            found = gradients_of(laterals, settings, dtype, Ranks.current())
            yield Arrays(f"{laterals}; {settings}; {dtype}",
                         {name: value.detach().numpy() for name, value in found.items()})
    yield from poisoned(config)


class _Steps:
    """Two batches, each rank's its own."""

    def __len__(self) -> int:
        return 2

    def batches(self, epoch: int, start: int = 0, sequence_length: int | None = None) -> Iterator[Batch]:
        for seed in range(start, 2):
            yield share_of(small_batch((PA,) * 4, ((0, LL),), seed=seed), Ranks.current().rank, 2)


def poisoned(config: Config) -> Iterator[Record]:
    """A training in which the second rank's term is not a number at the second step; both say what they saw."""
    ranks = Ranks.current()
    torch.manual_seed(0)
    layer = nn.Linear(256, 2)
    parallel = ranks.parallel(layer)
    calls = 0

    def objective(batch: Batch, weights: TemporalWeights) -> dict[str, Tensor]:
        nonlocal calls
        calls += 1
        value = parallel(batch.frontal.flatten(1)).square().mean()
        if calls == 2 and ranks.rank == 1:
            # The gradient stays finite: the flag alone can tell the others.
            value = value + torch.tensor(float("nan"))
        return {"loss": value, "first": value}

    seen = [layer.weight.detach().clone()]
    try:
        for _ in train(layer, objective, _Steps(), [], config, None, ranks):
            seen.append(layer.weight.detach().clone())
    except Exception as error:
        told = ranks.collect((type(error).__name__, str(error), layer.weight.detach().clone(), seen))
        for rank, (kind, message, weight, weights) in enumerate(told):
            yield Metrics(rank, {f"{kind}: {message}": float(torch.equal(weight, weights[-1])),
                                 "moved": float(not torch.equal(weights[0], weights[1])),
                                 "same": float(torch.equal(weight, told[0][2]))})


def trial_in_float64(config: Config, checkpoint_dir: Path | None) -> Iterator[Record]:
    """A whole trial on images, weights and moments of float64."""
    to_unit_range = loader.to_unit_range
    with _counting_in(torch.float64), mock.patch.object(
            loader, "to_unit_range", lambda images: to_unit_range(images).double()):
        yield from run_rank(config, checkpoint_dir)


def failing_rank(config: Config, checkpoint_dir: Path | None) -> Iterator[Record]:
    """The second rank raises, the first waits for it."""
    if Ranks.current().rank == 1:
        raise ArithmeticError("the second rank cannot count")
    yield from _waiting()


def killed_rank(config: Config, checkpoint_dir: Path | None) -> Iterator[Record]:
    """The second rank is killed after both have met, the first waits for it."""
    yield from _waiting()
    if Ranks.current().rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    yield from _waiting()


def failing_first(config: Config, checkpoint_dir: Path | None) -> Iterator[Record]:
    """The first rank raises, the second waits for it."""
    if Ranks.current().is_first:
        raise ArithmeticError("the first rank cannot count")
    yield from _waiting()


def _waiting() -> Iterator[Record]:
    yield Metrics(0, {"sum": float(Ranks.current().sum(torch.ones(1)))})
