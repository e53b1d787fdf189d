"""Projection heads, the pooling parameters of the local alignment, the prototypes.

What must not live here: losses.

Legend: K vectors, D encoder width, H hidden width, E embedding width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class VectorBatchNorm(nn.BatchNorm1d):
    """BatchNorm over the rows of (K, C).

    One vector alone has no variance: in training mode it is normalised with the running statistics, which it
    leaves unchanged, so that a batch of one pair works.
    """

    def forward(self, input: Tensor) -> Tensor:
        if self.training and input.shape[0] == 1:
            return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, False,
                                eps=self.eps)
        return super().forward(input)


class ProjectionHead(nn.Module):
    """Linear, BatchNorm, ReLU, Linear, BatchNorm without affine, division by the Euclidean norm."""

    def __init__(self, width: int, hidden: int, embedding: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, hidden)
        self.hidden_norm = VectorBatchNorm(hidden)
        self.output = nn.Linear(hidden, embedding)
        self.output_norm = VectorBatchNorm(embedding, affine=False)

    def project(self, vectors: Tensor) -> Tensor:
        """(K, D) -> (K, E) before the division by the norm. The statistics are those of all K rows."""
        hidden = F.relu(self.hidden_norm(self.hidden(vectors)))
        return self.output_norm(self.output(hidden))

    def forward(self, vectors: Tensor) -> Tensor:
        """(K, D) -> (K, E) of unit length, at least float32."""
        projected = self.project(vectors)
        return F.normalize(projected.to(torch.promote_types(projected.dtype, torch.float32)), dim=-1, eps=1e-12)


class ElementPooling(nn.Module):
    """Query and key projections of a one-head attention, which weighs words or patches (golden equation 2)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(2 * width, width))
        """(2 E, E): query projection, then key projection."""
        self.bias = nn.Parameter(torch.zeros(2 * width))
        # The bound of torch's MultiheadAttention, whose third part (values) takes no part in any loss.
        nn.init.uniform_(self.weight, -((6 / (4 * width)) ** 0.5), (6 / (4 * width)) ** 0.5)


def prototypes(count: int, width: int) -> nn.Parameter:
    """(count, E) directions drawn evenly over the sphere; the loss brings them to unit length."""
    return nn.Parameter(F.normalize(torch.randn(count, width), dim=-1))
