"""The records that a trial yields: what the loop and the evaluators say, and the tracker writes down.

What lives here: small frozen carriers, free of torch and of MLflow, so that the computing rooms and
the tracking room share a language without knowing each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd


@dataclass(frozen=True)
class Facts:
    """Facts known about the trial as a whole: parameters, FLOPs, data counts (flat, scalar)."""

    values: Mapping[str, Any]


@dataclass(frozen=True)
class Metrics:
    """Scalars at a step, under slash names: `train/loss`, `validation/loss`, `test/<task>/<metric>`."""

    step: int
    values: Mapping[str, float]


@dataclass(frozen=True)
class Table:
    """A table of per-example results, tracked as `<name>.parquet`; ids in it are salted."""

    name: str
    frame: pd.DataFrame
    is_private: bool = False
    """True: derived from single patients; withheld where the data set is credentialed."""


@dataclass(frozen=True)
class Arrays:
    """Named arrays, tracked as `<name>.npz`."""

    name: str
    arrays: Mapping[str, np.ndarray]
    is_private: bool = True


@dataclass(frozen=True)
class Progress:
    """How far training is; for live views, not tracked."""

    step: int
    num_steps: int


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint was written to `path` (a folder) after `step` steps."""

    step: int
    path: Path


@dataclass(frozen=True)
class Pruned:
    """The last record of a trial that a search gave up: who judged it, where, and why, in one line."""

    step: int
    reason: str


Record = Facts | Metrics | Table | Arrays | Progress | Checkpoint | Pruned
