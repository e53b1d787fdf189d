"""A trial of several processes on a Ray cluster: every bundle of its placement group holds one rank, wherever it is.

What must not live here: what a rank does (medst.training), how trials are scheduled (cluster.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from medst.config import Config
from medst.records import Record
from medst.training.distributed import Meeting
from medst.training.launch import Failure, RankFunction, on_ranks, serve


@dataclass(frozen=True)
class RayRank:
    """A rank that is a Ray task."""

    rank: int
    result: Any

    def failure(self) -> Failure | None:
        if not ray.wait([self.result], timeout=0)[0]:
            return None
        try:
            ray.get(self.result)
        except ray.exceptions.RayTaskError as error:
            return Failure(f"rank {self.rank} failed:\n{error}", is_lost=False)
        except ray.exceptions.RayError as error:
            return Failure(f"rank {self.rank} vanished: {error}", is_lost=True)
        return None

    def stop(self) -> None:
        ray.cancel(self.result, force=True)


def _serve(function: RankFunction, config: Config, checkpoint_dir: Path | None, meeting: Meeting, num_threads: int
           ) -> None:
    import torch

    torch.set_num_threads(num_threads)
    serve(function, config, checkpoint_dir, meeting)


def start_in_bundle(function: RankFunction, config: Config, checkpoint_dir: Path | None, meeting: Meeting) -> RayRank:
    """Start a rank in the bundle of its number of this trial's placement group, with all that the bundle keeps."""
    import torch

    group = ray.util.get_current_placement_group()
    assert group is not None, "a trial of several ranks has a placement group"
    bundle = group.bundle_specs[meeting.rank]
    task = ray.remote(_serve).options(
        num_cpus=bundle.get("CPU", 0), num_gpus=bundle.get("GPU", 0), max_retries=0,
        scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=meeting.rank))
    return RayRank(meeting.rank, task.remote(function, config, checkpoint_dir, meeting, torch.get_num_threads()))


def on_bundles(config: Config, checkpoint_dir: Path | None, function: RankFunction | None = None) -> Iterator[Record]:
    """A trial whose first rank is this worker of Ray; by default `medst.trial.run_rank`."""
    from medst.trial import run_rank

    return on_ranks(function or run_rank, config, checkpoint_dir, start_in_bundle, ray.util.get_node_ip_address())
