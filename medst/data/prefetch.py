"""Batches made ahead of time by a thread, and moved to an accelerator without waiting.

What must not live here: what a batch holds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

_Item = TypeVar("_Item")


def prefetched(items: Iterator[_Item], depth: int) -> Iterator[_Item]:
    """The same items in the same order, `depth` of them made ahead by one thread.

    An error in making one is raised where that item would have come.
    """
    end = object()
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch") as pool:
        pending = deque(pool.submit(next, items, end) for _ in range(depth))
        while True:
            item = pending.popleft().result()
            if item is end:
                return
            pending.append(pool.submit(next, items, end))
            yield item  # type: ignore[misc]


def to_device(tensor: Tensor, device: torch.device | str) -> Tensor:
    """The tensor on the device; the copy to an accelerator runs beside the host, from page-locked memory."""
    if torch.device(device).type == "cpu":
        return tensor
    source = tensor.pin_memory() if torch.accelerator.is_available() else tensor
    return source.to(device, non_blocking=True)
