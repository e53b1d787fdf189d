"""The loop on a toy model: schedule by hand, the gate, exact resume, damaged checkpoints."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from medst.config import Config, TrainingConfig, override
from medst.data.batch import Batch
from medst.records import Checkpoint, Metrics, Record
from medst.training.checkpoint import load_checkpoint, save_checkpoint
from medst.training.loop import NonFiniteLossError, TemporalWeights, temporal_weights, train
from medst.training.optimizer import build_optimizer, gated_step
from medst.training.schedule import learning_rate


def _batch(generator: torch.Generator, num_pairs: int = 4) -> Batch:
    none = torch.zeros(0, dtype=torch.long)
    return Batch(
        frontal=torch.randn(num_pairs, 1, 2, 2, generator=generator),
        frontal_view=torch.zeros(num_pairs, dtype=torch.long),
        lateral=torch.zeros(0, 1, 2, 2),
        lateral_view=none,
        lateral_row=none,
        token_ids=torch.zeros(num_pairs, 3, dtype=torch.long),
        attention_mask=torch.ones(num_pairs, 3, dtype=torch.long),
        word_of_token=torch.zeros(num_pairs, 3, dtype=torch.long),
        study=torch.arange(num_pairs),
        sequences=torch.zeros(0, 4, dtype=torch.long),
    )


class ToyLoader:
    """Five batches an epoch, drawn from the epoch's own generator."""

    def __len__(self) -> int:
        return 5

    def batches(self, epoch: int, start: int = 0, sequence_length: int | None = None) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(epoch)
        drawn = [_batch(generator) for _ in range(len(self))]
        yield from drawn[start:]


class ToyModel(nn.Module):
    def __init__(self, poisoned_step: int | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(4, 3)
        self.norm = nn.BatchNorm1d(3)
        self.dropout = nn.Dropout(0.5)
        self.poisoned_step = poisoned_step
        self.calls = 0

    def objective(self, batch: Batch, weights: TemporalWeights) -> dict[str, Tensor]:
        value = self.dropout(self.norm(self.linear(batch.frontal.flatten(1)))).square().mean()
        second = value * 0.5
        if self.calls == self.poisoned_step:
            second = second * math.nan
        self.calls += self.training
        return {"loss": value + second, "first": value, "second": second}


def _config(**settings: object) -> Config:
    return override(Config(), {"training.epochs": 2.0, "training.learning_rate": 0.01, **settings})


def _run(config: Config, directory: Path | None = None, stop_after: int | None = None) -> tuple[ToyModel, list[Record]]:
    model = ToyModel()
    torch.manual_seed(1)
    validation = [_batch(torch.Generator().manual_seed(99))]
    records: list[Record] = []
    for record in train(model, model.objective, ToyLoader(), validation, config, directory):
        records.append(record)
        if stop_after is not None and isinstance(record, Checkpoint) and record.step >= stop_after:
            break
    return model, records


def test_learning_rate_by_hand() -> None:
    rates = [learning_rate(s, 10, peak=1.0, minimum=0.0, warmup_fraction=0.4) for s in range(10)]
    assert rates[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert rates[6] == pytest.approx(0.5)
    assert rates[-1] == pytest.approx(0.0, abs=1e-12)


def test_no_warmup_starts_high_and_ends_at_the_minimum() -> None:
    rates = [learning_rate(s, 100, peak=1.0, minimum=0.1, warmup_fraction=0.0) for s in range(100)]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(0.1)


def test_decay_spares_vectors_unless_released() -> None:
    model = ToyModel()
    corrected = build_optimizer(model, TrainingConfig())
    assert [group["weight_decay"] for group in corrected.param_groups] == [0.05, 0.0]
    assert [p.ndim for p in corrected.param_groups[0]["params"]] == [2]
    released = build_optimizer(model, TrainingConfig(decay="released"))
    assert [group["weight_decay"] for group in released.param_groups] == [0.05]


def test_gate_leaves_weights_and_moments_untouched() -> None:
    model = ToyModel()
    optimizer = build_optimizer(model, TrainingConfig())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    gated_step(optimizer, torch.tensor(True))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    moments = [value.clone() for state in optimizer.state.values() for value in state.values()]
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, math.nan)
    gated_step(optimizer, torch.tensor(False))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    after = [value for state in optimizer.state.values() for value in state.values()]
    assert all(torch.equal(a, b) for a, b in zip(after, moments, strict=True))


def test_non_finite_term_is_named_and_touches_no_weight() -> None:
    model = ToyModel(poisoned_step=3)
    torch.manual_seed(1)
    weights: list[Tensor] = []
    with pytest.raises(NonFiniteLossError, match=r"step 3: loss, second is not finite"):
        for _ in train(model, model.objective, ToyLoader(), [], _config()):
            weights.append(model.linear.weight.detach().clone())
    assert torch.isfinite(model.linear.weight).all()


@pytest.mark.parametrize("kind", ["staged", "joint"])
def test_resumed_run_equals_uninterrupted_bit_for_bit(tmp_path: Path, kind: str) -> None:
    config = _config(**{"training.checkpoint_epochs": 1.0, "objective.curriculum.kind": kind})
    whole_model, whole = _run(config, tmp_path / "whole")
    _run(config, tmp_path / "cut", stop_after=5)
    model, rest = _run(config, tmp_path / "cut")
    state, other = whole_model.state_dict(), model.state_dict()
    assert all(torch.equal(state[name], other[name]) for name in state)
    tail = [record for record in whole if isinstance(record, Metrics) and record.step > 5]
    assert [record for record in rest if isinstance(record, Metrics)] == tail
    assert tail


def test_damaged_checkpoint_falls_back_to_the_one_before(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, step, {"step": step})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-2", "step-3"]
    (tmp_path / "step-3" / "state.pt").write_bytes(b"PK\x03\x04 cut off")
    state = load_checkpoint(tmp_path)
    assert state is not None and state["step"] == 2


def test_zero_epochs_is_the_untrained_model() -> None:
    model, records = _run(_config(**{"training.epochs": 0.0}))
    assert records == []
    assert torch.equal(model.linear.weight, ToyModel().linear.weight)


def test_temporal_weights_follow_the_curriculum() -> None:
    config = _config(**{"objective.curriculum.kind": "staged", "objective.curriculum.start_fraction": 0.5,
                        "objective.temporal.rmr_weight": 0.25})
    assert temporal_weights(config, 0.25) == TemporalWeights(1.0, 0.0, True)
    assert temporal_weights(config, 0.75) == TemporalWeights(1.0, 0.25)
