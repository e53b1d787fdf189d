"""Cross-modal prototypes, as in MGCA (Wang et al., 2022): an image predicts those of its report, and vice versa.

Legend: B pairs, E embedding width, K prototypes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


@torch.no_grad()
def sinkhorn(scores: Tensor, epsilon: float, num_iterations: int) -> Tensor:
    """Soft assignments that use all prototypes about equally.

    The transport plan with the largest score plus `epsilon` times its entropy, approached by scaling prototypes and
    embeddings in turn; in logarithms, so that no small `epsilon` overflows.

    Args:
        scores: (B, K) cosine similarities of embeddings and prototypes.
        epsilon: 0.05 as published.
        num_iterations: at least 1; 3 as published.

    Returns:
        (B, K), rows sum to 1; columns to B / K, the nearer the more iterations.
    """
    plan = scores / epsilon
    for _ in range(num_iterations):
        plan = plan - plan.logsumexp(dim=0, keepdim=True)
        plan = plan - plan.logsumexp(dim=1, keepdim=True)
    return plan.exp()


def swapped_prediction(
    image: Tensor, report: Tensor, prototypes: Tensor, *, temperature: float, epsilon: float, num_iterations: int
) -> Tensor:
    """Mean of both directions' cross-entropies between one side's assignments and the other's predictions.

    Args:
        image, report: (B, E) unit vectors.
        prototypes: (K, E), any length but 0; brought to unit length.
        temperature: of the predictions; 0.2 as published.
        epsilon, num_iterations: of the assignments, which have no gradient; see `sinkhorn`.

    Returns:
        () in nats.
    """
    directions = F.normalize(prototypes, dim=-1).T
    image_scores, report_scores = image @ directions, report @ directions  # (B, K)

    def cross_entropy(assigned: Tensor, predicted: Tensor) -> Tensor:
        targets = sinkhorn(assigned, epsilon, num_iterations)
        return -(targets * (predicted / temperature).log_softmax(dim=1)).sum(dim=1).mean()

    return 0.5 * (cross_entropy(image_scores, report_scores) + cross_entropy(report_scores, image_scores))
