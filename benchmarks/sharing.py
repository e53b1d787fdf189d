"""Several small trials on one device: steps a second of all of them, against their number.

What must not live here: how the engine places trials; it is told how many share a device.
"""

from __future__ import annotations

import time
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from typing import Any

import torch

from benchmarks.measuring import synchronise
from benchmarks.published_way import FAST
from benchmarks.settings import configuration
from benchmarks.training import TrainingStep

NUMBERS = (1, 2, 4, 8, 16)
_PAIRS = 32
_WARM_UP = 3
_PATIENCE = 300.0
"""Seconds that the processes wait for one another."""


def measure_sharing(device: str, *, seconds: float, numbers: tuple[int, ...] = NUMBERS) -> dict[str, Any]:
    """Steps a second at `tiny`, with one thread each, and the number at which they are most."""
    rates = {number: _together(number, device, seconds / len(numbers)) for number in numbers}
    return {"steps_per_second": rates, "best": max(rates, key=lambda number: rates[number])}


def _together(number: int, device: str, seconds: float) -> float:
    # Every process starts from nothing: an accelerator's context cannot be inherited.
    context = get_context("spawn")
    barrier = context.Barrier(number)
    pipes = [context.Pipe(duplex=False) for _ in range(number)]
    processes = [context.Process(target=_work, args=(barrier, sender, device, seconds)) for _, sender in pipes]
    for process in processes:
        process.start()
    for _, sender in pipes:
        sender.close()
    try:
        return sum(receiver.recv() for receiver, _ in pipes)
    finally:
        for process in processes:
            process.join(timeout=_PATIENCE)
            process.kill()


def _work(barrier: Barrier, sender: Connection, device: str, seconds: float) -> None:
    torch.set_num_threads(1)
    step = TrainingStep("tiny", configuration("tiny", device), _PAIRS)
    for _ in range(_WARM_UP):
        step.take(FAST)
    synchronise(device)
    barrier.wait(timeout=_PATIENCE)
    begin = time.perf_counter()
    steps = 0
    while time.perf_counter() - begin < seconds:
        step.take(FAST)
        synchronise(device)
        steps += 1
    sender.send(steps / (time.perf_counter() - begin))
    sender.close()
