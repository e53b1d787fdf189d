"""One sweep in a process of its own, for the tests that kill it: `python crash_driver.py PROJECT EXECUTOR`."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tracking_fixtures import fake_trial

from medst.config import Config
from medst.records import Metrics, Record
from sweeps import commands
from sweeps.trials import DataFacts, needed_data

FACTS = DataFacts("phantom", "fingerprint", False)
STEP_SECONDS = float(os.environ.get("CRASH_STEP_SECONDS", "0.05"))

STUDY = """\
name: crash
question: Does a kill change a number?
base: [base.yaml]
reference: full
primary_metric: test/score
seeds: [0, 1, 2]
arms:
  full: {}
one_at_a_time:
  objective.lambda_local: {label: λ1, levels: [0.25, 0.5, 2.0]}
"""
NUM_TRIALS = 12


def write_project(folder: Path) -> None:
    (folder / "sweeps").mkdir(parents=True)
    (folder / "base.yaml").write_text("training: {epochs: 2.0}\n")
    (folder / "sweeps" / "crash.yaml").write_text(STUDY)


def slow_trial(config: Config, checkpoint_dir: Path | None) -> Iterator[Record]:
    """The trial of known records, with time enough for a kill between any two of them."""
    for record in fake_trial(config, checkpoint_dir):
        yield record
        if isinstance(record, Metrics):
            time.sleep(STEP_SECONDS)


def facts(study: Any, *arguments: Any) -> dict[Any, DataFacts]:
    return dict.fromkeys(needed_data(study), FACTS)


def drive(project: Path, executor: Any) -> int:
    """Run the study to its end; the exit code of the command line."""
    commands.ensure_data = commands.existing_data = facts
    try:
        return commands.run_sweep("crash", executor=executor, jobs=2, project=project, trial_function=slow_trial)
    except ValueError as error:
        # What the command line prints: the store is away, another driver is at it.
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    if sys.argv[2] == "ray":
        import ray
        import tracking_fixtures

        # Workers need not find the files of the tests.
        ray.cloudpickle.register_pickle_by_value(tracking_fixtures)
        ray.cloudpickle.register_pickle_by_value(sys.modules["__main__"])
    raise SystemExit(drive(Path(sys.argv[1]), sys.argv[2]))
