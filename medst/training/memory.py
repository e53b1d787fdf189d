"""Out of memory: which errors mean it, and which micro-batch would have fitted.

What lives here: the measurement, made after the failure. What must not: the trial itself.
"""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable

import torch


class OutOfMemoryError(RuntimeError):
    """A trial needs more memory than its device has; the message says what would fit."""


_MESSAGES = ("out of memory", "can't allocate memory", "cannot allocate memory")
"""How torch words it where it has no class of its own for it: on the processor and in some libraries."""


def is_out_of_memory(error: BaseException) -> bool:
    """True for an allocation that failed, on an accelerator or on the host."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(message in str(error).lower() for message in _MESSAGES))


def release(error: BaseException) -> None:
    """Let go of all that the frames of an error hold, the activations above all."""
    seen: BaseException | None = error
    while seen is not None:
        traceback.clear_frames(seen.__traceback__)
        seen = seen.__context__
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def largest_that_fits(attempt: Callable[[int], None], failed: int) -> int | None:
    """The largest of the sizes `failed` / 2, / 4, ... 1 with which `attempt` has memory enough; None if none has."""
    size = failed // 2
    while size >= 1:
        try:
            attempt(size)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            release(error)
            size //= 2
        else:
            return size
    return None
