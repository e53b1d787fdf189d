"""`medst sweep adopt`: after a refactor, make sure that the numbers are as they were, and let old trials stand.

What lives here: the golden numbers, the replay of stored trials and their comparison bit for bit, the keys under which
old trials stand. What must not: how an adoption is tracked (`medst.tracking.adoptions`), who reads it (the ledger, the
tables).

The replay decides: it is a stored trial, computed again by the present code and compared record by record. The golden
numbers are those of the published program; they hold the model and the losses where no replay goes. What neither
exercised is told: settings of adopted trials that no replayed trial has.
"""

from __future__ import annotations

import io
import math
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console

from medst.config import Config, ConfigError, override, source_fingerprint, trial_key
from medst.records import Arrays, Facts, Metrics, Table
from medst.tracking import (
    Adoption,
    TrackingPlace,
    TrialState,
    adopted_keys,
    list_artifacts,
    load_arrays,
    load_config_of,
    load_runs,
    load_table,
    metric_history,
    record_adoption,
    torch_version,
)
from medst.tracking.names import ARRAYS_SUFFIX, COST_PREFIX, FACT_METRIC_PREFIX, RUNG_METRIC_PREFIX, TABLE_SUFFIX
from sweeps.trials import absolute_places
from sweeps.worker import TrialFunction, default_trial_function

MAX_DIFFERENCES = 12
"""Differences that a refusal names before it only counts the rest."""
_LARGEST = 1.7976931348623157e308
"""What MLflow keeps for infinity."""
_NOT_NUMERIC = ("seed", "data.root", "data.store", "training.checkpoint_epochs")
"""Settings whose levels need no replay of their own."""


class AdoptionError(ValueError):
    """Old trials do not stand under the present code; the message says what differs."""


def adopt(earlier: Sequence[str] = (), *, num_replays: int = 1, project: Path | None = None,
          trial_function: TrialFunction | None = None, console: Console | None = None) -> list[Adoption]:
    """Let the finished trials of earlier code stand under the present code, if its numbers are equal bit for bit.

    Args:
        earlier: source fingerprints, or their beginnings; empty: every other code with finished trials in the store.
        num_replays: stored trials that are computed again for each earlier code: the cheapest that was trained, then
            those whose settings differ most from those replayed.
        project: folder of `mlflow.db` and `runs/`, and the start of relative paths; default: the current folder.

    Returns:
        What was adopted; all of it is tracked.

    Raises:
        AdoptionError: golden numbers or a replayed trial differ, or nothing is there to be adopted.
    """
    console = console or Console()
    project = (project or Path.cwd()).absolute()
    place = TrackingPlace.of_project(project)
    candidates = [(code, runs, choose_replays(runs, num_replays)) for code, runs in _candidates(place, earlier)]
    # What takes no time is refused before what does.
    for _, _, replayed in candidates:
        for _, run in replayed.iterrows():
            _placed_config(run, place, project)
    golden = check_golden(project)
    console.print(f"Golden numbers: {golden}.", highlight=False)
    adoptions = []
    for code, runs, replayed in candidates:
        for _, run in replayed.iterrows():
            console.print(f"Replay of {run['name']} (run {run['run_id']}, code {code}) ...", highlight=False)
            num_equal = replay(run, place, project, trial_function or default_trial_function())
            console.print(f"  {num_equal} numbers are equal, bit for bit.", highlight=False)
        keys, refused = _keys_under_present_code(runs, place)
        unseen = _unseen_settings(runs, replayed)
        adoption = Adoption(code, source_fingerprint(), keys, {
            "golden": golden, "replayed": list(replayed["run_id"]), "unseen": unseen, "not_carried": refused})
        record_adoption(adoption, place.uri, place.experiment)
        adoptions.append(adoption)
        console.print(f"{len(keys)} trials of code {code} stand under the present code.", highlight=False)
        if unseen:
            console.print("No replay had: " + "; ".join(unseen) + ". `--replays` computes more of them again.",
                          highlight=False, soft_wrap=True, markup=False)
        for reason in refused:
            console.print(f"not carried over: {reason}", highlight=False, soft_wrap=True, markup=False)
    return adoptions


