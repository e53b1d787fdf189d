"""Starts the ranks of a trial: the first is this process, so that its records come out here.

What lives here: the start of the others as processes of this machine, and what becomes of the trial when one of them
fails or vanishes. Ranks on other machines are started by whoever knows those machines (`torchrun`, sweeps).
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Protocol

import torch
import torch.distributed as dist

from medst.config import Config, override
from medst.records import Record
from medst.training.distributed import Meeting, device_of_rank, host_store, joined

RankFunction = Callable[[Config, Path | None], Iterator[Record]]
"""(config of the rank, checkpoint folder) -> records: what every rank runs, after it has joined the others."""

_REPORT_SECONDS = 10.0
"""How long a failed trial waits for the rank that caused it to say why."""


class RankError(RuntimeError):
    """A rank other than the first failed; the message holds its traceback."""


class RankLost(SystemExit):
    """A rank vanished: killed, out of memory, or with its machine.

    It ends the process as the loss of the process itself would: the trial is interrupted, not failed, and goes on
    from its checkpoint when it is run again.
    """


@dataclass(frozen=True)
class Failure:
    """How a rank ended that should not have ended so."""

    reason: str
    is_lost: bool
    """True where nothing of the rank is left to tell what happened."""


class OtherRank(Protocol):
    """A rank that was started."""

    def failure(self) -> Failure | None:
        """None while it runs, and where it ended well."""
        ...

    def stop(self) -> None:
        """End it, whatever it does."""
        ...


StartRank = Callable[[RankFunction, Config, Path | None, Meeting], OtherRank]


def on_ranks(function: RankFunction, config: Config, checkpoint_dir: Path | None,
             start: StartRank | None = None, address: str = "127.0.0.1") -> Iterator[Record]:
    """Run `function` on `config.training.world_size` ranks and yield what the first yields.

    Args:
        start: starts a rank; by default a process of this machine, on the GPU of its number where on `cuda`.
        address: of this machine, under which the other ranks reach it.

    Raises:
        RankError: another rank failed. An error of the first is passed on.
        RankLost: another rank vanished.
    """
    world_size, device = config.training.world_size, config.training.device
    store = host_store(address, 0, world_size)
    others: list[OtherRank] = []

    def check() -> None:
        for other in others:
            found = other.failure()
            if found is not None:
                raise _error_of(found)

    try:
        for rank in range(1, world_size):
            # Ranks of one machine take its GPUs in order; where each is given one of its own, it sees no other.
            others.append((start or start_process)(function, config, checkpoint_dir, Meeting(
                rank, world_size, address, store.port, device_of_rank(device, rank))))
        first = Meeting(0, world_size, address, store.port, device_of_rank(device, 0))
        with joined(first, store, check):
            yield from function(config_of_rank(config, first), checkpoint_dir)
    except (RuntimeError, OSError) as error:
        if not _is_of_others(error):
            raise
        deadline = time.monotonic() + _REPORT_SECONDS
        while time.monotonic() < deadline:
            try:
                check()
            except (RankError, RankLost) as cause:
                raise cause from error
            time.sleep(0.05)
        raise
    finally:
        for other in others:
            other.stop()


def serve(function: RankFunction, config: Config, checkpoint_dir: Path | None, meeting: Meeting) -> None:
    """What a rank other than the first does: the same as the first, without a word."""
    with joined(meeting):
        for _ in function(config_of_rank(config, meeting), checkpoint_dir):
            pass


def config_of_rank(config: Config, meeting: Meeting) -> Config:
    return override(config, {"training.device": meeting.device})


def _error_of(found: Failure) -> BaseException:
    return RankLost(found.reason) if found.is_lost else RankError(found.reason)


def _is_of_others(error: Exception) -> bool:
    """True for errors of the connection, which are those of another rank."""
    # Gloo has no class of its own for a peer that closed its connection.
    return isinstance(error, dist.DistError | OSError) or "gloo" in str(error).lower()


@dataclass(frozen=True)
class RankProcess:
    """A rank that is a process of this machine."""

    rank: int
    process: BaseProcess
    report: Connection
    """Carries the traceback of a failure."""

    def failure(self) -> Failure | None:
        try:
            if self.report.poll():
                return Failure(f"rank {self.rank} failed:\n{self.report.recv()}", is_lost=False)
        except EOFError:
            # It ended without a word: the exit code tells how.
            self.process.join(timeout=1.0)
        if self.process.exitcode in (None, 0):
            return None
        return Failure(f"rank {self.rank} vanished with exit code {self.process.exitcode}", is_lost=True)

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.report.close()


def start_process(function: RankFunction, config: Config, checkpoint_dir: Path | None, meeting: Meeting) -> RankProcess:
    """Start a rank as a process of this machine."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_process, daemon=True, name=f"medst-rank-{meeting.rank}",
                              args=(function, config, checkpoint_dir, meeting, torch.get_num_threads(), sender))
    process.start()
    sender.close()
    return RankProcess(meeting.rank, process, receiver)


def _process(function: RankFunction, config: Config, checkpoint_dir: Path | None, meeting: Meeting, num_threads: int,
             report: Connection) -> None:
    torch.set_num_threads(num_threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        serve(function, config, checkpoint_dir, meeting)
    except Exception:
        report.send(traceback.format_exc())
        # The report says all; the interpreter would print it again.
        raise SystemExit(1) from None


def _end_with_parent() -> None:
    """A rank whose first rank was killed must not wait for it."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGKILL)
