"""How long tables take from a large store: `python -m benchmarks.analysis --runs 10000`.

What lives here: a synthetic tracking store written straight into MLflow's SQLite tables, and the timing of the first
and the second call. What must not: anything about real trials.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import sqlite3
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console

from analysis import registry
from analysis.results import make_results
from medst import tracking
from medst.config import Config, flatten, source_fingerprint
from medst.tracking import names
from medst.tracking.connection import ensure_experiment

NUM_ARMS, NUM_SEEDS = 16, 6
"""Of every synthetic study; the number of studies follows from the number of runs."""
CURVES = tuple(f"{part}/{term}" for part in ("train", "validation") for term in registry.LOSS_TERMS)


def write_store(folder: Path, num_runs: int, experiment: str = tracking.TrackingPlace.of_project().experiment) -> str:
    """A store of `num_runs` finished trials in studies of 96, with all settings and metrics of real ones.

    Returns:
        Its address.
    """
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    experiment_id = int(ensure_experiment(uri, experiment))
    arms = [f"arm {number}" for number in range(NUM_ARMS)]
    rows = iter(range(num_runs))
    with closing(sqlite3.connect(folder / "mlflow.db")) as connection:
        for number in range(-(-num_runs // (NUM_ARMS * NUM_SEEDS))):
            name = f"study_{number:03d}"
            trials = [(uuid.uuid4().hex, arm, seed) for seed in range(NUM_SEEDS) for arm in arms]
            own = [trials[place] for place, _ in enumerate(islice(rows, len(trials)))]
            tracking.ensure_study_run(uri, experiment, name, "", {
                "name": name, "question": f"Synthetic study {number}?", "base": [], "data": "none",
                "reference": arms[0], "primary_metric": "test/finding_zero_shot/mean/auroc", "secondary_metrics": [],
                "seeds": list(range(NUM_SEEDS)), "settings": {}, "expectations": [],
                "arms": [{"name": arm, "settings": {}} for arm in arms],
                "trials": [{"key": run, "arm": arm, "seed": seed} for run, arm, seed in own]}, is_running=False)
            with connection:
                for table, columns, values in _rows(folder.absolute(), experiment_id, name, own):
                    connection.executemany(f"INSERT INTO {table} ({columns}) VALUES "
                                           f"({','.join('?' * (columns.count(',') + 1))})", values)
    return uri


def _rows(folder: Path, experiment_id: int, study: str, trials: list[tuple[str, str, int]]
          ) -> Iterator[tuple[str, str, list[tuple[Any, ...]]]]:
    """Table, its columns, rows."""
    generator = random.Random(study)
    settings = {key: json.dumps(value) for key, value in flatten(Config()).items()}
    metrics = [*registry.METRICS, *CURVES, "facts/pairs_seen", "test/grounding/chance"]
    now = int(time.time() * 1000)
    yield ("runs", "run_uuid, name, status, start_time, end_time, lifecycle_stage, experiment_id, user_id, "
                   "source_type, artifact_uri",
           [(run, arm, "FINISHED", now, now, "active", experiment_id, "", "UNKNOWN",
             (folder / "mlartifacts" / run / "artifacts").as_uri()) for run, arm, _ in trials])
    yield "tags", "key, value, run_uuid", [
        (key, value, run) for run, arm, seed in trials for key, value in {
            names.KIND: "trial", names.KEY: run, names.ARM: arm, names.SEED: str(seed), names.STATE: "finished",
            names.SOURCE: source_fingerprint(), names.DATA: "synthetic", names.DATA_NAME: "none",
            f"{names.STUDY_PREFIX}{study}": arm, "mlflow.runName": arm}.items()]
    yield "params", "key, value, run_uuid", [(key, value, run) for run, _, _ in trials
                                             for key, value in settings.items()]
    yield "latest_metrics", "key, value, timestamp, step, is_nan, run_uuid", [
        (key, generator.gauss(0.7, 0.02), now, 1, 0, run) for run, _, _ in trials for key in metrics]


def measure(num_runs: int, folder: Path) -> dict[str, float]:
    """Seconds to write the store, for the first and for the second call of all tables."""
    began = time.perf_counter()
    uri = write_store(folder, num_runs)
    seconds = {"runs": float(num_runs), "write": time.perf_counter() - began}
    for name in ("first", "second"):
        began, processor = time.perf_counter(), time.process_time()
        make_results(uri, tracking.TrackingPlace.of_project().experiment, folder / "results", only="tables",
                     console=Console(file=io.StringIO()))
        seconds |= {name: time.perf_counter() - began, f"{name}_processor": time.process_time() - processor}
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, nargs="+", default=[2500, 5000, 10_000])
    for num_runs in parser.parse_args().runs:
        with tempfile.TemporaryDirectory() as folder:
            found = measure(num_runs, Path(folder))
        print(", ".join(f"{name} {value:,.1f}" for name, value in found.items()))


if __name__ == "__main__":
    main()
