"""A migrated SQLite store made once, and a trial whose records are known: what tracking and sweep tests share."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from medst.config import Config
from medst.records import Arrays, Checkpoint, Facts, Metrics, Progress, Record, Table
from medst.tracking import TrackingPlace, TrialDescription
from medst.tracking.connection import client

NUM_STEPS = 6


@cache
def _template() -> Path:
    """An SQLite store with MLflow's schema; making one takes seconds."""
    folder = Path(tempfile.mkdtemp(prefix="medst-store-"))
    client(f"sqlite:///{folder / 'mlflow.db'}").search_experiments()
    return folder / "mlflow.db"


def fresh_place(folder: Path) -> TrackingPlace:
    """An empty store in `folder`, with the local folder beside it; on a test server (`make test-postgres`) an
    experiment of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    server = os.environ.get("MEDST_TEST_TRACKING_SERVER")
    if server is not None:
        return TrackingPlace(server, folder / "runs", f"test-{uuid.uuid4().hex}")
    shutil.copy(_template(), folder / "mlflow.db")
    return TrackingPlace(f"sqlite:///{folder / 'mlflow.db'}", folder / "runs")


def describe(key: str = "key", **changes: object) -> TrialDescription:
    settings: dict[str, object] = {
        "config": Config(), "key": key, "arm": "full", "source_fingerprint": "source", "data_name": "phantom",
        "data_fingerprint": "data", "is_credentialed": False, "torch_version": "2", "studies": {"overview": "full"},
        "environment": {"python": "3"}}
    return TrialDescription(**{**settings, **changes})  # type: ignore[arg-type]


def fake_trial(config: Config, checkpoint_dir: Path | None) -> Iterator[Record]:
    """Records of a trial that checkpoints every second step and goes on from there, like the real one."""
    yield Facts({"parameters": 12, "store": "phantom"})
    state = checkpoint_dir / "state.json" if checkpoint_dir else None
    value, done = float(config.seed), 0
    if state is not None and state.exists():
        value, done = json.loads(state.read_text())
    for step in range(done + 1, NUM_STEPS + 1):
        value = 0.9 * value + 0.1 / step
        yield Progress(step, NUM_STEPS)
        yield Metrics(step, {"train/loss": value, "train/rate": 1.0 / step})
        if state is not None and step % 2 == 0 and step < NUM_STEPS:
            temporary = state.with_suffix(".new")
            temporary.write_text(json.dumps([value, step]))
            temporary.replace(state)
            yield Checkpoint(step, state.parent)
    yield Metrics(NUM_STEPS, {"test/score": value + config.objective.lambda_local, "test/undefined": float("nan")})
    yield Table("predictions/scores", pd.DataFrame({"row": [0, 1], "score": [value, 1.0]}))
    yield Arrays("maps", {"map": np.arange(4.0)}, is_private=False)
