"""The model registry: a trial's saved model gets a name, a version and an alias, and is fetched by them.

What lives here: promotion and download. What must not: the choice by test metrics; torch.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import mlflow
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from medst.tracking import names
from medst.tracking.connection import EXPERIMENT, TrackingError, client, default_uri
from medst.tracking.reading import list_artifacts, search_all_runs

MODEL_NAME = "medst"
"""Of the registered model, unless the user names another."""
CHOICE_METRIC = "validation/loss"
"""The lower the better; test metrics choose nothing."""
_WHO_KEEPS = ("The arms under `flagged_arms` of a study file (else the reference) keep it at the first seed; "
              "`medst train EXPERIMENT --track` always does")


@dataclass(frozen=True)
class Promoted:
    """A version of a registered model."""

    name: str
    version: str
    alias: str
    run_id: str


def promote(run_id: str, alias: str, name: str = MODEL_NAME, uri: str | None = None) -> Promoted:
    """Register the model of a finished trial, if it is not yet, and let `alias` point to it.

    Raises:
        TrackingError: no such run, a run that is not finished, or one that kept no model.
    """
    uri = uri or default_uri()
    store = client(uri)
    try:
        run = store.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise TrackingError(f"tracking store {uri}: no run '{run_id}'; its id stands in the address of its page"
                            ) from None
    _refuse_without_model(run, uri)
    try:
        store.create_registered_model(name, description=(
            "Med-ST models. Fetch one: `medst pull NAME@ALIAS --out FOLDER`, then `MedST.from_pretrained(FOLDER)`. "
            "Each version names the run that trained it."))
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    found = [version for version in store.search_model_versions(f"name = '{name}'") if version.run_id == run_id]
    version = found[0] if found else store.create_model_version(
        name, source=f"{run.info.artifact_uri}/{names.MODEL_FOLDER}", run_id=run_id, description=_description(run),
        tags=_tags(run))
    store.set_registered_model_alias(name, alias, version.version)
    return Promoted(name, str(version.version), alias, run_id)


def best_run(study: str, arm: str | None = None, uri: str | None = None, experiment: str = EXPERIMENT) -> str:
    """Id of the finished run of a study with the lowest validation loss among those that kept a model.

    Raises:
        TrackingError: there is none.
    """
    uri = uri or default_uri()
    tag = f"{names.STUDY_PREFIX}{study}"
    condition = f"tags.`{names.KIND}` = 'trial' AND tags.`{tag}` LIKE '%'"
    of_study = [run for run in search_all_runs(uri, experiment, condition)
                if run.info.status == "FINISHED" and CHOICE_METRIC in run.data.metrics]
    runs = [run for run in of_study if arm in (None, run.data.tags[tag])]
    for run in sorted(runs, key=lambda run: (run.data.metrics[CHOICE_METRIC], run.info.run_id)):
        if _has_model(run.info.run_id, uri):
            return str(run.info.run_id)
    whose = f"study '{study}'" + (f", arm '{arm}'" if arm else "")
    if runs:
        raise TrackingError(f"tracking store {uri}: none of {len(runs)} finished runs of {whose} kept its model. "
                            f"{_WHO_KEEPS}")
    if of_study:
        arms = ", ".join(sorted({run.data.tags[tag] for run in of_study}))
        raise TrackingError(f"tracking store {uri}: no finished run of {whose}; finished runs are of: {arms}")
    studies = ", ".join(_studies(uri, experiment)) or "none"
    raise TrackingError(f"tracking store {uri}: no finished run of {whose}; studies with finished runs: {studies}. Run "
                        f"it, `medst sweep run {study}`, or set MLFLOW_TRACKING_URI to the store that holds it")


def pull(reference: str, folder: Path, uri: str | None = None) -> Path:
    """Fetch `name@alias` or `name/version` into `folder`, which must be absent or empty; returns it.

    Raises:
        TrackingError: no such model; a folder that holds something.
    """
    uri = uri or default_uri()
    store = client(uri)
    if folder.exists() and any(folder.iterdir()):
        raise TrackingError(f"--out {folder}: holds files already; choose another folder")
    name, separator, alias = reference.partition("@")
    try:
        if separator:
            version = store.get_model_version_by_alias(name, alias)
        else:
            name, _, number = reference.partition("/")
            version = store.get_model_version(name, number)
        source = store.get_model_version_download_uri(version.name, version.version)
    except MlflowException as error:
        raise TrackingError(f"tracking store {uri}: no model '{reference}' ({error.message}); write name@alias or "
                            "name/version, as the dashboard shows them under Models") from None
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        fetched = mlflow.artifacts.download_artifacts(artifact_uri=source, dst_path=scratch, tracking_uri=uri)
        if folder.exists():
            folder.rmdir()
        shutil.move(fetched, folder)
    return folder


def _studies(uri: str, experiment: str) -> list[str]:
    """Names of the studies that have a finished trial."""
    trials = search_all_runs(uri, experiment, f"tags.`{names.KIND}` = 'trial' AND attributes.status = 'FINISHED'")
    return sorted({name.removeprefix(names.STUDY_PREFIX) for run in trials for name in run.data.tags
                   if name.startswith(names.STUDY_PREFIX)})


def _has_model(run_id: str, uri: str) -> bool:
    return any(path.startswith(f"{names.MODEL_FOLDER}/") for path in list_artifacts(run_id, uri))


def _refuse_without_model(run: Run, uri: str) -> None:
    if run.data.tags.get(names.KIND) != "trial" or run.info.status != "FINISHED":
        raise TrackingError(f"run {run.info.run_id} ('{run.info.run_name}') is no finished trial; promote one that is")
    if _has_model(run.info.run_id, uri):
        return
    if names.MODEL_FOLDER in run.data.tags.get(names.WITHHELD, "").split(", "):
        raise TrackingError(f"run {run.info.run_id} ('{run.info.run_name}'): its model stayed home, since its data are "
                            "credentialed; promotion would publish it")
    raise TrackingError(f"run {run.info.run_id} ('{run.info.run_name}') kept no model. {_WHO_KEEPS}")


def _tags(run: Run) -> dict[str, str]:
    tags = run.data.tags
    kept = (names.ARM, names.SEED, names.KEY, names.DATA_NAME, names.SOURCE)
    return {name: tags[name] for name in kept if name in tags}


def _description(run: Run) -> str:
    tags, metrics = run.data.tags, run.data.metrics
    studies = ", ".join(name.removeprefix(names.STUDY_PREFIX) for name in sorted(tags)
                        if name.startswith(names.STUDY_PREFIX))
    loss = f"; validation loss {metrics[CHOICE_METRIC]:.4f}" if CHOICE_METRIC in metrics else ""
    return (f"Arm **{tags[names.ARM]}**, seed {tags[names.SEED]}, on {tags[names.DATA_NAME]}"
            f"{f', study {studies}' if studies else ''}{loss}. Trial key `{tags[names.KEY]}`.")
