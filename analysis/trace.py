"""From a number in a table back to its runs: what `medst trace` prints.

What lives here: finding the cell that a user means, and telling its story. What must not: printing, or numbers of its
own.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis.audit import FORMAT as AUDIT_FORMAT
from analysis.document import FORMAT
from medst import tracking
from medst.config import nearest
from medst.tracking.connection import EXPERIMENT


def find_cell(document: Mapping[str, Any], cell: str) -> Mapping[str, Any]:
    """The cell that `arm,metric` means: exact names first, then parts of names, case aside.

    Among several metrics the study's primary one is meant, if it is one of them.

    Raises:
        ValueError: no arm or metric, or several; names them.
    """
    arm_text, comma, metric_text = cell.rpartition(",")
    if not comma:
        raise ValueError(f"--cell '{cell}': give arm and metric with a comma between, as in \"full,AUROC\"")
    arm = _one("arm", arm_text.strip(), {arm["name"]: [arm["name"]] for arm in document["arms"]})
    names = {metric["key"]: [metric["key"], metric["short"], metric["name"]] for metric in document["metrics"]}
    metric = _one("metric", metric_text.strip(), names, document["primary"])
    found: Mapping[str, Any] = next(entry for entry in document["cells"]
                                    if entry["arm"] == arm and entry["metric"] == metric)
    return found


def _one(kind: str, text: str, names: Mapping[str, Sequence[str]], preferred: str = "") -> str:
    def matching(is_match: Any) -> list[str]:
        return [key for key, texts in names.items() if any(is_match(name.lower()) for name in texts)]

    wanted = text.lower()
    for is_match in (wanted.__eq__, lambda name: wanted in name):
        found = matching(is_match)
        if len(found) == 1 or preferred in found:
            return preferred if preferred in found else found[0]
        if found:
            raise ValueError(f"--cell: '{text}' may be {kind} {', '.join(found[:8])}; say more of the name")
    guess = nearest(text, [name for texts in names.values() for name in texts])
    raise ValueError(f"--cell: the table has no {kind} '{text}'; "
                     + (f"did you mean '{guess}'?" if guess else f"it has {', '.join(names)}"))


def read_document(path: Path) -> dict[str, Any]:
    """The JSON beside any file of a table.

    Raises:
        ValueError: there is none, or it is no table of this platform.
    """
    beside = path.with_suffix(".json")
    if not beside.exists():
        raise ValueError(f"{beside} is not there; make the table first: make results")
    document: dict[str, Any] = json.loads(beside.read_text(encoding="utf-8"))
    if document.get("format") == AUDIT_FORMAT:
        studies = ", ".join(dict.fromkeys(row["study"] for row in document["rows"]))
        raise ValueError(f"{beside}: a line of the audit is made from a whole study; its runs are in the JSON, and the "
                         f"cells of tables/<study>.csv can be traced ({studies})")
    if document.get("format") != FORMAT:
        raise ValueError(f"{beside} has the format {document.get('format')!r} instead of {FORMAT!r}; run: make results")
    return document


def trace(document: Mapping[str, Any], cell: Mapping[str, Any], uri: str, experiment: str = EXPERIMENT
          ) -> Iterator[str]:
    """Lines: the number, its runs, the settings, code, data, environment, and the commands that compute it again.

    Raises:
        ValueError: a run of the cell is not in the tracking store.
    """
    metric = next(entry for entry in document["metrics"] if entry["key"] == cell["metric"])
    yield f"{cell['arm']} | {metric['name']} ({metric['key']})"
    yield f"Table {document['name']}, study {document['study']}, fingerprint {document['fingerprint']}"
    if cell["mean"] is None or not cell["run_ids"]:
        yield "No run stands behind this cell" + ("" if cell["mean"] is None else ": the number follows from the task")
        return
    interval = "" if cell["low"] is None else f", 95 % interval {cell['low']:.6g} to {cell['high']:.6g}"
    yield f"Mean {cell['mean']:.6g}{interval}, n = {cell['n']} (tracked units; shown times {metric['scale']:g})"
    yield ""
    frame = tracking.load_runs(uri, experiment).set_index("run_id")
    absent = [run for run in cell["run_ids"].values() if run not in frame.index]
    if absent:
        raise ValueError(f"run {absent[0]} is not in the tracking store {uri}; set MLFLOW_TRACKING_URI to the store "
                         "that the table was made from")
    runs = frame.loc[list(cell["run_ids"].values())]
    yield "Runs"
    for seed, run_id in cell["run_ids"].items():
        value = cell["values"].get(seed)
        told = "" if value is None else f"  value {value:.6g}"
        yield f"  seed {seed}  {run_id}  {runs.loc[run_id, 'state']}{told}  key {runs.loc[run_id, 'key']}"
    plan = tracking.load_plan(document["study"], uri, experiment)
    settings = {**plan["settings"], **next((arm["settings"] for arm in plan["arms"] if arm["name"] == cell["arm"]), {})}
    yield ""
    yield f"Settings: base {', '.join(plan['base']) or 'defaults'}"
    for key, value in settings.items():
        yield f"  {key} = {json.dumps(value)}"
    yield "  everything else: config.yaml of each run (medst dashboard, Artifacts)"
    yield ""
    for title, column in (("Code", "source_fingerprint"), ("Data", "data_fingerprint"), ("Data set", "data_name"),
                          ("Commit", "tags.environment.commit"), ("Torch", "tags.medst.torch"),
                          ("Python", "tags.environment.python"), ("Processor", "tags.environment.cpu")):
        if column in runs:
            known = list(dict.fromkeys(str(value) for value in runs[column].dropna()))
            yield f"{title}: {', '.join(known) or 'not recorded'}"
    yield ""
    yield "To compute it again"
    commits = list(dict.fromkeys(runs["tags.environment.commit"].dropna())) if "tags.environment.commit" in runs else []
    if len(commits) == 1:
        yield f"  git checkout {commits[0]}"
    yield f"  make sweep SWEEP={plan['name']}          # all arms; computes only what is missing"
    for seed in cell["run_ids"]:
        given = "".join(f" --set {shlex.quote(f'{key}={json.dumps(value)}')}" for key, value in settings.items())
        yield f"  medst train {' '.join(plan['base'])}{given} --set seed={seed}"
    yield f"  make results && medst trace results/tables/{document['name']}.csv --cell " \
          f"{shlex.quote(cell['arm'] + ',' + metric['short'])}"
