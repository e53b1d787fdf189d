"""Local alignment between words and patches, modality-weighted.

Legend: B pairs, N words, M patches, Q queries and K keys (words or patches), E embedding width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class Pooling(Protocol):
    """Query and key projections of the attention that weighs words or patches (`medst.model.heads.ElementPooling`)."""

    @property
    def weight(self) -> Tensor:
        """(2 E, E)."""
        ...

    @property
    def bias(self) -> Tensor:
        """(2 E,)."""
        ...


@dataclass(frozen=True)
class LocalAlignment:
    """Both directions and the weights that they gave."""

    word: Tensor
    """() loss of the words, equation 2."""
    patch: Tensor
    """() loss of the patches, equation 3."""
    word_weights: Tensor
    """(B, N), rows sum to 1."""
    patch_weights: Tensor
    """(B, M), rows sum to 1."""


def local_alignment(
    words: Tensor,
    patches: Tensor,
    word_mask: Tensor,
    patch_mask: Tensor,
    word_pooling: Pooling | None,
    patch_pooling: Pooling | None,
    *,
    temperature: float,
    padding_counts: bool,
    normalise_patch_context: bool,
) -> LocalAlignment:
    """Contrast every word with its context of patches, and every patch with its context of words.

    Golden equations 2 and 3. The largest arrays are (B, N, M), (B, N, N) and (B, M, M).

    Args:
        words: (B, N, E) unit vectors.
        patches: (B, M, E) unit vectors.
        word_mask: (B, N) bool, True = a word; at least one a row.
        patch_mask: (B, M) bool, True = a patch that exists; at least one a row. Absent ones are left out
            everywhere.
        word_pooling: weighs the words; None: all alike.
        patch_pooling: weighs the patches; None: all alike.
        temperature: of the attention and of the contrast; 0.1 as published.
        padding_counts: padding words are queries, negatives and weighted, as published; they are never keys
            of the patches.
        normalise_patch_context: bring the patches' contexts to unit length too; not so as published.
    """
    scores = words @ patches.transpose(1, 2) / temperature  # (B, N, M)
    to_patches = scores.masked_fill(~patch_mask[:, None, :], -torch.inf).softmax(dim=2)
    to_words = scores.masked_fill(~word_mask[:, :, None], -torch.inf).softmax(dim=1)
    word_contexts = F.normalize(to_patches @ patches, dim=-1)
    patch_contexts = to_words.transpose(1, 2) @ words
    if normalise_patch_context:
        patch_contexts = F.normalize(patch_contexts, dim=-1)
    counted = torch.ones_like(word_mask) if padding_counts else word_mask
    word_loss, word_weights = _direction(words, word_contexts, counted, word_pooling, temperature)
    patch_loss, patch_weights = _direction(patches, patch_contexts, patch_mask, patch_pooling, temperature)
    return LocalAlignment(word_loss, patch_loss, word_weights, patch_weights)


def _direction(
    queries: Tensor, contexts: Tensor, mask: Tensor, pooling: Pooling | None, temperature: float
) -> tuple[Tensor, Tensor]:
    """(B, Q, E) queries and their contexts, (B, Q) mask -> loss () and weights (B, Q)."""
    products = queries * contexts
    uniform = mask / mask.sum(dim=1, keepdim=True)
    weights = uniform if pooling is None else _pooling_weights(F.normalize(products, dim=-1), mask, uniform, pooling)
    scores = (queries / temperature) @ contexts.transpose(1, 2)  # (B, Q, Q), query by context
    own = products.sum(dim=-1) / temperature
    absent = ~mask
    by_query = scores.masked_fill(absent[:, None, :], -torch.inf).logsumexp(dim=2)
    by_context = scores.masked_fill(absent[:, :, None], -torch.inf).logsumexp(dim=1)
    losses = (by_query + by_context - 2.0 * own).masked_fill(absent, 0.0)
    return 0.5 * (weights * losses).sum() / queries.shape[0], weights


def _pooling_weights(fused: Tensor, mask: Tensor, uniform: Tensor, pooling: Pooling) -> Tensor:
    """Attention from the mean of the fused vectors (B, Q, E) to each of them: (B, Q), 0 outside the mask."""
    width = fused.shape[-1]
    query_weight, key_weight = pooling.weight.split(width)
    query_bias, key_bias = pooling.bias.split(width)
    mean = (uniform[:, None, :] @ fused)[:, 0]  # (B, E)
    query = F.linear(mean, query_weight, query_bias)
    # q . (W a + b) = (q W) . a + q . b: the projection of one query instead of that of all keys.
    scores = (fused @ (query @ key_weight)[:, :, None])[:, :, 0] + (query @ key_bias)[:, None]
    return (scores / math.sqrt(width)).masked_fill(~mask, -torch.inf).softmax(dim=1)
