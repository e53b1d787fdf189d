"""Stopwatches: interleaved times, paired ratios, peak memory, the rate of matrix products.

What must not live here: what is measured.
"""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

Step = Callable[[], object]

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "processor": time.process_time}
"""processor: seconds of all threads of this process, which other work on a CPU lengthens little."""
_clock = CLOCKS["wall"]


def use_clock(name: str) -> None:
    """Choose the clock of all measurements from here on."""
    global _clock
    _clock = CLOCKS[name]


@dataclass(frozen=True)
class Times:
    """Seconds of several steps that took turns: one row a round, so that a disturbance hits all of a row."""

    names: tuple[str, ...]
    seconds: np.ndarray
    """(rounds, steps)."""

    def of(self, name: str) -> np.ndarray:
        """(rounds,)."""
        return self.seconds[:, self.names.index(name)]

    def ratio(self, slow: str, fast: str) -> dict[str, float]:
        """How many times longer `slow` took than `fast`, round by round."""
        return spread(self.of(slow) / self.of(fast))


def spread(values: np.ndarray) -> dict[str, float]:
    """Median and quartiles."""
    low, median, high = np.percentile(values, [25, 50, 75])
    return {"median": float(median), "low": float(low), "high": float(high), "rounds": len(values)}


def synchronise(device: str) -> None:
    """Wait until the device has nothing left to do."""
    if torch.device(device).type != "cpu":
        torch.accelerator.synchronize()


def interleave(
    steps: Mapping[str, Step],
    device: str,
    *,
    seconds: float,
    least_rounds: int = 3,
    keep: Callable[[Times], None] = lambda times: None,
    is_warm: bool = False,
    has_lead_in: bool = False,
) -> Times:
    """Let the steps take turns until the time is used up, each round beginning with another one.

    Args:
        seconds: no round begins later than this after the first.
        least_rounds: so many rounds are made even if they take longer.
        keep: gets the times of all rounds so far after each, so that an interruption loses one round at most.
        is_warm: every step has run before; otherwise each runs once before the clock starts.
        has_lead_in: each turn begins with a run that is not timed: in training a step follows one of its own kind,
            and not one that has left the memory otherwise.
    """
    names = tuple(steps)
    for name in () if is_warm else names:
        steps[name]()
    synchronise(device)
    rows: list[list[float]] = []
    begin = time.perf_counter()
    while len(rows) < least_rounds or time.perf_counter() - begin < seconds:
        row = [0.0] * len(names)
        for offset in range(len(names)):
            index = (offset + len(rows)) % len(names)
            if has_lead_in:
                steps[names[index]]()
                synchronise(device)
            start = _clock()
            steps[names[index]]()
            synchronise(device)
            row[index] = _clock() - start
        rows.append(row)
        keep(Times(names, np.array(rows)))
    return Times(names, np.array(rows))


def peak_memory(step: Step, device: str) -> float:
    """Bytes that a step holds at its worst beyond what is held before it.

    On a CPU this is the process's resident memory as Linux counts it; on an accelerator what torch has allocated.
    """
    gc.collect()
    if torch.device(device).type != "cpu":
        torch.accelerator.synchronize()
        held = torch.accelerator.memory_allocated()
        torch.accelerator.reset_peak_memory_stats()
        step()
        torch.accelerator.synchronize()
        return float(torch.accelerator.max_memory_allocated() - held)
    # Freed memory that the allocator keeps would hide part of what the step needs.
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    before = _resident("VmRSS")
    step()
    return _resident("VmHWM") - before


def _resident(field: str) -> float:
    with open("/proc/self/status") as file:
        for line in file:
            if line.startswith(field):
                return 1024.0 * int(line.split()[1])
    raise ValueError(f"no {field} in /proc/self/status: peak memory on a CPU is measured on Linux only")


def matrix_products(shapes: Sequence[tuple[int, int, int]], device: str, dtype: torch.dtype) -> tuple[Step, float]:
    """The three products of linear layers (rows, inputs, outputs): forward, gradient of the input, of the weight.

    Returns:
        The step, and its floating-point operations.
    """
    operands = [(torch.randn(rows, inputs, device=device, dtype=dtype),
                 torch.randn(outputs, inputs, device=device, dtype=dtype),
                 torch.randn(rows, outputs, device=device, dtype=dtype)) for rows, inputs, outputs in shapes]

    def step() -> None:
        for left, weight, gradient in operands:
            left @ weight.T
            gradient @ weight
            gradient.T @ left

    return step, 3 * sum(2.0 * rows * inputs * outputs for rows, inputs, outputs in shapes)


def machine(device: str) -> dict[str, Any]:
    """What the numbers were measured on."""
    name = platform.processor() or platform.machine()
    with open("/proc/cpuinfo") as file:
        name = next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), name)
    is_cpu = torch.device(device).type == "cpu"
    return {
        "device": name if is_cpu else torch.cuda.get_device_name(), "cores": os.cpu_count(),
        "threads": torch.get_num_threads(), "load": os.getloadavg()[0], "torch": torch.__version__,
        "python": platform.python_version(),
    }


def growth_exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Slope of the straight line through the points on a log-log plot."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])
