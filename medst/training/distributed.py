"""Several processes, called ranks, that train one trial together by DistributedDataParallel.

Every rank encodes its share of each batch. Whatever reaches over pairs is taken over all of them: the embeddings that
the contrastive and temporal losses compare are gathered, the statistics of BatchNorm and the expert shares of learned
routing are added up, all differentiably. Every rank's loss is such that the mean over the ranks is the loss of the
whole batch, and DistributedDataParallel takes the mean of the gradients: R ranks have the gradients of one.

What must not live here: how ranks are started (medst.launch, sweeps), the losses, the loop.

Legend: R ranks, K rows of one rank, C channels.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from medst.model.experts import LearnedExperts

_Value = TypeVar("_Value")
_LOOK_SECONDS = 0.05

PATIENCE = timedelta(minutes=30)
"""How long a rank waits for the others: the first validates and saves what the others need not."""


class _Sum(torch.autograd.Function):
    """Sum over the ranks, whose gradient is the sum of the ranks' gradients."""

    @staticmethod
    def forward(context: Any, value: Tensor) -> Tensor:
        total = value.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total


@dataclass(frozen=True)
class Ranks:
    """This process among those that train a trial. With one rank every method returns what it is given."""

    rank: int = 0
    world_size: int = 1

    @staticmethod
    def current() -> Ranks:
        """Of the process group that this process has joined; one rank where it has joined none."""
        if not dist.is_initialized():
            return Ranks()
        return Ranks(dist.get_rank(), dist.get_world_size())

    @property
    def is_first(self) -> bool:
        """True in the one process that writes and speaks for all."""
        return self.rank == 0

    @property
    def is_alone(self) -> bool:
        return self.world_size == 1

    @torch.compiler.disable
    def sum(self, value: Tensor) -> Tensor:
        """Sum over the ranks, differentiable; the same shape on all."""
        return value if self.is_alone else _Sum.apply(value)

    def gather(self, rows: Tensor) -> Tensor:
        """(K, ...) -> (R K, ...) rows of all ranks in their order, differentiable; the same K on all."""
        if self.is_alone:
            return rows
        # Adding zeros is exact, so that one differentiable collective serves for everything.
        num_rows = rows.shape[0]
        everyone = rows.new_zeros(self.world_size * num_rows, *rows.shape[1:])
        own = torch.arange(self.rank * num_rows, (self.rank + 1) * num_rows, device=rows.device)
        return self.sum(everyone.index_copy(0, own, rows))

    def all_true(self, flag: Tensor) -> Tensor:
        """() bool, true where it is on every rank."""
        if self.is_alone:
            return flag
        denials = (~flag).to(torch.int32)
        dist.all_reduce(denials)
        return denials == 0

    def mean(self, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Means over the ranks of scalars that all ranks have under the same names."""
        if self.is_alone or not terms:
            return dict(terms)
        values = torch.stack([value.detach().float() for value in terms.values()])
        dist.all_reduce(values)
        return dict(zip(terms, (values / self.world_size).unbind(), strict=True))

    def collect(self, value: _Value) -> list[_Value]:
        """The values of all ranks, in their order; any that can be pickled."""
        if self.is_alone:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def from_first(self, value: _Value) -> _Value:
        """The first rank's value, on all."""
        if self.is_alone:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def parallel(self, module: nn.Module) -> nn.Module:
        """The module whose backward pass leaves the mean of the ranks' gradients in the parameters of `module`.

        BatchNorm and learned routing inside `module` are made to count over all ranks; its parameters and their names
        stay. Gradients travel in a process group of their own: what the backward pass itself exchanges keeps its order
        whatever parameters a rank has not used.
        """
        if self.is_alone:
            return module
        count_over_ranks(module, self)
        return nn.parallel.DistributedDataParallel(
            module, process_group=dist.new_group(), find_unused_parameters=True)


def count_over_ranks(module: nn.Module, ranks: Ranks) -> None:
    """Make every BatchNorm and every learned routing inside `module` count over all ranks, in place."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
            setattr(module, name, RankBatchNorm(child, ranks))
        else:
            if isinstance(child, LearnedExperts):
                child.sum_over_ranks = ranks.sum
            count_over_ranks(child, ranks)


class RankBatchNorm(nn.BatchNorm1d):
    """BatchNorm over the rows of all ranks, however many each has; (K, C) or (K, C, height, width).

    torch.nn.SyncBatchNorm does the same on CUDA alone.
    """

    def __init__(self, single: nn.BatchNorm1d | nn.BatchNorm2d, ranks: Ranks) -> None:
        """Takes over the parameters and buffers of `single`."""
        super().__init__(single.num_features, single.eps, single.momentum, single.affine, single.track_running_stats)
        self.weight, self.bias = single.weight, single.bias
        self.running_mean, self.running_var = single.running_mean, single.running_var
        self.num_batches_tracked = single.num_batches_tracked
        self.training = single.training
        self._ranks = ranks

    def _check_input_dim(self, input: Tensor) -> None:
        """Images are welcome too."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        values = input.to(torch.promote_types(input.dtype, torch.float32))
        axes = [axis for axis in range(values.ndim) if axis != 1]
        shape = [1, -1] + [1] * (values.ndim - 2)
        num_own = values.new_tensor([values.numel() / values.shape[1]])
        sums = self._ranks.sum(torch.cat([values.sum(dim=axes), num_own]))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centred = values - mean.view(shape)
        # Of the centred values, since the difference of two large sums would lose the digits of a small variance.
        variance = self._ranks.sum(centred.square().sum(dim=axes)) / count
        output = centred * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            output = output * self.weight.view(shape) + self.bias.view(shape)
        self._update(mean.detach(), variance.detach() * (count / (count - 1)))
        return output.to(input.dtype)

    @torch.no_grad()
    def _update(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_(variance.to(self.running_var.dtype), self.momentum)


@dataclass(frozen=True)
class Meeting:
    """Where the ranks of a trial meet: the address of the first, and which of them this process is."""

    rank: int
    world_size: int
    address: str
    port: int
    device: str = "cpu"
    """Of this rank: `cpu`, or `cuda:<number>`."""

    @staticmethod
    def of_environment(device: str) -> Meeting | None:
        """As `torchrun` tells its processes; None where it did not start this one.

        Args:
            device: of the settings; a rank on `cuda` takes the one of its local number.
        """
        environment = os.environ
        if "TORCHELASTIC_RUN_ID" not in environment:
            return None
        return Meeting(int(environment["RANK"]), int(environment["WORLD_SIZE"]), environment["MASTER_ADDR"],
                       int(environment["MASTER_PORT"]), device_of_rank(device, int(environment["LOCAL_RANK"])))


def device_of_rank(device: str, local_rank: int) -> str:
    """The device of the `local_rank`-th rank of a machine: one GPU each, as far as this process sees several."""
    if not device.startswith("cuda"):
        return device
    return f"cuda:{local_rank % max(1, torch.cuda.device_count())}"


def host_store(address: str, port: int, world_size: int) -> dist.TCPStore:
    """The place where the ranks find each other, kept by the first; port 0 takes a free one."""
    return dist.TCPStore(address, port, world_size, is_master=True, timeout=PATIENCE, wait_for_workers=False)


@contextmanager
def joined(meeting: Meeting, store: dist.Store | None = None,
           while_waiting: Callable[[], None] | None = None) -> Iterator[Ranks]:
    """Join the other ranks, who may take half an hour to come; part from them at the end.

    Args:
        store: of the first rank, where it keeps one; otherwise the one at the meeting's address is used.
        while_waiting: called until all have come; may raise.
    """
    if store is None and "TORCHELASTIC_RUN_ID" in os.environ:
        # torchrun may keep the store in its agent or in the first rank; torch knows where.
        store, _, _ = next(dist.rendezvous("env://", meeting.rank, meeting.world_size, timeout=PATIENCE))
    elif store is None:
        store = dist.TCPStore(meeting.address, meeting.port, meeting.world_size, is_master=False, timeout=PATIENCE)
    store.set(f"came/{meeting.rank}", "")
    while while_waiting is not None and not store.check([f"came/{rank}" for rank in range(meeting.world_size)]):
        while_waiting()
        time.sleep(_LOOK_SECONDS)
    is_on_gpu = meeting.device.startswith("cuda")
    if is_on_gpu:
        torch.cuda.set_device(meeting.device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if is_on_gpu else "gloo", store=store, rank=meeting.rank,
                            world_size=meeting.world_size, timeout=PATIENCE)
    try:
        yield Ranks.current()
    finally:
        dist.destroy_process_group()
