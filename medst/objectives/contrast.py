"""Global contrast between images and reports, and retrieval accuracy.

Legend: B pairs, E embedding width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def similarity(image: Tensor, report: Tensor, study: Tensor | None, temperature: float) -> Tensor:
    """(B, E), (B, E) unit vectors -> (B, B) inner products / temperature, image by report.

    With `study` (B,), other pairs of the same study are no negatives: their entries are -inf.
    """
    scores = image @ report.T / temperature
    if study is None:
        return scores
    same = study[:, None] == study[None, :]
    same.fill_diagonal_(False)
    return scores.masked_fill(same, -torch.inf)


def global_contrast(image: Tensor, report: Tensor, study: Tensor | None, temperature: float,
                    image_share: float = 0.5) -> Tensor:
    """Sum of both directions' mean cross-entropies (golden equation 1), or twice their weighted mean.

    Args:
        image: (B, E) unit vectors.
        report: (B, E) unit vectors.
        study: (B,) int64; pairs of one study are not negatives of each other. None: all other pairs are.
        temperature: of the softmax; 0.07 as published.
        image_share: weight of the direction from image to report; 0.5 as published, 0.75 in ConVIRT (Zhang et al.,
            2022).

    Returns:
        () in nats, at least 0.
    """
    scores = similarity(image, report, study, temperature)
    target = torch.arange(scores.shape[0], device=scores.device)
    # Factors of 1 are exact.
    from_image, from_report = 2.0 * image_share, 2.0 * (1.0 - image_share)
    return from_image * F.cross_entropy(scores, target) + from_report * F.cross_entropy(scores.T, target)


def retrieval_accuracy(scores: Tensor, rank: int) -> Tensor:
    """Share in percent of rows and columns of (B, B) whose own partner is among the `rank` best, mean of both: ()."""
    own = scores.diagonal()
    by_image = (scores > own[:, None]).sum(dim=1) < rank
    by_report = (scores > own[None, :]).sum(dim=0) < rank
    return 50.0 * (by_image.float().mean() + by_report.float().mean())
