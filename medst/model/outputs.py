"""What the encoders, the heads and MedST return.

Legend: B pairs, L laterals that were encoded, P patches of one image, M patches of a pair, N word slots
without [CLS], K words of the whole batch, D encoder width, E embedding width.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class ImageFeatures:
    """Output of the image encoder after its final LayerNorm."""

    cls: Tensor
    """(B, D) class token."""
    frontal_patches: Tensor
    """(B, P, D)."""
    lateral_patches: Tensor
    """(L, P, D): rows in the order of `lateral_row`."""
    lateral_row: Tensor
    """(L,) int64, strictly increasing: the pair of each row of `lateral_patches`. The laterals given, or
    all pairs where absent laterals are computed too (`missing_lateral=released`)."""
    balance_loss: Tensor
    """() load-balance loss of learned routing, mean of the layers; 0 for view routing."""
    expert_share: Tensor
    """(layers, experts) share of tokens that each expert served (view-expert use)."""
    attention: Tensor | None = None
    """(B, M) attention of the last layer from the class token to each patch, mean of the heads, without gradient; 0
    where there is no patch. M as in `ImageEmbeddings`. Only when asked for."""


@dataclass(frozen=True)
class TextFeatures:
    """Output of the text encoder, aggregated to words."""

    report: Tensor
    """(B, D) word slot 0, [CLS]."""
    words: Tensor
    """(B, N, D) word slots 1.., zeros where there is no word."""
    word_mask: Tensor
    """(B, N) bool, True = a word ([SEP] counts as one, as published)."""
    word_index: Tensor
    """(K,) int64, the places of all words in the flattened (B * N) slots."""
    attention: Tensor | None = None
    """(B, N) attention of the last layer from [CLS] to each word, mean of the heads; only when asked for."""


@dataclass(frozen=True)
class ImageEmbeddings:
    """Projected images, unit length."""

    image: Tensor
    """(B, E)."""
    patches: Tensor
    """(B, M, E): frontal patches, then lateral patches where any lateral was encoded (M = P or 2 P);
    zeros where there is no lateral."""
    patch_mask: Tensor
    """(B, M) bool, True = a patch that exists."""


@dataclass(frozen=True)
class TextEmbeddings:
    """Projected reports, unit length."""

    report: Tensor
    """(B, E)."""
    words: Tensor
    """(B, N, E): zeros where there is no word (`padding=corrected`)."""
    word_mask: Tensor
    """(B, N) bool, True = a word."""


@dataclass(frozen=True)
class Embeddings:
    """Projected, unit-length embeddings: all that the objectives need."""

    image: Tensor
    """(B, E)."""
    report: Tensor
    """(B, E)."""
    patches: Tensor
    """(B, M, E): frontal patches, then lateral patches where any pair of the batch has a lateral
    (M = P or 2 P); zeros where there is no lateral (`corrected`)."""
    patch_mask: Tensor
    """(B, M) bool, True = a patch that exists."""
    words: Tensor
    """(B, N, E)."""
    word_mask: Tensor
    """(B, N) bool."""
    balance_loss: Tensor
    """()."""
    expert_share: Tensor
    """(layers, experts)."""
    word_attention: Tensor | None = None
    """(B, N) and"""
    patch_attention: Tensor | None = None
    """(B, M): last-layer attention of the encoders, without gradient; only where the local loss is weighted by it."""