def _candidates(place: TrackingPlace, earlier: Sequence[str]) -> list[tuple[str, pd.DataFrame]]:
    """Other code -> its finished trials that do not stand yet, and those that stand under it by an earlier adoption."""
    runs = load_runs(place.uri, place.experiment)
    present = source_fingerprint()
    runs = runs[(runs["state"] == TrialState.FINISHED.value) & (runs["source_fingerprint"] != present)]
    standing = adopted_keys(place.uri, place.experiment, present)
    runs = runs[~runs["key"].isin(list(standing))]
    found = []
    for code in runs["source_fingerprint"].drop_duplicates():
        if earlier and not any(code.startswith(asked) for asked in earlier):
            continue
        brought = adopted_keys(place.uri, place.experiment, code)
        found.append((code, runs[(runs["source_fingerprint"] == code) | runs["key"].isin(list(brought))]))
    if not found:
        codes = ", ".join(runs["source_fingerprint"].drop_duplicates()) or "none"
        asked = f" that begins with {' or '.join(earlier)}" if earlier else ""
        raise AdoptionError(f"nothing to adopt: {place.uri} has no finished trial of other code{asked} than the "
                            f"present one ({present}) that does not stand already; other code there: {codes}")
    return found


# ---- Golden numbers ----------------------------------------------------------------------------------------------


