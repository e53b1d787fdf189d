"""The tracker: complete and never doubled however it is killed; failures, privacy, absent servers, reading."""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from tracking_fixtures import NUM_STEPS, describe, fake_trial, fresh_place

from medst.config import Config
from medst.records import Arrays, Facts, Metrics, Progress, Record, Table
from medst.tracking import (
    TrackingPlace,
    TrialState,
    drain,
    drain_spools,
    ensure_study_run,
    list_artifacts,
    list_studies,
    load_arrays,
    load_config_of,
    load_plan,
    load_runs,
    load_table,
    log_study_artifacts,
    metric_history,
    reading,
    torch_version,
    track,
    trials,
)
from medst.tracking.connection import TrackingError, client
from medst.tracking.privacy import without_identifiers
from medst.tracking.spool import Spool, has_spool, is_held, spool_lock, spool_path


@pytest.fixture
def place(tmp_path: Path) -> TrackingPlace:
    return fresh_place(tmp_path / "project")


def run(place: TrackingPlace, records: Iterator[Record] | None = None, **changes: Any) -> list[Record]:
    description = describe(**changes)
    return list(track(fake_trial(description.config, None) if records is None else records, description, place))


def content(place: TrackingPlace, key: str = "key") -> dict[str, Any]:
    """All that an undisturbed and a disturbed trial must have in common."""
    frame = load_runs(place.uri, place.experiment)
    frame = frame[frame["key"] == key]
    assert len(frame) == 1
    row = frame.iloc[0]
    run_id = row["run_id"]
    metrics = [column.removeprefix("metrics.") for column in frame.columns
               if column.startswith("metrics.") and not column.startswith("metrics.cost/")]
    points = [(name, point.step, repr(point.value)) for name in sorted(metrics)
              for point in client(place.uri).get_metric_history(run_id, name)]
    return {
        "points": sorted(points), "state": row["state"], "status": row["status"],
        "params": {column: row[column] for column in frame.columns if column.startswith("params.")},
        "tags": {name: row[f"tags.{name}"] for name in ("medst.state", "study.overview", "fact.store")},
        "artifacts": list_artifacts(run_id, place.uri),
        "table": load_table(run_id, "predictions/scores", place.uri).to_dict("list"),
        "map": load_arrays(run_id, "maps", place.uri)["map"].tolist(),
        "config": load_config_of(run_id, place.uri),
    }


def test_a_trial_is_written_down_whole(place: TrackingPlace) -> None:
    assert len(run(place)) == 1 + 2 * NUM_STEPS + 3
    found = content(place)
    assert found["state"] == "finished" and found["status"] == "FINISHED"
    assert [step for name, step, _ in found["points"] if name == "train/loss"] == list(range(1, NUM_STEPS + 1))
    assert ("test/undefined", NUM_STEPS, "nan") in found["points"]
    assert ("facts/parameters", 0, "12.0") in found["points"]
    assert found["artifacts"] == ["config.yaml", "environment.json", "maps.npz", "predictions/scores.parquet"]
    assert found["params"]["params.training.epochs"] == "8.0"
    assert found["config"] == Config()
    row = load_runs(place.uri, place.experiment, study="overview").iloc[0]
    assert (row["name"], row["arm"], row["seed"], row["key"]) == ("full · seed 0", "full", 0, "key")
    assert row["seconds"] > 0
    assert not has_spool(place.folder, "key"), "a finished trial leaves no spool"


def test_a_finished_trial_is_not_written_again(place: TrackingPlace) -> None:
    run(place)
    before = content(place)
    assert run(place, iter([Metrics(1, {"train/loss": 5.0})])) == []
    assert content(place) == before


class Killed(BaseException):
    """A kill: nothing but the process's own memory is lost."""


