"""Worker processes that decode images and clean reports, a block at a time, in order and within bounds.

What lives here: the work on one block, and the pool. What must not: files of the store, tables.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import Any, TypeVar

import numpy as np

from medst.config import Behaviour
from medst.data.images import ImageError, read_square_image
from medst.data.report_text import caption, extract_sections

Result = TypeVar("Result")

FEWEST_BLOCKS = 8
"""With fewer blocks, starting processes takes longer than they save."""
BEHAVIOURS: tuple[Behaviour, ...] = ("released", "corrected")


class WorkerError(ValueError):
    """A worker process died; the message names the remedy."""


class Workers:
    """Processes that are started when first needed, and end with the one that started them."""

    def __init__(self, num_workers: int) -> None:
        self._num_workers = num_workers
        self._pool: ProcessPoolExecutor | None = None

    def map(self, function: Callable[..., Result], jobs: Iterable[tuple[Any, ...]], num_jobs: int) -> Iterator[Result]:
        """`function(*job)` for each job, in order; a bounded number of jobs and results is held at a time.

        Args:
            num_jobs: about how many there are.

        Raises:
            WorkerError: a process was killed.
        """
        if self._num_workers == 1 or num_jobs < FEWEST_BLOCKS:
            yield from (function(*job) for job in jobs)
            return
        if self._pool is None:
            # Spawned, not forked: the caller may hold threads (a progress bar, an actor of Ray).
            self._pool = ProcessPoolExecutor(self._num_workers, multiprocessing.get_context("spawn"), _start_worker)
        waiting: deque[Future[Result]] = deque()
        try:
            for job in jobs:
                waiting.append(self._pool.submit(function, *job))
                if len(waiting) > 2 * self._num_workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool:
            raise WorkerError("a worker process was killed, perhaps for want of memory; run the same command again "
                              "with fewer --workers, it goes on where this one stopped") from None
        finally:
            for future in waiting:
                future.cancel()

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None


def _start_worker() -> None:
    """Ctrl-C is the caller's to handle; a worker whose caller was killed must not wait for ever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None, "runs in a worker"

    def follow() -> None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=follow, daemon=True).start()


class DecodedBlock:
    """Pixels of the readable images of a block, and what became of the others."""

    def __init__(self, size: int) -> None:
        self.pixels: list[np.ndarray] = []
        self.width: list[int] = []
        self.height: list[int] = []
        self.view: list[str] = []
        self.failures: list[tuple[int, str]] = []
        self.size = size

    def packed(self) -> bytes:
        return b"".join(square.tobytes() for square in self.pixels)


def decode_block(paths: Sequence[str], size: int) -> DecodedBlock:
    """Decode files to (size, size) squares."""
    block = DecodedBlock(size)
    for position, path in enumerate(paths):
        try:
            image = read_square_image(path, size)
        except ImageError as error:
            block.failures.append((position, str(error)))
            continue
        block.pixels.append(image.pixels)
        block.width.append(image.width)
        block.height.append(image.height)
        block.view.append(image.view)
    return block


def caption_block(reports: Sequence[str | Mapping[str, str]]) -> list[tuple[str | None, ...]]:
    """The captions of each report, one a behaviour."""
    sections = [extract_sections(report) if isinstance(report, str) else report for report in reports]
    return [tuple(caption(own, behaviour) for behaviour in BEHAVIOURS) for own in sections]
