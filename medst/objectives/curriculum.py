"""The temporal curriculum: weights of FMC and RMR, and the length of sequences, over training."""

from __future__ import annotations

from medst.config import Curriculum


def weights(kind: Curriculum, progress: float, start_fraction: float, ramp_fraction: float) -> tuple[float, float]:
    """Factors in [0, 1] of (FMC, RMR) at `progress` in [0, 1].

    joint, length: both at 1. staged: FMC, and RMR joins at `start_fraction`. ramp: the same, and RMR rises
    linearly over `ramp_fraction`. reversed: RMR, and FMC joins at `start_fraction`. fmc_only, rmr_only: one alone.
    """
    second = 1.0 if progress >= start_fraction else 0.0
    if kind == "staged":
        return 1.0, second
    if kind == "ramp":
        if ramp_fraction == 0.0:
            return 1.0, second
        return 1.0, min(1.0, max(0.0, (progress - start_fraction) / ramp_fraction))
    if kind == "reversed":
        return second, 1.0
    if kind == "fmc_only":
        return 1.0, 0.0
    if kind == "rmr_only":
        return 0.0, 1.0
    return 1.0, 1.0


def sequence_length(kind: Curriculum, progress: float, longest: int) -> int:
    """Studies in a sequence at `progress` in [0, 1]: `longest`, or for `length` 2, 3, .. `longest` in equal parts."""
    if kind != "length":
        return longest
    return min(longest, 2 + int(progress * (longest - 1)))
