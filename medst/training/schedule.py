"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math


def learning_rate(step: int, num_steps: int, *, peak: float, minimum: float, warmup_fraction: float) -> float:
    """Linear warm-up from 0 to `peak`, then half a cosine down to `minimum`.

    Args:
        step: 0 <= step < num_steps; step 0 already has a rate above 0.
        num_steps: steps of the whole training.
        warmup_fraction: share of the steps that warm up (0.4 in the published program).
    """
    warmup_steps = warmup_fraction * num_steps
    if step + 1 < warmup_steps:
        return max(minimum, peak * (step + 1) / warmup_steps)
    progress = (step + 1 - warmup_steps) / max(1.0, num_steps - warmup_steps)
    return minimum + (peak - minimum) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
