"""From a number in a table back to its runs: what `medst trace` prints.

What lives here: finding the cell, or the line of the audit, that a user means, and telling its story. What must not:
printing, or numbers of its own.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
import yaml

from analysis.document import AUDIT_FORMAT
from analysis.tidy import Study, study_source
from medst import tracking
from medst.config import ConfigError, flatten, load_config, nearest, parse_yaml
from medst.tracking.connection import EXPERIMENT

_COMMIT, _UNCOMMITTED = "tags.environment.commit", "tags.environment.uncommitted_changes"
_PLACES = ("data.root", "data.store")
"""Settings that the plan of a study does not hold, since they are places on one machine."""


def find_cell(document: Mapping[str, Any], cell: str) -> Mapping[str, Any]:
    """What `cell` means: exact names first, then parts of names, case aside.

    In a table it is `arm,metric`; among several metrics the study's primary one is meant, if it is one of them. In the
    audit it is a line's check, what it is about, or both with a comma between.

    Raises:
        ValueError: no such cell or line, or several; names them.
    """
    if document["format"] == AUDIT_FORMAT:
        lines = {f"{row['check']}: {row['what']}": row for row in document["rows"]}
        return lines[_one("line", cell.strip(), {title: [title, row["what"], f"{row['check']},{row['what']}",
                                                         f"{row['check']}, {row['what']}"]
                                                 for title, row in lines.items()})]
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


def trace(document: Mapping[str, Any], cell: Mapping[str, Any], uri: str, experiment: str = EXPERIMENT
          ) -> Iterator[str]:
    """Lines: the number, its runs, the settings, code, data, environment, and the commands that compute it again.

    Args:
        cell: as `find_cell` gives it.

    Raises:
        ValueError: a run of the cell is not in the tracking store.
    """
    if document["format"] == AUDIT_FORMAT:
        study, runs, values, again = cell["study"], cell["runs"], {}, f"{cell['check']},{cell['what']}"
        yield f"{cell['check']} | {cell['what']}"
        yield f"The audit, study {study}, fingerprint {document['fingerprint']}"
        yield ", ".join(f"{title} {cell['shown'][title]}" for title in cell["shown"]
                        if title not in ("Check", "What") and cell["shown"][title])
    else:
        metric = next(entry for entry in document["metrics"] if entry["key"] == cell["metric"])
        study, values, again = document["study"], cell["values"], f"{cell['arm']},{metric['short']}"
        runs = {f"seed {seed}": run for seed, run in cell["run_ids"].items()}
        yield f"{cell['arm']} | {metric['name']} ({metric['key']})"
        yield f"Table {document['name']}, study {study}, fingerprint {document['fingerprint']}"
        if not runs:
            yield "No run stands behind this cell" + (
                "" if cell["mean"] is None else ": the number follows from the task")
            return
        interval = "" if cell["low"] is None else f", 95 % interval {cell['low']:.6g} to {cell['high']:.6g}"
        yield f"Mean {cell['mean']:.6g}{interval}, n = {cell['n']} (tracked units; shown times {metric['scale']:g})"
    yield ""
    frame = tracking.load_runs(uri, experiment).set_index("run_id")
    absent = [run for run in runs.values() if run not in frame.index]
    if absent:
        raise ValueError(f"run {absent[0]} is not in the tracking store {uri}; set MLFLOW_TRACKING_URI to the store "
                         "that the table was made from")
    frame = frame.loc[list(runs.values())]
    yield "Runs"
    for label, run_id in runs.items():
        value = values.get(label.removeprefix("seed "))
        told = "" if value is None else f"  value {value:.6g}"
        yield f"  {label}  {run_id}  {frame.loc[run_id, 'state']}{told}  key {frame.loc[run_id, 'key']}"
    snapshot = tracking.read_snapshot(uri, experiment)
    plan, params = snapshot.plan(study), snapshot.params(list(runs.values()))
    base = _base_texts(plan["base"])
    changed = {run: {key: text for key, text in params[run].items() if base.get(key) != text} for run in runs.values()}
    yield ""
    yield from _settings(plan["base"], base, list(changed.values()))
    yield ""
    for title, column in (("Code", "source_fingerprint"), ("Data", "data_fingerprint"), ("Data set", "data_name"),
                          ("Commit", _COMMIT), ("Torch", "tags.medst.torch"), ("Python", "tags.environment.python"),
                          ("Processor", "tags.environment.cpu")):
        if column in frame:
            known = list(dict.fromkeys(str(value) for value in frame[column].dropna()))
            yield f"{title}: {', '.join(known) or 'not recorded'}"
    yield ""
    yield "To compute it again"
    yield from _commands(plan["base"], changed, frame)
    yield f"  {_sweep_command(plan, study_source(snapshot, study).load(), base)}   # all arms; only what is missing"
    yield f"  make results && medst trace results/tables/{document['name']}.csv --cell {shlex.quote(again)}"


def _base_texts(files: Sequence[str]) -> dict[str, str]:
    """Dotted key -> text as it is tracked, of the experiment files as they are now; empty where one cannot be read."""
    try:
        return {key: tracking.tracked_text(value) for key, value in flatten(load_config(*files)).items()}
    except ConfigError:
        return {}


def _settings(files: Sequence[str], base: Mapping[str, str], changed: Sequence[Mapping[str, str]]) -> Iterator[str]:
    """What all the runs set alike, and the names of what they do not."""
    told = ", ".join(files) or "defaults"
    yield f"Settings that differ from {told}, as it is here and now" if base else f"Settings; {told} is not here"
    first = changed[0]
    shared = {key: text for key, text in first.items() if all(other.get(key) == text for other in changed)}
    for key, text in shared.items():
        yield f"  {key} = {text}"
    others = list(dict.fromkeys(key for one in changed for key in one if key not in shared))
    if others:
        yield f"  by run, see the commands: {', '.join(others)}"


def _commands(files: Sequence[str], changed: Mapping[str, Mapping[str, str]], frame: pd.DataFrame) -> Iterator[str]:
    """The checkout and the training of every run, in the runs' order within a commit."""
    commits: dict[str, list[str]] = {}
    for run in changed:
        commit = frame.loc[run, _COMMIT] if _COMMIT in frame else None
        commits.setdefault(commit if isinstance(commit, str) else "", []).append(run)
    for commit, runs in commits.items():
        yield f"  git checkout {commit}" if commit else "  # the commit of these runs was not recorded"
        dirty = sum(frame.loc[run, _UNCOMMITTED] == "true" for run in runs) if _UNCOMMITTED in frame else 0
        if dirty:
            yield (f"  # Warning: {dirty} of {len(runs)} runs were computed with uncommitted changes; the commit alone "
                   f"may not hold their code ({', '.join(dict.fromkeys(frame.loc[runs, 'source_fingerprint']))})")
        for run in runs:
            yield " ".join(["  medst train", *map(shlex.quote, files), *_set_options(changed[run])])


