"""Mixture of View Experts: the feed-forward half of a transformer block.

What must not live here: which view a token has (routing.py), attention (image.py).

Legend: T tokens of the whole batch, D width, E experts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from timm.layers import Mlp
from torch import Tensor, nn

from medst.model.initialisation import initialise_transformer, stream

_NORM_EPSILON = 1e-6
_Module = TypeVar("_Module", bound=nn.Module)


class Expert(nn.Module):
    """LayerNorm and feed-forward of one view."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=_NORM_EPSILON)
        self.mlp = Mlp(width, hidden)

    def forward(self, tokens: Tensor) -> Tensor:
        """(T, D) -> (T, D)."""
        return self.mlp(self.norm(tokens))


class ViewExperts(nn.Module):
    """One expert per group of views; each serves contiguous slices of the tokens."""

    def __init__(self, width: int, hidden: int, num_experts: int, *, seed: int, name: str, copies: bool) -> None:
        """With `copies`, every expert starts as a copy of the first; else each from its own stream."""
        super().__init__()
        self.experts = nn.ModuleList(
            [_initialised(lambda: Expert(width, hidden), seed, f"{name}.{0 if copies else index}")
             for index in range(num_experts)]
        )

    def forward(self, tokens: Tensor, segments: tuple[tuple[int, int], ...]) -> Tensor:
        """(T, D) tokens in slices of (expert, number of tokens) -> (T, D)."""
        if len(segments) == 1:
            return self.experts[segments[0][0]](tokens)
        pieces = tokens.split([size for _, size in segments])
        return torch.cat([self.experts[expert](piece) for (expert, _), piece in zip(segments, pieces, strict=True)])


class LearnedExperts(nn.Module):
    """Top-1 routing of every token by a linear gate, as in the Switch Transformer (Fedus et al., 2022).

    No token is dropped: there is no capacity limit. The sizes of the experts' shares are needed on the host,
    so this routing synchronises once a block on an accelerator.

    Attributes:
        sum_over_ranks: differentiable sum over the processes that share the batch; None: this one has all of it.
    """

    sum_over_ranks: Callable[[Tensor], Tensor] | None = None

    def __init__(self, width: int, hidden: int, num_experts: int, *, seed: int, name: str, copies: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=_NORM_EPSILON)
        self.gate = _initialised(lambda: nn.Linear(width, num_experts, bias=False), seed, f"{name}.gate")
        self.experts = nn.ModuleList(
            [_initialised(lambda: Mlp(width, hidden), seed, f"{name}.{0 if copies else index}")
             for index in range(num_experts)]
        )

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(T, D) -> output (T, D), balance loss () and the experts' shares of the tokens (E,).

        The output is scaled by the gate's probability, through which the gate learns. The balance loss is
        E * sum_e f_e P_e with f_e the share of tokens sent to e and P_e its mean probability: 1 at best.
        """
        num_experts = len(self.experts)
        normed = self.norm(tokens)
        logits = self.gate(normed)
        probabilities = logits.softmax(dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))
        probability, chosen = probabilities.max(dim=-1)
        counts = torch.bincount(chosen, minlength=num_experts)
        order = chosen.argsort(stable=True)
        pieces = normed[order].split(counts.tolist())
        served = torch.cat([expert(piece) for expert, piece in zip(self.experts, pieces, strict=True)])
        if self.sum_over_ranks is None:
            share, mean = counts / chosen.numel(), probabilities.mean(dim=0)
        else:
            num_tokens = probabilities.new_tensor([chosen.numel()])
            sums = self.sum_over_ranks(torch.cat([counts.to(num_tokens), num_tokens, probabilities.sum(dim=0)]))
            served_by, total, probability_sums = sums.split([num_experts, 1, num_experts])
            share, mean = served_by / total, probability_sums / total
        balance = num_experts * (share * mean).sum()
        return served[order.argsort()] * probability[:, None].to(served.dtype), balance, share


def _initialised(make: Callable[[], _Module], seed: int, name: str) -> _Module:
    with stream(seed, name):
        module = make()
        initialise_transformer(module)
    return module


def widened(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Feed-forwards of `state` brought to the hidden width of `own` where that is a multiple, as Net2Net does.

    Every hidden unit stands several times and its outgoing weights are shared out among the copies, so that the output
    is the same; the shares differ, so that training tells the copies apart (Chen et al., 2016). What does not fit so
    stays as it is.

    Returns:
        The tensors, and for each that changed its key with both shapes.
    """
    found, changed = dict(state), []
    for key, tensor in state.items():
        axis = 1 if key.endswith(".fc2.weight") else 0
        if key not in own or not key.endswith((".fc1.weight", ".fc1.bias", ".fc2.weight")):
            continue
        times, rest = divmod(own[key].shape[axis], tensor.shape[axis])
        if times < 2 or rest or own[key].shape[:axis] != tensor.shape[:axis] or (
                own[key].shape[axis + 1:] != tensor.shape[axis + 1:]):
            continue
        copies = [tensor] * times
        if axis == 1:
            # A part of the given weights, not of a trial's chance: no seed, and the same in every expert.
            with stream(0, f"{key.partition('.experts.')[0]}.widened"):
                shares = torch.rand(times, tensor.shape[1], dtype=tensor.dtype) + 0.5
            copies = [tensor * share for share in (shares / shares.sum(dim=0)).to(tensor.device)]
        found[key] = torch.cat(copies, dim=axis)
        changed.append(f"{key} {tuple(tensor.shape)} -> {tuple(found[key].shape)}")
    return found, tuple(changed)