class Assassin:
    """Lets a number of operations on disk and store pass and kills before or after the next one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.remaining = math.inf
        self.is_after = False
        self.count = 0
        real_client = drain.client

        class Deadly:
            def __init__(self, store: Any) -> None:
                self._store = store

            def __getattr__(deadly, name: str) -> Any:
                method = getattr(deadly._store, name)
                is_writing = name in ("create_run", "log_batch", "log_artifact", "set_terminated", "update_run",
                                      "delete_tag")
                return self.guard(method) if is_writing else method

        monkeypatch.setattr(drain, "client", lambda uri: Deadly(real_client(uri)))
        for name in ("append", "put", "remove"):
            monkeypatch.setattr(Spool, name, self.guard(getattr(Spool, name)))

    def guard(self, operation: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(*arguments: Any, **named: Any) -> Any:
            self.count += 1
            self.remaining -= 1
            if self.remaining < 0 and not self.is_after:
                raise Killed
            result = operation(*arguments, **named)
            if self.remaining < 0:
                raise Killed
            return result
        return guarded


@pytest.fixture(scope="module")
def crash_place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrackingPlace]:
    """One store for all kills, a key for each: opening a store costs more than a trial. In memory where that can be:
    every commit waits for the disk."""
    memory = Path("/dev/shm")
    has_memory = memory.is_dir() and os.access(memory, os.W_OK)
    folder = Path(tempfile.mkdtemp(dir=memory)) if has_memory else tmp_path_factory.mktemp("killed")
    yield fresh_place(folder)
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def undisturbed(crash_place: TrackingPlace) -> dict[str, Any]:
    run(crash_place, key="undisturbed")
    return content(crash_place, "undisturbed")


KILLS = itertools.count()
LAST_OPERATION = 45


def flush_at_once(writer: trials._Writer) -> None:
    """Not beside the trial: every operation has its place in the order."""
    writer._drain.attempt()
    writer._flushed = time.monotonic()


def disturbed(place: TrackingPlace, kills: list[tuple[int, bool, bool, bool]]) -> tuple[dict[str, Any], int]:
    """Content after a trial that was killed: (operations that pass, after?, torn line?, other machine?) each."""
    key = f"killed{next(KILLS)}"
    spool, checkpoints = spool_path(place.folder, key), place.folder / "checkpoints" / key
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(trials, "FLUSH_SECONDS", 0.0)
        monkeypatch.setattr(trials._Writer, "_flush", flush_at_once)
        assassin = Assassin(monkeypatch)
        for passing, is_after, is_torn, is_elsewhere in kills:
            checkpoints.mkdir(parents=True, exist_ok=True)
            assassin.remaining, assassin.is_after = passing, is_after
            try:
                run(place, fake_trial(Config(), checkpoints), key=key)
            except Killed:
                if is_torn and (spool / "entries.jsonl").exists():
                    with (spool / "entries.jsonl").open("ab") as file:
                        file.write(b'{"number": 3, "ti')
                # Beside a server another machine waits until the run shows no sign of life.
                if is_elsewhere and place.is_local:
                    shutil.rmtree(spool, ignore_errors=True)
                    shutil.rmtree(checkpoints)
            assassin.remaining = math.inf
            if is_after:
                drain_spools(place)
        checkpoints.mkdir(parents=True, exist_ok=True)
        run(place, fake_trial(Config(), checkpoints), key=key)
        drain_spools(place)
        assert not has_spool(place.folder, key)
        return content(place, key), assassin.count


@settings(max_examples=12)
@given(kills=st.lists(st.tuples(st.integers(0, LAST_OPERATION), st.booleans(), st.booleans(), st.booleans()),
                      min_size=1, max_size=3))
def test_whatever_is_killed_whenever_the_store_is_as_if_nothing_had_happened(
        kills: list[tuple[int, bool, bool, bool]], undisturbed: dict[str, Any], crash_place: TrackingPlace) -> None:
    found, _ = disturbed(crash_place, kills)
    assert found == undisturbed


def test_the_kills_reach_the_last_operation(crash_place: TrackingPlace, undisturbed: dict[str, Any]) -> None:
    found, count = disturbed(crash_place, [])
    assert found == undisturbed
    assert LAST_OPERATION - 5 <= count <= LAST_OPERATION


@pytest.mark.slow
def test_a_kill_at_every_operation(crash_place: TrackingPlace, undisturbed: dict[str, Any]) -> None:
    for passing, is_after, is_elsewhere in itertools.product(range(LAST_OPERATION), (False, True), (False, True)):
        found, _ = disturbed(crash_place, [(passing, is_after, False, is_elsewhere)])
        assert found == undisturbed, (passing, is_after, is_elsewhere)


def test_a_failed_trial_keeps_reason_traceback_and_config_and_can_be_tried_again(place: TrackingPlace) -> None:
    def failing() -> Iterator[Record]:
        yield Metrics(1, {"train/loss": 1.0})
        raise FloatingPointError("step 2: loss/local is not finite")

    with pytest.raises(FloatingPointError):
        run(place, failing())
    row = load_runs(place.uri, place.experiment).iloc[0]
    assert (row["state"], row["status"]) == ("failed", "FAILED")
    assert row["reason"] == "FloatingPointError: step 2: loss/local is not finite"
    path = reading.artifact_path(row["run_id"], "failure/traceback.txt", place.uri)
    assert "in failing" in path.read_text()
    assert "Failed" in row["tags.mlflow.note.content"] and "loss/local" in row["tags.mlflow.note.content"]
    assert load_config_of(row["run_id"], place.uri) == Config()

    run(place)
    again = load_runs(place.uri, place.experiment)
    assert len(again) == 1
    assert again.iloc[0]["state"] == "finished" and again.iloc[0]["reason"] is None
    assert "Failed" not in again.iloc[0]["tags.mlflow.note.content"]
    assert again.iloc[0]["tags.medst.attempts"] == "2"
    assert metric_history([row["run_id"]], ["train/loss"], place.uri)["value"].iloc[0] == 1.0, "the first value stands"


def test_a_consumer_that_stops_leaves_an_interrupted_run(place: TrackingPlace) -> None:
    stream = track(fake_trial(Config(), None), describe(), place)
    list(itertools.islice(stream, 4))
    assert is_held(place, "key")
    stream.close()
    assert not is_held(place, "key")
    row = load_runs(place.uri, place.experiment).iloc[0]
    assert (row["state"], row["status"], row["tags.medst.state"]) == ("missing", "KILLED", "interrupted")


def test_an_absent_server_delays_and_loses_nothing(place: TrackingPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(uri: str) -> Any:
        raise MlflowException("connection refused")

    with monkeypatch.context() as server:
        server.setattr(drain, "client", away)
        server.setattr(trials, "find_experiment", lambda uri, name: away(uri))
        server.setattr(trials, "PATIENCE_SECONDS", 0.0)
        assert len(run(place)) == 1 + 2 * NUM_STEPS + 3, "the trial goes on"
        assert drain_spools(place).waiting == ("key",)
    assert load_runs(place.uri, place.experiment).empty
    assert drain_spools(place).completed == ("key",)
    assert content(place)["state"] == "finished"
    assert drain_spools(place).completed == ()


def test_an_absent_server_is_waited_for_once_however_much_waits_for_it(
    place: TrackingPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def away(uri: str) -> Any:
        asked.append(uri)
        raise MlflowException("connection refused")

    with monkeypatch.context() as server:
        server.setattr(drain, "client", away)
        server.setattr(trials, "find_experiment", lambda uri, name: away(uri))
        server.setattr(trials, "PATIENCE_SECONDS", 0.0)
        keys = {"one", "two", "three"}
        for key in keys:
            assert list(track(fake_trial(Config(), None), describe(key), place))
        asked.clear()
        began = time.monotonic()
        assert set(drain_spools(place, patience_seconds=1.0).waiting) == keys
        assert len(asked) == 2 and time.monotonic() - began >= 1.0
    assert set(drain_spools(place).completed) == keys


class Store:
    """A store whose batches pass when they are let, or are refused."""

    def __init__(self, store: Any, refusal: MlflowException | None = None) -> None:
        self._store = store
        self._refusal = refusal
        self.is_open = threading.Event()
        self.waits = threading.Event()

    def log_batch(self, *arguments: Any, **named: Any) -> None:
        self.waits.set()
        assert self.is_open.wait(60)
        if self._refusal is not None:
            raise self._refusal
        self._store.log_batch(*arguments, **named)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


def test_a_slow_store_does_not_hold_a_trial_up(place: TrackingPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "FLUSH_SECONDS", 0.0)
    stream = track(fake_trial(Config(), None), describe(), place)
    next(stream)
    slow = Store(client(place.uri))
    monkeypatch.setattr(drain, "client", lambda uri: slow)
    passed = 1 + len(list(itertools.islice(stream, 2 * NUM_STEPS)))
    assert slow.waits.wait(60) and passed == 1 + 2 * NUM_STEPS, "a batch waits, the trial does not"
    slow.is_open.set()
    assert len(list(stream)) == 3
    found = content(place)
    assert found["state"] == "finished"
    assert [step for name, step, _ in found["points"] if name == "train/loss"] == list(range(1, NUM_STEPS + 1))


def test_what_the_store_refuses_beside_the_trial_reaches_it(place: TrackingPlace, monkeypatch: pytest.MonkeyPatch
                                                            ) -> None:
    monkeypatch.setattr(trials, "FLUSH_SECONDS", 0.0)
    refusal = MlflowException("no such metric", error_code=INVALID_PARAMETER_VALUE)
    stream = track(fake_trial(Config(), None), describe(), place)
    next(stream)
    store = Store(client(place.uri), refusal)
    store.is_open.set()
    monkeypatch.setattr(drain, "client", lambda uri: store)
    passed = []
    with pytest.raises(MlflowException, match="no such metric"):
        for record in stream:
            passed.append(record)
            if isinstance(record, Metrics):
                for thread in threading.enumerate():
                    if thread.name == "tracking":
                        thread.join(60)
    assert [type(record) for record in passed] == [Progress, Metrics], "the next record finds out"


def test_a_refusal_of_the_store_is_not_taken_for_absence(place: TrackingPlace) -> None:
    with pytest.raises(ValueError, match="train/ä#"):
        run(place, iter([Metrics(1, {"train/ä#": 1.0})]))
    assert load_runs(place.uri, place.experiment).iloc[0]["state"] == "failed"


def test_private_artifacts_of_credentialed_data_stay_home(place: TrackingPlace, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_text("w")
    table = pd.DataFrame({"row": [1, 2]})

    def records() -> Iterator[Record]:
        yield Table("patients", table, is_private=True)
        yield Arrays("attention", {"a": table["row"].to_numpy()})
        yield Table("counts", table)

    for key, is_credentialed, is_allowed in (("home", True, False), ("switch", True, True), ("phantom", False, False)):
        list(track(records(), describe(key, is_credentialed=is_credentialed, is_private_tracked=is_allowed), place,
                   model_folder=tmp_path / "model"))
    frame = load_runs(place.uri, place.experiment).set_index("key")
    everything = {"patients.parquet", "attention.npz", "model/weights"}
    for key in ("switch", "phantom"):
        assert everything <= set(list_artifacts(frame.loc[key, "run_id"], place.uri))
    kept = set(list_artifacts(frame.loc["home", "run_id"], place.uri))
    assert not everything & kept and "counts.parquet" in kept
    assert frame.loc["home", "tags.medst.withheld"] == "patients.parquet, attention.npz, model"


def test_identifiers_are_taken_out_of_tracebacks() -> None:
    text = "files/p10/p10000032/s50414267/02aa804e-bde0afdd-112c0b34-7bc16630-4e384014.jpg row 17"
    assert without_identifiers(text) == "files/p10/withheld/withheld/withheld.jpg row 17"


@pytest.mark.parametrize(("text", "kept"), [
    ("no report of patient 10000032 (study 50414267)", "no report of patient withheld (study withheld)"),
    ("train/patient00001/study1/view1_frontal.jpg is cut off", "train/withheld.jpg is cut off"),
    ("patient64591-study12-view2_lateral and patient7", "withheld and withheld"),
    ("00436515-870c-4b36-a041-de91049b9ab4.dcm", "withheld.dcm"),
    ("[Patient41208] of 0004CFAB-14FD-4E49-80BA-63A80B6BDDD6", "[withheld] of withheld"),
    *[(harmless, harmless) for harmless in ("3 patients, 128 pairs", "step 1000000", "2150-01-01", "inpatient7")],
])
def test_identifiers_of_every_data_set_are_known(text: str, kept: str) -> None:
    assert without_identifiers(text) == kept


def test_hundreds_of_metrics_params_and_facts_fit_the_batches(place: TrackingPlace) -> None:
    run(place, iter([Metrics(1, {f"m/{index}": float(index) for index in range(2500)}),
                     Facts({f"text{index}": "x" for index in range(250)})]))
    row = load_runs(place.uri, place.experiment).iloc[0]
    assert row["metrics.m/2499"] == 2499.0 and row["tags.fact.text249"] == "x"


def test_all_pages_are_read(place: TrackingPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    for index in range(7):
        run(place, iter([]), key=f"key{index}")
    monkeypatch.setattr(reading, "_PAGE", 3)
    assert sorted(load_runs(place.uri, place.experiment)["key"]) == [f"key{index}" for index in range(7)]


def test_a_lost_answer_to_a_create_request_leaves_one_run(place: TrackingPlace, monkeypatch: pytest.MonkeyPatch
                                                          ) -> None:
    create = MlflowClient.create_run

    def asked_twice(*arguments: Any, **options: Any) -> Any:
        create(*arguments, **options)
        return create(*arguments, **options)

    monkeypatch.setattr(MlflowClient, "create_run", asked_twice)
    run(place)
    assert len(load_runs(place.uri, place.experiment)) == 1


def test_a_second_process_waits_for_the_first(place: TrackingPlace) -> None:
    lock = spool_lock(place, "key")
    lock.acquire()
    assert is_held(place, "key") and not is_held(place, "other")
    assert drain_spools(place).completed == ()
    lock.release()
    assert not is_held(place, "key")


def test_a_run_without_a_sign_of_life_counts_as_missing(place: TrackingPlace) -> None:
    stream = track(fake_trial(Config(), None), describe(), place)
    next(stream)
    found = next(reading.search_all_runs(place.uri, place.experiment, ""))
    beat = float(found.data.tags.get("medst.heartbeat", found.info.start_time / 1000))
    assert reading.state_of(found, now=beat + 1.0) is TrialState.RUNNING
    assert reading.state_of(found, now=beat + reading.STALE_SECONDS + 1.0) is TrialState.MISSING
    stream.close()


def test_the_run_of_a_study(place: TrackingPlace, tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match="no study 'overview'"):
        load_plan("overview", place.uri, place.experiment)
    first = ensure_study_run(place.uri, place.experiment, "overview", "## one", {"seeds": [0]}, is_running=True)
    again = ensure_study_run(place.uri, place.experiment, "overview", "## two", {"seeds": [0, 1]}, is_running=False)
    assert first == again and list_studies(place.uri, place.experiment) == ["overview"]
    assert load_plan("overview", place.uri, place.experiment) == {"seeds": [0, 1]}
    assert client(place.uri).get_run(first).data.tags["mlflow.note.content"] == "## two"
    tables = tmp_path / "tables"
    tables.mkdir()
    (tables / "table.md").write_text("| a |")
    log_study_artifacts("overview", tables, place.uri, place.experiment)
    assert "results/table.md" in list_artifacts(first, place.uri)
    assert load_runs(place.uri, place.experiment).empty, "the run of a study is no trial"


def test_the_spool_takes_off_a_torn_line(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", {"key": "key"})
    spool.append(time=1, metrics={"loss": float("inf")})
    spool.close()
    with (tmp_path / "spool" / "entries.jsonl").open("ab") as file:
        file.write(b'{"number": 2, "ti')
    again = Spool(tmp_path / "spool", {"key": "key"})
    assert [entry.number for entry in again.entries] == [1] and again.attempt == 2
    assert again.append(time=2).number == 2
    again.close()
    lines = (tmp_path / "spool" / "entries.jsonl").read_text().splitlines()
    assert [json.loads(line)["number"] for line in lines] == [1, 2]


def test_the_version_of_torch_is_known_without_importing_it() -> None:
    import torch

    assert torch_version() == torch.__version__
