"""Where the tracking store is, how to reach it, and which errors mean that it is away for a while."""

from __future__ import annotations

import os

# Before MLflow is imported; a value that the user set stands.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
# Beside a server MLflow greets the end of every run with two lines; the live view says what ended.
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
# The spool outlives an absent server: one short retry instead of MLflow's half minute keeps the trial going.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")

import logging
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from mlflow.entities import Experiment
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from medst.tracking import names

EXPERIMENT = "medst"
"""The MLflow experiment of all trials and studies: studies share trials."""

_EXPERIMENT_TAGS = {
    names.NOTE: "Ablation studies of Med-ST. A run named `study: ...` holds the plan, tables and figures of one study; "
                "the trials below it are named by arm and seed. All trials of a study, shared ones too: "
                "``tags.`study.<name>` LIKE '%'``. Add the columns `medst.arm` and `medst.seed` to sort by them.",
}

_LOCAL_DATABASE = "sqlite:///"


class TrackingError(ValueError):
    """The tracking store cannot be used as asked; the message says what to do."""


def default_uri(project: Path | None = None) -> str:
    """MLFLOW_TRACKING_URI, else the SQLite store `mlflow.db` of the project (default: the current folder)."""
    database = (project or Path.cwd()).absolute() / "mlflow.db"
    return os.environ.get("MLFLOW_TRACKING_URI") or f"{_LOCAL_DATABASE}{database}"


@dataclass(frozen=True)
class TrackingPlace:
    """Where trials are written down: the store, and the local folder of spools and locks."""

    uri: str
    folder: Path
    """Absolute; holds spool/, locks/ and checkpoints/. On a cluster it lies on a disk that all nodes share."""
    experiment: str = EXPERIMENT

    @property
    def is_local(self) -> bool:
        """True where the store is a file on this machine's disks: locks beside it order all who use it."""
        return database_of(self.uri) is not None

    @property
    def locks(self) -> Path:
        """Folder of the locks: with the store where that is a file, so that two projects which share a store
        share its locks; with the spools where it is a server."""
        database = database_of(self.uri)
        if database is None or database.parent == self.folder.parent:
            return self.folder / "locks"
        return database.with_name(f"{database.name}.locks")

    @staticmethod
    def of_project(project: Path | None = None) -> TrackingPlace:
        """The default place of a project folder: its store and its `runs/`."""
        project = (project or Path.cwd()).absolute()
        return TrackingPlace(default_uri(project), project / "runs")


def database_of(uri: str) -> Path | None:
    """The file of a SQLite store; None for any other store."""
    return Path(uri.removeprefix(_LOCAL_DATABASE)).absolute() if uri.startswith(_LOCAL_DATABASE) else None


@lru_cache(maxsize=8)
def client(uri: str) -> MlflowClient:
    """A client of the store at `uri`, made once a process.

    Raises:
        TrackingError: the folder of a SQLite store does not exist or cannot be written.
    """
    database = database_of(uri)
    if database is not None:
        folder = database.parent
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            raise TrackingError(f"tracking store {uri}: the folder {folder} does not exist or cannot be written; "
                                "set MLFLOW_TRACKING_URI to a store that can")
        # The first contact of a new store prints every migration of its schema.
        logging.getLogger("alembic").setLevel(logging.WARNING)
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=uri)


def artifact_location(uri: str) -> str | None:
    """Folder `mlartifacts` beside a SQLite store as a URI; None where a server decides."""
    database = database_of(uri)
    return None if database is None else (database.parent / "mlartifacts").as_uri()


def ensure_experiment(uri: str, name: str) -> str:
    """Id of the experiment, which is made if absent."""
    found = find_experiment(uri, name)
    if found is not None:
        return str(found.experiment_id)
    try:
        return str(client(uri).create_experiment(name, artifact_location=artifact_location(uri),
                                                 tags=_EXPERIMENT_TAGS))
    except MlflowException as error:
        # Another process made it in between.
        if error.error_code == "RESOURCE_ALREADY_EXISTS" and (found := find_experiment(uri, name)) is not None:
            return str(found.experiment_id)
        raise


def find_experiment(uri: str, name: str) -> Experiment | None:
    """The experiment if it exists. To look for it in a SQLite store that does not exist makes none.

    Raises:
        TrackingError: it was deleted in the dashboard.
    """
    database = database_of(uri)
    if database is not None and database.parent.is_dir() and not database.exists():
        return None
    experiment = client(uri).get_experiment_by_name(name)
    if experiment is not None and experiment.lifecycle_stage != "active":
        raise TrackingError(f"tracking store {uri}: the experiment '{name}' was deleted; restore it with "
                            f"`mlflow experiments restore --experiment-id {experiment.experiment_id}`")
    return experiment


_REFUSALS = frozenset({
    "INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS", "INVALID_STATE",
    "PERMISSION_DENIED", "UNAUTHENTICATED", "ENDPOINT_NOT_FOUND", "NOT_IMPLEMENTED", "RESOURCE_LIMIT_EXCEEDED",
})


def is_away(error: Exception) -> bool:
    """True where the store could not be reached or was busy; False where it understood and refused."""
    if isinstance(error, MlflowException):
        return error.error_code not in _REFUSALS
    return isinstance(error, OSError | sqlite3.OperationalError)


@contextmanager
def reaching(uri: str) -> Iterator[None]:
    """Turn the error of a store that is away into one for the user.

    Raises:
        TrackingError: the store could not be reached, or is too busy to answer.
    """
    try:
        yield
    except (MlflowException, sqlite3.OperationalError) as error:
        if not is_away(error):
            raise
        story = str(error).strip().splitlines() or [type(error).__name__]
        raise TrackingError(
            f"tracking store {uri} is away ({story[0][:200]}); start it, or set MLFLOW_TRACKING_URI, then run the same "
            "command again: what was computed waits on this disk and nothing is lost") from error
