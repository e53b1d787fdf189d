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
from torch.utils.checkpoint import checkpoint

_EPSILON = 1e-12
_LOWEST_TEMPERATURE = 0.0125
MAX_ENTRIES = 2**24
"""Entries of the largest array that is held at once: 64 MiB in float32. A batch of 40 pairs with laterals at 224 pixels
in patches of 16 has 6 million and passes in one go."""


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
    given_weights: tuple[Tensor, Tensor] | None = None,
    max_entries: int = MAX_ENTRIES,
) -> LocalAlignment:
    """Contrast every word with its context of patches, and every patch with its context of words.

    Golden equations 2 and 3. The largest arrays are (B, N, M), (B, N, N) and (B, M, M). Where one of them has more than
    `max_entries`, the pairs are taken in chunks whose arrays do not, and which are computed again in the backward pass.

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
        given_weights: (B, N) of the words and (B, M) of the patches, 0 outside the masks, instead of pooling
            (`attention_weights`).
        max_entries: as above; the arrays of one pair are never cut.

    Raises:
        ValueError: a temperature so low that exp(1 / temperature) leaves float32.
    """
    if temperature < _LOWEST_TEMPERATURE:
        raise ValueError(f"a local temperature of {temperature} overflows; use {_LOWEST_TEMPERATURE} or more")

    def align(words: Tensor, patches: Tensor, word_mask: Tensor, patch_mask: Tensor,
              *given: Tensor) -> tuple[Tensor, ...]:
        """Sums of both losses over some pairs, and the weights."""
        scores = words @ patches.transpose(1, 2) / temperature  # (B, N, M)
        to_patches = scores.masked_fill(~patch_mask[:, None, :], -torch.inf).softmax(dim=2)
        to_words = scores.masked_fill(~word_mask[:, :, None], -torch.inf).softmax(dim=1)
        word_contexts = F.normalize(to_patches @ patches, dim=-1)
        patch_contexts = to_words.transpose(1, 2) @ words
        if normalise_patch_context:
            patch_contexts = F.normalize(patch_contexts, dim=-1)
        counted = torch.ones_like(word_mask) if padding_counts else word_mask
        by_word, by_patch = given or (word_pooling, patch_pooling)
        word_sum, word_weights = _direction(words, word_contexts, counted, by_word, temperature)
        patch_sum, patch_weights = _direction(patches, patch_contexts, patch_mask, by_patch, temperature)
        return word_sum, patch_sum, word_weights, patch_weights

    num_pairs, num_words, _ = words.shape
    chunk = max(1, max_entries // max(num_words, patches.shape[1]) ** 2)
    arguments = (words, patches, word_mask, patch_mask, *(given_weights or ()))
    if num_pairs <= chunk:
        word_sum, patch_sum, word_weights, patch_weights = align(*arguments)
    else:
        chunks = [checkpoint(align, *pieces, use_reentrant=False)
                  for pieces in zip(*(argument.split(chunk) for argument in arguments), strict=True)]
        word_sums, patch_sums, *weights = zip(*chunks, strict=True)
        word_sum, patch_sum = torch.stack(word_sums).sum(), torch.stack(patch_sums).sum()
        word_weights, patch_weights = (torch.cat(parts) for parts in weights)
    return LocalAlignment(word_sum / num_pairs, patch_sum / num_pairs, word_weights, patch_weights)


def _direction(
    queries: Tensor, contexts: Tensor, mask: Tensor, weighting: Pooling | Tensor | None, temperature: float
) -> tuple[Tensor, Tensor]:
    """(B, Q, E) queries and their contexts, (B, Q) mask -> sum of the pairs' losses () and weights (B, Q)."""
    counted = mask.to(queries.dtype)
    products = queries * contexts
    if weighting is None:
        weights = counted / counted.sum(dim=1, keepdim=True)
    elif isinstance(weighting, Tensor):
        weights = weighting
    else:
        weights = _pooling_weights(products, mask, weighting)
    own = products.sum(dim=-1) / temperature
    # Unit vectors bound the scores by 1 / temperature, so that one exponential without shift serves both directions,
    # and the mask acts as a factor of the sums.
    exponentials = ((queries / temperature) @ contexts.transpose(1, 2)).exp()  # (B, Q, Q), query by context
    by_query = (exponentials @ counted[:, :, None])[:, :, 0].log()
    by_context = (counted[:, None, :] @ exponentials)[:, 0].log()
    losses = (by_query + by_context - 2.0 * own).masked_fill(~mask, 0.0)
    return 0.5 * (weights * losses).sum(), weights


def _pooling_weights(products: Tensor, mask: Tensor, pooling: Pooling) -> Tensor:
    """Attention from the mean of the unit products (B, Q, E) to each of them: (B, Q), 0 outside the mask."""
    width = products.shape[-1]
    query_weight, key_weight = pooling.weight.split(width)
    query_bias, key_bias = pooling.bias.split(width)
    counted = mask.to(products.dtype)
    # The unit products themselves are never formed: their scale is applied to the two sums that need it.
    scale = products.square().sum(dim=-1).clamp_min(_EPSILON**2).rsqrt()  # (B, Q)
    share = counted / counted.sum(dim=1, keepdim=True)
    mean = ((share * scale)[:, None, :] @ products)[:, 0]  # (B, E)
    query = F.linear(mean, query_weight, query_bias)
    # q . (W a + b) = (q W) . a + q . b: the projection of one query instead of that of all keys.
    scores = (products @ (query @ key_weight)[:, :, None])[:, :, 0] * scale + (query @ key_bias)[:, None]
    return (scores / math.sqrt(width)).masked_fill(~mask, -torch.inf).softmax(dim=1)


@torch.no_grad()
def attention_weights(attention: Tensor, mask: Tensor, low: float = 0.1, high: float = 0.9) -> Tensor:
    """Weights of words or patches from an encoder's attention, as in MGCA (Wang et al., 2022, token-wise alignment).

    Args:
        attention: (B, Q), not negative.
        mask: (B, Q) bool, True = a word or patch; at least one a row. Others neither count nor weigh.
        low, high: each row is clipped at these quantiles of its own entries (interpolated linearly).

    Returns:
        (B, Q), rows sum to 1, 0 outside the mask.
    """
    ordered = attention.masked_fill(~mask, torch.inf).sort(dim=1).values
    last = mask.sum(dim=1, keepdim=True) - 1
    rank = last.to(attention.dtype)

    def quantile(share: float) -> Tensor:
        place = share * rank
        below = place.floor().long()
        lower, upper = ordered.gather(1, below), ordered.gather(1, (below + 1).minimum(last))
        return lower + (place - below) * (upper - lower)

    clipped = attention.maximum(quantile(low)).minimum(quantile(high)).masked_fill(~mask, 0.0)
    return clipped / clipped.sum(dim=1, keepdim=True)
