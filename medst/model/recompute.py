"""Trading time for memory: what is computed again in the backward pass instead of being kept.

Pieces: the encoders treat every pair apart from the others, so a batch can pass through them piece by piece. Of a piece
only the input and the output are kept; the heads and the losses see the outputs of the whole batch, and in the backward
pass the pieces are computed again one at a time, each with the gradient of its outputs. This is gradient accumulation
with cached embeddings (Gao et al., 2021), with which a contrastive loss and its gradient stay those of the whole batch.
The stem, which may hold batch norms, and the heads are never cut into pieces.

What must not live here: what a piece or a block computes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

_Result = TypeVar("_Result")


def in_piece(compute: Callable[..., _Result], num_pieces: int, *arguments: object) -> _Result:
    """`compute(*arguments)`, kept only by its arguments where there are other pieces."""
    return in_block(compute, num_pieces > 1, *arguments)


def in_block(compute: Callable[..., _Result], is_recomputed: bool, *arguments: object) -> _Result:
    """`compute(*arguments)`; where recomputed, nothing inside is kept for the backward pass.

    Random numbers are drawn again as they were drawn first.
    """
    if not is_recomputed or not torch.is_grad_enabled():
        return compute(*arguments)
    result: _Result = checkpoint(compute, *arguments, use_reentrant=False)
    return result


def join(pieces: Sequence[Tensor]) -> Tensor:
    """The pieces along their first axis, without a copy where there is one."""
    return pieces[0] if len(pieces) == 1 else torch.cat(list(pieces))
