"""Temporal losses inside sequences: forward mapping classification (FMC), reverse mapping regression (RMR).

Golden equation 4. Legend: S sequences, T time points, E embedding width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def time_logits(x: Tensor, y: Tensor, temperature: float) -> Tensor:
    """(S, T, E), (S, T, E) -> (S, T, T): minus squared distance of x_j and y_k / temperature."""
    return -(x[:, :, None] - y[:, None, :]).square().sum(dim=-1) / temperature


def cycle_logits(x: Tensor, y: Tensor, temperature: float) -> Tensor:
    """(S, T, T): from each x_j to its soft nearest neighbour among y, and back to x_k."""
    neighbours = time_logits(x, y, temperature).softmax(dim=-1) @ y
    return time_logits(neighbours, x, temperature)


def fmc(x: Tensor, y: Tensor, temperature: float) -> Tensor:
    """Forward mapping classification: x_j must find y_j among the y of its sequence.

    Args:
        x, y: (S, T, E), S >= 1, T >= 2.
        temperature: 0.1 as published.

    Returns:
        () mean cross-entropy in nats.
    """
    logits = time_logits(x, y, temperature)
    num_sequences, length, _ = logits.shape
    target = torch.arange(length, device=x.device).repeat(num_sequences)
    return F.cross_entropy(logits.flatten(0, 1), target)


def rmr(
    x: Tensor,
    y: Tensor,
    temperature: float,
    *,
    variance_weight: float,
    variance_floor: float,
    huber_threshold: float,
) -> Tensor:
    """Reverse mapping regression: x_j, sent to y and back, must land at its own time.

    Args:
        x, y: (S, T, E), S >= 1, T >= 2.
        temperature: 0.1 as published.
        variance_weight: weight of the log variance; 0.001 as published.
        variance_floor: added to the variance of the regressed time; 1e-7 as published.
        huber_threshold: error beyond which the loss is linear; 2 as published. Times lie in [0, 1).

    Returns:
        () mean of huber(error) / variance + variance_weight * log(variance); may be negative.
    """
    beta = cycle_logits(x, y, temperature).softmax(dim=-1)  # (S, T, T)
    length = x.shape[1]
    time = torch.arange(length, dtype=x.dtype, device=x.device) / length
    mean = beta @ time  # (S, T)
    variance = (beta * (time - mean[..., None]).square()).sum(dim=-1)
    log_variance = (variance + variance_floor).log()
    error = time - mean
    # Quadratic inside, the tangent outside: value and slope agree at the threshold.
    huber = torch.where(error.abs() <= huber_threshold, error.square(),
                        huber_threshold * (2.0 * error.abs() - huber_threshold))
    return ((-log_variance).exp() * huber + variance_weight * log_variance).mean()
