"""What a study will take, before anything long starts: one estimate for all arms that cost the same.

What must not live here: the estimate of one trial (medst/training/estimate.py), what is finished already (planning.py).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from rich.console import Console
from rich.table import Table

from medst.config import Config, flatten, override
from sweeps.live import duration
from sweeps.trials import Trial, absolute_places

if TYPE_CHECKING:
    from medst.training.estimate import Estimate

_GIB = 2**30
_OPTIMISER = ("training.learning_rate", "training.min_learning_rate", "training.weight_decay", "training.decay",
              "training.beta1", "training.beta2", "training.warmup_fraction", "training.clip_norm")


@dataclass(frozen=True)
class Cost:
    """What each of some trials takes."""

    trials: Sequence[Trial]
    estimate: Estimate

    @property
    def arms(self) -> str:
        return ", ".join(dict.fromkeys(trial.label for trial in self.trials))

    @property
    def seconds(self) -> float:
        """Of all of them, one after another."""
        return len(self.trials) * self.estimate.seconds


def show_dry_run(trials: Sequence[Trial], project: Path, num_parallel: int, console: Console) -> None:
    """Print steps, memory, time and disk of the trials that are to run. A few pairs of each kind are computed.

    Raises:
        ValueError: data, weights and settings do not fit, as training would find.
    """
    if not trials:
        console.print("Nothing to estimate: no trial is to run.")
        return
    costs = []
    groups = _alike(trials)
    for number, group in enumerate(groups, start=1):
        cost = Cost(group, _estimate(group[0], project))
        costs.append(cost)
        # A large model takes a while on a CPU.
        console.print(f"{number} of {len(groups)} kinds of trials estimated: {cost.arms}", markup=False,
                      highlight=False, soft_wrap=True)
    console.print(_table(costs))
    for line in _totals(costs, _num_together(trials[0], num_parallel)):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _alike(trials: Sequence[Trial]) -> list[list[Trial]]:
    """The trials, those together that cost the same."""
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        groups.setdefault(_shape(trial.config), []).append(trial)
    return list(groups.values())


def _shape(config: Config) -> str:
    """Equal for configs that cost the same: what only weighs, tempers or orders losses, and the optimiser, is left out.

    A loss without weight is not computed, so that zero differs from all other weights.
    """
    settings = {
        key: value != 0 if key.startswith("objective.") and isinstance(value, float) else value
        for key, value in flatten(config).items()
        if key not in ("seed", *_OPTIMISER) and not key.startswith(("objective.curriculum.", "evaluation."))}
    return json.dumps(settings, sort_keys=True)


def _estimate(trial: Trial, project: Path) -> Estimate:
    # Only here: importing torch takes seconds.
    import torch

    from medst.data.splits import seen_by_trial
    from medst.data.store import open_store
    from medst.data.tokenizer import build_tokenizer
    from medst.training.estimate import estimate

    config = override(trial.config, absolute_places(trial.config, project))
    store = seen_by_trial(open_store(config.data), config.data)
    tokenizer = build_tokenizer(store, config.data, config.model.text.word_aggregation)
    num_threads = torch.get_num_threads()
    torch.set_num_threads(trial.resources.cpus)
    try:
        return estimate(config, store, tokenizer, project)
    finally:
        torch.set_num_threads(num_threads)


def _num_together(trial: Trial, num_parallel: int) -> int:
    """Trials at a time: as many as the processors and, where there are any, the GPUs serve."""
    from medst.training.device import num_gpus

    world_size = trial.config.training.world_size
    together = num_parallel // (trial.resources.cpus * world_size)
    if trial.num_gpus and num_gpus():
        together = min(together, int(num_gpus() / (trial.num_gpus * world_size)))
    return max(1, together)


def _table(costs: Sequence[Cost]) -> Table:
    table = Table("arms", box=None, pad_edge=False, header_style="dim")
    for title in ("trials", "steps", "an epoch", "a trial", "memory", "checkpoints"):
        table.add_column(title, justify="right")
    for cost in costs:
        one = cost.estimate
        table.add_row(cost.arms, str(len(cost.trials)), f"{one.num_steps:,}", duration(one.seconds_per_epoch),
                      duration(one.seconds), f"{one.memory_bytes / _GIB:.2f} GiB",
                      f"{one.checkpoint_bytes / _GIB:.2f} GiB")
    return table


def _totals(costs: Sequence[Cost], num_together: int) -> list[str]:
    first = costs[0].estimate
    seconds = sum(cost.seconds for cost in costs)
    largest = sorted((cost.estimate.memory_bytes for cost in costs for _ in cost.trials), reverse=True)[:num_together]
    held = sorted((cost.estimate.checkpoint_bytes for cost in costs for _ in cost.trials), reverse=True)[:num_together]
    # A worker leaves its model where embeddings are tracked, and credentialed data keep theirs at home.
    kept = [cost.estimate.model_bytes for cost in costs for trial in cost.trials
            if trial.config.evaluation.track_embeddings and not trial.data.is_credentialed]
    at_once = f"{num_together} at a time"
    return [
        f"Training: {first.num_pairs:,} pairs of {first.num_patients:,} patients, {first.steps_per_epoch:,} steps an "
        f"epoch (first arm).",
        f"Time: {duration(seconds)} one after another, {duration(seconds / num_together)} with {at_once}, without "
        f"evaluation; a step of {first.measured_pairs} pairs was timed on {first.device}.",
        f"Memory: {sum(largest) / _GIB:.2f} GiB with {at_once}, and what the libraries need; this machine has "
        f"{psutil.virtual_memory().total / _GIB:.1f} GiB{_gpu_memory()}.",
        f"Disk: store {first.store_bytes / _GIB:.2f} GiB (there already); checkpoints {sum(held) / _GIB:.2f} GiB with "
        f"{at_once}, removed with the end of each trial; {len(kept)} models that are kept, {sum(kept) / _GIB:.2f} GiB; "
        f"{first.free_bytes / _GIB:.1f} GiB are free.",
    ]


def _gpu_memory() -> str:
    import torch

    sizes = [torch.cuda.get_device_properties(number).total_memory for number in range(torch.cuda.device_count())]
    return f", its GPUs {', '.join(f'{size / _GIB:.1f}' for size in sizes)} GiB" if sizes else ", no GPU"
