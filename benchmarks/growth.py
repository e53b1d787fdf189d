"""How time grows with size, with the exponent of each growth: of a training step, and of the rooms around training.

Expected of a step: batch 1 (linear; less while the fixed cost of a step counts), image size 2 (patches) and above
(attention), sequence length and experts 0 (a batch holds as many pairs, a token passes through one expert). Of the
rooms: a sweep is linear in its trials and shrinks with its workers, preparation is linear in images, analysis in runs;
less than that where a fixed cost counts. What must not live here: how the rooms are measured (engine.py,
preparation.py, analysis.py).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import analysis, engine, preparation
from benchmarks.measuring import Step, growth_exponent, interleave, spread
from benchmarks.published_way import FAST
from benchmarks.settings import configuration
from benchmarks.training import TrainingStep
from medst.tracking import TrackingPlace

_PAIRS = 32
SWEPT: dict[str, tuple[float, tuple[int, ...]]] = {
    "batch": (1.0, (16, 32, 64, 128)), "image size": (2.0, (64, 96, 128, 192)), "sequence length": (0.0, (2, 4, 8)),
    "experts": (0.0, (1, 2, 3, 4)),
}
"""Factor -> expected exponent and sizes, at the tiny configuration."""


def measure_growth(device: str, *, seconds: float) -> dict[str, Any]:
    """Seconds of a step and exponents of every factor."""
    results: dict[str, Any] = {}
    for factor, (expected, sizes) in SWEPT.items():
        steps: dict[str, Step] = {str(size): _step(factor, size, device) for size in sizes}
        times = interleave(steps, device, seconds=seconds / len(SWEPT))
        results[factor] = _result([spread(times.of(str(size))) for size in sizes], sizes, expected)
    return results


def _step(factor: str, size: int, device: str) -> Step:
    changes: dict[str, Any] = {
        "batch": {}, "image size": {"data.image_size": size + 8, "data.crop_size": size},
        "sequence length": {"data.sequence_length": size}, "experts": {"model.experts.num_experts": size},
    }[factor]
    step = TrainingStep("tiny", configuration("tiny", device, **changes), size if factor == "batch" else _PAIRS)
    return lambda: step.take(FAST)


def _result(seconds: list[dict[str, float]], sizes: tuple[int, ...], expected: float) -> dict[str, Any]:
    return {"sizes": list(sizes), "seconds": {str(size): item for size, item in zip(sizes, seconds, strict=True)},
            "exponent": growth_exponent(sizes, [item["median"] for item in seconds]), "expected": expected}


_ARMS = 4
_RESTING_SECONDS, _RESTING_TRIALS = 2.0, 16
_STORED_SIDE = 64


def _sweep_of(num_trials: int, folder: Path) -> float:
    """Trials that do nothing, one after the other on one worker."""
    engine.write_project(folder, _ARMS, num_trials // _ARMS)
    return engine.run_on_ray(folder, TrackingPlace.of_project(folder), 0.0, 1)[0]


def _sweep_on(num_workers: int, folder: Path) -> float:
    """Trials of two seconds side by side."""
    engine.write_project(folder, _ARMS, _RESTING_TRIALS // _ARMS)
    return engine.run_on_ray(folder, TrackingPlace.of_project(folder), _RESTING_SECONDS, num_workers)[0]


def _preparation_of(num_images: int, folder: Path) -> float:
    preparation.write_corpus(folder / "corpus", num_images)
    return preparation.measure_preparation(folder / "corpus", folder / "store", _STORED_SIDE, 1)["seconds"]


def _analysis_of(num_runs: int, folder: Path) -> float:
    folder.mkdir()
    return analysis.measure(num_runs, folder)["first"]


ROOMS: dict[str, tuple[Callable[[int, Path], float], float, tuple[int, ...]]] = {
    "images prepared": (_preparation_of, 1.0, (1000, 2000, 4000)),
    "runs analysed": (_analysis_of, 1.0, (1000, 2000, 4000)),
    "trials of a sweep": (_sweep_of, 1.0, (16, 32, 64)),
    "workers of a sweep": (_sweep_on, -1.0, (1, 2, 4)),
}
"""Factor -> how it is measured, expected exponent and sizes."""


def measure_rooms(keep: Callable[[dict[str, Any]], None] = lambda results: None) -> dict[str, Any]:
    """Seconds and exponents of preparation, analysis and sweep; each size once. Wall time.

    Args:
        keep: gets the results so far after every factor.
    """
    results: dict[str, Any] = {}
    for factor, (measure, expected, sizes) in ROOMS.items():
        seconds = []
        for size in sizes:
            with tempfile.TemporaryDirectory(prefix="medst-bench-") as scratch:
                seconds.append(spread(np.array([measure(size, Path(scratch) / "project")])))
        results[factor] = _result(seconds, sizes, expected)
        keep(results)
    return results
