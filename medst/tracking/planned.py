"""The run that speaks for many trials: of a study, a rung, a search or a ladder."""

from __future__ import annotations

import json
import tempfile
import time as clock
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow.entities import RunTag

from medst.tracking import names
from medst.tracking.connection import TrackingPlace, client, ensure_experiment
from medst.tracking.drain import SETTLE_SECONDS, find_or_create_run, find_run


def ensure_planned_run(uri: str, experiment: str, kind: str, name_tag: str, name: str, description: str,
                       plan: Mapping[str, Any], is_running: bool) -> str:
    """Id of the run, made if absent, with the description (Markdown) and the plan as they are now.

    Args:
        kind: study, rung, search or ladder.
        name_tag: the tag by which the run is found; its value is `name`.
    """
    experiment_id = ensure_experiment(uri, experiment)
    run, is_new = find_or_create_run(uri, experiment_id, name_tag, name, f"{kind}: {name}",
                                     {names.KIND: kind, names.NOTE: description})
    if is_new and not TrackingPlace(uri, Path(), experiment).is_local:
        # Another driver may have made one in the same moment; all agree on the older one, once it can be seen.
        clock.sleep(SETTLE_SECONDS)
        run = find_run(uri, experiment_id, name_tag, name) or run
    run_id = str(run.info.run_id)
    client(uri).log_batch(run_id, tags=[RunTag(names.NOTE, description)])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / names.PLAN_ARTIFACT
        path.write_text(json.dumps(plan, indent=1, ensure_ascii=False), encoding="utf-8")
        client(uri).log_artifact(run_id, str(path))
    if is_running and run.info.status != "RUNNING":
        client(uri).update_run(run_id, status="RUNNING")
    return run_id
