"""What a trial will take, before anything long starts: steps, memory, time, disk.

A few pairs pass forward and backward once. What autograd keeps is counted tensor by tensor, so that the memory is that
of any device; it grows with the pairs that are held at once. The time is this machine's, on its CPU where it lacks the
GPU of the config.
What must not live here: the training itself.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from medst.config import Config, override
from medst.data.batch import Batch
from medst.data.loader import TrainLoader
from medst.data.store import Store
from medst.data.tokenizer import Tokenizer
from medst.model import MedST
from medst.objectives import medst_objective
from medst.training.device import is_usable
from medst.training.loop import autocast, num_steps

_MEASURED_PAIRS = 4
_GIB = 2**30


@dataclass(frozen=True)
class Estimate:
    """Costs of one trial; bytes and seconds."""

    num_patients: int
    num_pairs: int
    steps_per_epoch: int
    num_steps: int
    num_parameters: int
    weight_bytes: int
    """Weights, gradients and the two moments of the optimiser."""
    activation_bytes: int
    """What autograd keeps of the pairs that are held at once."""
    pairs_held: int
    seconds_per_step: float
    measured_pairs: int
    store_bytes: int
    model_bytes: int
    """Of the finished model."""
    checkpoint_bytes: int
    """Two checkpoints and the finished model."""
    free_bytes: int
    """On the disk of the checkpoints."""
    device: str
    """On which the step was timed."""

    @property
    def seconds_per_epoch(self) -> float:
        return self.seconds_per_step * self.steps_per_epoch

    @property
    def seconds(self) -> float:
        """Of the whole training, without evaluation."""
        return self.seconds_per_step * self.num_steps

    @property
    def memory_bytes(self) -> int:
        """Weights, optimiser and activations, without what the libraries need."""
        return self.weight_bytes + self.activation_bytes

    def rows(self) -> list[tuple[str, str]]:
        """Title and value of every line to print."""
        hours = self.seconds / 3600
        return [
            ("training", f"{self.num_pairs:,} pairs of {self.num_patients:,} patients"),
            ("steps", f"{self.num_steps:,}, {self.steps_per_epoch:,} an epoch"),
            ("parameters", f"{self.num_parameters:,}"),
            ("memory, weights and optimiser", f"{self.weight_bytes / _GIB:.2f} GiB (computed)"),
            ("memory, activations", f"{self.activation_bytes / _GIB:.2f} GiB for {self.pairs_held} pairs held at once "
                                    f"(counted on {self.measured_pairs})"),
            ("memory, in all", f"{self.memory_bytes / _GIB:.2f} GiB and what the libraries need"),
            ("time", f"{self.seconds_per_step:.2f} s a step, {self.seconds_per_epoch / 3600:.2f} h an epoch, "
                     f"{hours:.1f} h in all, without evaluation (a step of {self.measured_pairs} pairs timed on "
                     f"{self.device})"),
            ("disk", f"store {self.store_bytes / _GIB:.2f} GiB (there already), checkpoints and model "
                     f"{self.checkpoint_bytes / _GIB:.2f} GiB; {self.free_bytes / _GIB:.1f} GiB are free"),
        ]


class _Kept:
    """Counts the storages that autograd keeps, each once, without those of the parameters."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._known = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
        self.num_bytes = 0

    def pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._known:
            self._known.add(storage.data_ptr())
            self.num_bytes += storage.nbytes()
        return tensor


def estimate(config: Config, store: Store, tokenizer: Tokenizer, place: Path) -> Estimate:
    """Estimate one trial of `config`; nothing is written.

    Args:
        place: existing folder on the disk that will hold the checkpoints.

    Raises:
        ValueError: data and config do not fit, as training would find.
    """
    title = config.training.device
    if not is_usable(title):
        title = f"the CPU, since there is no {title} here"
        config = override(config, {"training.device": "cpu"})
    device = torch.device(config.training.device)
    loader = TrainLoader(store, tokenizer, config, device)
    model = MedST.create(config, tokenizer.vocabulary_size).to(device).train()
    size = min(config.training.pairs_per_batch, max(_MEASURED_PAIRS, config.data.sequence_length))
    small = TrainLoader(store, tokenizer, override(config, {
        "training.pairs_per_batch": size, "training.micro_batch": 0, "training.small_batches": "corrected",
        "training.world_size": 1}), device)
    for encoder in (model.image_encoder, model.text_encoder):
        encoder.micro_batch = 0
    batches = small.batches(0)
    # The first one pays for what later ones find ready.
    _step(model, next(batches).to(device), config)
    num_bytes, seconds = _step(model, next(batches).to(device), config)
    held = config.training.micro_batch or config.training.pairs_per_batch // config.training.world_size
    num_parameters = sum(weight.numel() for weight in model.parameters())
    trained = sum(weight.numel() * weight.element_size() for weight in model.parameters() if weight.requires_grad)
    weights = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    assert store.mimic is not None
    patients = store.mimic.studies["subject_id"].to_numpy()[loader.pairs.study]
    return Estimate(
        num_patients=len(set(patients)), num_pairs=loader.num_pairs, steps_per_epoch=len(loader),
        num_steps=num_steps(config, len(loader)), num_parameters=num_parameters,
        weight_bytes=weights + 3 * trained, activation_bytes=round(num_bytes * held / size), pairs_held=held,
        seconds_per_step=seconds * config.training.pairs_per_batch / size / config.training.world_size,
        measured_pairs=size, store_bytes=sum(file.stat().st_size for file in store.path.rglob("*") if file.is_file()),
        model_bytes=weights, checkpoint_bytes=2 * (weights + 2 * trained) + weights,
        free_bytes=shutil.disk_usage(place).free, device=title)


def _step(model: MedST, batch: Batch, config: Config) -> tuple[int, float]:
    """Bytes that autograd keeps for one batch, and seconds of its forward and backward pass."""
    kept = _Kept(model)
    began = time.perf_counter()
    with autocast(config), torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda tensor: tensor):
        embeddings = model(batch)
        loss = medst_objective(embeddings, batch.study, batch.sequences, model.word_pooling, model.patch_pooling,
                               config.objective, fmc_weight=1.0, rmr_weight=1.0, prototypes=model.prototypes).total
    loss.backward()
    float(loss.detach())
    seconds = time.perf_counter() - began
    model.zero_grad(set_to_none=True)
    return kept.num_bytes, seconds