def check_golden(project: Path) -> str:
    """Hold the present code against the golden numbers of the published program, where both are there.

    They are the tests of tests/test_golden.py, which say themselves where the numbers lie (MEDST_GOLDEN).

    Returns:
        What was found, as a phrase.

    Raises:
        AdoptionError: a number differs.
    """
    tests = next((folder / "tests" / "test_golden.py" for folder in (project, Path(__file__).parents[1])
                  if (folder / "tests" / "test_golden.py").is_file()), None)
    if tests is None:
        return "not checked, tests/test_golden.py is not here"
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "golden.xml"
        done = subprocess.run(
            [sys.executable, "-m", "pytest", str(tests), "-q", "-p", "no:cacheprovider", f"--junitxml={report}"],
            cwd=tests.parents[1], env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
        if not report.exists():
            return f"not checked, pytest does not run here ({(done.stderr or done.stdout).strip().splitlines()[-1]})"
        suite = ElementTree.parse(report).getroot().find(".//testsuite")
    assert suite is not None
    num_tests, num_skipped = int(suite.attrib["tests"]), int(suite.attrib["skipped"])
    if done.returncode != 0:
        failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
        raise AdoptionError("refused: golden numbers differ\n" + "\n".join(failed[:MAX_DIFFERENCES]))
    if num_tests == num_skipped:
        return "not checked, they are not here (MEDST_GOLDEN names their folder)"
    return f"equal within the tolerance of tests/test_golden.py, {num_tests - num_skipped} tests"


# ---- Replay ------------------------------------------------------------------------------------------------------


def choose_replays(runs: pd.DataFrame, number: int) -> pd.DataFrame:
    """The cheapest trained trial, then again and again the one with most settings that none before has.

    Args:
        runs: as `load_runs` gives them.

    Raises:
        AdoptionError: all of them were computed by another version of torch.
    """
    pool = runs[runs["tags.medst.torch"] == torch_version()]
    if pool.empty:
        versions = ", ".join(runs["tags.medst.torch"].unique())
        raise AdoptionError(f"refused: the trials were computed by torch {versions}, this is {torch_version()}; a "
                            "replay would compare the two")
    # An untrained trial shows nothing of training; only on the processor are equal trials equal bit for bit.
    for is_better in (pool["params.training.device"] == "cpu",
                      pd.to_numeric(pool["params.training.epochs"], errors="coerce") > 0):
        pool = pool[is_better.loc[pool.index]] if is_better.loc[pool.index].any() else pool
    pool = pool.sort_values(["seconds", "run_id"])
    columns = [column for column in pool.columns if column.startswith("params.")
               and column.removeprefix("params.") not in _NOT_NUMERIC]
    chosen: list[Any] = []
    seen: set[tuple[str, str]] = set()
    for _ in range(min(number, len(pool))):
        rest = pool.drop(index=chosen)
        settings = {index: {(column, str(row[column])) for column in columns} for index, row in rest.iterrows()}
        # Sorted by cost, and the first of the largest: the cheapest of those that bring most.
        best = max(settings, key=lambda index: len(settings[index] - seen)) if chosen else rest.index[0]
        seen |= settings[best]
        chosen.append(best)
    return pool.loc[chosen]


def _unseen_settings(runs: pd.DataFrame, replayed: pd.DataFrame) -> list[str]:
    """`key=value` of the adopted trials that no replayed trial has."""
    unseen = []
    for column in runs.columns:
        key = column.removeprefix("params.")
        if key != column and key not in _NOT_NUMERIC:
            levels = set(runs[column].dropna().astype(str)) - set(replayed[column].dropna().astype(str))
            unseen += [f"{key}={level}" for level in sorted(levels)]
    return unseen


@dataclass(frozen=True)
class _Said:
    """All that a trial says, in a form that compares."""

    numbers: Mapping[tuple[str, int], float]
    """(metric, step) -> value; facts as `facts/<name>` at step 0."""
    tables: Mapping[str, pd.DataFrame]
    arrays: Mapping[str, Mapping[str, np.ndarray]]


def replay(run: Mapping[str, Any] | pd.Series, place: TrackingPlace, project: Path, trial_function: TrialFunction
           ) -> int:
    """Compute a stored trial again and compare everything that it says with what is stored.

    Args:
        run: a row of `load_runs`.

    Returns:
        How many numbers were compared.

    Raises:
        AdoptionError: something differs, or the trial cannot be computed as it was.
    """
    import torch

    run_id = str(run["run_id"])
    placed = _placed_config(run, place, project)
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            replayed = _said(trial_function(placed, Path(folder)))
    finally:
        torch.set_num_threads(num_threads)
    withheld = str(run.get("tags.medst.withheld") or "")
    differences = list(_differences(_stored(run, replayed, place), replayed, withheld))
    if differences:
        rest = len(differences) - MAX_DIFFERENCES
        more = f"\n  and {rest} more" if rest > 0 else ""
        raise AdoptionError(f"refused: {run['name']} (run {run_id}) comes out differently under the present code\n  "
                            + "\n  ".join(differences[:MAX_DIFFERENCES]) + more)
    return len(replayed.numbers) + sum(frame.size for frame in replayed.tables.values()) + sum(
        array.size for group in replayed.arrays.values() for array in group.values())


def _placed_config(run: Mapping[str, Any] | pd.Series, place: TrackingPlace, project: Path) -> Config:
    """The settings of a stored trial, with absolute paths to the data that it was computed on.

    Raises:
        AdoptionError: the data there are others.
        StoreError: there are none, or they have to be prepared anew.
    """
    from medst.data.store import open_store

    config = load_config_of(str(run["run_id"]), place.uri)
    placed = override(config, absolute_places(config, project))
    fingerprint = open_store(placed.data).fingerprint
    if fingerprint != run["data_fingerprint"]:
        raise AdoptionError(f"refused: the data in {config.data.root} ({fingerprint}) are not those of run "
                            f"{run['run_id']} ({run['data_fingerprint']}); a replay would compare the two")
    return placed


def _said(records: Iterator[Any]) -> _Said:
    numbers: dict[tuple[str, int], float] = {}
    tables: dict[str, pd.DataFrame] = {}
    arrays: dict[str, Mapping[str, np.ndarray]] = {}
    for record in records:
        match record:
            case Metrics(step, values):
                numbers.update({(name, step): float(value) for name, value in values.items()})
            case Facts(values):
                numbers.update({(f"{FACT_METRIC_PREFIX}{name}", 0): float(value) for name, value in values.items()
                                if isinstance(value, int | float | np.number) and not isinstance(value, bool)})
            case Table():
                # As the store gives it back.
                buffer = io.BytesIO()
                record.frame.to_parquet(buffer, index=False)
                tables[record.name] = pd.read_parquet(buffer)
            case Arrays():
                arrays[record.name] = record.arrays
    return _Said(numbers, tables, arrays)


def _stored(run: Mapping[str, Any] | pd.Series, like: _Said, place: TrackingPlace) -> _Said:
    """What the store holds of a trial, apart from its costs and from what a search added."""
    run_id = str(run["run_id"])
    artifacts = list_artifacts(run_id, place.uri)
    # A metric that is no number anywhere looks like one that the run does not have.
    metrics = {str(name).removeprefix("metrics.") for name, value in run.items()
               if str(name).startswith("metrics.") and pd.notna(value)} | {name for name, _ in like.numbers}
    history = metric_history([run_id], sorted(name for name in metrics
                                              if not name.startswith((COST_PREFIX, RUNG_METRIC_PREFIX))), place.uri)
    return _Said(
        {(name, int(step)): float(value) for name, step, value in
         history[["name", "step", "value"]].itertuples(index=False)},
        {name: load_table(run_id, name, place.uri) for name in _named(artifacts, TABLE_SUFFIX)},
        {name: load_arrays(run_id, name, place.uri) for name in _named(artifacts, ARRAYS_SUFFIX)})


def _named(artifacts: Sequence[str], suffix: str) -> list[str]:
    return [path.removesuffix(suffix) for path in artifacts if path.endswith(suffix)]


def _differences(stored: _Said, replayed: _Said, withheld: str) -> Iterator[str]:
    """What is not equal, as lines."""
    for key in sorted(stored.numbers.keys() | replayed.numbers.keys(), key=lambda key: (key[1], key[0])):
        before, now = stored.numbers.get(key), replayed.numbers.get(key)
        if before is None or now is None:
            yield f"{key[0]} at step {key[1]}: only {'now' if before is None else 'then'}"
        elif not _is_equal(before, now):
            yield f"{key[0]} at step {key[1]}: {before!r} then, {now!r} now"
    for name in sorted(stored.tables.keys() ^ replayed.tables.keys() | stored.arrays.keys() ^ replayed.arrays.keys()):
        is_stored = name in stored.tables or name in stored.arrays
        if is_stored or name not in withheld:
            yield f"{name}: only {'then' if is_stored else 'now'}"
    for name in sorted(stored.tables.keys() & replayed.tables.keys()):
        try:
            pd.testing.assert_frame_equal(stored.tables[name], replayed.tables[name], check_exact=True)
        except AssertionError as error:
            yield f"table {name}: {' '.join(str(error).split())[:200]}"
    for name in sorted(stored.arrays.keys() & replayed.arrays.keys()):
        then, today = stored.arrays[name], replayed.arrays[name]
        unequal = then.keys() ^ today.keys() | {
            part for part in then.keys() & today.keys()
            if not np.array_equal(then[part], today[part], equal_nan=then[part].dtype.kind in "fc")}
        if unequal:
            yield f"arrays {name}: {', '.join(sorted(unequal))}"


def _is_equal(before: float, now: float) -> bool:
    if math.isnan(before) or math.isnan(now):
        return math.isnan(before) and math.isnan(now)
    return before == max(-_LARGEST, min(_LARGEST, now))


# ---- Keys --------------------------------------------------------------------------------------------------------


def _keys_under_present_code(runs: pd.DataFrame, place: TrackingPlace) -> tuple[dict[str, str], list[str]]:
    """Key as tracked -> key that the same trial has now; and, for trials without one, why."""
    keys: dict[str, str] = {}
    refused: list[str] = []
    for _, run in runs.iterrows():
        try:
            config: Config = load_config_of(str(run["run_id"]), place.uri)
        except ConfigError as error:
            refused.append(f"{run['name']}: {error}")
            continue
        keys[str(run["key"])] = trial_key(config, str(run["data_fingerprint"]), str(run["tags.medst.torch"]))
    return keys, refused
