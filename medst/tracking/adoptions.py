"""Adoptions: that trials of earlier code stand under later code whose numbers were seen to be equal.

What lives here: the record of an adoption, a run of its own that maps the keys of the trials to their keys under the
later code, and its reading. What must not: how equality is established (sweeps/adoption.py). The trials themselves are
left as they are: they keep the code that computed them.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from medst.config import source_fingerprint
from medst.tracking import names
from medst.tracking.connection import EXPERIMENT, client, default_uri, ensure_experiment
from medst.tracking.reading import artifact_path, search_all_runs

ARTIFACT = "adoption.json"


@dataclass(frozen=True)
class Adoption:
    """Trials of one earlier code that stand under a later one."""

    earlier: str
    """Source fingerprint of the code that computed the trials."""
    later: str
    """Source fingerprint of the code under which they stand."""
    keys: Mapping[str, str]
    """Trial key under the earlier code -> under the later code."""
    evidence: Mapping[str, Any]
    """What was compared: golden numbers, replayed trials, settings that no replay exercised."""


def record_adoption(adoption: Adoption, uri: str | None = None, experiment: str = EXPERIMENT) -> str:
    """Track an adoption; returns the id of its run. It counts from the moment at which its run is finished."""
    uri = uri or default_uri()
    store = client(uri)
    note = (f"{len(adoption.keys)} trials of code `{adoption.earlier}` stand under code `{adoption.later}`. What was "
            f"compared is the artifact `{ARTIFACT}`.")
    run_id = str(store.create_run(
        ensure_experiment(uri, experiment), run_name=f"adoption: {adoption.earlier[:8]} by {adoption.later[:8]}",
        tags={names.KIND: names.ADOPTION, names.EARLIER: adoption.earlier, names.LATER: adoption.later,
              names.NOTE: note}).info.run_id)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ARTIFACT
        path.write_text(json.dumps({"earlier": adoption.earlier, "later": adoption.later,
                                    "evidence": dict(adoption.evidence), "keys": dict(adoption.keys)},
                                   indent=1, ensure_ascii=False), encoding="utf-8")
        store.log_artifact(run_id, str(path))
    store.set_terminated(run_id, "FINISHED")
    return run_id


def adopted_keys(uri: str | None = None, experiment: str = EXPERIMENT, later: str | None = None) -> dict[str, str]:
    """Trial key as tracked -> the key under which the trial stands under the code `later` (default: the present code).

    Only trials of other code are in it.
    """
    uri = uri or default_uri()
    wanted = later or source_fingerprint()
    found: dict[str, str] = {}
    filter_string = (f"tags.`{names.KIND}` = '{names.ADOPTION}' AND tags.`{names.LATER}` = '{wanted}' "
                     "AND attributes.status = 'FINISHED'")
    for run in search_all_runs(uri, experiment, filter_string):
        found.update(_keys_of(uri, run.info.run_id))
    return found


@lru_cache(maxsize=64)
def _keys_of(uri: str, run_id: str) -> dict[str, str]:
    """An adoption never changes once it is finished."""
    keys: dict[str, str] = json.loads(artifact_path(run_id, ARTIFACT, uri).read_text(encoding="utf-8"))["keys"]
    return keys
