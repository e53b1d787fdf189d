"""The only room that speaks MLflow: it writes trials and studies down, and reads them back.

What lives here: the tracker of one trial (`track`), which writes through a local append-only spool so that
neither a lost server nor a kill loses or doubles anything; the runs of studies; the readers on which every
table and figure stands. What must not: torch, Ray, anything that computes a trial's numbers.

| file | holds |
|---|---|
| names | the tags, states, artifact paths and spelling of values that writer and reader share |
| connection | addresses, clients, telemetry off, which errors mean "server away" |
| environment | what a run says about the machine and the source it ran on |
| privacy | what of a credentialed data set stays home |
| spool | the append-only record of one trial on the local disk |
| drain | spool -> MLflow, each thing once |
| trials | `track`: a stream of records -> spool -> MLflow |
| studies | the run of a study: plan, description, tables, figures; tags of shared trials |
| source | whole experiments: through MLflow's interface, or from the tables of a SQLite store |
| index | what a ledger must know of every trial; beside a server read incrementally |
| reading | runs, curves, tables, arrays, configs as DataFrames |
| registry | promotion of a trial's model, and its way back |
| dashboard | how the server is started, and what protects it |
| adoptions | that trials of earlier code stand under the present code |
| snapshot | all runs of an experiment in one pass, for tables of many studies |
"""

from medst.tracking.adoptions import Adoption, adopted_keys, record_adoption
from medst.tracking.connection import TrackingError, TrackingPlace, default_uri
from medst.tracking.drain import drain_spools
from medst.tracking.environment import describe_environment, torch_version
from medst.tracking.names import TrialState, tracked_text
from medst.tracking.privacy import PRIVATE_NOTICE, is_private_tracking_allowed, without_identifiers
from medst.tracking.reading import (
    find_arrays,
    find_tables,
    list_artifacts,
    list_studies,
    load_arrays,
    load_config_of,
    load_plan,
    load_runs,
    load_table,
    metric_history,
)
from medst.tracking.snapshot import Snapshot, read_snapshot
from medst.tracking.studies import ensure_study_run, log_study_artifacts
from medst.tracking.trials import TrialDescription, track

__all__ = [
    "PRIVATE_NOTICE",
    "Adoption",
    "Snapshot",
    "TrackingError",
    "TrackingPlace",
    "TrialDescription",
    "TrialState",
    "adopted_keys",
    "default_uri",
    "describe_environment",
    "drain_spools",
    "ensure_study_run",
    "find_arrays",
    "find_tables",
    "is_private_tracking_allowed",
    "list_artifacts",
    "list_studies",
    "load_arrays",
    "load_config_of",
    "load_plan",
    "load_runs",
    "load_table",
    "log_study_artifacts",
    "metric_history",
    "read_snapshot",
    "record_adoption",
    "torch_version",
    "track",
    "tracked_text",
    "without_identifiers",
]
