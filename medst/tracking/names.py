"""What the writer and the readers share: names of tags, states and artifact paths, and how values are spelt."""

from __future__ import annotations

import json
from enum import Enum
from typing import Any

KIND = "medst.kind"
"""`trial`, `study`, `search`, `ladder` or `adoption`."""
ADOPTION = "adoption"
"""Kind of a run that says that trials of earlier code stand."""
EARLIER = "medst.earlier"
LATER = "medst.later"
"""On an adoption: the code that computed the trials, and the code under which they stand."""
KEY = "medst.key"
"""The trial key."""
STUDY = "medst.study"
"""Name of the study, on the run of a study."""
SEARCH = "medst.search"
"""Name of the search, on the run of a search."""
LADDER = "medst.ladder"
"""Name of the ladder, on the run of a ladder of proxies."""
STATE = "medst.state"
"""A `TrialState`, or `interrupted` where a driver stopped the trial; says more than MLflow's status."""
ARM = "medst.arm"
SEED = "medst.seed"
HEARTBEAT = "medst.heartbeat"
"""Time of the last sign of life, in seconds since 1970."""
OWNER = "medst.owner"
"""Identity of the spool from which the run is written: who computes the trial, or did last."""
CPUS = "medst.cpus"
GPUS = "medst.gpus"
"""Processor cores and GPUs that were kept for the trial."""
TAGGED = "medst.tagged"
"""On a study's run: milliseconds since 1970 at which tags of its ended trials were last changed."""
SWEEPS = "medst.sweeps"
"""On a study's run: how many times the study was run; the step of its cost metrics."""
DRAINED = "medst.drained"
"""`<spool id>:<sequence number>` of the last spool entry that is in the store."""
ATTEMPTS = "medst.attempts"
FAILURE = "medst.failure"
"""Why the trial failed or was pruned, one line; the traceback is the artifact `failure/traceback.txt`."""
WITHHELD = "medst.withheld"
"""Artifacts of a credentialed data set that were not tracked."""
SOURCE = "medst.source"
DATA = "medst.data"
DATA_NAME = "medst.data_name"
TORCH = "medst.torch"
ENVIRONMENT_PREFIX = "environment."
"""`environment.<name>` = a fact on the machine and its software."""
PROCESSOR = f"{ENVIRONMENT_PREFIX}cpu"
PARENT = "mlflow.parentRunId"
NOTE = "mlflow.note.content"
"""The description, in Markdown, of a run or of the experiment."""

STUDY_PREFIX = "study."
"""`study.<name>` = the trial's arm in that study."""
SEARCH_PREFIX = "search."
"""`search.<name>` = what the search proposed when it asked for the trial, as JSON."""
RUNG_METRIC_PREFIX = "rung/"
"""`rung/<pairs>/<metric>` = the metric when the trial was judged after so many pairs."""
FACT_METRIC_PREFIX = "facts/"
FACT_TAG_PREFIX = "fact."
SECONDS_METRIC = "cost/seconds"
"""Seconds of computing over all attempts of a trial."""
LOST_SECONDS_METRIC = "cost/lost_seconds"
"""Of these, computed in vain: after the last checkpoint of an attempt that was cut short."""
ATTEMPTS_METRIC = "cost/attempts"
COST_PREFIX = "cost/"
"""Metrics of cost have the attempt as their step: a trial that is tried again costs more."""

CONFIG_ARTIFACT = "config.yaml"
ENVIRONMENT_ARTIFACT = "environment.json"
TRACEBACK_ARTIFACT = "failure/traceback.txt"
PLAN_ARTIFACT = "plan.json"
MODEL_FOLDER = "model"
TABLE_SUFFIX = ".parquet"
ARRAYS_SUFFIX = ".npz"

INTERRUPTED = "interrupted"


class TrialState(Enum):
    """The one state of a trial key in the ledger."""

    MISSING = "missing"
    RUNNING = "running"
    FINISHED = "finished"
    PRUNED = "pruned"
    FAILED = "failed"


SETTLED = (TrialState.FINISHED.value, TrialState.PRUNED.value)
"""States after which a trial does not go on from where it ended: its spool and checkpoints are not needed."""

MLFLOW_STATUS = {
    TrialState.FINISHED.value: "FINISHED",
    TrialState.FAILED.value: "FAILED",
    TrialState.PRUNED.value: "KILLED",
    INTERRUPTED: "KILLED",
}
"""State with which a trial ends -> MLflow's status of the run."""


def tracked_text(value: Any) -> str:
    """A value as parameters and tags hold it: texts as they are, all else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
