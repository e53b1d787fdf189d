"""Loss curves of float32 and bfloat16 from the same start on the same batches, and where the time of a step goes.

What must not live here: the loop (medst/training); settings.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.input import made_up_store
from benchmarks.measuring import synchronise
from medst.config import Config, override
from medst.data.batch import Batch
from medst.data.loader import TrainLoader
from medst.data.provision import provide
from medst.data.store import Store
from medst.data.tokenizer import build_tokenizer
from medst.model import MedST
from medst.objectives import medst_objective
from medst.training.loop import autocast
from medst.training.optimizer import build_optimizer, gated_step
from medst.training.schedule import learning_rate

MATRIX_WORK = ("mm", "addmm", "bmm", "baddbmm", "convolution", "conv", "attention", "gemm", "cutlass", "flash", "fmha")
"""Parts of the names of kernels that compute matrix products, convolutions or attention."""
_SMOOTHED = 25


@contextmanager
def _store_of(config: Config) -> Iterator[Store]:
    """The phantom of the config where it is prepared, else made-up pairs."""
    if Path(config.data.root).is_dir():
        yield provide(config.data, 1, lambda _: lambda done, total: None)
    else:
        with TemporaryDirectory() as folder:
            yield made_up_store(Path(folder), config, 512)


def measure_curves(config: Config, num_steps: int) -> dict[str, Any]:
    """The loss of every step in both precisions, and how far the smoothed curves part."""
    with _store_of(config) as store:
        losses = {precision: _train(override(config, {"training.precision": precision}), store, num_steps)
                  for precision in ("float32", "bfloat16")}
        name = store.name
    window = np.ones(_SMOOTHED) / _SMOOTHED
    smooth = {precision: np.convolve(values, window, mode="valid") for precision, values in losses.items()}
    apart = np.abs(smooth["float32"] - smooth["bfloat16"]) / smooth["float32"]
    return {"data": name, "steps": num_steps, "loss": losses, "smoothed_over": _SMOOTHED,
            "largest_relative_distance": float(apart.max()), "last_relative_distance": float(apart[-1])}


def _train(config: Config, store: Store, num_steps: int) -> list[float]:
    tokenizer = build_tokenizer(store, config.data, config.model.text.word_aggregation)
    loader = TrainLoader(store, tokenizer, config, config.training.device)
    model = MedST.create(config, tokenizer.vocabulary_size).to(config.training.device).train()
    optimizer = build_optimizer(model, config.training)
    losses: list[Tensor] = []
    for step, batch in enumerate(islice(_endless(loader), num_steps)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, num_steps, peak=config.training.learning_rate, minimum=1e-8,
                                        warmup_fraction=config.training.warmup_fraction)
        losses.append(_step(model, batch.to(config.training.device), config, optimizer))
    return [float(loss) for loss in losses]


def _endless(loader: TrainLoader) -> Iterator[Batch]:
    for epoch in count():
        yield from loader.batches(epoch)


def _step(model: MedST, batch: Batch, config: Config, optimizer: torch.optim.Optimizer) -> Tensor:
    with autocast(config):
        loss = medst_objective(model(batch), batch.study, batch.sequences, model.word_pooling, model.patch_pooling,
                               config.objective, fmc_weight=1.0, rmr_weight=1.0).total
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.training.clip_norm)
    gated_step(optimizer, loss.detach().isfinite() & norm.isfinite())
    return loss.detach()


def measure_shares(config: Config, num_steps: int) -> dict[str, Any]:
    """Where the wall time of training goes: matrix work, other kernels, loading, and what is left, the host.

    Kernels are timed by the profiler, which slows the host down; the wall time and the loading are those of as many
    steps without it, half of them before and half after. On an accelerator kernels run beside the host, and the shares
    may add up to more than 1.
    """
    with _store_of(config) as store:
        tokenizer = build_tokenizer(store, config.data, config.model.text.word_aggregation)
        loader = TrainLoader(store, tokenizer, config, config.training.device)
        model = MedST.create(config, tokenizer.vocabulary_size).to(config.training.device).train()
        optimizer = build_optimizer(model, config.training)
        batches = _endless(loader)
        kinds = [ProfilerActivity.CPU]
        is_accelerated = torch.device(config.training.device).type != "cpu"
        if is_accelerated:
            kinds.append(ProfilerActivity.CUDA)

        def train(count: int) -> np.ndarray:
            """Seconds of all steps, and of loading in them."""
            loading = 0.0
            begin = time.perf_counter()
            for _ in range(count):
                start = time.perf_counter()
                batch = next(batches)
                loading += time.perf_counter() - start
                _step(model, batch.to(config.training.device), config, optimizer)
            synchronise(config.training.device)
            return np.array([time.perf_counter() - begin, loading])

        train(3)
        before = train(num_steps // 2)
        with profile(activities=kinds) as profiler:
            train(num_steps)
        wall, loading = (before + train(num_steps - num_steps // 2)).tolist()
    matrix = other = 0.0
    largest: dict[str, float] = {}
    for event in profiler.key_averages():
        seconds = (event.self_device_time_total if is_accelerated else event.self_cpu_time_total) / 1e6
        if not is_accelerated and not event.key.startswith("aten::"):
            continue
        largest[event.key] = seconds
        if any(part in event.key.lower() for part in MATRIX_WORK):
            matrix += seconds
        else:
            other += seconds
    first = sorted(largest, key=lambda key: -largest[key])[:12]
    if not is_accelerated:
        # Kernels of the loader run on the same processor and are counted as loading.
        other = max(0.0, other - loading)
    return {"wall_seconds_a_step": wall / num_steps, "matrix_work": matrix / wall, "loading": loading / wall,
            "other_kernels": other / wall,
            "largest": {key: largest[key] / wall for key in first}}
