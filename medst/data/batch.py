"""The batch: what the loader hands to the model.

Legend: B pairs, L laterals that exist (L <= B), S complete sequences, T studies in a sequence,
W token positions, H x W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

_ON_HOST = ("frontal_view", "lateral_view", "lateral_row", "word_of_token")


@dataclass(frozen=True)
class Batch:
    """Pairs of images and captions.

    A pair is one frontal image, at most one lateral, and the report. Pairs of complete sequences are
    named by `sequences`; the others take part in the global and the local loss only.
    """

    frontal: Tensor
    """(B, 1, H, W) float in [-1, 1]."""
    frontal_view: Tensor
    """(B,) int64 view codes, 0 or 1."""
    lateral: Tensor
    """(L, 1, H, W) float in [-1, 1]: only the laterals that exist."""
    lateral_view: Tensor
    """(L,) int64 view codes, 2 or 3."""
    lateral_row: Tensor
    """(L,) int64, strictly increasing: the pair to which each lateral belongs."""
    token_ids: Tensor
    """(B, W) int64, [CLS] first, padded with 0 to the longest caption of the batch."""
    attention_mask: Tensor
    """(B, W) int64, 1 = token."""
    word_of_token: Tensor
    """(B, W) int64: word slot of every token ([CLS] is slot 0), -1 for tokens that belong to none."""
    study: Tensor
    """(B,) int64 store row of the study: equal for two frontals of one study."""
    sequences: Tensor
    """(S, T) int64: rows of the complete sequences in time order; (0, T) where there are none. Where several processes
    share a batch these are the rows of the whole batch, on each of them."""

    @property
    def num_pairs(self) -> int:
        return self.frontal.shape[0]

    @property
    def num_words(self) -> int:
        """Word slots, [CLS] included."""
        return int(self.word_of_token.max()) + 1

    def to(self, device: torch.device | str) -> Batch:
        """The batch with its images, tokens, studies and sequences on `device`.

        What routes tokens (views, rows, word slots) stays on the host, which plans with it: so that no step
        has to wait for an accelerator.
        """
        return replace(self, **{field.name: getattr(self, field.name).to(device, non_blocking=True)
                                for field in fields(self) if field.name not in _ON_HOST})