def _set_options(settings: Mapping[str, str]) -> list[str]:
    """`--set key=value`, quoted for the shell."""
    return [f"--set {shlex.quote(f'{key}={_yaml_text(text)}')}" for key, text in settings.items()]


def _yaml_text(text: str) -> str:
    """A tracked text as YAML that reads as the same value: texts in quotes, all else as it is."""
    try:
        is_text = isinstance(parse_yaml(text), str)
    except yaml.YAMLError:
        is_text = True
    return json.dumps(text, ensure_ascii=False) if is_text else text


def _sweep_command(plan: Mapping[str, Any], study: Study, base: Mapping[str, str]) -> str:
    """The study as it was run: with its base, data and settings, whatever its file says by now."""
    settings = {key: tracking.tracked_text(value) for key, value in plan["settings"].items()}
    settings |= _common_places(plan, study, base)
    files = plan["base"]
    # A study of several files cannot be given them on the command line: they are its own.
    given = [f"--base {shlex.quote(files[0])}"] if len(files) == 1 else []
    return " ".join([f"medst sweep run {plan['name']}", *given, *_set_options(settings)])


def _common_places(plan: Mapping[str, Any], study: Study, base: Mapping[str, str]) -> dict[str, str]:
    """Places that all arms were given which do not set their own, where the base has others."""
    draws = plan.get("phantom_draws", [0])
    seeds_a_draw = len(plan["seeds"]) // len(draws)
    found: dict[str, str] = {}
    for key in _PLACES:
        for arm in plan["arms"]:
            params = study.params.get(arm["name"])
            if key in arm["settings"] or params is None or key not in params:
                continue
            text = params[key]
            draw = draws[plan["seeds"].index(int(params["seed"])) // seeds_a_draw]
            if key == "data.root" and draw:
                text = text.removesuffix(f"-draw-{draw}")
            if text != base.get(key):
                found[key] = text
            break
    return found
