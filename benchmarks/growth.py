"""Step time against batch, sequence length, image size and number of experts, with the exponent of each.

Expected: batch 1 (linear; less while the fixed cost of a step counts), image size 2 (patches) and above (attention),
sequence length and experts 0 (a batch holds as many pairs, a token passes through one expert). What must not live here:
growth of the engine, of the store and of the analysis (engine.py, preparation.py).
"""

from __future__ import annotations

from typing import Any

from benchmarks.measuring import Step, growth_exponent, interleave, spread
from benchmarks.published_way import FAST
from benchmarks.settings import configuration
from benchmarks.training import TrainingStep

_PAIRS = 32
SWEPT: dict[str, tuple[float, tuple[int, ...]]] = {
    "batch": (1.0, (16, 32, 64, 128)), "image size": (2.0, (64, 96, 128, 192)), "sequence length": (0.0, (2, 4, 8)),
    "experts": (0.0, (1, 2, 3, 4)),
}
"""Factor -> expected exponent and sizes, at the tiny configuration."""


def measure_growth(device: str, *, seconds: float) -> dict[str, Any]:
    """Times and exponents of every factor."""
    results: dict[str, Any] = {}
    for factor, (expected, sizes) in SWEPT.items():
        steps: dict[str, Step] = {str(size): _step(factor, size, device) for size in sizes}
        times = interleave(steps, device, seconds=seconds / len(SWEPT))
        medians = [float(spread(times.of(str(size)))["median"]) for size in sizes]
        results[factor] = {"sizes": list(sizes), "seconds": {name: spread(times.of(name)) for name in steps},
                           "exponent": growth_exponent(sizes, medians), "expected": expected}
    return results


def _step(factor: str, size: int, device: str) -> Step:
    changes: dict[str, Any] = {
        "batch": {}, "image size": {"data.image_size": size + 8, "data.crop_size": size},
        "sequence length": {"data.sequence_length": size}, "experts": {"model.experts.num_experts": size},
    }[factor]
    step = TrainingStep("tiny", configuration("tiny", device, **changes), size if factor == "batch" else _PAIRS)
    return lambda: step.take(FAST)
