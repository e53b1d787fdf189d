"""AdamW with parameter groups, and the gate that keeps a non-finite step from touching a weight."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medst.config import TrainingConfig


def build_optimizer(model: nn.Module, training: TrainingConfig) -> torch.optim.AdamW:
    """AdamW over all parameters that require gradients.

    With ``decay=corrected`` vectors (biases, norms), embeddings and class tokens are not decayed; with
    ``released`` everything is, as in the published program.
    """
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_plain = parameter.ndim <= 1 or "embed" in name.rsplit(".", 2)[-2:][0] or name.endswith(
            ("cls_token", "pos_embed")
        )
        (plain if is_plain and training.decay == "corrected" else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": training.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=training.learning_rate,
        betas=(training.beta1, training.beta2),
        fused=True,
    )


def gated_step(optimizer: torch.optim.Optimizer, is_finite: Tensor) -> None:
    """Take a step where `is_finite` () is true; leave weights and moments untouched where it is not.

    The fused optimiser reads the flag on the device, so that no host synchronisation is needed.
    """
    # The attribute is PyTorch's own contract between its gradient scaler and fused optimisers.
    optimizer.found_inf = (~is_finite).float()  # type: ignore[attr-defined]
    optimizer.step()
