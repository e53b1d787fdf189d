"""Batches made ahead: the same, in order, errors in their place, no thread left behind."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from medst.data.prefetch import prefetched, to_device


@pytest.mark.parametrize("depth", [1, 2, 7])
@pytest.mark.parametrize("number", [0, 1, 5])
def test_the_same_items_in_order(number: int, depth: int) -> None:
    assert list(prefetched(iter(range(number)), depth)) == list(range(number))


def test_items_are_made_ahead_and_in_another_thread() -> None:
    made: list[str] = []

    def items() -> Iterator[int]:
        for number in range(5):
            made.append(threading.current_thread().name)
            yield number

    ahead = prefetched(items(), depth=2)
    assert next(ahead) == 0
    assert next(ahead) == 1
    assert len(made) >= 3
    assert list(ahead) == [2, 3, 4]
    assert all(name.startswith("prefetch") for name in made)


def test_an_error_comes_where_its_item_would_have_come() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("broken image")

    ahead = prefetched(items(), depth=3)
    assert next(ahead) == 1
    with pytest.raises(ValueError, match="broken image"):
        next(ahead)


def test_leaving_early_ends_the_thread() -> None:
    ahead = prefetched(iter(range(100)), depth=2)
    next(ahead)
    ahead.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def test_on_a_processor_nothing_is_copied() -> None:
    tensor = torch.arange(3)
    assert to_device(tensor, "cpu") is tensor
